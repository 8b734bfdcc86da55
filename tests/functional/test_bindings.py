"""What bare names reach in a real cluster: what `show-webhook-config` lists with `upstream-compatible`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bindings
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


def test_bindings_that_a_keystone_name_would_have_are_listed_and_no_others(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bindings, "_PAGE", 7)  # a cluster comes with some sixty; so there are several pages
    layout = unit(server, tmp_path, 1)
    before = bindings.of_bare_names(layout)
    bind(server, "clusterrolebindings", "ops", ("Group", "ops"), ("User", "keystone:alice"))
    bind(server, "namespaces/default/rolebindings", "web", ("User", "alice"), ("ServiceAccount", "robot"))
    bind(server, "namespaces/default/rolebindings", "odd", ("User", "al\nice"), ("Group", "kubeadm:cluster-admins"))
    bind(server, "clusterrolebindings", "a\x1b[2J\nuser root", ("User", "bob"))

    assert not any(line.startswith(("user system:", "group system:")) for line in before)
    assert set(bindings.of_bare_names(layout)) - set(before) == {
        "group ops: ClusterRoleBinding ops gives ClusterRole edit",
        "user alice: RoleBinding default/web gives ClusterRole edit",
        "user 'al\\nice': RoleBinding default/odd gives ClusterRole edit",
        "user bob: ClusterRoleBinding 'a\\x1b[2J\\nuser root' gives ClusterRole edit",
    }
