"""Which tokens may go to Keystone at all."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone_authenticator.authentication import has_keystone_shape
from tests.unit.authenticator.support import fernet_token, jws

YEAR = 366 * 86400
KEYSTONE = {"sub": "u1", "iat": 1, "exp": 2, "openstack_methods": ["password"]}


@pytest.mark.parametrize("blocks", [1, 2, 8, 20])
def test_a_fernet_token_is_keystones_with_padding_and_without(blocks: int) -> None:
    token = fernet_token(blocks=blocks)
    assert has_keystone_shape(token)
    assert has_keystone_shape(token + "=" * (-len(token) % 4))


def test_a_jws_of_keystones_is_keystones() -> None:
    assert has_keystone_shape(jws({"alg": "ES256", "typ": "JWT"}, KEYSTONE))


def raw(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def stamped(content: bytes) -> bytes:
    return b"\x80" + int(time.time()).to_bytes(8, "big") + content


GOOD = fernet_token(blocks=1)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "admin::secret",
        "x" * 200,
        "gAAAAA",
        GOOD[:-1],
        GOOD + "A",
        GOOD + "====",
        GOOD + " ",
        " " + GOOD,
        GOOD.replace(GOOD[20], "+", 1),
        GOOD[:10] + "ä" + GOOD[11:],
        GOOD + "\n",
        raw(stamped(bytes(16 + 32))),
        raw(stamped(bytes(16 + 17 + 32))),
        raw(b"\x81" + stamped(bytes(64))[1:]),
        fernet_token(time.time() + 3600),
        fernet_token(time.time() - 10 * YEAR),
        fernet_token(0),
        raw(b"\x80" + b"\xff" * 8 + bytes(64)),
        fernet_token(blocks=2000),
        jws({"alg": "RS256"}, KEYSTONE, 256),
        jws({"alg": "ES256"}, {"sub": "system:serviceaccount:a:b", "iss": "https://kubernetes.default.svc"}),
        jws({"alg": "ES256"}, {"openstack_methods": "password"}),
        jws({"alg": "ES256"}, {"openstack_methods": [1]}),
        jws({"alg": "ES256"}, KEYSTONE, 63),
        jws({"alg": "none"}, KEYSTONE, 0),
        jws({"alg": "ES256"}, KEYSTONE) + ".x",
        "eyJ.eyJ.eyJ",
        "..",
    ],
    ids=lambda _: "",  # the tokens hold random bytes, and names of tests must be the same every time
)
def test_anything_else_is_not(token: str) -> None:
    assert not has_keystone_shape(token)


def test_the_last_bits_have_one_spelling() -> None:
    token = raw(stamped(bytes(16 + 16 + 32)))
    assert len(token) % 4
    last = token[-1]
    others = [token[:-1] + letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef" if letter != last]
    assert has_keystone_shape(token)
    assert not any(
        has_keystone_shape(other)
        for other in others
        if base64.urlsafe_b64decode(other + "=" * (-len(other) % 4)) == base64.urlsafe_b64decode(token + "==")
    )


@given(st.text())
def test_no_text_makes_it_fail(text: str) -> None:
    has_keystone_shape(text)
    has_keystone_shape("gAAAAA" + text)
    has_keystone_shape("eyJ" + text)
