"""Writing a context into a kubeconfig: ours goes in, everybody else's stays, and no secret is seen on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kubectl_keystone_auth import kubeconfig
from kubectl_keystone_auth.errors import BadInput
from kubectl_keystone_auth.kubeconfig import PROGRAM, Cluster, Login, cluster_entry, merge, user_entry, whole

LOGIN = Login(("--keystone-url=https://k/v3",), {"OS_APPLICATION_CREDENTIAL_SECRET": "a: 'b'\n\N{SNOWMAN}"})
OURS = whole("demo", cluster_entry(Cluster("https://api:6443", b"ca")), user_entry(LOGIN), "web")
OTHERS = {
    "apiVersion": "v1",
    "kind": "Config",
    "preferences": {"colors": True},
    "clusters": [{"name": "old", "cluster": {"server": "https://old", "insecure-skip-tls-verify": True}}],
    "users": [{"name": "admin", "user": {"token": "0123"}}],
    "contexts": [{"name": "old", "context": {"cluster": "old", "user": "admin"}}],
    "current-context": "old",
    "extensions": [{"name": "x", "extension": {"last": "yes"}}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kube" / "config"


def put(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))


def test_names_that_kubectl_prints_are_read_whatever_the_system_writes_in(tmp_path):
    view = {
        "users": [
            {
                "name": "u",
                "user": {
                    "exec": {"command": PROGRAM, "args": ["--user-name=J\N{LATIN SMALL LETTER U WITH DIAERESIS}rgen"]}
                },
            }
        ]
    }
    (tmp_path / "kubectl").write_text(
        f"#!/bin/sh\ncat <<'EOF'\n{json.dumps(view, ensure_ascii=False)}\nEOF\n", encoding="utf-8"
    )
    (tmp_path / "kubectl").chmod(0o755)
    # What Windows is like, where programs are taken to print in the system's own old code page.
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {
        **os.environ,
        **old,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(kubeconfig.__file__).parents[1]),
    }
    shown = (
        "from kubectl_keystone_auth.kubeconfig import current, login_of; print(ascii(login_of(current()).arguments))"
    )
    done = subprocess.run([sys.executable, "-c", shown], env=environment, capture_output=True, text=True)
    assert done.stdout == "('--user-name=J\\xfcrgen',)\n", done.stderr


def test_a_file_is_made_that_the_user_alone_can_read(path):
    merge(path, OURS, use=False)
    assert yaml.safe_load(path.read_text()) == OURS
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["config"]


def test_everything_else_in_a_file_stays(path):
    put(path, OTHERS)
    merge(path, OURS, use=False)
    found = yaml.safe_load(path.read_text())
    for name, value in OTHERS.items():
        assert found[name][: len(value)] == value if isinstance(value, list) else found[name] == value
    assert found["users"][1]["user"]["exec"]["env"][0]["value"] == "a: 'b'\n\N{SNOWMAN}"
    merge(path, OURS, use=True)
    assert yaml.safe_load(path.read_text()) == {**found, "current-context": "demo"}


def test_ours_is_renewed_in_its_place(path):
    put(path, OTHERS)
    merge(path, OURS, use=False)
    changed = whole("demo", OURS["clusters"][0]["cluster"], user_entry(Login(("--os-cloud=x",), {})), "")
    merge(path, changed, use=False)
    found = yaml.safe_load(path.read_text())
    assert [len(found[kind]) for kind in ("clusters", "users", "contexts")] == [2, 2, 2]
    assert found["users"][1] == changed["users"][0]


def test_a_name_that_is_somebody_elses_is_not_taken(path):
    for content, word in (
        ({**OTHERS, "users": [{"name": "demo", "user": {"token": "0123"}}]}, "logs in otherwise"),
        ({**OTHERS, "users": [{"name": "demo", "user": {"exec": "x", "extensions": ["y"]}}]}, "logs in otherwise"),
        ({**OTHERS, "users": [{"name": "demo", "user": {"exec": {"command": PROGRAM, "env": [1]}}}]}, "otherwise"),
        ({**OTHERS, "clusters": [{"name": "demo", "cluster": {"server": "https://x"}}]}, "another cluster"),
        ({**OTHERS, "contexts": [{"name": "demo", "context": {"cluster": "old", "user": "admin"}}]}, "another context"),
    ):
        put(path, content)
        before = path.read_bytes()
        with pytest.raises(BadInput, match=word):
            merge(path, OURS, use=True)
        assert path.read_bytes() == before
        assert not path.with_name("config.lock").exists()


@pytest.mark.parametrize(
    "content",
    [
        "a: [gheim", "- gheim", "users: gheim", "users: [gheim]", "\0gheim",
        "users: [{name: demo, user: gheim}]", "users: [{name: [gheim]}]",
        "clusters: [{name: demo, cluster: gheim}]", "contexts: [{name: demo, context: gheim}]",
        pytest.param(f"gheim: {'[' * 600}", id="deep"),
    ],
)  # fmt: skip
def test_what_is_no_kubeconfig_is_left_as_it_is_and_not_quoted(path, content):
    put(path, content)
    with pytest.raises(BadInput, match="left as it is") as raised:
        merge(path, OURS, use=True)
    assert "gheim" not in str(raised.value)
    assert path.read_text() == content


def test_a_file_that_kubectl_is_writing_is_left(path):
    put(path, OTHERS)
    path.with_name("config.lock").touch()
    with pytest.raises(BadInput, match=r"config\.lock is there"):
        merge(path, OURS, use=True)
    assert path.with_name("config.lock").exists()
    assert yaml.safe_load(path.read_text()) == OTHERS


def test_a_link_stays_a_link(path, tmp_path):
    put(path, "")
    path.unlink()
    path.symlink_to(tmp_path / "dotfile")
    merge(path, OURS, use=True)
    assert path.is_symlink()
    assert yaml.safe_load((tmp_path / "dotfile").read_text()) == OURS


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file"):
        merge(tmp_path / "file" / "config", OURS, use=True)


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("kubectl-keystone-auth", True),
        ("bin/kubectl-keystone-auth", True),
        ("C:\\bin\\kubectl-keystone-auth.exe", True),
        ("/opt/client-keystone-auth", True),
        ("kubelogin", False),
        ("", False),
    ],
)
def test_a_context_of_this_plug_in_is_known(command, ours):
    section = {"command": command, "args": ["--a=b"], "env": [{"name": "OS_X", "value": "y"}]}
    found = kubeconfig.login_of({"users": [{"name": "x", "user": {"exec": section}}]})
    assert found == (Login(("--a=b",), {"OS_X": "y"}) if ours else None)


@pytest.mark.parametrize(
    "view", [{}, {"users": None}, {"users": [{"name": "x"}]}, {"users": [{"user": {"token": "x"}}]}]
)
def test_a_context_without_a_plug_in_has_no_login(view):
    assert kubeconfig.login_of(view) is None


def test_the_file_that_is_written_is_kubectls(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert kubeconfig.target("") == tmp_path / ".kube" / "config"
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(("", str(tmp_path / "a"), str(tmp_path / "b"))))
    assert kubeconfig.target("") == tmp_path / "a"
    assert kubeconfig.target("~/c") == tmp_path / "c"
