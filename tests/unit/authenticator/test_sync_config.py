"""The sync configuration: upstream's format, and each finding with its line and reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from keystone_authenticator.identity import RoleMapping
from keystone_authenticator.sync.config import SyncConfigError, check, load
from tests.unit.authenticator.test_cli import call  # noqa: F401  a fixture

# As k8s-keystone-auth's documentation has it, line by line.
WHOLE = """\
namespace-format: "prefix-%d-%n-%i-suffix"
projects-blacklist: ["id1", "id2"]
projects-name-blacklist: ["name1", "1234"]
data-types-to-sync: ["projects", "role_assignments"]
role-mappings:
  - keystone-role: member
    username: myuser
    groups: ["mytest"]
"""


def test_upstreams_format_is_read_whole() -> None:
    config = load(WHOLE.encode(), upstream_compatible=True)
    assert config.projects
    assert config.assignments
    assert config.namespace_format == "prefix-%d-%n-%i-suffix"
    assert config.excludes("id2", "other")
    assert config.excludes("other", "1234")
    assert not config.excludes("other", "id1")
    assert config.mappings == (RoleMapping("member", "myuser", ("mytest",)),)


def test_what_is_not_said_is_as_upstream_has_it() -> None:
    config = load(b"data-types-to-sync: [projects]")
    assert config.namespace_format == "%i"
    assert config.writes
    assert not config.assignments
    assert not load(b"role-mappings: [{keystone-role: a, groups: [b]}]").writes


@pytest.mark.parametrize(
    ("text", "line", "key", "reason"),
    [
        ("- a", 1, None, "must be a mapping"),
        ("", None, None, "must be a mapping"),
        ("data-types-to-sync: [projects]\nnamespaces: yes", 2, "namespaces", "unknown key 'namespaces'"),
        ("data-types-to-sync:\n- projects\n- users", 3, "data-types-to-sync[2]", "is 'users', expected projects"),
        ("data-types-to-sync: projects", 1, "data-types-to-sync", "must be a list"),
        ("namespace-format: '%n'", 1, "namespace-format", "must have %i"),
        ("namespace-format: 'a b %i'", 1, "namespace-format", "may have letters"),
        ("namespace-format: '%i-%x'", 1, "namespace-format", "may have letters"),
        ("namespace-format: '-%i'", 1, "namespace-format", "begin and end"),
        ("projects-blacklist:\n  - a\n  - {}", 3, "projects-blacklist[2]", "must be a text"),
        ("role-mappings:\n- groups: [a]", 2, "role-mappings[1]", "names no keystone-role"),
        ("role-mappings:\n- keystone-role: a\n  users: b", 3, "role-mappings[1].users", "unknown key"),
        (
            "role-mappings:\n- keystone-role: a\n  groups:\n  - fine\n  - system:masters",
            5,
            "role-mappings[1].groups[2]",
            "nobody gets by a Keystone role",
        ),
        ("role-mappings:\n- {keystone-role: a, groups: [' Kubeadm:x']}", 2, "role-mappings[1].groups[1]", "nobody"),
        ("role-mappings:\n- {keystone-role: a, groups: ['keystone:bob']}", 2, "role-mappings[1].groups[1]", "nobody"),
        ("role-mappings:\n- {keystone-role: a, username: bob}", 2, "role-mappings[1].username", "nobody can forge"),
        ("namespace-format: '%i'\nnamespace-format: '%i'", 2, "namespace-format", "stands here twice"),
        ("a: }", 1, None, "not YAML"),
        ("kind: ConfigMap\ndata: {}", 1, None, "syncConfig"),
    ],
)
def test_a_bad_one_says_where_and_why(text: str, line: int | None, key: str | None, reason: str) -> None:
    checked = check(text.encode())
    assert checked.config is None
    first = checked.errors[0]
    assert (first.line, first.key) == (line, key)
    assert reason in first.reason
    with pytest.raises(SyncConfigError, match="line" if line else "mapping"):
        load(text.encode())


def test_reserved_user_names_are_refused_in_the_other_mode_too() -> None:
    text = b"role-mappings: [{keystone-role: a, username: 'system:admin'}]"
    assert "nobody gets" in check(text, upstream_compatible=True).errors[0].reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data-types-to-sync: [role_assignments]", "RoleBindings are made only in namespaces"),
        ("data-types-to-sync: []", "nothing is kept in step"),
        ("{data-types-to-sync: [projects], namespace-format: 'A-%i'}", "what no namespace can have"),
        ("{data-types-to-sync: [projects], namespace-format: '%i-%i'}", "longer than 63"),
        ("role-mappings: [{keystone-role: a}]", "changes nothing"),
    ],
)
def test_what_was_surely_not_meant_is_warned_about(text: str, reason: str) -> None:
    checked = check(text.encode())
    assert checked.config is not None
    assert any(reason in warning.reason for warning in checked.warnings)


def test_the_command_line_tells_what_was_found(call: Callable[..., Any]) -> None:  # noqa: F811
    code, answer, _ = call("validate-sync", "-", stdin="data-types-to-sync: [users]")
    assert code == 1
    assert answer["valid"] is False
    assert answer["errors"][0]["key"] == "data-types-to-sync[1]"
    code, answer, _ = call("validate-sync", "--upstream-compatible", "-", stdin=WHOLE)
    assert (code, answer) == (0, json.loads('{"valid": true, "errors": [], "warnings": []}'))
