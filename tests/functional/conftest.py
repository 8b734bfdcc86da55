"""A real Keystone, and the authenticator in front of it. Whoever cannot have them sees a failure, not a skip."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.keystone import Keystone
from tests.unit.authenticator.support import Authority, Service, serving

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def keystone() -> Iterator[Keystone]:
    with Keystone() as running:
        yield running


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs that pip makes in a fresh environment; without what other logins need."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    yaml_too = f"pyyaml=={importlib.metadata.version('pyyaml')}"
    subprocess.run([folder / "bin" / "pip", "install", *quiet, PROJECT, yaml_too], check=True)
    return folder / "bin"


Starter = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path, authority: Authority, keystone: Keystone) -> Iterator[Starter]:
    """Start an authenticator with these settings."""
    begun = []

    def begin(**settings: Any) -> Service:
        folder = tmp_path / str(len(begun))
        folder.mkdir()
        context = serving(folder, authority, **{"keystone": {"url": keystone.url, "ca": str(keystone.ca)}, **settings})
        service = context.__enter__()
        begun.append((context, service))
        return service

    yield begin
    for context, service in begun:
        context.__exit__(None, None, None)
        assert "Traceback" not in service.log
        assert "gAAAA" not in service.log
