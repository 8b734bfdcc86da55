"""The running authenticator while its Keystone is broken in every way: nobody waits long, and it ends with that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keystone_authenticator.authentication import MOST_CALLS, PROBE_EVERY
from tests.unit.authenticator.faulty import FAULTS, FaultyKeystone
from tests.unit.authenticator.support import Answer, Authority, Service, ask, eventually, serving, together

pytestmark = pytest.mark.slow

# What the answer to an unknown user's token says, word for word a part of it.
SAID = {
    "500": "Keystone answered with status 500",
    "503 with Retry-After": "Keystone answered with status 503",
    "429": "Keystone answered with status 429",
    "a proxy's login page": "a 401 came that is not Keystone's own",
    "a page in place of JSON": "Keystone's answer about a token was not understood",
    "half of the JSON": "Keystone's answer about a token was not understood",
    "another JSON": "Keystone's answer about a token was not understood",
    "refusing": "Keystone cannot be reached: Connection refused",
    "hanging after accept": "Keystone did not answer within 4 s",
    "silent before TLS": "Keystone did not answer within 4 s",
    "byte by byte": "Keystone did not answer within 4 s",
    "a head without end": "Keystone",
    "a body without end": "Keystone answered with more than",
    "reset on accept": "Keystone",
    "reset mid-answer": "Keystone",
    "closed mid-answer": "Keystone",
    "another's certificate": "its certificate is not trusted",
    "vanished": "Keystone did not answer within 4 s",
}


@pytest.fixture
def keystone(authority: Authority, tmp_path: Path) -> Iterator[FaultyKeystone]:
    made = FaultyKeystone(authority, Authority(tmp_path / "stranger", "stranger"))
    yield made
    made.close()


@pytest.fixture
def service(tmp_path: Path, authority: Authority, keystone: FaultyKeystone) -> Iterator[Service]:
    settings: dict[str, Any] = {"url": keystone.url, "ca": str(authority.ca)}
    with serving(tmp_path, authority, keystone=settings, token_cache_ttl=0.3) as running:
        yield running


def is_unknown(answer: Answer, fault: str) -> bool:
    return answer.code == 200 and answer.status["authenticated"] is False and SAID[fault] in answer.status["error"]


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_ails_keystone_nobody_waits_long_and_it_ends_with_the_fault(
    keystone: FaultyKeystone, service: Service, fault: str
) -> None:
    known, same = keystone.issue(name="known"), keystone.issue(name="same")
    unknown = [keystone.issue(name=f"unknown-{number}") for number in range(16)]
    # Several connections are open and idle when it happens, as they are in a cluster that is at work.
    warm = together(service, [known, *(keystone.issue(name=f"warm-{number}") for number in range(8))])
    assert all(answer.status["authenticated"] for answer in warm)
    time.sleep(0.4)  # past the cache's time, so that Keystone is asked about the known token as well
    keystone.fail(fault)
    keystone.asked.clear()
    keystone.most_at_once = 0

    answers = together(service, [known] * 4 + [same] * 10 + unknown)
    assert max(answer.seconds for answer in answers) < 5
    assert all(answer.status.get("authenticated") for answer in answers[:4]), answers[:4]
    assert all(is_unknown(answer, fault) for answer in answers[4:]), answers[4:]
    assert keystone.most_at_once <= MOST_CALLS
    # One flight for all who ask about one token (an HTTP client may send a request anew whose connection was closed).
    assert sum(same in head for head in keystone.asked) <= 2

    # Calls do not pile up while it lasts: one a second finds out, and the others are told at once.
    keystone.asked.clear()
    began, waits = time.monotonic(), []
    while time.monotonic() - began < 2.5:
        for token in (known, unknown[0]):
            answer = ask(service, token)
            waits.append(answer.seconds)
            assert answer.status.get("authenticated") or (token != known and is_unknown(answer, fault)), answer
    assert max(waits) < 5
    probes = (time.monotonic() - began) / PROBE_EVERY + 1
    assert len(keystone.asked) <= 2 * probes

    keystone.mend()
    mended = time.monotonic()
    eventually(lambda: ask(service, keystone.issue(name="late")).status["authenticated"], 2)
    print(f"{fault}: known again after {time.monotonic() - mended:.1f} s")
    assert all(answer.status["authenticated"] for answer in together(service, [known, same, *unknown]))


def test_connections_that_died_in_silence_cost_one_call_not_one_each(
    keystone: FaultyKeystone, service: Service
) -> None:
    """A firewall or load balancer that was replaced knows nothing of them, and tells nobody."""
    warm = together(service, [keystone.issue(name=f"warm-{number}") for number in range(16)])
    assert all(answer.status["authenticated"] for answer in warm)
    keystone.fail("vanished")
    keystone.mend()
    first = ask(service, keystone.issue(name="first"))
    assert first.seconds < 5
    assert is_unknown(first, "vanished")
    second = ask(service, keystone.issue(name="second"))
    assert second.status["authenticated"]
