"""The authenticator against a real Keystone: whose tokens count, under which names, and what an outage means."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from testbed.keystone import Keystone, Project
from tests.functional.conftest import Starter
from tests.unit.authenticator.support import (
    Service,
    access_review,
    eventually,
    fernet_token,
    jws,
    replace,
    token_review,
)

pytestmark = pytest.mark.functional

REFUSED = {"authenticated": False}
EXTRA = "alpha.kubernetes.io/identity/"


@pytest.fixture(scope="module")
def demo(keystone: Keystone) -> Project:
    return keystone.project("demo1")


def who(service: Service, token: str) -> dict[str, Any]:
    return service.review(token_review(token))["user"]


def allowed(service: Service, user: dict[str, Any], **request: Any) -> bool:
    """Ask about access as the API server does: with the user that the token review gave."""
    review = access_review(**request)
    fields = {"user": user["username"], "uid": user["uid"], "groups": user["groups"], "extra": user["extra"]}
    review["spec"].update(fields)
    return service.review(review)["allowed"]


# -- whose tokens count


def test_an_application_credential_is_its_user_in_its_project(
    keystone: Keystone, demo: Project, start: Starter
) -> None:
    alice = keystone.member("alice", demo, "manager", "member")
    keystone.group("ops", alice)
    credential = keystone.application_credential(alice, demo, roles=["member"])
    user = who(start(), keystone.credential_token(credential))
    assert (user["username"], user["uid"]) == ("keystone:alice", alice.id)
    assert user["groups"] == [
        "keystone:group:ops",
        f"keystone:project:{demo.id}",
        f"keystone:project:{demo.id}:role:member",
        f"keystone:project:{demo.id}:role:reader",  # implied, in Keystone as it is bootstrapped
    ]
    assert user["extra"] == {
        f"{EXTRA}roles": ["member", "reader"],
        f"{EXTRA}project/id": [demo.id],
        f"{EXTRA}project/name": ["demo1"],
        f"{EXTRA}project/domain/id": ["default"],
        f"{EXTRA}user/domain/id": ["default"],
        f"{EXTRA}user/domain/name": ["Default"],
        f"{EXTRA}application-credential/id": [credential.id],
    }


def test_an_unrestricted_credential_and_a_password_count_too(keystone: Keystone, demo: Project, start: Starter) -> None:
    bob = keystone.member("bob", demo)
    service = start()
    credential = keystone.application_credential(bob, demo, unrestricted=True)
    for token in (keystone.credential_token(credential), keystone.token(bob, demo)):
        assert who(service, token)["username"] == "keystone:bob"


def test_unscoped_domain_and_system_tokens_are_refused(keystone: Keystone, demo: Project, start: Starter) -> None:
    carol = keystone.member("carol", demo)
    domain = keystone.domain("carols")
    keystone.grant("member", carol, domain)
    keystone.grant("reader", carol, None)
    service = start()
    for scope, reason in (("unscoped", "unscoped"), (domain, "scoped to a domain"), ("system", "scoped to a system")):
        assert service.review(token_review(keystone.token(carol, scope))) == REFUSED
        assert f"the token of the user {carol.id} is {reason}" in service.log


def test_a_credential_with_rules_for_kubernetes_may_what_policy_and_rules_allow(
    keystone: Keystone, demo: Project, start: Starter, tmp_path: Any
) -> None:
    dave = keystone.member("dave", demo)
    keystone.group("daves", dave)
    policy = tmp_path / "policy.json"
    item = {"users": {"projects": ["demo1"], "roles": ["member"]}, "resource_permissions": {"*/*": ["*"]}}
    replace(policy, json.dumps([item]))
    service, other = start(policy=str(policy)), start(policy=str(policy))
    rules = [{"service": "kubernetes", "path": "/api/v1/namespaces/default/**", "method": "GET"}]
    credential = keystone.application_credential(dave, demo, access_rules=rules)
    token = keystone.credential_token(credential)
    user = who(service, token)
    assert (user["username"], user["uid"]) == (f"keystone:app-cred:{credential.id}", credential.id)
    assert user["groups"] == []
    # Whoever is asked about it: nothing is kept where the token was reviewed.
    for authenticator in (service, other):
        assert allowed(authenticator, user, name="web")
        assert not allowed(authenticator, user, name="web", namespace="kube-system")
        assert not allowed(authenticator, user, name="web", verb="delete")
    assert keystone.send("GET", f"/users/{dave.id}/groups", token=token).status_code == 401
    free = keystone.credential_token(keystone.application_credential(dave, demo))
    assert allowed(service, who(service, free), verb="delete", name="web")


def test_a_credential_with_rules_for_others_is_refused_with_that_reason(
    keystone: Keystone, demo: Project, start: Starter
) -> None:
    dora = keystone.member("dora", demo)
    service, compatible = start(), start(upstream_compatible=True)
    compute = [{"service": "compute", "path": "/v2.1/servers", "method": "GET"}]
    kubernetes = [{"service": "kubernetes", "path": "/**", "method": "GET"}]
    for authenticator, rules, reason in (
        (service, compute, "has access rules, and none of them names the service type kubernetes"),
        (compatible, kubernetes, "has access rules, which are not honoured in upstream-compatible mode"),
    ):
        credential = keystone.application_credential(dora, demo, access_rules=rules)
        assert authenticator.review(token_review(keystone.credential_token(credential))) == REFUSED
        assert f"the application credential {credential.id} of the user {dora.id} {reason}" in authenticator.log


def test_a_trust_counts_without_impersonation_and_not_with_it(
    keystone: Keystone, demo: Project, start: Starter
) -> None:
    trustor, trustee = keystone.member("trustor", demo), keystone.user("trustee")
    service = start()
    plain = keystone.trust_token(trustor, trustee, demo, ["member"], impersonation=False)
    assert who(service, plain)["username"] == "keystone:trustee"
    posing = keystone.trust_token(trustor, trustee, demo, ["member"], impersonation=True)
    assert service.review(token_review(posing)) == REFUSED


def test_what_keystone_takes_back_ends_when_our_cache_does(keystone: Keystone, demo: Project, start: Starter) -> None:
    service = start(token_cache_ttl=0.3)
    users = [keystone.member(f"leaver-{number}", demo) for number in range(4)]
    credential = keystone.application_credential(users[1], demo)
    tokens = [keystone.token(users[0], demo), keystone.credential_token(credential)]
    tokens += [keystone.token(user, demo) for user in users[2:]]
    for token in tokens:
        assert who(service, token)["username"].startswith("keystone:leaver-")
    time.sleep(1.1)  # Keystone keeps no revocation apart from an issue within the same second
    keystone.revoke_token(tokens[0])
    keystone.delete(credential)
    keystone.update(users[2], enabled=False)
    keystone.revoke("member", users[3], demo)
    time.sleep(0.3)
    for token in tokens:
        assert service.review(token_review(token)) == REFUSED


def test_groups_follow_keystone_when_our_cache_ends(keystone: Keystone, demo: Project, start: Starter) -> None:
    erin = keystone.member("erin", demo)
    group = keystone.group("operators")
    token = keystone.token(erin, demo)
    service = start(token_cache_ttl=0.3)
    assert "keystone:group:operators" not in who(service, token)["groups"]
    keystone.join(group, erin)
    time.sleep(0.3)
    assert "keystone:group:operators" in who(service, token)["groups"]
    keystone.leave(group, erin)
    time.sleep(0.3)
    # Keystone revokes the tokens of whoever leaves a group
    assert service.review(token_review(token)) == REFUSED
    # … and, as it counts in seconds, those that are issued within the same one.
    time.sleep(1.1)
    assert "keystone:group:operators" not in who(service, keystone.token(erin, demo))["groups"]


def test_a_second_token_of_a_user_costs_one_call_and_a_known_one_none(
    keystone: Keystone, demo: Project, start: Starter
) -> None:
    frank = keystone.member("frank", demo)
    tokens = [keystone.token(frank, demo) for _ in range(3)]
    service = start()
    keystone.forget_calls()
    for token in tokens * 3:
        assert who(service, token)["username"] == "keystone:frank"
    assert len(keystone.calls("GET", "/v3/auth/tokens")) == 3
    assert len(keystone.calls()) == 4


def test_garbage_costs_no_call_and_keystone_shaped_garbage_one(keystone: Keystone, start: Starter) -> None:
    service = start()
    keystone.forget_calls()
    service_account = jws({"alg": "RS256", "kid": "x"}, {"iss": "https://kubernetes.default.svc", "sub": "a"}, 256)
    for token in ("admin::secret", "x" * 400, service_account, fernet_token(time.time() + 9999)):
        assert service.review(token_review(token)) == REFUSED
    assert keystone.calls() == []
    garbage = fernet_token()
    for _ in range(3):
        assert service.review(token_review(garbage)) == REFUSED
    assert len(keystone.calls()) == 1


# -- under which names


def test_the_same_names_in_another_domain_are_other_users(keystone: Keystone, demo: Project, start: Starter) -> None:
    evil = keystone.domain("Evil")
    stolen = keystone.project("demo1", evil)
    eve = keystone.member("gina", stolen, domain=evil)
    keystone.group("ops2", eve, domain=evil)
    gina = keystone.member("gina", demo)
    keystone.group("ops2", gina)
    service = start()
    ours, theirs = who(service, keystone.token(gina, demo)), who(service, keystone.token(eve, stolen))
    assert ours["username"] == "keystone:gina"
    assert theirs["username"] == f"keystone:gina@{evil.id}"
    assert set(ours["groups"]).isdisjoint(theirs["groups"])
    assert f"keystone:group:ops2@{evil.id}" in theirs["groups"]
    assert theirs["extra"][f"{EXTRA}project/domain/id"] == [evil.id]


def test_names_made_to_deceive_stay_what_they_are(keystone: Keystone, start: Starter) -> None:
    evil = keystone.domain("deceivers")
    project = keystone.project(f"{'a' * 32}", evil)
    service = start()
    for name in ("system:admin", "keystone:alice", "alice@default", "group:ops", "Ünïcode name\n", "%61lice"):
        user = keystone.member(name, project, domain=evil)
        keystone.group(f"system:masters {name}", user, domain=evil)
        seen = who(service, keystone.token(user, project))
        assert seen["username"].startswith("keystone:")
        assert seen["username"].endswith(f"@{evil.id}")
        assert seen["username"].count("@") == seen["username"].count(":") == 1
        assert not any(group.startswith("system:") for group in seen["groups"])


def test_upstreams_names_without_those_that_kubernetes_keeps(keystone: Keystone, demo: Project, start: Starter) -> None:
    evil = keystone.domain("upstream-evil")
    project = keystone.project("p", evil)
    henry = keystone.member("henry", project, domain=evil)
    for name in ("system:masters", "kubeadm:cluster-admins", "plain"):
        keystone.group(name, henry, domain=evil)
    forger = keystone.member("system:kube-controller-manager", project, domain=evil)
    service = start(upstream_compatible=True)
    user = who(service, keystone.token(henry, project))
    assert (user["username"], user["uid"], user["groups"]) == ("henry", henry.id, ["plain", project.id])
    assert service.review(token_review(keystone.token(forger, project))) == REFUSED


# -- what they may


def test_the_policy_decides_about_users_of_keystones(
    keystone: Keystone, demo: Project, start: Starter, tmp_path: Any
) -> None:
    evil = keystone.domain("policy-evil")
    stolen = keystone.project("demo1", evil)
    ivan, reader = keystone.member("ivan", demo), keystone.member("rita", demo, "reader")
    eve = keystone.member("ivan", stolen, domain=evil)
    policy = tmp_path / "policy.json"
    item = {
        "users": {"projects": ["demo1"], "roles": ["member"]},
        "resource_permissions": {"*/pods": ["get", "list"], "*/pods/log": ["get"]},
    }
    replace(policy, json.dumps([item]))
    service = start(policy=str(policy))
    one, two = who(service, keystone.token(ivan, demo)), who(service, keystone.token(reader, demo))
    three = who(service, keystone.token(eve, stolen))
    assert allowed(service, one)
    assert allowed(service, one, subresource="log")
    assert not allowed(service, one, subresource="exec")
    assert not allowed(service, one, verb="delete")
    assert not allowed(service, two)
    assert not allowed(service, three)
    replace(policy, json.dumps([{**item, "users": {"projects": [f"demo1@{evil.id}"]}}]))
    eventually(lambda: allowed(service, three), 2)
    assert not allowed(service, one)


# -- when Keystone is away


def test_an_outage_is_survived_by_who_was_known_and_told_to_who_was_not(
    keystone: Keystone, demo: Project, start: Starter
) -> None:
    jane = keystone.member("jane", demo)
    known, unknown = keystone.token(jane, demo), keystone.token(jane, demo)
    service = start(token_cache_ttl=0.3)
    assert who(service, known)["username"] == "keystone:jane"
    keystone.stop()
    try:
        time.sleep(0.4)
        for _ in range(3):
            began = time.monotonic()
            assert who(service, known)["username"] == "keystone:jane"
            status = service.review(token_review(unknown))
            assert time.monotonic() - began < 1
            assert status["authenticated"] is False
            assert "cannot be reached" in status["error"]
        assert service.status["keystone"]["last_answer"]["error"]
        assert service.get("/readyz")[0] == 200
    finally:
        keystone.start()
    eventually(lambda: service.review(token_review(unknown))["authenticated"], 2)


def test_a_keystone_that_accepts_and_never_answers_is_answered_in_time(
    keystone: Keystone, demo: Project, start: Starter
) -> None:
    kate = keystone.member("kate", demo)
    known, unknown = keystone.token(kate, demo), [keystone.token(kate, demo) for _ in range(8)]
    service = start(token_cache_ttl=0.3)
    assert who(service, known)["username"] == "keystone:kate"
    time.sleep(0.4)
    keystone.pause()
    try:
        answers: list[tuple[float, dict[str, Any]]] = []

        def ask(token: str) -> None:
            began = time.monotonic()
            status = service.review(token_review(token))
            answers.append((time.monotonic() - began, status))

        threads = [threading.Thread(target=ask, args=(token,)) for token in unknown]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        assert who(service, known)["username"] == "keystone:kate"
        assert time.monotonic() - began < 2.5
        for thread in threads:
            thread.join()
        assert all(seconds < 5 and status["error"] for seconds, status in answers)
        # Now it is known to be deaf: all but one, who finds out whether it still is, are told at once.
        answers.clear()
        threads = [threading.Thread(target=ask, args=(fernet_token(),)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seconds for seconds, _ in answers)[3] < 0.9
        assert all(status["error"] for _, status in answers)
    finally:
        keystone.resume()
    eventually(lambda: service.review(token_review(unknown[0]))["authenticated"], 2)


def test_no_grace_where_it_is_switched_off(keystone: Keystone, demo: Project, start: Starter) -> None:
    leo = keystone.member("leo", demo)
    token = keystone.token(leo, demo)
    service = start(token_cache_ttl=0.3, outage_grace=0)
    assert who(service, token)["username"] == "keystone:leo"
    keystone.stop()
    try:
        time.sleep(0.4)
        assert service.review(token_review(token))["error"]
    finally:
        keystone.start()
    eventually(lambda: service.review(token_review(token))["authenticated"], 2)


def test_a_keystone_whose_certificate_is_not_trusted_gets_no_token(
    keystone: Keystone, demo: Project, start: Starter
) -> None:
    mia = keystone.member("mia", demo)
    token = keystone.token(mia, demo)
    service = start(keystone={"url": keystone.url, "ca": None})
    keystone.forget_calls()
    assert "certificate is not trusted" in service.review(token_review(token))["error"]
    assert keystone.calls() == []


def test_a_wrong_path_is_no_refusal_of_anybody(keystone: Keystone, demo: Project, start: Starter) -> None:
    nina = keystone.member("nina", demo)
    url = keystone.url.removesuffix("/v3")
    service = start(keystone={"url": f"{url}/wrong/v3", "ca": str(keystone.ca)})
    status = service.review(token_review(keystone.token(nina, demo)))
    assert status["authenticated"] is False
    assert status.get("error")
