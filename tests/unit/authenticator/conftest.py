"""Fixtures of the authenticator's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.unit.authenticator.support import Authority, KeystoneStandIn, StandIn

# How long an example takes says nothing on a machine that does other things as well.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def keystone() -> Iterator[KeystoneStandIn]:
    stand_in = KeystoneStandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture
def webhook(authority: Authority) -> Iterator[StandIn]:
    stand_in = StandIn(authority.server_context())
    yield stand_in
    stand_in.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
