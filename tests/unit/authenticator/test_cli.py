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


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        ({"namespace": "a"}, True),
        ({"verb": "delete"}, False),
        ({"roles": []}, False),
        ({"project_name": None, "project": "demo"}, False),
        ({"domain": "f" * 32}, False),
        ({"resource": None, "path": "/healthz"}, False),
    ],
)
def test_explain_says_which_item_decides(
    call: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], allowed: bool
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(POLICY)
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({**GOOD, "policy": str(policy)}))
    code, answer, _ = call("explain", "--config", str(config), stdin=json.dumps({**QUESTION, **changes}))
    assert code == 0
    assert answer["allowed"] is allowed
    assert answer["item"] == (1 if allowed else None)
    assert answer["reason"]


def test_explain_without_a_policy_says_so(call: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "settings.json"
    config.write_text(json.dumps(GOOD))
    code, answer, _ = call("explain", "--config", str(config), stdin=json.dumps(QUESTION))
    assert (code, answer["allowed"], answer["item"]) == (0, False, None)
    assert "no policy" in answer["reason"]


@pytest.mark.parametrize("question", ["", "[]", "{}", '{"verb": 1}', '{"verb": "get", "resource": "x", "odd": 1}'])
def test_explain_refuses_what_is_no_question(call: Callable[..., Any], tmp_path: Path, question: str) -> None:
    config = tmp_path / "settings.json"
    config.write_text(json.dumps(GOOD))
    code, _, error = call("explain", "--config", str(config), stdin=question)
    assert code == 2
    assert "Traceback" not in error
