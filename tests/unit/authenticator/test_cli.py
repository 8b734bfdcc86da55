"""The commands that the charm and people call."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keystone_authenticator.__main__ import main
from tests.unit.authenticator.test_settings import GOOD


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Any]:
    """Run a command in this process; gives exit code, output (parsed where it is JSON) and errors."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, Any, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            code = main(list(arguments))
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        sys.stdout.flush()
        output, errors = (stream.decode() for stream in capfdbinary.readouterr())
        return code, json.loads(output) if output.startswith("{") else output, errors

    return run


POLICY = """\
- users: {projects: [demo], roles: [member]}
  resource_permissions:
    "*/configmaps": [get, list]
"""


def test_a_valid_policy_comes_back_parsed(call: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    code, answer, _ = call("validate-policy", str(path))
    assert code == 0
    item = {
        "users": {"projects": ["demo"], "roles": ["member"]},
        "resource_permissions": {"*/configmaps": ["get", "list"]},
    }
    assert answer == {"valid": True, "rules": 1, "errors": [], "warnings": [], "policy": [item]}


def test_an_invalid_policy_says_where_and_why(call: Callable[..., Any]) -> None:
    code, answer, _ = call("validate-policy", "-", stdin="- users: {role: [a]}\n  resource_permissions: {}\n")
    assert code == 1
    assert answer["valid"] is False
    assert answer["policy"] is None
    error = {"item": 1, "line": 1, "key": "users.role", "reason": "unknown key 'role', expected one of roles, projects"}
    assert answer["errors"] == [error]


def test_wrong_usage_is_exit_code_2(call: Callable[..., Any], tmp_path: Path) -> None:
    for arguments in (
        ("validate-policy", str(tmp_path / "none")),
        ("serve",),
        ("serve", "--config", "/none"),
        ("fly",),
    ):
        code, output, error = call(*arguments)
        assert code == 2
        assert output == ""
        assert error
        assert "Traceback" not in error


def test_the_version_is_told(call: Callable[..., Any]) -> None:
    assert call("--version")[:2] == (0, "0.1.0\n")


QUESTION = {"user": "alice", "project_name": "demo", "roles": ["member"], "verb": "get", "resource": "configmaps"}
ID, OTHER = "5f3e1d9c7b8a46d2a1c0e9f8d7b6a594", "aaaabbbbccccddddeeeeffff00001111"
Explainer = Callable[..., dict[str, Any]]


@pytest.fixture
def explain(call: Callable[..., Any], tmp_path: Path) -> Explainer:
    """Ask the question with changes, of a policy; gives the answer."""

    def ask(
        policy: str | list[dict[str, Any]] | None = POLICY, compatible: bool = False, **changes: Any
    ) -> dict[str, Any]:
        config, path = tmp_path / "settings.json", tmp_path / "policy"
        found = {**GOOD, "authorization_backend": changes.pop("backend", None), "upstream_compatible": compatible}
        if policy is not None:
            path.write_text(policy if isinstance(policy, str) else json.dumps(policy))
        config.write_text(json.dumps({**found, "policy": None if policy is None else str(path)}))
        code, answer, error = call("explain", "--config", str(config), stdin=json.dumps({**QUESTION, **changes}))
        assert code == 0, error
        assert answer["reason"]
        assert answer["allowed"] is (answer["item"] is not None)
        return answer

    return ask


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        ({"namespace": "a"}, True),
        ({"verb": "delete"}, False),
        ({"roles": []}, False),
        ({"project_name": None, "project": "demo"}, False),
        ({"domain": "f" * 32}, False),
        ({"domain": "f" * 32, "project_domain": "default"}, True),
        ({"project_domain": OTHER}, False),
        ({"resource": None, "path": "/healthz"}, False),
    ],
)
def test_explain_says_which_item_decides(explain: Explainer, changes: dict[str, Any], allowed: bool) -> None:
    assert explain(**changes)["allowed"] is allowed


def matching(kind: str, *values: str) -> list[dict[str, Any]]:
    spec = {"verbs": ["get"], "resources": ["configmaps"], "version": "", "namespace": "*"}
    return [{"resource": spec, "match": [{"type": kind, "values": list(values)}]}]


@pytest.mark.parametrize(
    ("policy", "changes", "native", "compatible"),
    [
        (matching("group", "ops"), {"groups": ["ops"]}, True, True),
        (matching("group", "ops"), {"groups": ["ops"], "domain": OTHER}, False, True),
        (matching("group", "ops"), {"groups": ["ops@default"], "domain": OTHER}, True, False),
        (matching("group", f"ops@{OTHER}"), {"groups": [f"ops@{OTHER}"]}, True, True),
        (matching("group", f"ops@{OTHER}"), {"groups": ["ops"], "domain": OTHER}, True, False),
        (matching("group", ID), {"project": ID}, True, True),
        (matching("group", "system:authenticated"), {}, False, True),
        (matching("group", "system:masters"), {"groups": ["system:masters"]}, True, False),
        (matching("user", ID), {"user": ID}, True, True),
        (matching("user", ID), {"user_id": ID}, True, True),
        (matching("user", "alice"), {"user_id": ID}, True, True),
        (matching("user", f"alice@{OTHER}"), {"domain": OTHER}, True, False),
        (matching("user", f"alice@{OTHER}"), {"user": f"alice@{OTHER}"}, True, True),
        (matching("project", ID), {"project": ID}, True, True),
        (matching("project", ID), {"project_name": ID}, False, True),
        (matching("project", "demo"), {"project": ID}, True, True),
        (matching("project", f"demo@{OTHER}"), {"project_domain": OTHER}, True, False),
        (matching("user", "*"), {"user": "system:kube-scheduler"}, True, False),
        (
            [{"nonresource": {"verbs": ["get"], "path": "/api/*"}, "match": []}],
            {"resource": None, "path": "/api/v1"},
            True,
            True,
        ),
    ],
)
def test_explain_is_right_for_groups_ids_and_other_domains(
    explain: Explainer, policy: list[dict[str, Any]], changes: dict[str, Any], native: bool, compatible: bool
) -> None:
    assert explain(policy, **changes)["allowed"] is native
    assert explain(policy, compatible=True, **changes)["allowed"] is compatible


def test_explain_says_what_the_question_leaves_out(explain: Explainer) -> None:
    by_name = explain(project_name=None, project=ID)
    assert by_name["reason"].endswith("; no project-name was given, and an item names a project by name")
    by_id = explain(matching("user", ID))
    assert by_id["reason"].endswith("; no user-id was given, and an item names a user by ID")
    assert "was given" not in explain(verb="delete")["reason"]


def test_explain_tells_of_a_reserved_name_that_no_token_makes_it(explain: Explainer) -> None:
    answer = explain(matching("user", "*"), compatible=True, user="system:admin")
    assert answer["reason"] == "the user name 'system:admin' is reserved: its tokens are refused"


RULE = {"id": "r1", "service": "kubernetes", "method": "GET", "path": "/api/v1/namespaces/*/configmaps/**"}


@pytest.mark.parametrize(
    ("rules", "changes", "reason"),
    [
        ([RULE], {}, "item 1 allows it, and so does the access rule GET /api/v1/namespaces/*/configmaps/**"),
        ([RULE], {"verb": "list", "name": ""}, "no access rule of the application credential covers list /api/v1/name"),
        ([RULE], {"api_version": None}, "no access rule of the application credential covers get /api/?/namespaces/a/"),
        ([RULE], {"verb": "delete"}, "no item allows it (1 came near); RBAC decides"),
        ([RULE], {"namespace": "*"}, "covers this, which is no single path"),
        (
            [{**RULE, "service": "compute"}],
            {},
            "none of them names the service type kubernetes: its tokens are refused",
        ),
        ([], {}, "none of them names the service type kubernetes: its tokens are refused"),
    ],
)
def test_explain_takes_an_application_credentials_rules_into_account(
    explain: Explainer, rules: list[dict[str, str]], changes: dict[str, Any], reason: str
) -> None:
    about = {"namespace": "a", "name": "c", "api_version": "v1", **changes}
    answer = explain(access_rules=rules, **about)
    assert reason in answer["reason"]
    assert answer["allowed"] is answer["reason"].startswith("item 1 allows it")


def test_explain_knows_that_a_credential_with_rules_has_no_groups(explain: Explainer) -> None:
    about = {"groups": ["ops"], "namespace": "a", "name": "c", "api_version": "v1"}
    assert explain(matching("group", "ops"), **about)["allowed"]
    assert not explain(matching("group", "ops"), access_rules=[RULE], **about)["allowed"]
    assert "not honoured in upstream-compatible mode" in explain(compatible=True, access_rules=[RULE])["reason"]


def test_explain_without_a_policy_says_so(explain: Explainer) -> None:
    assert explain(None)["reason"] == "there is no policy; RBAC decides"


def test_explain_says_who_decides_where_that_is_another_service(explain: Explainer) -> None:
    for policy in (POLICY, None):
        assert (
            "it is https://authz/webhook that decides"
            in explain(policy, backend=GOOD["authorization_backend"])["reason"]
        )


@pytest.mark.parametrize(
    "question",
    [
        *("", "[]", "{}", '{"verb": 1}', '{"verb": "get", "resource": "x", "odd": 1}', '{"verb": "get"}'),
        '{"verb": "get", "resource": "x", "path": "/x"}',
        '{"verb": "get", "resource": "x", "roles": "a"}',
        '{"verb": "get", "resource": "x", "access_rules": {}}',
        '{"verb": "get", "resource": "x", "access_rules": [{"service": "kubernetes"}]}',
    ],
)
def test_explain_refuses_what_is_no_question(call: Callable[..., Any], tmp_path: Path, question: str) -> None:
    config = tmp_path / "settings.json"
    config.write_text(json.dumps(GOOD))
    code, _, error = call("explain", "--config", str(config), stdin=question)
    assert code == 2
    assert "Traceback" not in error


def test_a_policy_is_validated_for_the_mode_that_it_is_for(call: Callable[..., Any]) -> None:
    text = POLICY.replace("configmaps", "pods")
    assert "sub-resources" in call("validate-policy", "-", stdin=text)[1]["warnings"][0]["reason"]
    assert call("validate-policy", "--upstream-compatible", "-", stdin=text)[1]["warnings"] == []
