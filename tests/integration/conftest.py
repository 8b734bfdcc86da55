"""The scenarios in a model of a real Juju's, or a loud word on why not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import pytest_asyncio
from pytest_operator.plugin import OpsTest

pytest.register_assert_rewrite("tests.scenarios")  # before anything here imports it

from tests import scenarios  # noqa: E402
from tests.integration import commands  # noqa: E402
from tests.integration.place import RealJuju  # noqa: E402

WHY_NOT = commands.look_around()
PROJECT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    for item in here if WHY_NOT else []:
        item.add_marker(pytest.mark.skip(reason=f"NOT TESTED ON A REAL JUJU: {WHY_NOT}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if WHY_NOT:
        terminalreporter.section("NOT TESTED ON A REAL JUJU", sep="!", red=True)
        terminalreporter.line(f"{len(scenarios.STORY)} steps on each kind of cluster were skipped: {WHY_NOT}.")
        terminalreporter.line(
            "The stand-in tells the same steps (tests/machine). tests/integration/README.md says how."
        )


@pytest_asyncio.fixture(scope="module")
async def story(
    request: pytest.FixtureRequest, ops_test: OpsTest, tmp_path_factory: pytest.TempPathFactory
) -> scenarios.Story:
    """The model is the module's own, or the one that --model names; what is not in it is deployed."""
    kind: scenarios.Kind = request.module.KIND
    named = os.environ.get("CHARM")
    charm = Path(named).resolve() if named else await ops_test.build_charm(PROJECT)
    application, _ = commands.CONTROL_PLANES[kind.layout]
    place = RealJuju(
        ops_test, asyncio.get_running_loop(), kind, application, charm.resolve(), tmp_path_factory.mktemp("operator")
    )
    await asyncio.to_thread(place.furnish)
    return await asyncio.to_thread(scenarios.begin, place)
