"""What bare names reach in a real cluster, and the way on: `show-webhook-config` with `upstream-compatible`."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bindings
from testbed import setup
from testbed.apiserver import ApiServer
from tests.functional.test_lease import unit

pytestmark = pytest.mark.functional
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


def bind(server: ApiServer, where: str, name: str, *subjects: tuple[str, str]) -> None:
    group = "rbac.authorization.k8s.io"
    listed: list[dict[str, Any]] = [
        {
            "kind": kind,
            "name": subject,
            **({"namespace": "default"} if kind == "ServiceAccount" else {"apiGroup": group}),
        }
        for kind, subject in subjects
    ]
    role = {"apiGroup": group, "kind": "ClusterRole", "name": "edit"}
    body = {"metadata": {"name": name}, "roleRef": role, "subjects": listed}
    code, answer = server.send("POST", f"{RBAC}/{where}", server.admin_token, body)
    assert code == 201, answer


def kubectl(server: ApiServer, command: str) -> None:
    """Run a printed command as the cluster's administrator."""
    program, *rest = shlex.split(command)
    options = [f"--server=https://127.0.0.1:{server.port}", f"--certificate-authority={server.ca}"]
    words = [str(setup.kubernetes() / program), *options, f"--token={server.admin_token}", *rest]
    subprocess.run(words, check=True, capture_output=True, timeout=60)


def test_bindings_that_a_keystone_name_would_have_are_listed_and_no_others(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bindings, "_PAGE", 7)  # a cluster comes with some sixty; so there are several pages
    layout = unit(server, tmp_path, 1)
    before = bindings.of_bare_names(layout).told
    bind(server, "clusterrolebindings", "ops", ("Group", "ops"), ("User", "keystone:alice"))
    bind(server, "namespaces/default/rolebindings", "web", ("User", "alice"), ("ServiceAccount", "robot"))
    bind(server, "namespaces/default/rolebindings", "odd", ("User", "al\nice"), ("Group", "kubeadm:cluster-admins"))
    bind(server, "clusterrolebindings", "a\x1b[2J\nuser root", ("User", "bob"))

    assert not any(line.startswith(("user system:", "group system:")) for line in before)
    assert set(bindings.of_bare_names(layout).told) - set(before) == {
        "group ops: ClusterRoleBinding ops gives ClusterRole edit",
        "user alice: RoleBinding default/web gives ClusterRole edit",
        "user 'al\\nice': RoleBinding default/odd gives ClusterRole edit",
        "user bob: ClusterRoleBinding 'a\\x1b[2J\\nuser root' gives ClusterRole edit",
    }


def test_the_printed_commands_add_the_native_names_and_take_nothing_away(server: ApiServer, tmp_path: Path) -> None:
    project = "0123456789abcdef0123456789abcdef"
    given = [("User", "Zoë O'Hara"), ("Group", project), ("Group", "a,b=c d"), ("ServiceAccount", "robot")]
    bind(server, "namespaces/default/rolebindings", "several: it's odd", *given, ("User", "zoe"), ("User", "zoe"))
    bind(server, "clusterrolebindings", "done", ("User", "bob"), ("User", "keystone:bob"))
    layout = unit(server, tmp_path, 2)

    commands = bindings.of_bare_names(layout).commands
    assert not any("done" in command for command in commands)
    for command in commands:
        kubectl(server, command)
    assert bindings.of_bare_names(layout).commands == []
    _, found = server.send("GET", f"{RBAC}/namespaces/default/rolebindings/several:%20it's%20odd", server.admin_token)
    subjects = [(one["kind"], one["name"]) for one in found["subjects"]]
    assert set(subjects) >= {*given, ("User", "zoe")}
    assert sorted(name for _, name in subjects if name.startswith("keystone:")) == [
        "keystone:Zo%C3%AB%20O%27Hara",
        "keystone:group:a%2Cb%3Dc%20d",
        f"keystone:project:{project}",
        "keystone:zoe",
    ]
