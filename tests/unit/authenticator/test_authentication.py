"""Caches, single flight, grace, breaker, and where tokens go: against stand-ins that fail on demand."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from keystone_authenticator import authentication
from keystone_authenticator.authentication import (
    Authenticator,
    BackendValidator,
    ClusterTokens,
    KeystoneTokens,
    KeystoneValidator,
)
from keystone_authenticator.backend import Backend
from keystone_authenticator.chain import ChainedWebhook, parse
from keystone_authenticator.identity import Identity, Naming
from keystone_authenticator.keystone import Keystone
from keystone_authenticator.outbound import Client
from keystone_authenticator.reviews import TokenReview
from tests.unit.authenticator.support import (
    Authority,
    KeystoneStandIn,
    StandIn,
    fernet_token,
    jws,
    keystone_error,
    token_body,
)
from tests.unit.authenticator.test_chain import chain_file, kubeconfig

Asker = Callable[..., Awaitable[dict[str, Any]]]


async def status_of(authenticator: Authenticator, token: str, certified: bool = True, **review: Any) -> dict[str, Any]:
    answer = authenticator.answer(TokenReview("v1", token, tuple(review.get("audiences", ()))), certified)
    body = answer if isinstance(answer, bytes) else await answer
    return json.loads(body)["status"]


def run(
    keystone: KeystoneStandIn,
    story: Callable[[Authenticator, Asker], Coroutine[Any, Any, None]],
    ttl: float = 60,
    grace: float = 300,
    deadline: float = 4,
    compatible: bool = False,
) -> None:
    """Tell a story to an authenticator in front of the stand-in."""

    async def main() -> None:
        client = Client("Keystone", None, deadline)
        validator = KeystoneValidator(Keystone(keystone.url, client), Naming("default", compatible), ttl, grace)
        authenticator = Authenticator(KeystoneTokens(validator, ttl, grace), ClusterTokens(None))
        try:
            await story(authenticator, lambda token, **more: status_of(authenticator, token, **more))
        finally:
            await authenticator.keystone.close()

    asyncio.run(main())


def test_a_token_is_asked_about_once_and_the_groups_once_a_user(keystone: KeystoneStandIn) -> None:
    keystone.groups = [{"id": "g1", "name": "ops", "domain_id": "default"}]
    one, two = keystone.issue(), keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        for token in (one, one, two, two):
            status = await ask(token)
            assert status["user"]["username"] == "keystone:alice"
            assert "keystone:group:ops" in status["user"]["groups"]
        assert keystone.calls("/auth/tokens") == 2
        assert keystone.calls("/groups") == 1

    run(keystone, story)


def test_one_flight_serves_all_who_ask_about_a_token(keystone: KeystoneStandIn) -> None:
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        answers = await asyncio.gather(*(ask(token) for _ in range(50)))
        assert all(answer["authenticated"] for answer in answers)
        assert keystone.calls() == 2

    run(keystone, story)


def test_whoever_gives_up_waiting_takes_nobody_along(keystone: KeystoneStandIn) -> None:
    token = keystone.issue()
    keystone.hang()

    async def story(_: Authenticator, ask: Asker) -> None:
        first = asyncio.ensure_future(ask(token))
        second = asyncio.ensure_future(ask(token))
        await asyncio.sleep(0.1)
        first.cancel()
        keystone.release()
        assert (await second)["authenticated"]

    run(keystone, story)


def test_the_validation_names_the_token_twice_and_asks_for_access_rules(keystone: KeystoneStandIn) -> None:
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        await ask(token)

    run(keystone, story)
    headers = keystone.requests[0][2]
    assert headers["x-auth-token"] == headers["x-subject-token"] == token
    assert headers["openstack-identity-access-rules"] == "1.0"
    assert "x-subject-token" not in keystone.requests[1][2]


REFUSED = {"authenticated": False}
COMPUTE_RULE = {"id": "r", "service": "compute", "method": "GET", "path": "/v2.1/servers"}


@pytest.mark.parametrize(
    "changes",
    [
        {"project": None},
        {"project": None, "domain": "d1"},
        {"project": None, "system": {"all": True}},
        {"is_domain": True},
        {"roles": []},
        {"application_credential": {"id": "c1", "name": "c", "restricted": True, "access_rules": []}},
        {"application_credential": {"id": "c1", "access_rules": [COMPUTE_RULE]}},
    ],
)
def test_tokens_that_do_not_count_are_refused_for_good(keystone: KeystoneStandIn, changes: dict[str, Any]) -> None:
    token = keystone.issue(**changes)

    async def story(_: Authenticator, ask: Asker) -> None:
        assert await ask(token) == REFUSED
        assert await ask(token) == REFUSED
        assert keystone.calls() == 1

    run(keystone, story)


@pytest.mark.parametrize("compatible", [False, True])
def test_a_credential_with_rules_for_kubernetes_counts_without_its_users_groups(
    keystone: KeystoneStandIn, compatible: bool
) -> None:
    keystone.groups = [{"id": "g1", "name": "ops", "domain_id": "default"}]
    rule = {**COMPUTE_RULE, "service": "kubernetes", "path": "/**"}
    token = keystone.issue(application_credential={"id": "c1", "access_rules": [rule, COMPUTE_RULE]})

    async def story(_: Authenticator, ask: Asker) -> None:
        status = await ask(token)
        if compatible:
            assert status == REFUSED
        else:
            assert status["user"]["username"] == "keystone:app-cred:c1"
            assert status["user"]["groups"] == []
            assert status["user"]["extra"]["alpha.kubernetes.io/identity/access-rules"] == ["GET /**"]
        assert keystone.calls() == 1

    run(keystone, story, compatible=compatible)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_keystones_own_refusal_is_a_no_and_kept_shortly(
    keystone: KeystoneStandIn, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "REFUSAL_TTL", 0.2)
    keystone.behaviour = lambda *_: (code, keystone_error(code))

    async def story(_: Authenticator, ask: Asker) -> None:
        token = fernet_token()
        assert await ask(token) == REFUSED
        assert await ask(token) == REFUSED
        assert keystone.calls() == 1
        await asyncio.sleep(0.25)
        assert await ask(token) == REFUSED
        assert keystone.calls() == 2

    run(keystone, story)


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (401, b"<html>login</html>"),
        (404, b"not found"),
        (404, {"message": "no such route"}),
        (403, keystone_error(401)),
        (500, keystone_error(500)),
        (503, b""),
        (429, b""),
        (302, b""),
        (200, b"<html>"),
        (200, {}),
        (200, {"token": {}}),
        (200, {"token": {"user": {"id": "u"}, "project": {}}}),
        (200, {"token": {**token_body(), "expires_at": "soon"}}),
        (200, {"token": {**token_body(), "roles": [{"id": "r1"}]}}),
    ],
)
def test_anything_else_is_no_verdict_and_not_kept(keystone: KeystoneStandIn, code: int, body: Any) -> None:
    keystone.behaviour = lambda *_: (code, body)

    async def story(_: Authenticator, ask: Asker) -> None:
        token = fernet_token()
        for calls in (1, 2):
            status = await ask(token)
            assert status["authenticated"] is False
            assert "Keystone" in status["error"]
            assert token not in status["error"]
            assert keystone.calls() == calls

    run(keystone, story)


def test_odd_answers_about_one_token_are_no_outage_to_others(keystone: KeystoneStandIn) -> None:
    """Otherwise whoever gets Keystone to say something odd about a token could keep everybody out with it."""
    odd = [keystone.issue(**changes) for changes in ({"user": 1}, {"roles": [1]}, {"application_credential": "x"})]
    good = keystone.issue()

    async def story(authenticator: Authenticator, ask: Asker) -> None:
        for token in odd * 2:
            assert "not understood" in (await ask(token))["error"]
        assert authenticator.keystone.gauges()["breaker_open"] == 0
        assert (await ask(good))["authenticated"]

    run(keystone, story)


def test_no_redirect_is_followed_with_a_token(keystone: KeystoneStandIn) -> None:
    elsewhere = StandIn()
    keystone.behaviour = lambda *_: (307, b"")
    keystone.headers = {"Location": f"{elsewhere.url}/v3/auth/tokens"}

    async def story(_: Authenticator, ask: Asker) -> None:
        assert "error" in await ask(fernet_token())

    run(keystone, story)
    elsewhere.close()
    assert elsewhere.requests == []


def test_no_proxy_is_taken_from_the_environment(keystone: KeystoneStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        assert (await ask(token))["authenticated"]

    run(keystone, story)


def test_no_cookie_of_one_users_answer_goes_along_with_anothers_token(keystone: KeystoneStandIn) -> None:
    keystone.headers = {"Set-Cookie": "session=1"}
    one, two = keystone.issue(), keystone.issue(name="bob")

    async def story(_: Authenticator, ask: Asker) -> None:
        await ask(one)
        await ask(two)

    run(keystone, story)
    assert not any("cookie" in headers for _, _, headers, _ in keystone.requests)


def test_a_keystone_that_hangs_or_drips_is_given_up_in_time(keystone: KeystoneStandIn) -> None:
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        loop = asyncio.get_running_loop()
        for fault in ("hang", "drip"):
            keystone.release()
            keystone.drip = 0.0
            if fault == "hang":
                keystone.hang()
            else:
                keystone.drip = 0.05
            began = loop.time()
            assert "did not answer within" in (await ask(token))["error"]
            assert loop.time() - began < 1
        keystone.drip = 0.0

    run(keystone, story, deadline=0.4)


def test_groups_that_cannot_be_listed_are_never_no_groups(keystone: KeystoneStandIn) -> None:
    token = keystone.issue()
    answers: list[tuple[int, Any]] = [
        (401, keystone_error(401)),
        (403, keystone_error(403)),
        (404, keystone_error(404)),
        (500, b""),
        (200, {}),
        (200, {"groups": [{"name": "ops"}]}),
        (200, {"groups": [], "truncated": True}),
    ]

    async def story(_: Authenticator, ask: Asker) -> None:
        for answer in answers:
            keystone.behaviour = lambda method, path, headers, body, answer=answer: (
                answer if "/groups" in path else keystone.keystone(method, path, headers, body)
            )
            status = await ask(token)
            assert status["authenticated"] is False
            assert status["error"], answer

    run(keystone, story)


def test_groups_of_several_pages_are_all_read_from_keystone_itself(keystone: KeystoneStandIn) -> None:
    token = keystone.issue()
    elsewhere = "http://127.0.0.1:1/steal?marker=2"

    def paged(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if "/groups" not in path:
            return keystone.keystone(method, path, headers, body)
        last = "marker=2" in path
        entry = {"id": "g", "name": "two" if last else "one", "domain_id": "default"}
        return 200, {"groups": [entry], "links": {"next": None if last else elsewhere}}

    async def story(_: Authenticator, ask: Asker) -> None:
        groups = (await ask(token))["user"]["groups"]
        assert groups[:2] == ["keystone:group:one", "keystone:group:two"]

    keystone.behaviour = paged
    run(keystone, story)


def test_a_membership_ends_when_keystone_says(keystone: KeystoneStandIn) -> None:
    import datetime

    ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=0.6)
    gone = "2020-01-01T00:00:00.000000Z"
    keystone.groups = [
        {
            "id": "g1",
            "name": "ops",
            "domain_id": "default",
            "membership_expires_at": ends.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
        {"id": "g2", "name": "past", "domain_id": "default", "membership_expires_at": gone},
    ]
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        groups = (await ask(token))["user"]["groups"]
        assert "keystone:group:ops" in groups
        assert "keystone:group:past" not in groups
        await asyncio.sleep(0.7)
        assert "keystone:group:ops" not in (await ask(token))["user"]["groups"]

    run(keystone, story)


def test_a_known_token_outlives_an_outage_within_the_grace_and_no_longer(keystone: KeystoneStandIn) -> None:
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        assert (await ask(token))["authenticated"]
        keystone.behaviour = lambda *_: (503, b"")
        await asyncio.sleep(0.15)
        assert (await ask(token))["authenticated"]
        assert "error" in await ask(fernet_token())
        await asyncio.sleep(0.5)
        assert "error" in await ask(token)

    run(keystone, story, ttl=0.1, grace=0.4)


def test_any_verdict_ends_the_grace(keystone: KeystoneStandIn) -> None:
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        assert (await ask(token))["authenticated"]
        keystone.tokens.clear()
        await asyncio.sleep(0.15)
        assert await ask(token) == REFUSED
        keystone.behaviour = lambda *_: (503, b"")
        assert await ask(token) == REFUSED

    run(keystone, story, ttl=0.1)


def test_the_grace_never_outlives_the_token(keystone: KeystoneStandIn) -> None:
    token = keystone.issue(expires=0.4)

    async def story(_: Authenticator, ask: Asker) -> None:
        assert (await ask(token))["authenticated"]
        keystone.behaviour = lambda *_: (503, b"")
        await asyncio.sleep(0.5)
        assert "error" in await ask(token)

    run(keystone, story)


def test_without_grace_an_outage_is_seen_at_once(keystone: KeystoneStandIn) -> None:
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        assert (await ask(token))["authenticated"]
        keystone.behaviour = lambda *_: (503, b"")
        await asyncio.sleep(0.15)
        assert "error" in await ask(token)

    run(keystone, story, ttl=0.1, grace=0)


def test_who_is_known_waits_little_for_a_keystone_that_hangs(
    keystone: KeystoneStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "PATIENCE", 0.1)
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        assert (await ask(token))["authenticated"]
        await asyncio.sleep(0.15)
        keystone.hang()
        began = asyncio.get_running_loop().time()
        assert (await ask(token))["authenticated"]
        assert asyncio.get_running_loop().time() - began < 0.5
        # the verdict that comes late counts all the same
        keystone.tokens.clear()
        keystone.release()
        await asyncio.sleep(0.2)
        assert await ask(token) == REFUSED

    run(keystone, story, ttl=0.1)


def test_while_keystone_is_away_one_call_a_second_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "PROBE_EVERY", 0.2)
    keystone = KeystoneStandIn()
    token = keystone.issue()

    async def story(_: Authenticator, ask: Asker) -> None:
        keystone.behaviour = lambda *_: (503, b"")
        for _attempt in range(3):
            await ask(fernet_token())
        assert keystone.calls() == 3
        for _attempt in range(20):
            assert "error" in await ask(fernet_token())
        assert keystone.calls() == 3
        keystone.behaviour = keystone.keystone
        await asyncio.sleep(0.25)
        assert (await ask(token))["authenticated"]
        assert (await ask(keystone.issue(name="bob")))["authenticated"]

    run(keystone, story)
    keystone.close()


def test_one_token_that_breaks_keystone_stops_nobody_else(keystone: KeystoneStandIn) -> None:
    bad = fernet_token()
    keystone.behaviour = lambda method, path, headers, body: (
        (500, b"") if headers.get("x-auth-token") == bad else keystone.keystone(method, path, headers, body)
    )

    async def story(_: Authenticator, ask: Asker) -> None:
        for number in range(6):
            assert "error" in await ask(bad)
            assert (await ask(keystone.issue(name=f"user{number}")))["authenticated"]

    run(keystone, story)


def test_a_user_whose_groups_keystone_does_not_list_keeps_nobody_else_out(keystone: KeystoneStandIn) -> None:
    odd = keystone.issue(name="odd")
    keystone.behaviour = lambda method, path, headers, body: (
        (403, keystone_error(403))
        if headers.get("x-auth-token") == odd and "/groups" in path
        else keystone.keystone(method, path, headers, body)
    )

    async def story(_: Authenticator, ask: Asker) -> None:
        for _attempt in range(5):
            assert "groups of the user id-of-odd" in (await ask(odd))["error"]
        assert (await ask(keystone.issue()))["authenticated"]

    run(keystone, story)


def test_upstream_names_reach_no_reserved_ones(keystone: KeystoneStandIn) -> None:
    keystone.groups = [
        {"id": "g1", "name": "system:masters", "domain_id": "evil"},
        {"id": "g2", "name": "ops", "domain_id": "evil"},
    ]
    fine, forged = keystone.issue(), keystone.issue(name="system:admin")

    async def story(_: Authenticator, ask: Asker) -> None:
        user = (await ask(fine))["user"]
        assert (user["username"], user["groups"]) == ("alice", ["ops", "id-of-demo"])
        assert await ask(forged) == REFUSED

    run(keystone, story, compatible=True)


def test_tokens_that_are_not_keystones_never_reach_it(keystone: KeystoneStandIn) -> None:
    async def story(_: Authenticator, ask: Asker) -> None:
        for token in ("admin::secret", "eyJ.eyJ.x", "x" * 300, "gAAAAABx"):
            assert await ask(token) == REFUSED
            assert await ask(token, certified=False) == REFUSED
        assert "no token" in (await ask(""))["error"]

    run(keystone, story)
    assert keystone.requests == []


@pytest.mark.parametrize("limit", [("MOST_TOKENS", 2), ("MOST_BYTES", 14_000)])
def test_the_cache_forgets_the_oldest_when_it_is_full(
    keystone: KeystoneStandIn, monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    monkeypatch.setattr(authentication, *limit)
    tokens = [keystone.issue(name=f"user{number}") for number in range(3)]

    async def story(authenticator: Authenticator, ask: Asker) -> None:
        for token in tokens:
            await ask(token)
        before = keystone.calls()
        await ask(tokens[2])
        assert keystone.calls() == before
        await ask(tokens[0])
        assert keystone.calls() > before
        assert len(authenticator.keystone._known) <= 2

    run(keystone, story)


def known(identity: Identity, checked_at: float = 0.0) -> authentication.Known:
    return authentication.Known(identity, checked_at, 1.0, 1.0)


def test_the_caches_bytes_are_those_of_what_it_holds() -> None:
    cache = authentication.KnownTokens()
    alice, bob = (Identity(name, name, ("group",) * 9, ()) for name in ("alice", "bob"))
    cache.put(1, known(alice))
    first = cache.weight
    cache.put(2, known(alice))
    assert cache.weight - first < 400
    cache.put(3, known(bob))
    cache.put(3, known(bob, 2.0))
    assert cache.weight > 2 * first
    cache.put(1, known(bob))
    cache.drop(2)
    assert cache.weight < first + 400
    cache.drop(1)
    cache.sweep(lambda entry: entry.checked_at < 1)
    assert len(cache) == 1
    cache.sweep(lambda entry: entry.checked_at < 3)
    assert (len(cache), cache.weight, cache._holders) == (0, 0, {})


def test_what_a_full_cache_forgets_costs_little() -> None:
    cache: authentication.Cache[int] = authentication.Cache(50_000)
    began = time.process_time()
    for number in range(200_000):
        cache.put(number, number)
    # Found one at a time, the oldest of so many would take many minutes.
    assert time.process_time() - began < 60
    assert 49_000 < len(cache) <= 50_000
    assert cache.get(199_999) == 199_999


def flood(ask: Asker, number: int) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(ask(fernet_token())) for _ in range(number)]


async def settled(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.slow
def test_guesses_take_no_slot_from_tokens_known_before(
    keystone: KeystoneStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed: set[str] = set()
    known_before = [keystone.issue(name=f"user{number}") for number in range(4)]
    go_on = threading.Event()

    def behaviour(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers["x-auth-token"] not in keystone.tokens:
            guessed.add(headers["x-auth-token"])
            go_on.wait(30)
        return keystone.keystone(method, path, headers, body)

    async def story(_: Authenticator, ask: Asker) -> None:
        for token in known_before:
            await ask(token)
        await asyncio.sleep(0.15)
        keystone.behaviour = behaviour
        guesses = flood(ask, 400)
        await asyncio.sleep(0.05)
        assert len(guessed) <= authentication.MOST_CALLS - authentication.KEPT_CALLS
        before = keystone.calls()
        # No guess has been answered yet, nor is one until these are.
        answers = await asyncio.gather(*(ask(token) for token in known_before))
        assert all(answer["authenticated"] for answer in answers)
        assert keystone.calls() >= before + 4
        while sum(guess.done() for guess in guesses) < 400 - authentication.MOST_CALLS:
            await asyncio.sleep(0.01)
        go_on.set()
        outcomes = await settled(guesses)
        shed = [outcome for outcome in outcomes if isinstance(outcome, authentication.Overloaded)]
        assert len(shed) >= 400 - authentication.MOST_WAITING - authentication.MOST_CALLS
        assert all(outcome == REFUSED for outcome in outcomes if outcome not in shed)
        # and then all slots are free again
        assert (await ask(keystone.issue(name="newcomer")))["authenticated"]

    run(keystone, story, ttl=0.1, grace=0)


@pytest.mark.slow
def test_who_waits_for_a_slot_in_vain_is_told_in_time(
    keystone: KeystoneStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "MOST_CALLS", 2)
    monkeypatch.setattr(authentication, "KEPT_CALLS", 1)
    monkeypatch.setattr(authentication, "SLOT_PATIENCE", 0.2)

    async def story(authenticator: Authenticator, ask: Asker) -> None:
        keystone.hang()
        guesses = flood(ask, 5)
        began = time.monotonic()
        done, pending = await asyncio.wait(guesses, timeout=1)
        assert (len(done), len(pending)) == (4, 1)
        assert all(isinstance(task.exception(), authentication.Overloaded) for task in done)
        assert time.monotonic() - began < 1.1
        keystone.release()
        assert await settled(list(pending)) == [REFUSED]
        assert (await ask(keystone.issue()))["authenticated"]

    run(keystone, story)


def test_tokens_are_not_kept(keystone: KeystoneStandIn) -> None:
    import gc

    token = keystone.issue()

    async def story(authenticator: Authenticator, ask: Asker) -> None:
        await ask(token)
        gc.collect()
        known = authenticator.keystone._known
        assert len(known) == 1
        assert token not in repr(vars(known))

    run(keystone, story)


# -- the cluster's own tokens


def chained(
    webhook: StandIn,
    authority: Authority,
    story: Callable[[Asker], Coroutine[Any, Any, None]],
    ttl: str = "1m0s",
    version: str = "v1beta1",
) -> None:
    async def main() -> None:
        content = chain_file(
            kubeconfig(server=f"{webhook.url}/v1", **{"certificate-authority": "ca.crt"}),
            f"version {version}",
            f"ttl {ttl}",
            files={"/cdk/ca.crt": authority.ca.read_bytes()},
        )
        displaced = parse(content)
        assert displaced is not None
        cluster = ClusterTokens(ChainedWebhook(displaced))
        authenticator = Authenticator(authentication.KeystoneTokens(_Nobody(), 60, 0), cluster)
        try:
            await story(lambda token, **more: status_of(authenticator, token, **more))
        finally:
            await cluster.close()

    asyncio.run(main())


class _Nobody:
    async def known(self, token: str) -> Any:
        raise AssertionError("a token of the cluster's went to Keystone")

    async def close(self) -> None:
        pass


def says(status: dict[str, Any], code: int = 200) -> Callable[..., tuple[int, Any]]:
    return lambda method, path, headers, body: (code, {**json.loads(body), "status": status})


ADMIN = {"authenticated": True, "user": {"username": "admin", "uid": "admin", "groups": ["system:masters"]}}


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_cluster_token_is_passed_on_in_the_displaced_version(
    webhook: StandIn, authority: Authority, version: str
) -> None:
    webhook.behaviour = says(ADMIN)

    async def story(ask: Asker) -> None:
        user = (await ask("admin::secret", audiences=["https://kubernetes.default.svc"]))["user"]
        assert user == {"username": "admin", "uid": "admin", "groups": ["system:masters"], "extra": {}}

    chained(webhook, authority, story, version=version)
    _, path, _, body = webhook.requests[0]
    assert path == "/v1"
    sent = json.loads(body)
    assert sent["apiVersion"] == f"authentication.k8s.io/{version}"
    assert sent["spec"] == {"token": "admin::secret", "audiences": ["https://kubernetes.default.svc"]}


@pytest.mark.parametrize("status", [ADMIN, {"authenticated": False}])
def test_chained_verdicts_are_kept_as_long_as_they_were(
    webhook: StandIn, authority: Authority, status: dict[str, Any]
) -> None:
    webhook.behaviour = says(status)

    async def story(ask: Asker) -> None:
        for _ in range(5):
            assert (await ask("admin::secret"))["authenticated"] is status["authenticated"]
        assert len(webhook.requests) == 1
        await asyncio.sleep(0.35)
        await ask("admin::secret")
        assert len(webhook.requests) == 2

    chained(webhook, authority, story, ttl="300ms")


def test_a_long_token_of_the_clusters_is_passed_on_as_before_us(webhook: StandIn, authority: Authority) -> None:
    """One with many claims, whose beginning is as Keystone's could be."""
    webhook.behaviour = says(ADMIN)

    async def story(ask: Asker) -> None:
        for token in (
            "x" * 100_000,
            fernet_token(blocks=2000),
            jws({"alg": "RS256"}, {"groups": ["g" * 9] * 5000}, 256),
        ):
            assert (await ask(token))["authenticated"]
        assert await ask("x" * 200_000) == REFUSED
        assert len(webhook.requests) == 3

    chained(webhook, authority, story)


def test_an_error_of_the_chained_webhook_is_passed_on_and_not_kept(webhook: StandIn, authority: Authority) -> None:
    async def story(ask: Asker) -> None:
        webhook.behaviour = says({"authenticated": False, "error": "loading"})
        assert await ask("a::b") == {"authenticated": False, "error": "loading"}
        for behaviour in (lambda *_: (500, b""), lambda *_: (200, b"<html>"), says({"authenticated": True})):
            webhook.behaviour = behaviour
            assert (await ask("a::b"))["error"]
        webhook.behaviour = says(ADMIN)
        assert (await ask("a::b"))["authenticated"]

    chained(webhook, authority, story)


def test_a_review_that_comes_with_an_error_status_is_no_verdict(webhook: StandIn, authority: Authority) -> None:
    """Canonical Kubernetes' webhook answers so to a token that it does not know, and when its database is away."""

    async def story(ask: Asker) -> None:
        webhook.behaviour = says({"authenticated": False, "error": "invalid token"}, 401)
        assert await ask("a::b") == {
            "authenticated": False,
            "error": "the cluster's own token webhook says: invalid token",
        }
        webhook.behaviour = says({"authenticated": False}, 401)  # as k8s-keystone-auth does
        assert (await ask("a::b"))["error"] == "the cluster's own token webhook says: no (with status 401)"
        for behaviour in (says(ADMIN, 401), says({"authenticated": False}, 500), lambda *_: (401, b"no")):
            webhook.behaviour = behaviour
            status = await ask("a::b")
            assert not status["authenticated"]
            assert "answered with status" in status["error"]

    chained(webhook, authority, story)


def test_a_chained_webhook_that_is_away_means_cannot_tell(webhook: StandIn, authority: Authority) -> None:
    webhook.close()

    async def story(ask: Asker) -> None:
        assert "cannot be reached" in (await ask("a::b"))["error"]

    chained(webhook, authority, story)


@pytest.mark.parametrize(
    "user",
    [
        {"username": "keystone:alice"},
        {"username": "a", "groups": ["keystone:project:p1:role:admin"]},
        {"username": "a", "extra": {"alpha.kubernetes.io/identity/project/id": ["p1"]}},
    ],
)
def test_a_chained_webhook_cannot_claim_our_names(webhook: StandIn, authority: Authority, user: dict[str, Any]) -> None:
    webhook.behaviour = says({"authenticated": True, "user": user})

    async def story(ask: Asker) -> None:
        assert await ask("a::b") == REFUSED

    chained(webhook, authority, story)


def test_audiences_are_only_passed_back_where_they_were_asked_for(webhook: StandIn, authority: Authority) -> None:
    webhook.behaviour = says({**ADMIN, "audiences": ["api", "vault"]})

    async def story(ask: Asker) -> None:
        assert (await ask("a::b", audiences=["api"]))["audiences"] == ["api"]
        assert await ask("a::b", audiences=["other"]) == REFUSED
        assert "audiences" not in await ask("a::b")

    chained(webhook, authority, story)


def test_without_the_client_certificate_nothing_is_chained(webhook: StandIn, authority: Authority) -> None:
    webhook.behaviour = says(ADMIN)

    async def story(ask: Asker) -> None:
        assert await ask("a::b", certified=False) == REFUSED
        assert webhook.requests == []
        assert (await ask("a::b"))["authenticated"]
        # what is known from before is not told either
        assert await ask("a::b", certified=False) == REFUSED

    chained(webhook, authority, story)


# -- a backend in Keystone's place


def backed(webhook: StandIn, authority: Authority, story: Callable[[Asker], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        client = Client("the authentication backend", authority.client_context(), 2)
        tokens = KeystoneTokens(BackendValidator(Backend(f"{webhook.url}/webhook", client)), 60, 300)
        authenticator = Authenticator(tokens, ClusterTokens(None))
        try:
            await story(lambda token, **more: status_of(authenticator, token, **more))
        finally:
            await tokens.close()

    asyncio.run(main())


UPSTREAM_USER = {
    "username": "alice",
    "uid": "u1",
    "groups": ["ops", "p1", "system:masters"],
    "extra": {
        "alpha.kubernetes.io/identity/roles": ["member"],
        "alpha.kubernetes.io/identity/project/id": ["p1"],
        "alpha.kubernetes.io/identity/project/name": ["demo"],
        "alpha.kubernetes.io/identity/user/domain/id": ["default"],
        "alpha.kubernetes.io/identity/user/domain/name": ["Default"],
    },
}


def test_a_backend_is_asked_in_v1beta1_and_its_groups_are_filtered(webhook: StandIn, authority: Authority) -> None:
    webhook.behaviour = says({"authenticated": True, "user": UPSTREAM_USER})

    async def story(ask: Asker) -> None:
        for _ in range(3):
            user = (await ask(token))["user"]
            assert (user["username"], user["groups"]) == ("alice", ["ops", "p1"])
        assert await ask("admin::secret") == REFUSED

    token = fernet_token()
    backed(webhook, authority, story)
    assert len(webhook.requests) == 1
    assert json.loads(webhook.requests[0][3])["apiVersion"] == "authentication.k8s.io/v1beta1"


@pytest.mark.parametrize(
    "changes",
    [
        {"username": "system:admin"},
        {"username": "kubeadm:x"},
        {"uid": ""},
        {"extra": {}},
        {"extra": {**UPSTREAM_USER["extra"], "alpha.kubernetes.io/identity/project/id": [""]}},
        {"extra": {**UPSTREAM_USER["extra"], "alpha.kubernetes.io/identity/roles": []}},
        {"extra": {**UPSTREAM_USER["extra"], "alpha.kubernetes.io/identity/roles": None}},
    ],
)
def test_a_backends_user_must_be_keystones_and_not_reserved(
    webhook: StandIn, authority: Authority, changes: dict[str, Any]
) -> None:
    webhook.behaviour = says({"authenticated": True, "user": {**UPSTREAM_USER, **changes}})

    async def story(ask: Asker) -> None:
        assert await ask(fernet_token()) == REFUSED

    backed(webhook, authority, story)


def test_a_backends_no_is_a_no_and_its_silence_is_not(webhook: StandIn, authority: Authority) -> None:
    async def story(ask: Asker) -> None:
        webhook.behaviour = says({"authenticated": False}, 401)
        assert await ask(fernet_token()) == REFUSED
        webhook.behaviour = lambda *_: (502, b"")
        assert (await ask(fernet_token()))["error"]

    backed(webhook, authority, story)
