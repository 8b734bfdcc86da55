"""Sync on a real Keystone and a real kube-apiserver: what logins write, what passes take away, what RBAC says to it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster_user
from config import CharmConfig
from files import Places
from testbed import setup
from testbed.apiserver import ApiServer
from testbed.keystone import Keystone, Project, User
from tests.functional.test_api_server import TOKENS, webhook_file
from tests.functional.test_lease import unit
from tests.unit.authenticator.support import SOURCE, Authority, Service, access_review, eventually, replace, serving

pytestmark = pytest.mark.functional

CONFIG = "data-types-to-sync: [projects, role_assignments]\nnamespace-format: '%n-%i'\n"
SOON = 30.0  # seconds; a moment is usual


class World:
    """A cluster that asks our authenticator, which writes into it."""

    def __init__(self, server: ApiServer, service: Service, keystone: Keystone, folder: Path) -> None:
        self.server, self.service, self.keystone, self.folder = server, service, keystone, folder
        self.layout = unit(server, folder, 0)
        self.places = Places(folder)
        for path in (self.places.etc, self.places.state):
            path.mkdir(parents=True)
        self.kubeconfig = self.places.kubeconfig
        self.allow()
        self.config = folder / "sync.yaml"
        replace(self.config, CONFIG)
        self.credentials = folder / "credentials"
        admin = {"username": "admin", "password": keystone.admin_password, "system-scope": "all"}
        replace(self.credentials, json.dumps(admin))
        self.sync: dict[str, Any] = {"config": str(self.config), "credentials": None, "prune": "off", "interval": 1}
        self.follow()

    def allow(self, prune: str = "off", policy_configmap: str = "") -> None:
        """Have the service account of the charm be good for what these options need, and no more."""
        options = {"sync_config": CONFIG, "sync_credentials": "/it", "sync_prune": prune}
        config = CharmConfig.model_validate(
            {"keystone_url": self.keystone.url, "policy_configmap": policy_configmap, **options}
        )
        cluster_user.ensure(self.places, config, self.layout, "kubernetes-keystone/0", os.getegid())

    def follow(self, **changes: Any) -> None:
        """Change the settings, and wait until they and all files that they name have been looked at."""
        self.sync.update(changes)
        self.service.configure(kubeconfig=str(self.kubeconfig), sync=self.sync)
        digest = hashlib.sha256(self.service.config.read_bytes()).hexdigest()
        eventually(lambda: self.service.status["settings"]["hash"] == digest, SOON)

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[None]:
        """Another port in the kubeconfig, at which nobody listens."""
        there = self.kubeconfig.read_text()
        replace(self.kubeconfig, there.replace(f":{self.server.port}\n", ":1\n"))
        self.follow(interval=2)
        yield
        replace(self.kubeconfig, there)
        self.follow(interval=1)

    def admin(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return self.server.send(method, path, self.server.admin_token, body)

    def namespace(self, name: str) -> dict[str, Any] | None:
        code, answer = self.admin("GET", f"/api/v1/namespaces/{name}")
        return answer if code == 200 else None

    def bindings(self, namespace: str) -> dict[str, Any]:
        code, answer = self.admin("GET", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings")
        assert code == 200
        return {item["metadata"]["name"]: item for item in answer["items"]}

    def log_in(self, user: User, project: Project) -> str:
        """A token that the API server has had reviewed."""
        token = self.keystone.token(user, project)
        eventually(lambda: self.server.send("GET", "/version", token)[0] == 200, SOON)
        return token

    def run(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Make a pass as the action does."""
        done = subprocess.run(
            [sys.executable, "-m", "keystone_authenticator", "sync", *arguments],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)

    def once(self, *arguments: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        """Make a pass with the account of `credentials`, whatever the service does."""
        self.allow(changes.get("prune", "off"))
        settings = {**self.service.settings, "sync": {**self.sync, "credentials": str(self.credentials), **changes}}
        path = self.folder / "once.json"
        replace(path, json.dumps(settings))
        return self.run("--config", str(path), "--report", str(self.folder / "report"), *arguments)

    def rows(self) -> list[list[str]]:
        return [line.split("\t") for line in (self.folder / "report").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def world(keystone: Keystone, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("sync")
    with serving(folder, authority, keystone={"url": keystone.url, "ca": str(keystone.ca)}, token_cache_ttl=1) as ours:
        url = f"https://127.0.0.1:{ours.port}/webhook"
        webhook = webhook_file(folder / "ours.kubeconfig", url, authority, ours.client)
        flags = [f"{TOKENS}-config-file={webhook}", f"{TOKENS}-version=v1", f"{TOKENS}-cache-ttl=1s"]
        with ApiServer(*flags) as server:
            eventually(lambda: server.send("GET", "/api/v1/namespaces/kube-system", server.admin_token)[0] == 200, SOON)
            role = {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": "member"},
                "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}],
            }
            assert (
                server.send("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", server.admin_token, role)[0]
                == 201
            )
            yield World(server, ours, keystone, folder)
            assert "gAAAA" not in ours.log


@pytest.fixture(autouse=True)
def _as_it_was(world: World) -> Iterator[None]:
    yield
    admin = {"username": "admin", "password": world.keystone.admin_password, "system-scope": "all"}
    replace(world.credentials, json.dumps(admin))
    replace(world.config, CONFIG)
    world.follow(credentials=None, prune="off")


def test_a_login_makes_the_namespace_and_its_bindings_and_rbac_lets_the_user_in(world: World) -> None:
    project = world.keystone.project("research")
    alice = world.keystone.member("alice-sync", project, "member", "reader")
    token = world.log_in(alice, project)
    name = f"research-{project.id}"
    found = eventually(lambda: len(world.bindings(name)) == 2 and world.bindings(name), SOON)
    assert set(found) == {f"{alice.id}_member", f"{alice.id}_reader"}
    made = found[f"{alice.id}_member"]
    assert made["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "member"}
    assert [subject["name"] for subject in made["subjects"]] == ["keystone:alice-sync"]
    labels = (world.namespace(name) or {})["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] == "kubernetes-keystone"
    assert labels["kubernetes-keystone/project"] == project.id
    kubectl = [
        str(setup.kubernetes() / "kubectl"),
        f"--server=https://127.0.0.1:{world.server.port}",
        f"--certificate-authority={world.server.ca}",
        f"--token={token}",
    ]
    own, other = (
        subprocess.run([*kubectl, "get", "configmaps", "-n", where], capture_output=True, text=True, check=False)
        for where in (name, "kube-system")
    )
    assert own.returncode == 0, own.stderr
    assert "Forbidden" in other.stderr


def test_a_role_that_is_gone_goes_at_the_next_login_and_others_bindings_stay(world: World) -> None:
    project = world.keystone.project("loses")
    bob, carol = (world.keystone.member(name, project, "member", "reader") for name in ("bob-sync", "carol-sync"))
    name = f"loses-{project.id}"
    for user in (bob, carol):
        world.log_in(user, project)
    eventually(lambda: len(world.bindings(name)) == 4, SOON)
    world.keystone.revoke("member", bob, project)
    world.log_in(bob, project)
    eventually(lambda: len(world.bindings(name)) == 3, SOON)
    assert set(world.bindings(name)) == {f"{bob.id}_reader", f"{carol.id}_member", f"{carol.id}_reader"}


def test_a_credential_for_some_roles_takes_none_of_the_others_away(world: World) -> None:
    project = world.keystone.project("partial")
    dora = world.keystone.member("dora-sync", project, "member", "reader")
    name = f"partial-{project.id}"
    world.log_in(dora, project)
    eventually(lambda: len(world.bindings(name)) == 2, SOON)
    done = world.service.status["sync"]["logins"]["done"]
    token = world.keystone.credential_token(world.keystone.application_credential(dora, project, roles=["reader"]))
    assert world.server.send("GET", "/version", token)[0] == 200
    eventually(lambda: world.service.status["sync"]["logins"]["done"] > done, SOON)
    assert len(world.bindings(name)) == 2


def test_what_is_somebody_elses_is_left_alone_and_told(world: World) -> None:
    project = world.keystone.project("taken")
    erin = world.keystone.member("erin-sync", project)
    name = f"taken-{project.id}"
    made = {"metadata": {"name": name, "labels": {"kubernetes-keystone/project": "another"}}}
    assert world.admin("POST", "/api/v1/namespaces", made)[0] == 201
    world.log_in(erin, project)
    error = eventually(lambda: world.service.status["sync"]["logins"]["error"], SOON)
    assert "is labelled as another project's (another)" in error
    assert world.bindings(name) == {}


def test_what_upstream_made_is_adopted(world: World) -> None:
    project = world.keystone.project("adopted")
    fred = world.keystone.member("fred-sync", project)
    name = f"adopted-{project.id}"
    assert world.admin("POST", "/api/v1/namespaces", {"metadata": {"name": name}})[0] == 201
    binding = {
        "metadata": {"name": f"{fred.id}_member"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "keystone:fred-sync"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "member"},
    }
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{name}/rolebindings"
    assert world.admin("POST", path, binding)[0] == 201
    world.log_in(fred, project)
    labels = eventually(lambda: world.bindings(name)[f"{fred.id}_member"]["metadata"].get("labels"), SOON)
    assert labels["kubernetes-keystone/user"] == fred.id
    assert (world.namespace(name) or {})["metadata"]["labels"]["kubernetes-keystone/project"] == project.id


def test_a_review_is_answered_while_the_api_server_that_is_to_be_written_to_is_away(world: World) -> None:
    project = world.keystone.project("unwritten")
    gina = world.keystone.member("gina-sync", project)
    with world.unreachable():
        token = world.log_in(gina, project)
        eventually(lambda: "cannot be reached" in (world.service.status["sync"]["logins"]["error"] or ""), SOON)
        assert world.server.send("GET", "/version", token)[0] == 200
        assert world.namespace(f"unwritten-{project.id}") is None
    # The note was kept, and no further login is needed.
    eventually(lambda: world.namespace(f"unwritten-{project.id}"), SOON)


# ---------------------------------------------------------------------------------------------- passes


def test_a_pass_says_first_what_it_would_do_and_does_that_and_then_nothing_more(world: World) -> None:
    project = world.keystone.project("passed")
    hugo = world.keystone.member("hugo-sync", project, "member")
    devs = world.keystone.group("devs-sync", world.keystone.user("ida-sync"))
    world.keystone.grant("reader", devs, project)
    name = f"passed-{project.id}"
    code, summary = world.once("--dry-run")
    assert (code, summary["dry_run"]) == (0, True)
    assert summary["changes"]["create Namespace"] >= 1
    assert world.namespace(name) is None
    would = {tuple(row[:4]) for row in world.rows()}
    assert ("create", "RoleBinding", name, f"{hugo.id}_member") in would
    code, summary = world.once()
    assert code == 0, summary
    assert {tuple(row[:4]) for row in world.rows()} == would
    found = world.bindings(name)
    # Through the group as well.
    assert {item["subjects"][0]["name"] for item in found.values()} == {"keystone:hugo-sync", "keystone:ida-sync"}
    before = summary["kubernetes_calls"]
    code, summary = world.once()
    assert (code, summary["changes"]) == (0, {})
    assert summary["kubernetes_calls"] < before
    assert summary["kubernetes_calls"] <= 2


def test_a_role_that_is_revoked_goes_although_nobody_logs_in(world: World) -> None:
    project = world.keystone.project("revoked")
    jane = world.keystone.member("jane-sync", project, "member", "reader")
    name = f"revoked-{project.id}"
    world.follow(credentials=str(world.credentials))
    eventually(lambda: world.namespace(name) is not None and len(world.bindings(name)) == 2, SOON)
    world.keystone.revoke("member", jane, project)
    eventually(lambda: set(world.bindings(name)) == {f"{jane.id}_reader"}, SOON)
    deleted = 'kubernetes_keystone_sync_changes_total{by="pass",verb="delete",kind="RoleBinding"}'
    metrics = eventually(lambda: deleted in (text := world.service.get("/metrics")[1].decode()) and text, SOON)
    assert "kubernetes_keystone_sync_holds_lease 1" in metrics
    status = world.service.status["sync"]["passes"]
    assert status["holds_lease"] is True
    assert status["last"]["error"] is None
    assert "first_problems" not in status["last"]


def test_a_deleted_projects_namespace_goes_as_sync_prune_says(world: World) -> None:
    empty, full = world.keystone.project("emptied"), world.keystone.project("filled")
    world.keystone.member("kim-sync", empty)
    world.keystone.member("leo-sync", full)
    assert world.once()[0] == 0
    names = [f"emptied-{empty.id}", f"filled-{full.id}"]
    held = {"metadata": {"name": "kept"}, "data": {"a": "b"}}
    assert world.admin("POST", f"/api/v1/namespaces/{names[1]}/configmaps", held)[0] == 201
    for project in (empty, full):
        world.keystone.delete(project)
    code, summary = world.once()
    assert code == 0
    assert [world.bindings(name) for name in names] == [{}, {}]
    assert any("the namespace stays, as sync-prune is off" in problem for problem in summary["first_problems"])
    code, summary = world.once(prune="empty")
    assert code == 0
    assert any("stays, as it is not empty: configmaps kept" in problem for problem in summary["first_problems"])

    def going() -> list[bool]:
        # Nobody ends what was deleted here: that is the controller manager's work.
        found = [world.namespace(name) for name in names]
        return [one is None or "deletionTimestamp" in one["metadata"] for one in found]

    assert going() == [True, False]
    assert world.once(prune="all")[0] == 0
    assert going() == [True, True]
    assert "deletionTimestamp" not in (world.namespace("kube-system") or {})["metadata"]


def test_nothing_goes_while_keystone_does_not_tell_everything(world: World) -> None:
    project = world.keystone.project("narrow")
    mona = world.keystone.member("mona-sync", project)
    assert world.once(prune="all")[0] == 0
    # An account that sees one domain sees no project of another.
    domain = world.keystone.domain("narrow-domain")
    world.keystone.project("inside", domain)
    manager = world.keystone.user("manager", domain)
    world.keystone.grant("reader", manager, domain)
    account = {"user-id": manager.id, "password": manager.password, "domain-id": domain.id}
    replace(world.credentials, json.dumps(account))
    code, summary = world.once(prune="all")
    assert code == 0, summary
    assert set(summary["changes"]) <= {"create Namespace"}
    # A member is a reader, too, by Keystone's own roles.
    assert set(world.bindings(f"narrow-{project.id}")) == {f"{mona.id}_member", f"{mona.id}_reader"}
    replace(world.credentials, json.dumps({**account, "password": "wrong"}))
    code, summary = world.once(prune="all")
    assert code == 1
    assert "401 to the login with sync-credentials" in summary["error"]
    assert "wrong" not in summary["error"]


def test_a_label_alone_makes_no_namespace_ours(world: World) -> None:
    """Whoever may write labels may not delete: sync is not to do it for him."""
    gone = world.keystone.project("gone")
    world.keystone.delete(gone)
    labels = {"app.kubernetes.io/managed-by": "kubernetes-keystone", "kubernetes-keystone/project": gone.id}
    assert world.admin("POST", "/api/v1/namespaces", {"metadata": {"name": "precious", "labels": labels}})[0] == 201
    assert world.once(prune="all")[0] == 0
    assert "deletionTimestamp" not in (world.namespace("precious") or {})["metadata"]
    # Nor is it the project's that is written on it.
    there = world.keystone.project("there")
    world.keystone.member("nina-sync", there)
    labels["kubernetes-keystone/project"] = there.id
    assert world.admin("POST", "/api/v1/namespaces", {"metadata": {"name": "lure", "labels": labels}})[0] == 201
    assert world.once()[0] == 0
    assert world.bindings("lure") == {}
    assert world.bindings(f"there-{there.id}") != {}


def test_while_keystone_is_away_nothing_goes_and_passes_go_on_when_it_is_back(world: World) -> None:
    project = world.keystone.project("away")
    olga = world.keystone.member("olga-sync", project, "reader")
    name = f"away-{project.id}"
    world.follow(credentials=str(world.credentials))
    eventually(lambda: world.namespace(name) is not None and len(world.bindings(name)) == 1, SOON)
    world.keystone.stop()
    try:
        error = eventually(lambda: world.service.status["sync"]["passes"]["error"], SOON)
        assert "Keystone cannot be reached" in error
        assert set(world.bindings(name)) == {f"{olga.id}_reader"}
    finally:
        world.keystone.start()
    eventually(lambda: world.service.status["sync"]["passes"]["error"] is None, SOON)


def test_two_units_never_make_passes_at_once_and_one_follows_the_other(world: World, tmp_path: Path) -> None:
    world.follow(credentials=str(world.credentials))
    eventually(lambda: world.service.status["sync"]["passes"]["done"] > 0, SOON)
    changes = {key: world.service.settings[key] for key in ("keystone", "kubeconfig", "sync")}
    with serving(tmp_path, world.service.authority, **changes) as other:
        holder = eventually(lambda: other.status["sync"]["passes"]["holder"], SOON)
        assert holder
        assert other.status["sync"]["passes"]["done"] == 0
        world.follow(credentials=None)  # gives the Lease back
        eventually(lambda: other.status["sync"]["passes"]["done"] > 0, 60)


# ---------------------------------------------------------------------------------------------- policy from the cluster

CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"


def allows(resource: str) -> str:
    return json.dumps([{"users": {"projects": ["demo"]}, "resource_permissions": {f"*/{resource}": ["get"]}}])


def test_the_policy_in_the_cluster_wins_while_it_is_there_and_a_broken_one_changes_nothing(
    world: World, tmp_path: Path
) -> None:
    def may(resource: str) -> bool:
        return world.service.review(access_review(resource=resource))["allowed"]

    def policy() -> dict[str, Any]:
        return world.service.status["policy"]

    option = tmp_path / "policy.json"
    replace(option, allows("pods"))
    world.allow(policy_configmap="kube-system/k8s-auth-policy")
    world.service.configure(policy=str(option), policy_configmap="kube-system/k8s-auth-policy")
    eventually(lambda: policy()["configmap"] and policy()["configmap"]["state"] == "absent", SOON)
    eventually(lambda: may("pods"), SOON)
    assert policy()["source"] == "option"

    made = {"metadata": {"name": "k8s-auth-policy"}, "data": {"policies": allows("services")}}
    assert world.admin("POST", CONFIG_MAPS, made)[0] == 201
    eventually(lambda: may("services") and not may("pods"), SOON)
    assert (policy()["source"], policy()["rules"], policy()["error"]) == ("configmap", 1, None)
    assert 'kubernetes_keystone_policy_source{source="configmap"} 1' in world.service.get("/metrics")[1].decode()

    for broken in ({"policies": "{"}, {"policy": allows("pods")}, None):
        assert world.admin("PUT", f"{CONFIG_MAPS}/k8s-auth-policy", {**made, "data": broken})[0] == 200
        error = eventually(lambda: policy()["error"], SOON)
        assert error.startswith("kube-system/k8s-auth-policy: ")
        assert may("services")
        assert "kubernetes_keystone_policy_failed 1" in world.service.get("/metrics")[1].decode()
        assert world.admin("PUT", f"{CONFIG_MAPS}/k8s-auth-policy", made)[0] == 200
        eventually(lambda: policy()["error"] is None, SOON)

    assert world.admin("DELETE", f"{CONFIG_MAPS}/k8s-auth-policy")[0] == 200
    eventually(lambda: may("pods") and not may("services"), SOON)
    assert policy()["source"] == "option"
    world.service.configure(policy=None, policy_configmap=None)
    eventually(lambda: policy()["source"] == "none", SOON)


def test_a_policy_in_the_cluster_outlives_the_api_servers_absence(world: World) -> None:
    made = {"metadata": {"name": "outlives"}, "data": {"policies": allows("services")}}
    assert world.admin("POST", CONFIG_MAPS, made)[0] == 201
    world.allow(policy_configmap="kube-system/outlives")
    world.service.configure(policy_configmap="kube-system/outlives")
    eventually(lambda: world.service.status["policy"]["source"] == "configmap", SOON)
    with world.unreachable():
        eventually(lambda: "cannot be read" in (world.service.status["policy"]["configmap"]["error"] or ""), SOON)
        assert world.service.review(access_review(resource="services"))["allowed"]
    eventually(lambda: world.service.status["policy"]["configmap"]["error"] is None, SOON)
    world.service.configure(policy_configmap=None)
    eventually(lambda: world.service.status["policy"]["source"] == "none", SOON)
