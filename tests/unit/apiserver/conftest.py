"""Machines for the wiring's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.apiserver.support import KINDS, Machine, Tree, certificate, shells


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every shell, layout and case with each other are for `make test`; `make check` has each case and each layout."""
    for item in items:
        spec = getattr(item, "callspec", None)
        if spec is None:
            continue
        another_shell = spec.params.get("shell", shells()[0]) != shells()[0]
        another_kind = spec.params.get("tree", KINDS[0]) != KINDS[0]
        if another_shell or (another_kind and spec.params.keys() - {"tree", "shell"}):
            item.add_marker("slow")


@pytest.fixture(params=KINDS)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    """A machine's files, in each layout; nothing runs."""
    return Tree(tmp_path / "root", request.param)


@pytest.fixture
def charmed(tmp_path: Path) -> Tree:
    """A machine's files where our flags are a block among others'."""
    return Tree(tmp_path / "root", "charmed")


@pytest.fixture
def canonical(tmp_path: Path) -> Tree:
    """A machine's files where our flags take the place of others'."""
    return Tree(tmp_path / "root", "canonical")


@pytest.fixture(scope="session")
def tls() -> tuple[bytes, bytes]:
    """The API server's certificate and key."""
    return certificate()


@pytest.fixture(params=KINDS)
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, tls: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    """A machine with a running API server that has nothing of ours, in each layout."""
    machine = Machine(tmp_path / "root", tls, request.param)
    monkeypatch.setenv("PATH", machine.systemd.path)
    machine.systemd.systemctl(["start", machine.layout.service])
    machine.systemd.asked.clear()
    yield machine
    machine.systemd.close()
