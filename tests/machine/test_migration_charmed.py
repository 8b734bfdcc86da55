"""docs/migration-2019.md, -built-in.md and -keystone-k8s-auth.md on Charmed Kubernetes: the pages' own commands, run.

What was there before is the real k8s-keystone-auth, which the control plane's charm has been told to ask: on the
machine, or beside it in the place of pods. Users and the cluster ask all the while.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.agent import Unit
from testbed.k8s_keystone_auth import SERVICE, KeystoneAuth
from testbed.stage import Stage
from testbed.traffic import Traffic
from tests import documents
from tests.machine.reader import Opener
from tests.machine.test_story import READERS

OF_2019, BUILT_IN = "docs/migration-2019.md", "docs/migration-built-in.md"
KEYSTONE_K8S_AUTH = "docs/migration-keystone-k8s-auth.md"
NOT_RUN = {
    KEYSTONE_K8S_AUTH: {"juju remove-application keystone-k8s-auth": "a service is in the place of its pods, and ends"}
}
BY_POLICY, BY_NAME = "alice, by the policy", "alice, by RBAC"
PATHS = {BY_POLICY: "/api/v1/namespaces/default/pods", BY_NAME: "/api/v1/namespaces/kube-system/configmaps"}

# What is known of the charm of 2019 are its name, what it was related to, and its options; what is more is what any
# charm of its kind has: the reactive framework's state, in the file where ops keeps its own.
OLD_METADATA = """\
name: kubernetes-keystone
summary: Keystone for Kubernetes
description: Keystone for Kubernetes
subordinate: true
requires:
  kubernetes-master: {interface: juju-info, scope: container}
"""
OLD_OPTIONS = ("keystone-url", "k8s-keystone-auth-url", "authn-server-url", "authz-server-url")
OLD_DISPATCH = """\
#!/bin/sh
[ "$JUJU_HOOK_NAME" = install ] && python3 - <<'EOF'
import sqlite3
state = sqlite3.connect(".unit-state.db")
state.execute("create table kv (key text, data text, primary key (key))")
state.execute("insert into kv values ('reactive.states.kubernetes-keystone.installed', 'null')")
state.commit()
EOF
status-set active "k8s-keystone-auth is running"
"""


def old_charm(folder: Path) -> Path:
    """Pack a charm like that of 2019."""
    path = folder / "of-2019.charm"
    options = {name: {"type": "string", "default": ""} for name in OLD_OPTIONS}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.yaml", OLD_METADATA)
        archive.writestr("config.yaml", json.dumps({"options": options}))
        archive.writestr("reactive/kubernetes_keystone.py", "# of another time\n")
        dispatch = zipfile.ZipInfo("dispatch")
        dispatch.external_attr = 0o755 << 16
        archive.writestr(dispatch, OLD_DISPATCH)
    return path


@dataclass
class World:
    """A cluster whose users log in with Keystone accounts already."""

    stage: Stage

    @property
    def unit(self) -> Unit:
        return self.stage.unit

    def is_as_before(self, name: str = "alice") -> bool:
        """Whether alice is who she was and may do what she might, with a token that nobody has seen before."""
        cluster, token = self.stage.cluster, self.token()
        told = cluster.kubectl("auth", "whoami", "-o", "json", kubeconfig=cluster.kubeconfig(token), check=False)
        user = json.loads(told.stdout)["status"]["userInfo"]["username"] if told.returncode == 0 else told.stderr
        paths = [*PATHS.values(), "/api/v1/nodes"]
        return (user, [cluster.status(path, token) for path in paths]) == (name, [200, 200, 403])

    def token(self) -> str:
        return self.stage.keystone.token(self.alice, self.demo)

    def __post_init__(self) -> None:
        self.demo = self.stage.keystone.project("demo")
        self.alice = self.stage.keystone.member("alice", self.demo)

    def traffic(self) -> Traffic:
        token = self.token()
        return Traffic(self.stage.cluster, {name: (path, token) for name, path in PATHS.items()})


def nobody_lost_a_login(traffic: Traffic, what: str) -> None:
    """See that no login was refused, nor what RBAC allows, and tell how long the policy's was."""
    outcome = traffic.outcome()
    assert [request for request in outcome.lost if request.client != BY_POLICY] == []
    assert [request for name in PATHS for request in traffic.requests(name) if request.status == 401] == []
    gaps = ", ".join(f"{name} {traffic.gap(name):.0f} s" for name in ("admin", BY_NAME, BY_POLICY))
    print(f"{what}: {outcome.requests} requests, {outcome.restarts} restarts; longest without an answer: {gaps}")


@pytest.fixture(scope="module")
def people(stage: Stage) -> World:
    """The cluster and its people, before any authenticator."""
    cluster = stage.cluster
    cluster.pod("default", "web")
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "keystone", "namespace": "kube-system"}}
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]
    group = "rbac.authorization.k8s.io"
    cluster.apply(
        {**head, "kind": "Role", "rules": rules},
        {
            **head,
            "kind": "RoleBinding",
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "keystone"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "alice"}],
        },
    )
    stage.trust_keystone()
    return World(stage)


def has(world: World, theirs: KeystoneAuth, **options: str) -> None:
    """Let the cluster have been set up so, and nothing of ours be there."""
    juju = world.stage.juju
    if world.unit.related:
        juju("remove-application kubernetes-keystone")
    theirs.install()
    none = {"authn_webhook_endpoint": "", "authorization_mode": "Node,RBAC", "authorization_webhook_config_file": ""}
    words = [f"{name.replace('_', '-')}={value}" for name, value in {**none, **options}.items()]
    juju(f"config kubernetes-control-plane {shlex.join(words)}")
    assert world.is_as_before()


def told(theirs: KeystoneAuth) -> dict[str, str]:
    """The options by which the control plane's charm has an authenticator asked."""
    return {
        "authn_webhook_endpoint": theirs.url,
        "authorization_mode": "Node,RBAC,Webhook",
        "authorization_webhook_config_file": theirs.kubeconfig(),
    }


def has_the_charm_of_2019(world: World, folder: Path) -> None:
    """Let the cluster be one of that charm, whose service is all that is known of it."""
    theirs = KeystoneAuth(world.stage.machine, world.stage.keystone, READERS)
    has(world, theirs, **told(theirs))
    options = {
        "keystone-url": world.stage.keystone.url,
        "k8s-keystone-auth-url": "https://site.example/k8s-keystone-auth",
        "authn-server-url": theirs.url,
        "authz-server-url": theirs.url,
    }
    given = " ".join(f"--config {name}={value}" for name, value in options.items())
    world.stage.juju(f"deploy {old_charm(folder)} kubernetes-keystone {given}")
    world.stage.juju("integrate kubernetes-control-plane kubernetes-keystone")
    assert world.unit.status == ("active", "k8s-keystone-auth is running")


def test_the_charm_of_2019_is_exchanged_and_its_service_hands_over(
    people: World, opened: Opener, tmp_path: Path
) -> None:
    has_the_charm_of_2019(people, tmp_path)
    unit, reader = people.unit, opened(OF_2019)
    with people.traffic() as traffic:
        ssh, refresh, config = documents.below(OF_2019, "1. The charm is exchanged")
        reader.does(ssh)
        reader.does(refresh)
        assert unit.status.name == "blocked", unit.debug_log()
        assert "127.0.0.1:8443 is taken" in unit.status.message
        assert people.is_as_before(), "nothing was changed"
        reader.does(config)
        assert unit.status == ("active", "ready: charmed, no policy, RBAC alone decides, upstream-compatible names")
        assert people.is_as_before()
        reader.follows("2. The policy comes over")
        assert unit.status == ("active", "ready: charmed, policy 1 rules, upstream-compatible names"), unit.debug_log()
        reader.follows("3. The old service goes")
        assert people.is_as_before()
        nobody_lost_a_login(traffic, OF_2019)


def test_the_charm_of_2019_is_removed_and_what_it_left_behind_is_not_taken_for_ours(
    people: World, opened: Opener, tmp_path: Path
) -> None:
    machine, reader = people.stage.machine, opened(OF_2019)
    has_the_charm_of_2019(people, tmp_path)
    ssh, remove, disable, reset, deploy, integrate = documents.below(OF_2019, "Or: remove it and deploy ours")
    for command in (ssh, remove, deploy, integrate):
        reader.does(command)
    assert people.unit.status.name == "blocked"
    assert "127.0.0.1:8443 is taken" in people.unit.status.message
    assert people.is_as_before(), "nothing was changed"

    reader.does(disable)
    assert machine.run("systemctl", "is-active", SERVICE, check=False).stdout.strip() == "inactive"
    people.unit.update_status()
    assert people.unit.status.name == "blocked"
    assert "told to ask us about access, in a way that does not work" in people.unit.status.message
    assert people.stage.cluster.status(PATHS[BY_NAME], people.token()) == 200
    assert people.stage.cluster.status(PATHS[BY_POLICY], people.token()) == 500

    reader.does(reset)
    people.unit.update_status()
    status = ("active", "ready: charmed, policy 1 rules, upstream-compatible names")
    assert people.unit.status == status, people.unit.debug_log()
    assert people.is_as_before()


@pytest.mark.parametrize("page", [KEYSTONE_K8S_AUTH, BUILT_IN])
def test_pods_hand_over_and_their_users_keep_name_and_access(people: World, opened: Opener, page: str) -> None:
    reader, theirs = opened(page), KeystoneAuth(people.stage.machine, people.stage.keystone, READERS, port=9443)
    if page == BUILT_IN:
        people.stage.cluster.own_keystone = theirs
        has(people, theirs, enable_keystone_authorization="true")
    else:
        has(people, theirs, **told(theirs))
    metadata = {"name": "k8s-auth-policy", "namespace": "kube-system"}
    people.stage.cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"policies": READERS}}
    )
    with people.traffic() as traffic:
        reader.follows("1. Ours in front of theirs")
        status = ("active", "ready: charmed, no policy, RBAC alone decides, upstream-compatible names")
        assert people.unit.status == status, people.unit.debug_log()
        assert people.is_as_before()
        reader.follows("2. The policy comes over")
        status = ("active", "ready: charmed, policy 1 rules, upstream-compatible names")
        assert people.unit.status == status, people.unit.debug_log()
        reader.follows("3. Theirs goes")
        people.stage.machine.run("systemctl", "disable", "--now", SERVICE)  # the pods, in whose place it was
        assert people.is_as_before()
        nobody_lost_a_login(traffic, page)
