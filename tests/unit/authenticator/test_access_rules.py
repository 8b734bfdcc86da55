"""Access rules of application credentials: the tables of docs/access-rules.md, and that policy and rules both count."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone_authenticator import access_rules, reviews
from keystone_authenticator.access import Authorizer
from keystone_authenticator.access_rules import AccessRules, UnusableRulesError, api_path
from keystone_authenticator.identity import ACCESS_RULES, Account, Group, Naming, UnusableIdentityError
from keystone_authenticator.policy import Policy, Request
from keystone_authenticator.reviews import AccessReview
from tests.documents import table
from tests.unit.authenticator.support import marks

DOCUMENT = "access-rules.md"


def described(row: list[str]) -> tuple[Request, str]:
    verb, group, version, namespace, resource, name, path = row
    resource, _, subresource = resource.partition("/")
    return Request(True, verb, namespace, group, resource, subresource, "", name, version), path


REQUESTS = [described(row) for row in table(DOCUMENT, "| Verb | API group")]
BY_PATH = {(request.verb, path): request for request, path in REQUESTS}


def spelled(path: str | None) -> str:
    return (path or "").replace("\0", "?")


@pytest.mark.parametrize(("request_", "path"), REQUESTS)
def test_the_path_of_a_request_is_the_documented_one(request_: Request, path: str) -> None:
    assert spelled(api_path(request_)) == path


@pytest.mark.parametrize(("rule", "verb", "path", "verdict"), table(DOCUMENT, "| Rule | Verb"))
def test_the_verdict_on_a_rule_is_the_documented_one(rule: str, verb: str, path: str, verdict: str) -> None:
    on_resources = path.startswith(("/api/", "/apis/"))
    request = BY_PATH[verb, path] if on_resources else Request(False, verb, path=path)
    assert AccessRules([rule]).allow(request) is (verdict == "yes")


def test_the_verbs_of_a_method_are_the_documented_ones() -> None:
    for method, verbs, other in table(DOCUMENT, "| Method | Verbs"):
        rules = AccessRules([f"{method} /**"])
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "bind", "*"):
            allowed = rules.allow(Request(True, verb, "dev", resource="pods", name="a", version="v1"))
            assert allowed is (verb in verbs.split(", "))
        for verb in ("get", "post", "put", "patch", "delete", "head", "options"):
            assert rules.allow(Request(False, verb, path="/x")) is (verb == other)


@pytest.mark.parametrize(
    "changes",
    [
        *({"resource": "*"}, {"name": "*"}, {"namespace": "*"}, {"api_group": "*"}, {"name": "a/b"}, {"resource": ""}),
        *({"namespace": "dev/../kube-system"}, {"subresource": "exec/"}, {"name": "x" * 3000}),
    ],
)
def test_what_no_path_can_say_is_not_allowed(changes: dict[str, str]) -> None:
    fields = {"verb": "get", "namespace": "dev", "resource": "pods", "name": "web", "version": "v1", **changes}
    assert not AccessRules(["GET /**"]).allow(Request(True, **fields))


PATTERNS = st.lists(
    st.sampled_from(["/", "a", "b", "ab", "*", "**", "{x}", ".", "/a", "/**", "/*", "{", "\n"]), max_size=10
).map(lambda parts: "/" + "".join(parts))


def walk(pattern: str, path: str) -> bool:
    """The same by trying everything."""
    if not pattern:
        return not path
    if pattern.startswith("**"):
        return any(walk(pattern[2:], path[count:]) for count in range(len(path) + 1))
    if pattern[0] in "{*":
        rest = pattern[1:] if pattern[0] == "*" else pattern.partition("}")[2]
        ends = range(1, len(path.partition("/")[0]) + 1)
        return any(walk(rest, path[count:]) for count in ends)
    return bool(path) and pattern[0] == path[0] and walk(pattern[1:], path[1:])


@given(PATTERNS, st.text(alphabet="ab/.\n", max_size=9).map(lambda path: "/" + path))
def test_a_rule_matches_what_trying_everything_matches(pattern: str, path: str) -> None:
    rule = access_rules._rule(f"GET {pattern}")
    if rule is not None:
        assert rule.matches(path) is walk(pattern, path)


@pytest.mark.parametrize("pattern", ["/" + "**a" * 74, "/" + "/**/a" * 40, "/" + "*a" * 100, "/**" * 70, "/a*" * 70])
def test_no_pattern_is_slow(pattern: str) -> None:
    rules = AccessRules([f"GET {pattern}b"] * access_rules.MOST_RULES)
    began = time.perf_counter()
    for path in ("/" + "a" * 2000, "/a" * 1000, "/aaaaaaaaaa" * 180):
        assert not rules.allow(Request(False, "get", path=path))
    assert time.perf_counter() - began < 20, "it would be hours"


# -- from Keystone's rules to texts


def rule(path: str = "/**", method: str = "GET", service: str = "kubernetes") -> dict[str, Any]:
    return {"id": "r", "path": path, "method": method, "service": service}


def test_only_rules_for_kubernetes_travel_in_one_spelling() -> None:
    found = [rule("/b"), rule("/v2.1/servers", service="compute"), rule("/a", "POST"), rule("/b"), rule("/a")]
    assert access_rules.about_kubernetes(found) == ("GET /a", "GET /b", "POST /a")


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ([], "none of them names the service type kubernetes"),
        ([rule(service="compute")], "none of them names the service type kubernetes"),
        ([rule(service="Kubernetes")], "none of them names the service type kubernetes"),
        ([rule(f"/{number}") for number in range(65)], "more than 64"),
    ],
)
def test_rules_that_are_not_for_kubernetes_are_refused(rules: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(UnusableRulesError, match=reason):
        access_rules.about_kubernetes(rules)


# -- the identity, and what it may

NATIVE, UPSTREAM = Naming("default", False), Naming("default", True)
ACCOUNT = Account("u1", "alice", "default", "Default", "p1", "demo", "default", ("member",), "c1", ("GET /api/v1/**",))


def test_a_credential_with_rules_is_an_identity_of_its_own() -> None:
    identity = NATIVE.identity(ACCOUNT, [Group("ops", "default")])
    assert (identity.username, identity.uid, identity.groups) == ("keystone:app-cred:c1", "c1", ())
    assert dict(identity.extra)[ACCESS_RULES] == ("GET /api/v1/**",)


def test_upstream_compatible_mode_has_none_such() -> None:
    with pytest.raises(UnusableIdentityError, match="c1 of the user u1 has access rules"):
        UPSTREAM.identity(ACCOUNT, [])


def allowed(
    items: list[dict[str, Any]], request: Request, naming: Naming = NATIVE, account: Account = ACCOUNT, **changes: Any
) -> bool:
    """What the webhook says, the user having gone through the API server."""
    identity = NATIVE.identity(account, [])
    review = AccessReview(
        "v1", identity.username, identity.uid, identity.groups, marks(dict(identity.extra)), request, b""
    )
    answer = Authorizer(naming, Policy(items, naming)).answer(review._replace(**changes))
    assert isinstance(answer, bytes)
    return answer == reviews.allowed("v1")


def granting(*verbs: str, key: str = "*/pods", **users: Any) -> list[dict[str, Any]]:
    return [{"users": {"projects": ["demo"], **users}, "resource_permissions": {key: list(verbs)}}]


def matching(kind: str, value: str) -> list[dict[str, Any]]:
    spec = {"verbs": ["get"], "resources": ["pods"], "version": "", "namespace": "*"}
    return [{"resource": spec, "match": [{"type": kind, "values": [value]}]}]


GET = Request(True, "get", "dev", resource="pods", name="web", version="v1")


def test_only_what_policy_and_rules_both_allow_is_allowed() -> None:
    assert allowed(granting("get", "delete"), GET)
    assert not allowed(granting("list"), GET)
    assert not allowed(granting("get", "delete"), GET._replace(verb="delete"))
    assert not allowed(granting("get"), GET._replace(api_group="metrics.k8s.io"))
    assert not allowed([], GET)


@pytest.mark.parametrize(
    ("items", "verdict"),
    [
        (granting("get", roles=["member"]), True),
        (granting("get", roles=["admin"]), False),
        (matching("user", "alice"), True),
        (matching("user", "bob"), False),
        (matching("project", "demo"), True),
        (matching("role", "member"), True),
        (matching("group", "ops"), False),
    ],
)
def test_the_policy_is_asked_about_the_credentials_user(items: list[dict[str, Any]], verdict: bool) -> None:
    assert allowed(items, GET) is verdict


def without(key: str) -> dict[str, Any]:
    return {name: values for name, values in NATIVE.identity(ACCOUNT, []).extra if not name.endswith(key)}


ALICE = NATIVE.identity(ACCOUNT.__class__(**{**vars(ACCOUNT), "access_rules": None}), [])


@pytest.mark.parametrize(
    "changes",
    [
        {"marks": marks(without("access-rules"))},
        {"marks": marks({**without("access-rules"), ACCESS_RULES: []})},
        {"marks": marks(without("user/name"))},
        {"marks": marks(without("application-credential/id"))},
        {"marks": marks(dict(ALICE.extra))},
        {"uid": "u1"},
        {"uid": ""},
        {"username": "keystone:app-cred:c2"},
        {"username": "keystone:alice", "uid": "u1"},
        {"username": "alice"},
        {"naming": UPSTREAM},
        {"naming": UPSTREAM, "username": "alice", "uid": "u1"},
    ],
)
def test_a_name_without_its_rules_or_rules_without_their_name_get_nothing(changes: dict[str, Any]) -> None:
    assert allowed(granting("get"), GET)
    assert not allowed(granting("get"), GET, **changes)


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=8))
def test_no_user_name_is_ever_spelled_as_a_credential(name: str, domain: str) -> None:
    assert not NATIVE.user(name, domain).startswith("keystone:app-cred:")
