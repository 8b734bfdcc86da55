"""Verdicts of both policy formats in both modes, what a validation says, and that the index changes no verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone_authenticator.identity import Account, Group, Naming, Subject
from keystone_authenticator.parts import load_policy
from keystone_authenticator.policy import Policy, Problem, Request, _Cover, check
from tests.unit.authenticator.support import OTHER, marks

NATIVE, UPSTREAM = Naming("default", False), Naming("default", True)
HEX = "5f3e1d9c7b8a46d2a1c0e9f8d7b6a594"
HEX2 = "aaaabbbbccccddddeeeeffff00001111"


def user(naming: Naming, name: str = "alice", **changes: Any) -> Subject:
    """A user as a review names it."""
    groups = [Group(group, domain) for group, domain in changes.pop("groups", ())]
    fields = {
        "user_id": "u1",
        "user_name": name,
        "user_domain_id": "default",
        "user_domain_name": "Default",
        "project_id": HEX,
        "project_name": "demo1",
        "project_domain_id": "default",
        "roles": ("member",),
    }
    identity = naming.identity(Account(**{**fields, **changes}), groups)
    subject = naming.subject(identity.username, identity.uid, identity.groups, marks(dict(identity.extra)))
    assert subject is not None
    return subject


def pods(verb: str = "get", namespace: str = "default", resource: str = "pods", **more: str) -> Request:
    return Request(True, verb, namespace, resource=resource, **more)


def path(name: str, verb: str = "get") -> Request:
    return Request(False, verb, path=name)


def v1(key: str, *verbs: str, **more: Any) -> dict[str, Any]:
    users = {"projects": ["demo1"], "roles": ["member"]}
    return {"users": users, "resource_permissions": {key: list(verbs)}, **more}


def v2(**more: Any) -> dict[str, Any]:
    spec = {"verbs": ["get"], "resources": ["pods"], "version": "", "namespace": "default"}
    return {"resource": {**spec, **more}, "match": [{"type": "role", "values": ["member"]}]}


def matching(kind: str, *values: str) -> dict[str, Any]:
    return {**v2(), "match": [{"type": kind, "values": list(values)}]}


ANYWHERE = {"namespace": ""}
EXEC = {"subresource": "exec"}
LOG = {"subresource": "log"}

# item, request, verdict native, verdict upstream
REQUESTS: list[tuple[dict[str, Any], Request, bool, bool]] = [
    (v1("*/pods", "get"), pods(), True, True),
    (v1("*/pods", "get"), pods("list"), False, False),
    (v1("*/pods", "*"), pods("anything"), True, True),
    (v1("*/PODS", "GET"), pods(), True, True),
    (v1(" default / pods ", "get"), pods(), True, True),
    (v1("default/pods", "get"), pods(namespace="other"), False, False),
    (v1("!default/pods", "get"), pods(), False, False),
    (v1("!default/pods", "get"), pods(namespace="other"), True, True),
    (v1("['default', 'b']/pods", "get"), pods(namespace="b"), True, True),
    (v1("['default', 'b']/pods", "get"), pods(namespace="c"), False, False),
    (v1("!['default', 'b']/pods", "get"), pods(namespace="c"), True, True),
    (v1("!['default', 'b']/pods", "get"), pods(namespace="b"), False, False),
    (v1("!*/pods", "get"), pods(), False, False),
    (v1("['*']/pods", "get"), pods(), True, True),
    (v1("*/['pods', 'services']", "get"), pods(resource="services"), True, True),
    (v1("*/!['pods']", "get"), pods(resource="services"), True, True),
    (v1("*/!pods", "get"), pods(), False, False),
    (v1("*/[pods]", "get"), pods(), False, False),
    (v1("*/['pods'", "get"), pods(), False, False),
    (v1("pods", "get"), pods(), False, False),
    (v1("a/b/c/d", "get"), pods(), False, False),
    # what is no list is ignored here and a name there, `null` is nothing there
    (v1("*/!po[ds", "get"), pods(), False, True),
    (v1("*/!['secrets'", "get"), pods(), False, False),
    (v1("*/!['secrets']x", "get"), pods(), False, False),
    (v1("*/!!pods", "get"), pods(), True, True),
    (v1("*/[null, 'pods']", "get"), pods(), False, True),
    (v1("*/![null]", "get"), pods(), False, True),
    (v1("*/[]", "get"), pods(), False, False),
    (v1("*/![]", "get"), pods(), True, True),
    (v1("*/['po]ds', 'pods']", "get"), pods(), True, False),
    (v1("*/['*', 'x']", "get"), pods(), True, True),
    (v1("*/!['*', 'x']", "get"), pods(), False, False),
    (v1("*/[ 'PODS' ,\"services\" ]", "get"), pods(), True, True),
    # white space as Go has it, around a half and not in it
    (v1("\u00a0*\u2003/\u3000pods\v", "get"), pods(), True, True),
    (v1("*/\x1cpods", "get"), pods(), False, False),
    (v1("*/\u200bpods", "get"), pods(), False, False),
    (v1("*/po ds", "get"), pods(), False, False),
    (v1("* /pods", " get"), pods(), False, False),
    (v1("*/ΠΟΔΣ", "get"), pods(resource="ποδσ"), True, True),
    (v1("/pods", "get"), pods(), False, False),
    (v1("/pods", "get"), pods(**ANYWHERE), False, False),
    (v1("*/pods", "get"), pods("GET"), False, False),
    (v1("*/pods"), pods(), False, False),
    # without a namespace only `*` will do
    (v1("*/nodes", "get"), pods(resource="nodes", **ANYWHERE), True, True),
    (v1("default/nodes", "get"), pods(resource="nodes", **ANYWHERE), False, False),
    (v1("!default/nodes", "get"), pods(resource="nodes", **ANYWHERE), False, False),
    (v1("['*']/nodes", "get"), pods(resource="nodes", **ANYWHERE), False, False),
    (v1("['*']/nodes", "get"), pods(resource="nodes"), True, True),
    (v1("*/['*']", "*"), pods(**EXEC), False, True),
    # API groups are not looked at
    (v1("*/deployments", "get"), pods(resource="deployments", api_group="apps"), True, True),
    # sub-resources
    (v1("*/pods", "get"), pods(**EXEC), False, True),
    (v1("*/pods", "*"), pods("create", **EXEC), False, True),
    (v1("*/*", "get"), pods(), True, True),
    (v1("*/*", "get"), pods(**EXEC), False, True),
    (v1("*/*", "*"), pods("create", **EXEC), True, True),
    (v1("*/!secrets", "*"), pods("create", **EXEC), False, True),
    (v1("*/pods/log", "get"), pods(**LOG), True, False),
    (v1("*/pods/log", "get"), pods(), False, False),
    (v1("*/pods/log", "get"), pods(**EXEC), False, False),
    (v1("*/pods/*", "get"), pods(**EXEC), True, False),
    (v1("*/*/*", "get"), pods(**EXEC), True, False),
    (v1("*/pods/!exec", "get"), pods(**LOG), True, False),
    (v1("*/pods/!exec", "get"), pods(**EXEC), False, False),
    (v1("*/['pods', 'pods/log']", "get"), pods(**LOG), True, False),
    (v1("*/['pods', 'pods/log']", "get"), pods(**EXEC), False, False),
    (v1("*/['pods', 'pods/*']", "get"), pods(**EXEC), True, False),
    (v1("*/!secrets", "get"), pods(resource="*"), False, True),
    (v1("*/*", "get"), pods(resource="*", **LOG), False, True),
    (v1("*/*", "*"), pods(resource="*", **LOG), True, True),
    # both halves of users
    ({"resource_permissions": {"*/pods": ["get"]}}, pods(), True, True),
    ({"users": {"projects": ["demo1"]}, "resource_permissions": {"*/pods": ["get"]}}, pods(), True, True),
    ({"users": {"roles": ["member"]}, "resource_permissions": {"*/pods": ["get"]}}, pods(), False, False),
    ({"users": {}, "resource_permissions": {"*/pods": ["get"]}}, pods(), False, False),
    ({"users": None, "resource_permissions": {"*/pods": ["get"]}}, pods(), True, True),
    # paths
    ({"nonresource_permissions": {"/healthz": ["get"]}}, path("/healthz"), True, True),
    ({"nonresource_permissions": {"/healthz": ["GET"]}}, path("/healthz"), False, False),
    ({"nonresource_permissions": {"/healthz": ["*"]}}, path("/healthz", "post"), True, True),
    ({"nonresource_permissions": {"/healthz": ["get"]}}, path("/Healthz"), False, False),
    ({"nonresource_permissions": {"/api/*": ["get"]}}, path("/api/v1"), False, False),
    ({"nonresource_permissions": {"/healthz": ["get"]}}, pods(), False, False),
    ({"nonresource": {"verbs": ["get"], "path": "/api/*"}}, path("/api/v1"), True, True),
    ({"nonresource": {"verbs": ["get"], "path": "/api"}}, path("/api/v1"), False, False),
    ({"nonresource": {"verbs": ["get"], "path": "*"}}, path("/anything"), True, True),
    ({"nonresource": {"verbs": ["get", ""], "path": "*"}}, path("/anything"), False, False),
    ({"nonresource": {"verbs": ["*"], "path": "/metrics"}}, path("/metrics", "post"), True, True),
    ({"nonresource": {"verbs": ["get"], "path": "/api*"}}, path("/apis"), True, True),
    ({"nonresource": {"verbs": ["get"], "path": "/api/**"}}, path("/api/v1"), True, True),
    ({"nonresource": {"verbs": ["get"], "path": "/a*/b"}}, path("/ax/b"), False, False),
    ({"nonresource": {"verbs": [], "path": "*"}}, path("/anything"), False, False),
    ({"nonresource": {"verbs": ["GET"], "path": "/api"}}, path("/api"), False, False),
    # version 2
    (v2(), pods(), True, True),
    (v2(), pods("list"), False, False),
    (v2(verbs=["*"]), pods("list"), True, True),
    (v2(), pods(api_group="apps"), False, False),
    (v2(version="*"), pods(api_group="apps"), True, True),
    (v2(), pods(namespace="other"), False, False),
    (v2(namespace="*"), pods(namespace="other"), True, True),
    (v2(namespace="*"), pods(**ANYWHERE), True, True),
    (v2(namespace=""), pods(**ANYWHERE), True, True),
    (v2(namespace=""), pods(), False, False),
    (v2(), pods(**EXEC), False, False),
    (v2(resources=["pods/exec"]), pods(**EXEC), True, True),
    (v2(resources=["pods/*"]), pods(**EXEC), True, True),
    (v2(resources=["pods/*"]), pods(), False, False),
    (v2(resources=["*"]), pods(**EXEC), True, True),
    (v2(resources=["pods/exec"]), pods(resource="pods/exec"), True, True),
    (v2(resources=["*/exec"]), pods(**EXEC), False, False),
    (v2(resources=["PODS"]), pods(), False, False),
    (v2(resources=[]), pods(), False, False),
    (v2(verbs=["GET"]), pods(), False, False),
    (v2(verbs=[]), pods(), False, False),
    (v2(version="v1"), pods(version="v1"), False, False),
    ({**v2(), "match": []}, pods(), True, True),
    ({**v2(), "users": {"projects": ["demo2"]}}, pods(), False, False),
    # the `_permissions` keys come first, and are not bound by match
    ({**v1("*/pods", "list"), "resource": v2()["resource"]}, pods(), False, False),
    ({**v1("*/pods", "get"), "match": [{"type": "role", "values": ["admin"]}]}, pods(), True, True),
    ({**v1("*/pods", "get"), "nonresource": {"verbs": ["get"], "path": "/x"}}, path("/x"), True, True),
    ({**v2(), "resource_permissions": {}}, pods(), False, False),
    # a match that means nobody is no concern of what it does not bind
    ({**matching("colour", "x"), "nonresource_permissions": {"/x": ["get"]}}, path("/x"), True, True),
    ({**matching("role"), "nonresource_permissions": {"/x": ["get"]}}, path("/x"), True, True),
    ({**matching("role"), "nonresource_permissions": {"/x": ["get"]}}, pods(), False, False),
]

# item, what is special about the user, verdict native, verdict upstream
USERS: list[tuple[dict[str, Any], dict[str, Any], bool, bool]] = [
    (v1("*/pods", "get"), {"roles": ("reader", "member")}, True, True),
    (v1("*/pods", "get"), {"roles": ("reader",)}, False, False),
    (v1("*/pods", "get"), {"roles": ("Member",)}, False, False),
    (v1("*/pods", "get", users={"projects": ["x", "demo1"], "roles": ["member", "reader"]}), {}, False, False),
    (v1("*/pods", "get"), {"project_name": "demo2"}, False, False),
    # somebody else's demo1
    (v1("*/pods", "get"), {"project_domain_id": OTHER}, False, True),
    (v1("*/pods", "get", users={"projects": [f"demo1@{OTHER}"]}), {"project_domain_id": OTHER}, True, False),
    (v1("*/pods", "get", users={"projects": [f"demo1@{OTHER}"]}), {}, False, False),
    (v1("*/pods", "get", users={"projects": ["demo1@default"]}), {}, True, False),
    (v1("*/pods", "get", users={"projects": [HEX]}), {}, True, True),
    # a project that is called as another's ID
    (v1("*/pods", "get", users={"projects": [HEX2]}), {"project_name": HEX2}, False, True),
    (matching("user", "alice"), {}, True, True),
    (matching("user", "bob"), {}, False, False),
    (matching("user", "*"), {}, True, True),
    (matching("user", "u1"), {}, False, True),
    (matching("user", HEX2), {"user_id": HEX2}, True, True),
    (matching("user", HEX2), {"user_name": HEX2}, False, True),
    (matching("user", "alice"), {"user_domain_id": OTHER}, False, True),
    (matching("user", f"alice@{OTHER}"), {"user_domain_id": OTHER}, True, False),
    (matching("user", f"alice@{OTHER}"), {"user_name": f"alice@{OTHER}"}, False, True),
    (matching("user", "alice@example.com"), {"user_name": "alice@example.com"}, True, True),
    (matching("user", "al ice"), {"user_name": "al ice"}, True, True),
    (matching("group", "ops"), {"groups": [("ops", "default")]}, True, True),
    (matching("group", "ops"), {"groups": [("ops", OTHER)]}, False, True),
    (matching("group", f"ops@{OTHER}"), {"groups": [("ops", OTHER)]}, True, False),
    (matching("group", HEX), {}, True, True),
    (matching("group", HEX2), {"groups": [(HEX2, "default")]}, False, True),
    (matching("project", "demo1"), {}, True, True),
    (matching("project", HEX), {}, True, True),
    (matching("project", HEX2), {"project_name": HEX2}, False, True),
    (matching("role", "member"), {}, True, True),
    (matching("role", HEX2), {"roles": (HEX2,)}, False, True),
    (matching("role"), {}, False, False),
    (matching("colour", "*"), {}, False, False),
    (matching("colour", "blue"), {}, False, False),
    (
        {**v2(), "match": [{"type": "role", "values": ["member"]}, {"type": "user", "values": ["bob"]}]},
        {},
        False,
        False,
    ),
]


@pytest.mark.parametrize(("item", "request_", "native", "upstream"), REQUESTS)
def test_verdicts_by_request(item: dict[str, Any], request_: Request, native: bool, upstream: bool) -> None:
    assert check(json.dumps([item]).encode()).errors == ()
    assert Policy([item], NATIVE).allows(user(NATIVE), request_) is native
    assert Policy([item], UPSTREAM).allows(user(UPSTREAM), request_) is upstream


@pytest.mark.parametrize(("item", "changes", "native", "upstream"), USERS)
def test_verdicts_by_user(item: dict[str, Any], changes: dict[str, Any], native: bool, upstream: bool) -> None:
    assert check(json.dumps([item]).encode()).errors == ()
    name = changes.get("user_name", "alice")
    rest = {key: value for key, value in changes.items() if key != "user_name"}
    assert Policy([item], NATIVE).allows(user(NATIVE, name, **rest), pods()) is native
    assert Policy([item], UPSTREAM).allows(user(UPSTREAM, name, **rest), pods()) is upstream


def test_the_example_that_documentation_ships_is_safe_here_and_is_not_there() -> None:
    """Measured of upstream: a member of another domain's demo1 gets pods and pods/exec in kube-system."""
    item = v1("*/pods", "get", "list", "watch")
    eve = {"user_domain_id": OTHER, "project_domain_id": OTHER, "project_id": HEX2}
    for request in (pods(namespace="kube-system"), pods(namespace="kube-system", **EXEC)):
        assert not Policy([item], NATIVE).allows(user(NATIVE, "eve", **eve), request)
        assert Policy([item], UPSTREAM).allows(user(UPSTREAM, "eve", **eve), request)


# -- the index and the explanation say what walking through all items says

KEYS = st.sampled_from(
    [
        *("*/pods", "a/pods", "!a/*", "['a', 'b']/['pods', 'nodes']", "*/pods/exec", "*/*", "a/!pods", "x"),
        *(
            "['*']/*",
            "*/['*']",
            "![]/nodes",
            "!['*']/pods",
            "*/['pods', 'pods/exec']",
            "*/!['nodes']",
            "*/!!a",
            "*/po[ds",
        ),
    ]
)
VERBS = st.lists(st.sampled_from(["get", "list", "*"]), min_size=1, max_size=2)
WHO = st.sampled_from(["alice", "bob", "demo1", "ops", "member", "reader", HEX, HEX2, "*"])
USERS_KEY = st.fixed_dictionaries(
    {}, optional={"roles": st.lists(WHO, max_size=2), "projects": st.lists(WHO, min_size=1, max_size=2)}
)
MATCHES = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["user", "group", "project", "role", "odd"]),
            "values": st.lists(WHO, min_size=1, max_size=2),
        }
    ),
    max_size=2,
)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "users": USERS_KEY,
            "resource_permissions": st.dictionaries(KEYS, VERBS, max_size=2),
            "nonresource_permissions": st.dictionaries(st.sampled_from(["/a", "/b"]), VERBS, max_size=2),
            "resource": st.fixed_dictionaries(
                {
                    "verbs": VERBS,
                    "resources": st.lists(st.sampled_from(["pods", "pods/*", "*", "nodes"]), min_size=1, max_size=2),
                    "version": st.sampled_from(["", "*"]),
                    "namespace": st.sampled_from(["a", "*", ""]),
                }
            ),
            "nonresource": st.fixed_dictionaries({"verbs": VERBS, "path": st.sampled_from(["/a", "/*", "*"])}),
            "match": MATCHES,
        },
    ),
    min_size=1,
    max_size=6,
)
ASKED = st.one_of(
    st.builds(
        pods,
        st.sampled_from(["get", "list", "watch"]),
        st.sampled_from(["a", "b", ""]),
        st.sampled_from(["pods", "nodes", "*"]),
        subresource=st.sampled_from(["", "exec"]),
    ),
    st.builds(path, st.sampled_from(["/a", "/b", "/a/b"])),
)


@given(ITEMS, ASKED, st.booleans(), st.sampled_from([("member",), ("member", "reader")]))
def test_the_index_finds_what_walking_through_finds(
    items: list[dict[str, Any]], request_: Request, upstream: bool, roles: tuple[str, ...]
) -> None:
    naming = UPSTREAM if upstream else NATIVE
    who = user(naming, roles=roles, groups=[("ops", "default")])
    policy = Policy(items, naming)
    one_by_one = [Policy([item], naming).explain(who, request_).allowed for item in items]
    assert policy.allows(who, request_) == any(one_by_one)
    explanation = policy.explain(who, request_)
    assert explanation.allowed == any(one_by_one)
    assert explanation.item == (one_by_one.index(True) + 1 if any(one_by_one) else None)


@given(ITEMS, ASKED, st.sampled_from([("member",), ("member", "reader")]))
def test_native_verdicts_allow_no_more_than_upstreams(
    items: list[dict[str, Any]], request_: Request, roles: tuple[str, ...]
) -> None:
    """But for what has no spelling in upstream's format: sub-resources of version 1, and names of other domains."""
    for item in items:
        for key in [key for key in item.get("resource_permissions", ()) if key.count("/") > 1]:
            del item["resource_permissions"][key]
    by_native = Policy(items, NATIVE).allows(user(NATIVE, roles=roles, groups=[("ops", "default")]), request_)
    by_upstream = Policy(items, UPSTREAM).allows(user(UPSTREAM, roles=roles, groups=[("ops", "default")]), request_)
    assert by_upstream or not by_native


@settings(max_examples=50)
@given(ITEMS, ASKED)
def test_nothing_that_upstream_refuses_is_allowed_by_names_of_other_domains(
    items: list[dict[str, Any]], request_: Request
) -> None:
    """A user of another domain gets from names no more than upstream gives, and from bare names nothing at all."""
    stranger = {"user_domain_id": OTHER, "project_domain_id": OTHER, "project_id": "f" * 32, "user_id": "e" * 32}
    native = Policy(items, NATIVE).allows(user(NATIVE, groups=[("ops", OTHER)], **stranger), request_)
    nobody = {**stranger, "project_name": "unnamed"}
    assert native == Policy(items, NATIVE).allows(user(NATIVE, "unnamed", groups=[], **nobody), request_)


def test_explain_names_the_item_and_near_misses() -> None:
    items = [
        v1("*/pods", "list"),
        v1("*/pods", "get", users={"projects": ["demo2", HEX2, "c", "d"]}),
        v1("*/nodes", "get"),
        v1("*/pods", "list", users={"projects": ["demo1"], "roles": ["admin"]}),
        v1("*/nodes", "get", users={"projects": ["demo2"]}),
        {"nonresource_permissions": {"/healthz": ["get"]}},
        {**matching("user", "bob"), "users": {"projects": ["demo1"]}},
        matching("colour", "blue"),
        {
            **v1("*/nodes", "list"),
            "nonresource": {"verbs": ["get"], "path": "*"},
            "match": [{"type": "x", "values": []}],
        },
    ]
    explanation = Policy(items, NATIVE).explain(user(NATIVE), pods())
    assert not explanation.allowed
    assert explanation.reason == "no item allows it (7 came near); RBAC decides"
    assert explanation.misses == (
        (1, "the verb 'get' is not among its verbs"),
        (2, f"none of the item's projects ('demo2', '{HEX2}', 'c' and 1 more) is the user's"),
        (3, "it means this user, but does not cover pods in namespace default"),
        (4, "the user lacks the role admin and the verb 'get' is not among its verbs"),
        (7, "none of the item's users ('bob') is the user's"),
        (8, "its match has the unknown type 'colour'"),
        (9, "it means this user, but does not cover pods in namespace default"),
    )
    assert Policy([*items, v1("*/pods", "get")], NATIVE).explain(user(NATIVE), pods()).item == 10


def test_explain_says_that_sub_resources_are_to_be_named() -> None:
    item = {**v1("*/nodes", "get")}
    item["resource_permissions"]["*/pods"] = ["get"]
    misses = Policy([item], NATIVE).explain(user(NATIVE), pods(**EXEC)).misses
    assert misses == (
        (
            1,
            "it means this user, but does not cover pods/exec in namespace default; it covers the resource itself, and "
            "sub-resources are to be named",
        ),
    )


def test_explain_is_about_paths_where_a_path_is_asked_for() -> None:
    items = [v1("*/*", "*"), {"nonresource": {"verbs": ["get"], "path": "/api"}, "match": []}]
    explanation = Policy(items, NATIVE).explain(user(NATIVE), path("/healthz"))
    assert explanation.misses == ((2, "it means this user, but does not cover the path /healthz"),)


# -- validation


def problems(text: str | list[Any], **options: Any) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    checked = check((text if isinstance(text, str) else json.dumps(text)).encode(), **options)
    assert (checked.items is None) == bool(checked.errors)
    return checked.errors, checked.warnings


def only(found: tuple[Problem, ...]) -> Problem:
    assert len(found) == 1, found
    return found[0]


YAML = """\
# comment
- users:
    projects: [demo1]
    roles: [member]
  resource_permissions:
    "default/configmaps": [get, list]
- users:
    projects: [demo1]
    role: [admin]
  resource_permissions:
    "*/*": ["*"]
"""


def test_an_error_names_item_line_key_and_reason() -> None:
    errors, _ = problems(YAML)
    problem = only(errors)
    assert (problem.item, problem.line, problem.key) == (2, 9, "users.role")
    assert "unknown key 'role'" in problem.reason


def test_yaml_that_is_none_names_the_line() -> None:
    problem = only(problems('- users: {projects: [demo1]}\n  resource_permissions: {"*/*": [*]}\n')[0])
    assert problem.line == 2
    assert "needs quotes" in problem.reason
    problem = only(problems("- users:\n\tprojects: [demo]\n")[0])
    assert problem.line == 2
    assert "by spaces, not by tabs" in problem.reason


def test_a_config_map_in_the_policys_place_is_told_as_one() -> None:
    problem = only(problems("apiVersion: v1\nkind: ConfigMap\ndata:\n  policies: '[]'\n")[0])
    assert "under its key `policies`" in problem.reason


@pytest.mark.parametrize(
    ("item", "key", "reason"),
    [
        ("text", None, "must be a mapping"),
        ({}, None, "grants nothing"),
        ({**v1("*/pods", "get"), "resource_permision": {}}, "resource_permision", "unknown key"),
        (v1("*/pods", "get", users={"projects": "demo1"}), "users.projects", "must be a list"),
        (v1("*/pods", "get", users={"projects": [1]}), "users.projects[1]", "must be a text"),
        ({"resource_permissions": {"*/pods": "get"}}, "resource_permissions.*/pods", "must be a list"),
        ({"resource_permissions": ["get"]}, "resource_permissions", "must be a mapping"),
        ({"nonresource_permissions": {"/a": [None]}}, "nonresource_permissions./a[1]", "must be a text"),
        ({**v2(), "resource": {"verbs": ["get"], "resources": ["pods"], "version": ""}}, "resource", "namespace"),
        (v2(version=1), "resource.version", "must be a text"),
        (v2(resources="pods"), "resource.resources", "must be a list"),
        ({"nonresource": {"verbs": ["get"]}}, "nonresource", "path is missing"),
        ({**v2(), "match": {}}, "match", "must be a list"),
        ({**v2(), "match": [{"values": ["a"]}]}, "match[1]", "type is missing"),
        ({**v2(), "match": [{"type": "user"}]}, "match[1]", "values is missing"),
        ({**v2(), "match": [{"type": "user", "values": [3]}]}, "match[1].values[1]", "must be a text"),
    ],
)
def test_what_cannot_be_used_is_refused(item: Any, key: str | None, reason: str) -> None:
    problem = only(problems([v1("*/pods", "get"), item])[0])
    assert (problem.item, problem.key) == (2, key)
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("item", "part"),
    [
        (v1("*/pods", "get"), "such as pods/exec"),
        (v1("*/!secrets", "get"), "such as pods/exec"),
        (v1("*/*", "get"), "sub-resources"),
        (v1("*/['configmaps', 'deployments']", "patch"), "such as deployments/scale"),
        (v1("*/serviceaccounts", "Create"), "such as serviceaccounts/token"),
        (v1("*/namespaces", "*"), "such as namespaces/finalize"),
        (v1("*/configmaps", "gett"), "unknown verb 'gett'"),
        (v2(verbs=["GET"]), "unknown verb 'GET'"),
        (v1("*/configmaps", " get"), "unknown verb ' get'"),
        (v1("*/configmaps"), "names no verb"),
        (v1("*/['a'", "get"), "is ignored"),
        (v1("configmaps", "get"), "is ignored"),
        (v1("/configmaps", "get"), "is empty"),
        (v1("*/config*", "get"), "stands alone is a wildcard"),
        (v1("kube-*/configmaps", "get"), "stands alone is a wildcard"),
        (v1("*/deployments.apps", "get"), "does not look at groups"),
        (v1("*/configmaps", "get", users={"roles": ["member"]}), "nobody is meant"),
        (v1("*/configmaps", "get", users={"projects": ["demo1"], "roles": [HEX]}), "looks like an ID"),
        (v1("*/configmaps", "get", users={"projects": ["*"]}), "no wildcard"),
        (v1("*/configmaps", "get", users={"projects": [" demo1"]}), "white space around it"),
        (v1("*/configmaps", "get", users={"projects": ["5f3e1d9c-7b8a-46d2-a1c0-e9f8d7b6a594"]}), "an ID with dashes"),
        (v1("*/configmaps", "get", users={"projects": [HEX.upper()]}), "in capital letters"),
        (v1("*/configmaps", "get", users={"projects": [f"keystone:project:{HEX}"]}), "as Kubernetes sees it"),
        ({"resource_permissions": {"*/configmaps": ["get"]}}, "every Keystone user"),
        ({"nonresource_permissions": {"healthz": ["get"]}}, "a path begins with /"),
        ({"nonresource_permissions": {"/api/*": ["get"]}}, "no wildcard in nonresource_permissions"),
        ({"nonresource": {"verbs": ["get"], "path": "api"}, "match": []}, "a path begins with /"),
        ({"nonresource": {"verbs": ["get", ""], "path": "/api"}, "match": []}, "an empty verb"),
        (matching("colour", "blue"), "unknown type"),
        (matching("role"), "names no values"),
        (matching("user", ""), "nobody's name"),
        (matching("group", HEX), "IDs of projects"),
        (matching("group", "system:masters"), "a name of Kubernetes' own"),
        (matching("user", "keystone:alice"), "as Kubernetes sees it"),
        ({**v2(), "match": []}, "every Keystone user"),
        (v2(version="v1"), "API group"),
        (v2(version="apps/v1"), "API group"),
        (v2(namespace="kube-*"), "no namespace is called so"),
        (v2(resources=["Pods"]), "is compared as it stands"),
        (v2(resources=["*/log"]), "is compared as it stands"),
        (v2(resources=["po*"]), "is compared as it stands"),
        (v2(resources=[]), "names no resource"),
        ({**v2(), **v1("*/configmaps", "get")}, "is not looked at"),
    ],
)
def test_what_is_legal_but_surely_not_meant_is_warned_about(item: dict[str, Any], part: str) -> None:
    errors, warnings = problems([item])
    assert errors == ()
    assert any(part in warning.reason for warning in warnings), warnings


@pytest.mark.parametrize(
    "item",
    [
        v1("*/configmaps", "get"),
        v1("default/*", "*"),
        v1("*/deployments", "get", "list", "watch"),
        v1("*/['pods', 'pods/log']", "get"),
        {"users": {"projects": ["demo1"]}, "resource_permissions": {"*/pods": ["get"], "*/pods/log": ["get"]}},
        v2(),
        v2(resources=["*", "pods/*", "pods/log"], verbs=["*"], version="apps", namespace=""),
        {**v2(), "match": [{"type": kind, "values": ["*", "a b", HEX2]} for kind in ("user", "project")]},
        {"nonresource": {"verbs": ["get"], "path": "*"}, "match": [{"type": "role", "values": ["member"]}]},
    ],
)
def test_what_is_surely_meant_is_not_warned_about(item: dict[str, Any]) -> None:
    assert problems([item]) == ((), ())


def test_a_role_that_no_item_can_reach_is_warned_about_once_where_it_stands() -> None:
    items = [
        v1("*/configmaps", "get", users={"roles": ["ops", "member"]}),
        {**matching("role", "auditor"), "users": {"roles": ["auditor"], "projects": ["demo1"]}},
        v1("configmaps", "get", users={"roles": ["lost"], "projects": ["demo1"]}),
        {**v2(), "match": [{"type": "role", "values": ["found", "ops"]}, {"type": "colour", "values": ["*"]}]},
        {**v2(verbs=[]), "match": [{"type": "role", "values": ["found"]}], "nonresource_permissions": {"/x": ["get"]}},
        v1("*/configmaps", "get", users={"roles": ["member"], "projects": ["demo1"]}),
    ]
    found = [warning for warning in problems(items)[1] if "no item can reach" in warning.reason]
    assert [(warning.item, warning.key) for warning in found] == [
        (1, "users.roles[1]"),
        (3, "users.roles[1]"),
    ]
    items[3]["nonresource_permissions"] = {"/x": []}
    assert len([warning for warning in problems(items[3:4])[1] if "no item can reach" in warning.reason]) == 2


def test_upstream_compatible_mode_is_warned_about_what_it_means() -> None:
    assert problems([v1("*/pods", "get")], upstream_compatible=True) == ((), ())
    assert "takes it for a name" in only(problems([v1("*/!a[b", "get")], upstream_compatible=True)[1]).reason


def test_a_third_half_is_warned_about_where_upstream_ignores_it() -> None:
    item = v1("*/pods/log", "get")
    assert problems([item]) == ((), ())
    assert "is ignored" in problems([item], upstream_compatible=True)[1][0].reason


@pytest.mark.parametrize("text", ["", "{}", "[", "- [", "\0", "a: b", "- - - x", "'", "42", "null", "\t- a"])
def test_what_is_no_list_of_items_is_refused(text: str) -> None:
    assert problems(text)[0]


def test_scalars_of_yaml_are_texts() -> None:
    checked = check(
        b'- users: {projects: [no, 12345678901234567890123456789012]}\n  resource_permissions: {"*/x": [get]}'
    )
    assert checked.items is not None
    assert checked.items[0]["users"]["projects"] == ["no", "12345678901234567890123456789012"]


def test_a_key_given_twice_is_refused() -> None:
    text = '- resource_permissions:\n    "*/x": [get]\n    "*/x": [list]\n'
    problem = only(problems(text)[0])
    assert (problem.item, problem.line) == (1, 3)


@pytest.mark.parametrize(
    ("item", "key"),
    [
        ('{"resource_permissions": {"*/x": ["get"]}, "resource_permissions": {}}', "resource_permissions"),
        ('{"resource_permissions": {"*/x": ["get"], "*/y": [], "*/x": ["list"]}}', "resource_permissions.*/x"),
        (
            '{"resource": {}, "match": [{"type": "user", "values": []}, {"values": [], "type": "", "values": ["*"]}]}',
            "match[2].values",
        ),
    ],
)
def test_a_key_given_twice_is_refused_in_json_too(item: str, key: str) -> None:
    problem = only(problems('[{"resource_permissions": {"*/x": ["get"]}}, ' + item + "]")[0])
    assert (problem.item, problem.key) == (2, key)
    assert "twice" in problem.reason
    assert "twice" in only(problems('{"a": 1, "a": 2}')[0]).reason


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 1_000 + "]" * 1_000,
        "- " * 50_000,
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else '*a'] * 9)}]\n" for n in range(9)),
        "&a [*a]",
    ],
)
def test_a_text_that_is_a_bomb_is_refused(text: str) -> None:
    assert problems(text)[0]


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_no_json_makes_the_check_fail_and_whatever_passes_compiles(data: Any) -> None:
    for value in (data, [data], [{"resource_permissions": data}], [{"match": data, "resource": data}]):
        checked = check(json.dumps(value).encode())
        if checked.items is not None:
            Policy(checked.items, NATIVE)
            Policy(checked.items, UPSTREAM)


@given(st.text())
def test_no_text_makes_the_check_fail(text: str) -> None:
    check(text.encode())


@pytest.mark.slow
def test_among_ten_thousand_items_a_decision_is_found_and_not_searched() -> None:
    items = [v1(f"ns{number}/pods", "get", users={"projects": [f"p{number}"]}) for number in range(10_000)]
    policy = Policy(items, NATIVE)
    few = Policy(items[-10:], NATIVE)
    who = user(NATIVE, project_name="p9999")

    def decide(by: Policy) -> float:
        """Seconds of processor time for 2,000 decisions."""
        began = time.process_time()
        for _ in range(2_000):
            assert by.allows(who, pods(namespace="ns9999"))
        return time.process_time() - began

    # Walking through all items would take a thousand times as long.
    assert decide(policy) < 20 * decide(few)


def one_role(size: int) -> list[dict[str, Any]]:
    return [v1(f"ns{number}/pods", "get", users={"projects": ["demo1"], "roles": ["member"]}) for number in range(size)]


def project_each(size: int) -> list[dict[str, Any]]:
    return [v1(f"ns{number}/pods", "get", users={"projects": [f"p{number % 500}"]}) for number in range(size)]


def steps(policy: Policy, who: Subject, *requests: Request) -> int:
    """How many permissions are compared with a request at most."""
    most = 0
    for request in requests:
        with mock.patch.object(_Cover, "covers", autospec=True, side_effect=_Cover.covers) as compared:
            policy.allows(who, request)
        most = max(most, compared.call_count)
    return most


@pytest.mark.parametrize("items", [one_role, project_each])
def test_a_decision_compares_as_many_rules_among_ten_thousand_as_among_ten(
    items: Callable[[int], list[dict[str, Any]]],
) -> None:
    who = user(NATIVE, project_name="p3") if items is project_each else user(NATIVE)
    asked = [pods(namespace="ns3"), pods(verb="delete", namespace="ns3"), pods(namespace="elsewhere")]
    assert steps(Policy(items(10_000), NATIVE), who, *asked) == steps(Policy(items(10), NATIVE), who, *asked) == 1


@pytest.mark.slow
def test_the_time_to_load_a_policy_grows_no_faster_than_its_items(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    item = {"*/configmaps": ["get"], "['a', 'b']/pods": ["list"]}

    def load(count: int) -> float:
        """Seconds of processor time for `count` items, the best of three."""
        items = [
            {"users": {"projects": [f"p{number}"]}, "resource_permissions": {f"ns{number}/pods": ["get"], **item}}
            for number in range(count)
        ]
        policy.write_text(json.dumps(items))
        times = []
        for _ in range(3):
            began = time.process_time()
            load_policy(policy, NATIVE)
            times.append(time.process_time() - began)
        return min(times)

    assert load(10_000) < 20 * load(1_000)
