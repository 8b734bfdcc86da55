"""The short story on each layout but the first: relate, use, be overwritten, crash, remove.

The tests stand in the order of the story and share one stage; the cluster's own traffic runs all along.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import canonical
from testbed.canonical import Canonical
from testbed.cluster import Cluster
from testbed.microk8s import MicroK8s
from testbed.shell import Session, Shell
from testbed.stage import StageOf
from tests.machine.in_use import InUse, in_use
from tests.machine.telling import told_everywhere
from tests.machine.test_story import INVENTORY, READERS, UNITS, difference

OWN_FILE = f"{canonical.FOLDER}/99-kubernetes-keystone"


@dataclass
class Story(InUse[Cluster]):
    """What the tests know of each other."""

    args: bytes = b""

    @property
    def in_folder(self) -> bool:
        return isinstance(self.cluster, Canonical) and self.cluster.in_folder

    @property
    def ours(self) -> str:
        """Where the API server reads our files."""
        snap = "k8s" if self.cluster.layout == "canonical" else self.cluster.layout
        return f"/var/snap/{snap}/common/kubernetes-keystone"


STAGES: dict[str, Callable[[], Cluster]] = {
    "canonical": Canonical,
    "canonical, a folder": lambda: Canonical(folder=True),
    "microk8s": MicroK8s,
}


@pytest.fixture(scope="module", params=STAGES.values(), ids=list(STAGES))
def story(request: pytest.FixtureRequest, charm: Path) -> Iterator[Story]:
    with StageOf(request.param, charm) as stage:
        stage.cluster.pod("default", "web")
        stage.cluster.owner_sets()
        with in_use(stage, Story) as begun:
            begun.args = stage.cluster.args()
            yield begun


def test_relating_finds_the_layout_and_takes_one_restart(story: Story) -> None:
    unit, before = story.stage.unit, story.lives()
    unit.deploy(story.stage.charm, {**story.stage.keystone_options, "policy": READERS})
    unit.relate()
    assert unit.status == ("active", f"ready: {story.cluster.layout}, policy 1 rules"), unit.debug_log()
    assert story.lives() == before + 1
    assert f"api-server=auto: {story.cluster.layout}, {story.cluster.service} with " in unit.debug_log()


def test_a_keystone_user_may_do_what_the_policy_says(story: Story) -> None:
    code, output = story.kubectl("auth", "whoami", "-o", "json")
    assert code == 0, output
    assert json.loads(output)["status"]["userInfo"]["username"] == "keystone:alice"
    assert story.kubectl("get", "pods", "--output=name") == (0, "pod/web\n")
    code, output = story.kubectl("get", "nodes")
    assert code != 0
    assert "Forbidden" in output


def test_the_clusters_own_tokens_are_good_and_never_reach_keystone(story: Story) -> None:
    keystone, tokens = story.stage.keystone, story.cluster.tokens.values()
    for known in tokens:
        assert story.cluster.status("/api/v1/nodes/worker-0", known.token) == 200
    reviews = dict(story.cluster.webhook_reviews())
    if story.cluster.webhook:
        assert [reviews[keystone.digest(known.token)] for known in tokens] == [known.username for known in tokens]
    ours = {keystone.digest(known.token) for known in tokens}
    assert not ours & {digest for call in keystone.calls() for digest in (call.subject, call.token)}
    assert story.cluster.status("/api/v1/namespaces", "token::nobodys") == 401


def test_what_others_merge_has_nothing_of_ours_in_it(story: Story) -> None:
    assert story.in_force()
    if story.cluster.layout == "canonical":
        assert story.cluster.args() == story.args
        assert story.stage.machine.exists(OWN_FILE) == story.in_folder
    else:
        # Nobody merges it there; whoever sets a flag sets every line of it, and of ours there is one.
        names = [line.partition(b"=")[0] for line in story.cluster.args().splitlines() if line.startswith(b"--")]
        assert len(names) == len(set(names))


def test_a_second_reconcile_changes_nothing_and_restarts_nothing(story: Story) -> None:
    before = story.lives()
    if story.cluster.layout == "canonical":
        assert not story.cluster.owner_sets(), "its charm finds nothing of ours to write anew"
    story.stage.unit.update_status()
    assert story.stage.unit.status.name == "active"
    assert story.lives() == before


def test_what_the_owner_sets_is_kept_and_ours_survive_it_after_one_restart(story: Story) -> None:
    """One of them has the name of one of ours: merged into it for good, it would restart the server at every hook."""
    before = story.lives()
    assert story.cluster.owner_sets(authorization_mode="Node,RBAC", v="2")
    assert story.in_force()
    assert story.cluster.status("/readyz", story.cluster.tokens["admin"].token) == 200
    if story.cluster.layout == "canonical":
        assert not story.cluster.owner_sets(authorization_mode="Node,RBAC", v="2")
    story.stage.unit.update_status()
    assert story.stage.unit.status.name == "active"
    assert story.lives() == before + 1


def test_an_owner_who_read_the_file_in_the_middle_of_a_start_has_nothing_of_ours_in_the_end(story: Story) -> None:
    machine = story.stage.machine
    # What a start has, for as long as it takes.
    machine.run("/bin/sh", "/opt/kubernetes-keystone/apiserver-flags", "start")
    assert (story.ours.encode() in story.cluster.args()) == (not story.in_folder)
    assert story.cluster.owner_sets(v="3")
    assert story.in_force()
    assert story.cluster.status("/readyz", story.cluster.tokens["admin"].token) == 200
    machine.run("/bin/sh", "/opt/kubernetes-keystone/apiserver-flags", "cut")
    assert story.ours.encode() not in story.cluster.args()
    assert b"Webhook" not in story.cluster.args()


def test_flags_that_the_api_server_cannot_run_with_are_taken_back(story: Story) -> None:
    machine, unit = story.stage.machine, story.stage.unit
    unit.configure(api_server="manual")
    told_everywhere(unit, "the API server does not ask us yet")
    assert unit.status.message.startswith(f"manual, the API server does not ask us yet: {story.cluster.layout}: --")
    assert not story.in_force()
    args, good = story.cluster.args(), machine.read("/usr/bin/snap").decode()
    folder = story.cluster.args_path.rpartition("/")[0]
    bad = good.replace("set -e\n", f"set -e\ngrep -qrs {story.ours} {folder}/ && exit 7\n", 1)
    assert bad != good
    machine.write("/usr/bin/snap", bad, 0o755)
    unit.configure(api_server=story.cluster.layout)
    machine.write("/usr/bin/snap", good, 0o755)
    assert unit.status.name == "blocked"
    assert "API server" in unit.status.message
    assert story.cluster.args() == args
    story.cluster.wait_ready()
    unit.configure(api_server="manual")
    unit.configure(api_server="auto")
    assert unit.status.name == "active"
    assert story.in_force()


def test_by_hand_the_printed_commands_are_enough_and_the_clusters_own_tokens_stay_good(
    story: Story, tmp_path: Path
) -> None:
    """A flag by hand displaces the cluster's own token webhook as well as one of ours does."""
    cluster, machine, unit = story.cluster, story.stage.machine, story.stage.unit
    if story.in_folder:
        pytest.skip("the same commands as without a folder")
    unit.configure(api_server="manual")
    before, admin = cluster.args(), cluster.tokens["admin"].token
    commands = unit.run_action("show-webhook-config").results["commands"]
    here = "\n".join(line for line in commands.splitlines() if not line.startswith("juju "))
    machine.shell('sudo() { "$@"; }\n' + here)
    with Shell(story.stage.juju, tmp_path) as shell, Session(shell, tmp_path) as session:
        done = session.run("\n".join(line for line in commands.splitlines() if line.startswith("juju ")))
    assert done.code == 0, done.text
    cluster.wait_ready()
    unit.update_status()
    assert unit.status == ("active", f"ready: manual, {cluster.layout}, policy 1 rules"), unit.debug_log()
    assert story.in_force()
    assert cluster.status("/api/v1/nodes/worker-0", admin) == 200
    assert b"kubernetes-keystone/" not in cluster.args()

    machine.write(cluster.args_path, before, 0o600)
    machine.run("systemctl", "restart", cluster.service)
    cluster.wait_ready()
    machine.run("rm", "-r", f"{story.ours}-manual")
    unit.configure(api_server="auto")
    assert unit.status.name == "active"
    assert story.in_force()


def test_removal_leaves_the_machine_as_its_owners_have_it(story: Story) -> None:
    machine, before = story.stage.machine, story.lives()
    story.stage.unit.remove()
    assert story.lives() == before + 1
    last = {"canonical": b'--v="3"\n', "microk8s": b"--v=3\n"}[story.cluster.layout]
    if not story.in_folder:
        assert sorted(story.cluster.args().replace(last, b"").split()) == sorted(
            story.args.replace(b"=RBAC,Node\n", b"=Node,RBAC\n").split()
        )
    left = difference(story.inventory, machine.shell(INVENTORY))
    assert [line for line in left if "/args/" not in line] == [], "what the owner has set since is not ours"
    assert not machine.exists(OWN_FILE)
    assert difference(story.units, machine.shell(UNITS)) == []
    assert not story.in_force()


def test_no_request_of_the_clusters_own_was_lost_beyond_the_restarts(story: Story) -> None:
    outcome = story.traffic.outcome()
    print(f"{outcome.requests} requests, {outcome.restarts} restarts, {outcome.by_restarts} failed through those")
    assert outcome.requests > 200
    assert outcome.lost == []
