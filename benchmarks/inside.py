"""Figures that need no server: `decisions` (policy by size) and `million` (memory). Prints one object of JSON.

A process of its own, as memory is measured, and one that a collection of the benchmark's own objects does not disturb.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import work
from keystone_authenticator.authentication import Authenticator, ClusterTokens, KeystoneTokens, KeystoneValidator
from keystone_authenticator.identity import Subject
from keystone_authenticator.keystone import Keystone
from keystone_authenticator.outbound import Answer, Client
from keystone_authenticator.policy import Policy, Request
from keystone_authenticator.reviews import TokenReview
from keystone_authenticator.service import load_policy

TOKENS = 1_000_000
IDENTITIES = 10_000
MOST_SECONDS = 240.0


def decisions() -> dict[str, Any]:
    """Give microseconds a decision, and seconds to read, check and compile, by the policy's kind and size."""
    found: dict[str, Any] = {}
    for kind, make in (("varied", work.policy), ("one role", work.one_role_policy)):
        for size in (10, 1_000, 10_000):
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump(make(size), file)
                file.flush()
                loaded = [load_policy(Path(file.name), work.OURS.naming) for _ in range(3)]
            found[f"{kind} {size}"] = {
                "compile": min(milliseconds for _, _, milliseconds in loaded) / 1000,
                "decision": _decision(loaded[0][0], size, kind),
            }
    return found


def _decision(policy: Policy, size: int, kind: str) -> float:
    asked: list[tuple[Subject, Request]] = []
    allowed = 0
    for question in work.questions(size, 5_000):
        identity = work.OURS.naming.identity(question.account, ())
        subject = work.OURS.naming.subject(identity.username, identity.uid, identity.groups, dict(identity.extra))
        if subject is None:
            raise AssertionError("a user of ours is not known as one")
        request = Request(True, question.verb, question.namespace, question.group, question.resource)
        asked.append((subject, request))
        if kind == "varied" and policy.allows(subject, request) != question.allowed:
            raise AssertionError(f"a wrong decision: {question}")
        allowed += policy.allows(subject, request)
    if not 0 < allowed < len(asked):
        raise AssertionError("the questions do not tell policies apart")
    best = float("inf")
    for _ in range(9):
        began = time.perf_counter()
        for subject, request in asked:
            policy.allows(subject, request)
        best = min(best, time.perf_counter() - began)
    return best / len(asked) * 1e6


class FakeKeystone(Client):
    """Answers as Keystone does, at the place of the HTTP client: the token's number tells whose it is."""

    async def call(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None, attempts: int = 1
    ) -> Answer:
        """Answer a validation or a list of groups."""
        del method, body, attempts
        raw = base64.urlsafe_b64decode(headers["X-Auth-Token"] + "==")
        who = int.from_bytes(raw[9:17], "big") % IDENTITIES
        domain = {"id": "default", "name": "Default"}
        if url.endswith("/groups"):
            groups = [{"id": f"{number:032x}", "name": f"team-{number}", "domain_id": "default"} for number in (1, 2)]
            return Answer(200, json.dumps({"groups": groups, "links": {"next": None}}).encode())
        token = {
            "methods": ["password"],
            "user": {"id": f"{who:032x}", "name": f"user-{who}", "domain": domain, "password_expires_at": None},
            "project": {"id": f"{who % 500:032x}", "name": f"project-{who % 500}", "domain": domain},
            "roles": [{"id": "1" * 32, "name": "member"}, {"id": "2" * 32, "name": "reader"}],
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "audit_ids": ["x" * 22],
            "is_domain": False,
        }
        return Answer(200, json.dumps({"token": token}).encode())


def _token(number: int, issued: bytes) -> str:
    raw = b"\x80" + issued + number.to_bytes(8, "big") + bytes(8 + 112) + bytes(32)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def million() -> dict[str, Any]:
    """Review a million tokens of 10,000 people, and say what is resident afterwards."""
    # Times as long as it takes, so that nothing but the bounds of the caches makes an entry go.
    client = FakeKeystone("Keystone", None, 4)
    validator = KeystoneValidator(Keystone("https://fake/v3", client), work.OURS.naming, 3600, 0)
    authenticator = Authenticator(KeystoneTokens(validator, 3600, 0), ClusterTokens(None))
    issued = int(time.time()).to_bytes(8, "big")
    before = _memory("VmRSS")
    began = time.monotonic()
    done = 0
    while done < TOKENS and time.monotonic() - began < MOST_SECONDS:
        answer = authenticator.answer(TokenReview("v1", _token(done, issued), ()), True)
        if not isinstance(answer, bytes):
            answer = await answer
        if b'"username":"keystone:user-%d"' % (done % IDENTITIES) not in answer:
            raise AssertionError(f"a wrong answer: {answer!r}")
        done += 1
    seconds = time.monotonic() - began
    resident, peak = _memory("VmRSS"), _memory("VmHWM")
    sample = random.Random(1).sample(range(done), 10_000)
    known = 0
    for number in sample:
        again = authenticator.answer(TokenReview("v1", _token(number, issued), ()), True)
        if isinstance(again, bytes):
            known += 1
        else:
            again.close()
    return {
        "tokens": done,
        "seconds": seconds,
        "before": before,
        "resident": resident,
        "peak": peak,
        "still known": known / len(sample),
    }


def _memory(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


if __name__ == "__main__":
    print(json.dumps(decisions() if sys.argv[1] == "decisions" else asyncio.run(million())))
