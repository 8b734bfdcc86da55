"""Figures that need no Keystone: `decisions` (policy by size) and `million` (memory, rate). Prints one object of JSON.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks import work
from keystone_authenticator.authentication import Authenticator, ClusterTokens, KeystoneTokens, KeystoneValidator
from keystone_authenticator.identity import Marks, Subject
from keystone_authenticator.keystone import Keystone
from keystone_authenticator.metrics import Metrics
from keystone_authenticator.outbound import Answer, Client
from keystone_authenticator.parts import load_policy
from keystone_authenticator.policy import Policy, Request
from keystone_authenticator.reviews import TokenReview
from keystone_authenticator.service import Service

TOKENS = 1_000_000
IDENTITIES = 10_000
MOST_SECONDS = 240.0
# So many of them, at random, are asked about again.
SAMPLE = 20_000
QUESTIONS = 5_000
# A few questions, whose part of the policy stays in the processor's caches, tell how many steps a decision takes; many
# tell what it costs to have so much of the policy in use.
DIFFERENT = {"few": 100, "many": QUESTIONS}


def decisions() -> dict[str, Any]:
    """Give microseconds a decision (`few`, `many`) and seconds to `compile`, by the policy's kind and size.

    Processor time, the least of many rounds, the sizes by turns: others' work on the machine is not to be measured.
    """
    found: dict[str, Any] = {}
    asked: dict[str, tuple[Policy, list[tuple[Subject, Request]]]] = {}
    for kind, make in (("varied", work.policy), ("one role", work.one_role_policy)):
        for size in (10, 1_000, 10_000):
            name = f"{kind} {size}"
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump(make(size), file)
                file.flush()
                loaded = [_load(Path(file.name)) for _ in range(3)]
            policy = loaded[0][0]
            asked[name] = policy, _questions(policy, size, kind)
            found[name] = {"compile": min(seconds for _, seconds in loaded), **dict.fromkeys(DIFFERENT, float("inf"))}
    for _ in range(15):
        for name, (policy, questions) in asked.items():
            for different, count in DIFFERENT.items():
                chosen = questions[:count]
                began = time.process_time()
                for _ in range(len(questions) // count):
                    for subject, request in chosen:
                        policy.allows(subject, request)
                cost = (time.process_time() - began) / len(questions) * 1e6
                found[name][different] = min(found[name][different], cost)
    return found


def _load(path: Path) -> tuple[Policy, float]:
    began = time.process_time()
    policy = load_policy(path, work.OURS.naming)[0]
    return policy, time.process_time() - began


def _questions(policy: Policy, size: int, kind: str) -> list[tuple[Subject, Request]]:
    """Give questions as the policy takes them, when its answers are found right."""
    asked: list[tuple[Subject, Request]] = []
    allowed = 0
    for question in work.questions(size, QUESTIONS):
        identity = work.OURS.naming.identity(question.account, ())
        marks = msgspec.convert(dict(identity.extra), Marks)
        subject = work.OURS.naming.subject(identity.username, identity.uid, identity.groups, marks)
        if subject is None:
            raise AssertionError("a user of ours is not known as one")
        request = Request(True, question.verb, question.namespace, question.group, question.resource)
        asked.append((subject, request))
        verdict = policy.allows(subject, request)
        if kind == "varied" and verdict != question.allowed:
            raise AssertionError(f"a wrong decision: {question}")
        allowed += verdict
    if not 0 < allowed < len(asked):
        raise AssertionError("the questions do not tell policies apart")
    return asked


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


async def million(settings: Path, client: Sequence[str]) -> dict[str, Any]:
    """Review a million tokens of 10,000 people, say what is resident afterwards, and how fast known ones are answered.

    `client` is the command of the benchmarks' client but for what it shall ask; `settings` are those of a service.
    """
    # Times as long as it takes, so that nothing but the bounds of the caches makes an entry go.
    keystone = Keystone("https://fake/v3", FakeKeystone("Keystone", None, 4))
    validator = KeystoneValidator(keystone, work.OURS.naming, 3600, 0)
    service = Service(settings, Metrics())
    await service.start(None, None)
    authenticator = Authenticator(KeystoneTokens(validator, 3600, 0), ClusterTokens(None))
    service.parts.authenticator = authenticator
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
    sample = random.Random(1).sample(range(done), min(done, SAMPLE))
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
        "rates": await _rates(settings.parent, client, sample, issued),
    }


async def _rates(folder: Path, client: Sequence[str], sample: Sequence[int], issued: bytes) -> dict[str, list[float]]:
    """Reviews/s about 26 of the tokens and about many of them, by turns."""
    asked: dict[str, Path] = {}
    for name, numbers in (("few", sample[: work.USERS]), ("many", sample)):
        holders = [(number, number % IDENTITIES) for number in numbers]
        items = [
            work.token_item(work.OURS, _token(number, issued), {"user": f"keystone:user-{who}", "uid": f"{who:032x}"})
            for number, who in holders
        ]
        asked[name] = work.save(folder / f"million-{name}", items)
    rates: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(5):
        for name, path in asked.items():
            command = [*client, f"-work={path}", "-connections=16", "-duration=2s"]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            told = json.loads((await process.communicate())[0])
            if told["refused"] or told["wrong"] or told["failed"]:
                raise AssertionError(f"wrong answers: {told}")
            rates[name].append(told["rate"])
    return rates


def _memory(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


if __name__ == "__main__":
    if sys.argv[1] == "decisions":
        print(json.dumps(decisions()))
    else:
        uvloop.install()
        print(json.dumps(asyncio.run(million(Path(sys.argv[2]), sys.argv[3:]))))
