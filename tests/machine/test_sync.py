"""Sync and a policy in the cluster, by the packed charm on a machine: in the service's own sandbox, as its own user."""

from __future__ import annotations

import json

import pytest

from testbed.keystone import Project, User
from testbed.stage import Stage
from tests.machine.telling import told_everywhere

CREDENTIALS = "/root/sync-credentials"
OPTIONS = {
    "sync-config": "data-types-to-sync: [projects, role_assignments]\n",
    "sync-credentials": CREDENTIALS,
    "policy-configmap": "kube-system/k8s-auth-policy",
}
OURS = "app.kubernetes.io/managed-by=kubernetes-keystone"
POLICY = json.dumps([{"users": {"projects": ["tenant"]}, "resource_permissions": {"*/pods": ["get"]}}])


@pytest.fixture(scope="module")
def tenant(stage: Stage) -> tuple[Project, User]:
    project = stage.keystone.project("tenant")
    return project, stage.keystone.member("tina", project)


def bindings(stage: Stage, project: Project) -> set[str]:
    done = stage.cluster.kubectl("-n", project.id, "get", "rolebindings", "-o", "name", check=False)
    return {name.rpartition("/")[2] for name in done.stdout.split()}


def test_what_keystone_has_is_in_the_cluster_before_anybody_logs_in(stage: Stage, tenant: tuple[Project, User]) -> None:
    project, tina = tenant
    account = {"username": "admin", "password": stage.keystone.admin_password, "system-scope": "all"}
    stage.machine.write(CREDENTIALS, json.dumps(account), 0o600)
    stage.unit.deploy(stage.charm, {**stage.keystone_options, **OPTIONS})
    stage.unit.relate()
    assert stage.unit.status.name == "active", stage.unit.status
    assert "policy-configmap kube-system/k8s-auth-policy is" in stage.unit.status.message
    wanted = {f"{tina.id}_member", f"{tina.id}_reader"}
    stage.machine.wait(lambda: wanted <= bindings(stage, project), "the tenant's RoleBindings", 120)
    journal = stage.machine.journal("kubernetes-keystone.service")
    assert "sync: a pass:" in journal
    assert stage.keystone.admin_password not in journal
    account = stage.cluster.kubectl("get", "serviceaccount", "-n", "kube-system", "-l", OURS, "-o", "name").stdout
    assert account.split() == ["serviceaccount/kubernetes-keystone-0"]


def test_the_action_says_what_would_change_and_leaves_a_table(stage: Stage, tenant: tuple[Project, User]) -> None:
    project, tina = tenant
    stage.keystone.revoke("member", tina, project)
    result = stage.unit.run_action("sync", dry_run=True)
    assert result.status == "completed", result
    assert result.results["changes"] == "delete RoleBinding: 2"
    table = stage.machine.read(result.results["report"]).decode()
    assert f"delete\tRoleBinding\t{project.id}\t{tina.id}_member\tmember\tkeystone:tina" in table
    assert f"{tina.id}_member" in bindings(stage, project)
    result = stage.unit.run_action("sync")
    assert result.status == "completed", result
    assert bindings(stage, project) == set()


def test_the_status_says_that_the_policy_of_the_cluster_is_in_force(stage: Stage) -> None:
    about = {"name": "k8s-auth-policy", "namespace": "kube-system"}
    stage.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"policies": POLICY}})

    def told() -> str:
        stage.unit.update_status()
        return stage.unit.status.message

    what = "the policy in force is kube-system/k8s-auth-policy's, 1 rules"
    stage.machine.wait(lambda: what in told(), "the status", 60, every=1)
    stage.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"policies": "["}})
    stage.machine.wait(lambda: "policy-configmap: the policy stays as it was" in told(), "it", 60, every=1)
    told_everywhere(stage.unit, "the policy stays as it was: ")


def test_a_pass_that_fails_is_told_from_any_place(stage: Stage) -> None:
    good = stage.machine.read(CREDENTIALS)
    stage.machine.write(CREDENTIALS, good.replace(b'"password": "', b'"password": "not '), 0o600)
    stage.unit.update_status()
    failed = "sync: a pass failed: "
    stage.machine.wait(lambda: failed in stage.machine.journal("kubernetes-keystone.service"), "a pass to fail", 120)
    stage.unit.update_status()
    told_everywhere(stage.unit, "sync: a pass failed: ")
    stage.machine.write(CREDENTIALS, good, 0o600)
    stage.unit.update_status()


def test_removal_takes_the_user_of_ours_away_and_leaves_the_tenants_namespaces(
    stage: Stage, tenant: tuple[Project, User]
) -> None:
    stage.unit.remove()
    left = stage.cluster.kubectl("get", "clusterroles,clusterrolebindings,serviceaccounts,roles", "-A", "-l", OURS)
    assert left.stdout == ""
    assert tenant[0].id in stage.cluster.kubectl("get", "namespaces", "-l", OURS, "-o", "name").stdout
    assert not stage.machine.exists("/etc/kubernetes-keystone")
