"""One stage for the tests of a module: they are one story, in the order in which they stand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed import pack
from testbed.stage import Stage, StageOf
from testbed.static_pod import StaticPod

pytest.register_assert_rewrite("tests.scenarios", "tests.machine.reader")  # before anything here imports them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker("machine")


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.exit("the machine tests need root: they start machines with a systemd of their own", returncode=4)


@pytest.fixture(scope="session")
def charm() -> Path:
    """The packed charm."""
    return pack.pack()


@pytest.fixture(scope="module")
def stage(charm: Path) -> Iterator[Stage]:
    """A control plane and a Keystone, without the charm."""
    with Stage(charm) as made:
        yield made


@pytest.fixture(scope="module")
def kubeadm(charm: Path) -> Iterator[StageOf[StaticPod]]:
    """The same with a static pod, and a pod of somebody's."""
    with StageOf(StaticPod, charm) as made:
        made.cluster.pod("default", "web")
        yield made


@pytest.fixture(scope="module")
def token(stage: Stage) -> Callable[[], str]:
    """Tokens of alice, member of the project that the policies name."""
    project = stage.keystone.project("demo")
    alice = stage.keystone.member("alice", project)
    stage.cluster.pod("default", "web")
    return lambda: stage.keystone.token(alice, project)


@pytest.fixture(scope="module")
def wired(stage: Stage, request: pytest.FixtureRequest) -> Stage:
    """The stage with the charm in force, and the module's policy."""
    stage.unit.deploy(stage.charm, {**stage.keystone_options, "policy": request.module.POLICY})
    stage.unit.relate()
    assert stage.unit.status.name == "active"
    return stage
