"""A real Keystone, and the authenticator in front of it. Whoever cannot have them sees a failure, not a skip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.keystone import Keystone
from tests.unit.authenticator.support import Authority, Service, serving


@pytest.fixture(scope="session")
def keystone() -> Iterator[Keystone]:
    with Keystone() as running:
        yield running


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


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
