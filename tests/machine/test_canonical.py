"""The short story on Canonical Kubernetes, with its flags in one file and in a folder: relate, use, be overwritten,
crash, remove. The tests stand in the order of the story and share one stage; the cluster's own traffic runs all along.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import users
from testbed.canonical import COMMON, FOLDER, Canonical
from testbed.stage import StageOf
from testbed.traffic import Traffic, lives_of
from tests.machine.test_story import INVENTORY, READERS, UNITS, difference

OURS = f"{COMMON}/kubernetes-keystone"
OWN_FILE = f"{FOLDER}/99-kubernetes-keystone"


@dataclass
class Story:
    """What the tests know of each other."""

    stage: StageOf[Canonical]
    kubeconfig: Path
    traffic: Traffic
    args: bytes
    inventory: str
    units: str

    @property
    def cluster(self) -> Canonical:
        return self.stage.cluster

    def kubectl(self, *arguments: str) -> tuple[int, str]:
        """Run kubectl as alice, who has nothing but an application credential."""
        done = self.cluster.kubectl(*arguments, kubeconfig=self.kubeconfig, check=False)
        return done.returncode, done.stdout + done.stderr

    def lives(self) -> int:
        """How often the API server has been started."""
        return len(lives_of(self.cluster))

    def in_force(self) -> bool:
        """Whether the running API server has our flags."""
        pid = self.stage.machine.show(self.cluster.service, "MainPID")["MainPID"]
        return OURS.encode() in self.stage.machine.read(f"/proc/{pid}/cmdline")


@pytest.fixture(scope="module", params=[False, True], ids=["one file", "folder"])
def story(request: pytest.FixtureRequest, charm: Path) -> Iterator[Story]:
    with StageOf(lambda: Canonical(folder=request.param), charm) as stage:
        cluster, keystone, machine = stage.cluster, stage.keystone, stage.machine
        cluster.pod("default", "web")
        cluster.charm_reconcile()
        demo = keystone.project("demo")
        alice = keystone.member("alice", demo)
        kubeconfig = users.hand_out(keystone.application_credential(alice, demo), keystone, cluster)
        with Traffic(cluster) as traffic:
            yield Story(stage, kubeconfig, traffic, cluster.args(), machine.shell(INVENTORY), machine.shell(UNITS))


def test_relating_finds_the_layout_and_takes_one_restart(story: Story) -> None:
    unit, before = story.stage.unit, story.lives()
    unit.deploy(story.stage.charm, {**story.stage.keystone_options, "policy": READERS})
    unit.relate()
    assert unit.status == ("active", "ready: canonical, policy 1 rules"), unit.debug_log()
    assert story.lives() == before + 1
    assert "api-server=auto: canonical, snap.k8s.kube-apiserver.service with " in unit.debug_log()


def test_a_keystone_user_may_do_what_the_policy_says(story: Story) -> None:
    code, output = story.kubectl("auth", "whoami", "-o", "json")
    assert code == 0, output
    assert json.loads(output)["status"]["userInfo"]["username"] == "keystone:alice"
    assert story.kubectl("get", "pods", "--output=name") == (0, "pod/web\n")
    code, output = story.kubectl("get", "nodes")
    assert code != 0
    assert "Forbidden" in output


def test_the_clusters_own_tokens_go_to_its_own_webhook_and_never_to_keystone(story: Story) -> None:
    keystone, reviews = story.stage.keystone, dict(story.cluster.webhook_reviews())
    for known in story.cluster.tokens.values():
        assert story.cluster.status("/api/v1/nodes/worker-0", known.token) == 200
        assert reviews[keystone.digest(known.token)] == known.username
    ours = {keystone.digest(known.token) for known in story.cluster.tokens.values()}
    assert not ours & {digest for call in keystone.calls() for digest in (call.subject, call.token)}
    assert story.cluster.status("/api/v1/namespaces", "token::nobodys") == 401


def test_what_others_merge_has_nothing_of_ours_in_it(story: Story) -> None:
    assert story.in_force()
    assert story.cluster.args() == story.args
    assert story.stage.machine.exists(OWN_FILE) == story.cluster.in_folder


def test_a_reconcile_of_the_charm_that_changes_nothing_restarts_nothing(story: Story) -> None:
    before = story.lives()
    assert not story.cluster.charm_reconcile()
    story.stage.unit.update_status()
    assert story.stage.unit.status.name == "active"
    assert story.lives() == before


def test_the_charms_own_flags_are_kept_and_ours_survive_them_after_one_restart(story: Story) -> None:
    """One of them has the name of one of ours: merged into it for good, it would restart the server at every hook."""
    before = story.lives()
    assert story.cluster.charm_reconcile(authorization_mode="Node,RBAC", v="2")
    assert story.kubectl("get", "pods")[0] == 0
    assert story.in_force()
    assert not story.cluster.charm_reconcile(authorization_mode="Node,RBAC", v="2")
    story.stage.unit.update_status()
    assert story.stage.unit.status.name == "active"
    assert story.lives() == before + 1


def test_a_charm_that_read_the_file_in_the_middle_of_a_start_has_nothing_of_ours_afterwards(story: Story) -> None:
    if story.cluster.in_folder:
        pytest.skip("nobody reads our file there")
    machine, before = story.stage.machine, story.cluster.args()
    # What a start has, for as long as it takes.
    machine.run("/bin/sh", "/opt/kubernetes-keystone/apiserver-flags", "start")
    assert OURS.encode() in story.cluster.args()
    assert story.cluster.charm_reconcile(v="3")
    assert story.cluster.args() == before.replace(b'--v="2"', b'--v="3"')
    assert story.in_force()
    assert story.kubectl("get", "pods")[0] == 0
    assert story.cluster.status("/readyz", story.cluster.tokens["admin"].token) == 200


def test_flags_that_the_api_server_cannot_run_with_are_taken_back(story: Story) -> None:
    machine, unit, args = story.stage.machine, story.stage.unit, story.cluster.args()
    unit.configure(api_server="manual")
    assert unit.status.name == "active"
    assert not story.in_force()
    good = machine.read("/usr/bin/snap").decode()
    bad = good.replace("set -e\n", f"set -e\ngrep -qrs {OURS} {COMMON}/args && exit 7\n", 1)
    assert bad != good
    machine.write("/usr/bin/snap", bad, 0o755)
    unit.configure(api_server="canonical")
    machine.write("/usr/bin/snap", good, 0o755)
    assert unit.status.name == "blocked"
    assert "API server" in unit.status.message
    assert story.cluster.args() == args
    story.cluster.wait_ready()
    unit.configure(api_server="manual")
    unit.configure(api_server="auto")
    assert unit.status.name == "active"
    assert story.kubectl("get", "pods")[0] == 0


def test_removal_leaves_the_machine_as_its_owners_have_it(story: Story) -> None:
    machine, args = story.stage.machine, story.cluster.args()
    before = story.lives()
    story.stage.unit.remove()
    assert story.lives() == before + 1
    assert story.cluster.args() == args
    left = difference(story.inventory, machine.shell(INVENTORY))
    assert [line for line in left if f"{COMMON}/args/" not in line] == [], (
        "what its charm has changed since is not ours"
    )
    assert not machine.exists(OWN_FILE)
    assert difference(story.units, machine.shell(UNITS)) == []
    assert story.kubectl("get", "pods")[0] != 0


def test_no_request_of_the_clusters_own_was_lost_beyond_the_restarts(story: Story) -> None:
    outcome = story.traffic.outcome()
    print(f"{outcome.requests} requests, {outcome.restarts} restarts, {outcome.by_restarts} failed through those")
    assert outcome.requests > 200
    assert outcome.lost == []
