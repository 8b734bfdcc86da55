"""A clock that is set back or forth: no new token is one of the future, and none outlives its end."""

from __future__ import annotations

import time

import pytest

from keystone_authenticator.authentication import Authenticator, has_keystone_shape
from tests.unit.authenticator.support import KeystoneStandIn, fernet_token
from tests.unit.authenticator.test_authentication import Asker, run

RIGHT = time.time


def jump(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """What the system says jumps; the monotonic clock goes on."""
    monkeypatch.setattr(time, "time", lambda: RIGHT() + seconds)


@pytest.mark.parametrize("seconds", [-86400, -3600, 0, 3600])
def test_a_new_token_is_keystones_whatever_the_clock_does(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    token = fernet_token()
    jump(monkeypatch, seconds)
    assert has_keystone_shape(token)


@pytest.mark.slow
def test_a_clock_that_is_set_back_lengthens_no_tokens_life(
    keystone: KeystoneStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = keystone.issue(expires=1.0)

    async def story(_: Authenticator, ask: Asker) -> None:
        assert (await ask(token))["authenticated"]
        jump(monkeypatch, -3600)
        assert (await ask(token))["authenticated"]
        time.sleep(1.1)
        keystone.behaviour = lambda *_: (503, b"")
        assert "error" in await ask(token)

    run(keystone, story)


def test_a_clock_that_is_set_forth_costs_calls_and_refuses_nobody(
    keystone: KeystoneStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        jump(monkeypatch, 7200)
        for _attempt in range(3):
            assert (await ask(token))["authenticated"]
        assert keystone.calls("/auth/tokens") == 3
        jump(monkeypatch, 0)
        for _attempt in range(3):
            assert (await ask(token))["authenticated"]
        assert keystone.calls("/auth/tokens") == 3

    run(keystone, story)
