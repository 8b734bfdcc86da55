"""Fixtures of the plug-in's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.authenticator.support import Authority
from tests.unit.plugin.support import LoginStandIn, Plugin


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def keystone(authority: Authority) -> Iterator[LoginStandIn]:
    stand_in = LoginStandIn(authority.server_context())
    yield stand_in
    stand_in.close()


@pytest.fixture
def plugin(tmp_path: Path, authority: Authority) -> Plugin:
    (tmp_path / "home").mkdir()
    return Plugin(tmp_path / "home", authority.ca)
