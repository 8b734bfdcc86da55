"""What the check of a packed charm notices. The packing itself is too slow for here; the machine tests do it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from testbed import pack

PROJECT = Path(__file__).resolve().parents[3]


def good() -> dict[str, tuple[str, int]]:
    """A charm's members, with their modes: small, but with everything in its place."""
    members: dict[str, tuple[str, int]] = dict.fromkeys(pack.MEMBERS, ("", 0o644))
    for path in (*(PROJECT / "templates").rglob("*"), *(PROJECT / pack.LOGINS).iterdir()):
        if path.is_file():
            members[str(path.relative_to(PROJECT))] = (path.read_text(), 0o644)
    for name in pack.EXECUTABLE:
        members[name] = ("", 0o755)
    return members


@pytest.fixture
def problems(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "SYSTEM_PYTHON", sys.executable)

    def check(members: dict[str, tuple[str, int]]) -> list[str]:
        path = tmp_path / "some.charm"
        with zipfile.ZipFile(path, "w") as archive:
            for name, (text, mode) in members.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (0o100000 | mode) << 16
                archive.writestr(info, text)
        return pack.problems(path)

    return check


def test_a_good_charm_has_no_problems(problems):
    assert problems(good()) == []


@pytest.mark.parametrize("name", [*pack.MEMBERS, "templates/webhook-kubeconfig.yaml", f"{pack.LOGINS}/curl.sh"])
def test_what_is_missing_is_named(problems, name):
    members = good()
    del members[name]

    assert f"{name} is missing" in problems(members)


@pytest.mark.parametrize("name", pack.EXECUTABLE)
def test_what_cannot_be_executed_is_named(problems, name):
    assert problems({**good(), name: ("", 0o644)}) == [f"{name} is not executable"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tests/unit/test_x.py", "tests should not be in a charm"),
        (".git/config", ".git should not be in a charm"),
        ("testbed/pack.py", "testbed should not be in a charm"),
        ("src/__pycache__/charm.pyc", "src/__pycache__ should not be in a charm"),
        ("src/keystone_authenticator/x.py", "src/keystone_authenticator/x.py is not the charm's"),
        ("src/kubectl_keystone_auth/x.py", "src/kubectl_keystone_auth/x.py is not the charm's"),
    ],
)
def test_what_does_not_belong_is_named(problems, name, problem):
    assert problem in problems({**good(), name: ("", 0o644)})


@pytest.mark.parametrize(
    ("name", "what"),
    [("src/charm.py", "the charm's modules"), ("authenticator/keystone-authenticator", "the authenticator")],
)
def test_what_does_not_start_on_its_own_is_named_with_its_words(problems, name, what):
    found = problems({**good(), name: ("import nowhere_to_be_found\n", 0o755)})

    assert len(found) == 1
    assert found[0].startswith(what)
    assert "nowhere_to_be_found" in found[0]
