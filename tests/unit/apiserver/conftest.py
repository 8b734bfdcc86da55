"""Machines for the wiring's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.apiserver.support import Machine, Tree, certificate


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A machine's files; nothing runs."""
    return Tree(tmp_path / "root")


@pytest.fixture(scope="session")
def tls() -> tuple[bytes, bytes]:
    """The API server's certificate and key."""
    return certificate()


@pytest.fixture
def machine(tmp_path: Path, tls: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with a running API server that has nothing of ours."""
    machine = Machine(tmp_path / "root", tls)
    monkeypatch.setenv("PATH", machine.systemd.path)
    machine.systemd.systemctl(["start", machine.layout.service])
    machine.systemd.asked.clear()
    yield machine
    machine.systemd.close()
