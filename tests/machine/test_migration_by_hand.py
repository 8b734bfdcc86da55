"""docs/migration-by-hand.md, on a kubeadm control plane: the page's own commands, while users and the cluster ask.

What was set up by hand is the real k8s-keystone-auth on the machine, which the API server asks about tokens and access.
The tests stand in the order of the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.k8s_keystone_auth import SERVICE, KeystoneAuth
from testbed.keystone import Project, User
from testbed.stage import StageOf
from testbed.static_pod import PKI, StaticPod
from testbed.traffic import Traffic, lives_of
from tests.machine.reader import Opener
from tests.machine.test_story import READERS

PAGE, NAMES = "docs/migration-by-hand.md", "docs/migration.md"
FOLDER = "/etc/kubernetes/authorization"
KUBECONFIG = f"{PKI}/keystone.kubeconfig"
READER = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "pod-reader"}
BY_POLICY = "alice, by the policy"


@dataclass
class Story:
    """What the tests know of each other."""

    stage: StageOf[StaticPod]
    traffic: Traffic
    users: list[str]
    token: str
    alice: User
    demo: Project

    @property
    def cluster(self) -> StaticPod:
        return self.stage.cluster

    def user(self, token: str = "") -> str:
        """The name in Kubernetes of a token's holder; without one, of alice by a token that nobody has seen before."""
        config = self.cluster.kubeconfig(token or self.stage.keystone.token(self.alice, self.demo))
        told = self.cluster.kubectl("auth", "whoami", "-o", "json", kubeconfig=config, check=False)
        return json.loads(told.stdout)["status"]["userInfo"]["username"] if told.returncode == 0 else told.stderr

    def access(self) -> dict[str, int]:
        """What she gets of the pods: by the policy, by her name, by her project's, by her group's, by nothing."""
        token = self.stage.keystone.token(self.alice, self.demo)
        return {
            name: self.cluster.status(f"/api/v1/namespaces/{name}/pods", token)
            for name in ("default", "web", "shop", "tools", "kube-system")
        }

    def is_as_before(self, name: str = "alice") -> bool:
        return (self.user(), list(self.access().values())) == (name, [200, 200, 200, 200, 403])

    def lives(self) -> int:
        return len(lives_of(self.cluster))


def bind(cluster: StaticPod, namespace: str, kind: str, name: str) -> None:
    """Let a user or group read a namespace's pods."""
    metadata = {"name": "devs", "namespace": namespace}
    subject = {"apiGroup": READER["apiGroup"], "kind": kind, "name": name}
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding"}
    cluster.namespace(namespace)
    cluster.apply({**head, "metadata": metadata, "roleRef": READER, "subjects": [subject]})


@pytest.fixture(scope="module")
def stage(charm: Path) -> Iterator[StageOf[StaticPod]]:
    with StageOf(StaticPod, charm) as made:
        yield made


@pytest.fixture(scope="module")
def story(stage: StageOf[StaticPod]) -> Iterator[Story]:
    cluster, keystone, machine = stage.cluster, stage.keystone, stage.machine
    stage.trust_keystone()
    theirs = KeystoneAuth(machine, keystone, READERS)
    theirs.install()
    # Their webhook has the place of the cluster's, whose tokens are good without one here.
    tokens = [f'{known.token},{known.username},x,"{",".join(known.groups)}"' for known in cluster.tokens.values()]
    machine.write(f"{PKI}/tokens.csv", "\n".join(tokens) + "\n", 0o600)
    machine.write(KUBECONFIG, theirs.kubeconfig(), 0o600)
    cluster.owner_sets(
        token_auth_file=f"{PKI}/tokens.csv",
        authentication_token_webhook_config_file=KUBECONFIG,
        authorization_mode="Node,RBAC,Webhook",
        authorization_webhook_config_file=KUBECONFIG,
    )
    demo = keystone.project("demo")
    alice = keystone.member("alice", demo)
    keystone.group("ops", alice)
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"}
    cluster.apply({**head, "metadata": {"name": READER["name"]}, "rules": rules})
    bind(cluster, "web", "User", "alice")
    bind(cluster, "shop", "Group", demo.id)
    bind(cluster, "tools", "Group", "ops")
    token = keystone.token(alice, demo)
    users = {
        BY_POLICY: ("/api/v1/namespaces/default/pods", token),
        "alice, by RBAC": ("/api/v1/namespaces/web/pods", token),
    }
    with Traffic(cluster, users) as traffic:
        yield Story(stage, traffic, list(users), token, alice, demo)


def test_ours_goes_in_front_with_one_restart_and_theirs_goes_on_deciding(story: Story, opened: Opener) -> None:
    assert story.is_as_before()
    before = story.lives()
    opened(PAGE).follows("1. Ours in front of yours")
    status = ("active", "ready: static-pod, no policy, RBAC alone decides, upstream-compatible names")
    assert story.stage.unit.status == status, story.stage.unit.debug_log()
    assert story.lives() == before + 1
    assert story.is_as_before()
    keystone = story.stage.keystone
    token = keystone.token(story.alice, story.demo)
    assert story.user(token) == "alice"
    asked = {call.agent.partition("/")[0] for call in keystone.calls() if call.subject == keystone.digest(token)}
    assert asked == {"kubernetes-keystone"}, "theirs is asked about it no more"


def test_with_the_policy_the_way_to_both_is_told_and_ours_joins_theirs(story: Story, opened: Opener) -> None:
    unit, cluster, reader = story.stage.unit, story.cluster, opened(PAGE)
    (reader.folder / "policy.json").write_text(READERS)
    reader.follows("2. Your policy beside yours")
    assert unit.status.name == "blocked"
    assert "another authorization webhook" in unit.status.message
    assert story.is_as_before(), "nothing was changed"

    printed = unit.run_action("show-webhook-config").results
    story.stage.machine.write(f"{FOLDER}/config.yaml", printed["authorization-config"], 0o600)
    for flag in ("authorization-mode", "authorization-webhook-config-file"):
        del cluster.flags[flag]
    cluster.mounts["authorization"] = (FOLDER, FOLDER)
    cluster.owner_sets(authorization_config=f"{FOLDER}/config.yaml")
    assert story.is_as_before()
    unit.update_status()
    assert unit.status == ("active", "ready: static-pod, policy 1 rules, upstream-compatible names"), unit.debug_log()
    assert story.is_as_before()


def test_theirs_goes_out_and_ours_is_alone(story: Story, opened: Opener) -> None:
    cluster, machine = story.cluster, story.stage.machine
    lived = cluster.invocation()
    opened(PAGE).follows("3. Yours out")
    machine.wait(lambda: cluster.invocation() not in ("", lived), "the kubelet to start the new pod", 120)
    cluster.wait_ready()
    assert machine.run("systemctl", "is-active", SERVICE, check=False).stdout.strip() == "inactive"
    assert KUBECONFIG not in cluster.args().decode()
    assert "default" not in machine.read(f"{FOLDER}/config.yaml").decode()
    machine.wait(story.is_as_before, "the API server to ask ours alone", 120, every=1)
    before = story.lives()
    story.stage.unit.update_status()
    assert story.stage.unit.status.name == "active", story.stage.unit.debug_log()
    assert story.lives() == before
    assert story.is_as_before()


def test_users_go_over_to_names_that_nobody_can_forge_and_keep_what_they_had(story: Story, opened: Opener) -> None:
    before, native, reader = story.lives(), "keystone:alice", opened(NAMES)
    reader.follows("Names that nobody can forge")
    assert story.stage.unit.status == ("active", "ready: static-pod, policy 1 rules"), story.stage.unit.debug_log()
    wait = story.stage.machine.wait
    wait(lambda: story.user(story.token) == native, "the API server to forget the bare name", 60, every=1)
    wait(lambda: story.is_as_before(native), "the policy to be asked about the new name", 60, every=1)
    reader.follows("The old names go")
    assert story.is_as_before(native)
    assert story.lives() == before
    listed = story.cluster.kubectl("-n", "web", "get", "rolebinding", "devs", "-o", "json").stdout
    assert [one["name"] for one in json.loads(listed)["subjects"]] == [native]


def test_nobody_lost_a_request_beyond_the_restarts(story: Story) -> None:
    outcome = story.traffic.outcome()
    print(f"{outcome.requests} requests, {outcome.restarts} restarts, {outcome.by_restarts} failed through those")
    assert outcome.requests > 500
    # While names changed, an API server may have asked ours about a name that it no longer had an opinion on.
    assert [request for request in outcome.lost if (request.client, request.status) != (BY_POLICY, 403)] == []
    assert [request for name in story.users for request in story.traffic.requests(name) if request.status == 401] == []
    gaps = ", ".join(f"{name} {story.traffic.gap(name):.0f} s" for name in ("admin", *story.users))
    print(f"longest without an answer: {gaps}; lost by the policy {len(outcome.lost)}")
