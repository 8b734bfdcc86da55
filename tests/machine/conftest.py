"""One stage for the tests of a module: they are one story, in the order in which they stand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import pack, prompt
from testbed.shell import Shell
from testbed.stage import Stage, StageOf
from testbed.static_pod import StaticPod
from tests import documents

pytest.register_assert_rewrite("tests.scenarios", "tests.machine.reader")  # before anything here imports them
from tests.machine.reader import Opener, Reader  # noqa: E402


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
def shell(stage: StageOf[Any]) -> Iterator[Shell]:
    """An operator's, on the module's stage."""
    with Shell(stage.juju, stage.cluster.folder / "shell") as made:
        prompt.furnish(made, stage)
        yield made


@pytest.fixture
def opened(stage: StageOf[Any], shell: Shell, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Readers of pages, in a folder with what these take for granted; the module's tables are by page.

    Those are `ANSWERS`, what a command answers where the page does not show it, and `NOT_RUN`, which are not run, and
    why.
    """
    answers = getattr(request.module, "ANSWERS", {})
    not_run = getattr(request.module, "NOT_RUN", {})
    words = {
        "https://keystone.example:5000/v3": stage.keystone.url,
        "https://kubernetes.example:6443": stage.cluster.server,
    }
    (tmp_path / "kubernetes-keystone").symlink_to(documents.PROJECT)
    (tmp_path / "keystone-ca.pem").write_bytes(stage.keystone.ca.read_bytes())
    (tmp_path / "kubernetes-ca.pem").write_bytes(stage.cluster.ca)
    with contextlib.ExitStack() as stack:

        def open_page(document: str) -> Reader:
            left_out = tuple(not_run.get(document, {}))
            reader = Reader(shell, tmp_path, document, answers.get(document, {}), left_out, dict(words))
            stack.callback(reader.close)
            return reader

        yield open_page


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
