"""Somebody's authorization webhook is there already: the way over to a file with both, and what becomes of ours in it.

On a kubeadm control plane, where the file has to be seen from within a pod. The tests stand in the order of the story.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from testbed.agent import HookFailed
from testbed.stage import StageOf
from testbed.static_pod import MANIFEST, PKI, StaticPod
from tests.machine.in_use import InUse, in_use
from tests.machine.test_story import INVENTORY, READERS, UNITS, difference

FOLDER = "/etc/kubernetes/authorization"
CONFIG = f"{FOLDER}/config.yaml"
THEIRS = f"{PKI}/theirs.kubeconfig"
EXCLUDED = ("authorization-mode", "authorization-webhook-config-file", "authorization-webhook-version")


@dataclass
class Story(InUse[StaticPod]):
    """What the tests know of each other."""

    text: str = ""

    @property
    def config(self) -> str:
        return self.stage.machine.read(CONFIG).decode()

    def ready(self) -> None:
        status = self.stage.unit.status
        assert status == ("active", "ready: static-pod, policy 1 rules"), self.stage.unit.debug_log()


@pytest.fixture(scope="module")
def story(kubeadm: StageOf[StaticPod]) -> Iterator[Story]:
    # Theirs answers nobody, which is no opinion: who is asked is for the functional tests to tell.
    theirs = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6401/authorize"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    kubeadm.machine.write(THEIRS, yaml.safe_dump(theirs).encode(), 0o600)
    kubeadm.cluster.owner_sets(
        authorization_mode="Node,RBAC,Webhook",
        authorization_webhook_config_file=THEIRS,
        authorization_webhook_version="v1",
    )
    with in_use(kubeadm, Story) as begun:
        yield begun


def test_another_webhook_among_the_flags_is_in_the_way_and_the_way_out_is_told(story: Story) -> None:
    unit, before = story.stage.unit, story.lives()
    unit.deploy(story.stage.charm, {**story.stage.keystone_options, "policy": READERS})
    unit.relate()
    assert unit.status.name == "blocked"
    assert f"--authorization-webhook-config-file={THEIRS}" in unit.status.message
    assert "show-webhook-config" in unit.status.message
    assert story.lives() == before


def test_the_printed_file_and_flags_are_what_the_api_server_runs_with_as_before(story: Story) -> None:
    unit, cluster = story.stage.unit, story.cluster
    printed = unit.run_action("show-webhook-config").results
    story.text = printed["authorization-config"]
    commands = printed["commands"].splitlines()
    begin = next(n for n, line in enumerate(commands) if line.endswith("<<'EOF'"))
    for line in (commands[begin - 1], "\n".join(commands[begin : commands.index("EOF") + 1])):
        story.stage.machine.shell(line.replace("sudo ", ""))
    assert story.config == story.text
    assert f"value: {CONFIG}" in printed["commands"]
    for flag in EXCLUDED:
        del cluster.flags[flag]
    cluster.mounts["authorization"] = (FOLDER, FOLDER)
    assert cluster.owner_sets(authorization_config=CONFIG)
    assert cluster.status("/readyz", cluster.tokens["admin"].token) == 200


def test_then_ours_joins_theirs_without_a_further_restart(story: Story) -> None:
    unit = story.stage.unit
    unit.update_status()
    story.ready()  # with the one restart that the flags for tokens need
    before = story.lives()
    assert story.in_force()
    assert story.config.startswith(story.text)
    names = [item["name"] for item in yaml.safe_load(story.config)["authorizers"]]
    assert names == ["node", "rbac", "default", "kubernetes-keystone"]
    unit.configure(policy="")
    assert story.config == story.text
    story.stage.machine.wait(lambda: not story.in_force(), "the API server to go without our policy", 90, every=1)
    unit.configure(policy=READERS)
    story.ready()
    assert story.in_force()
    assert story.lives() == before


def test_an_upgrade_by_kubeadm_starts_with_ours_in_the_file_though_our_flags_and_volume_are_gone(story: Story) -> None:
    assert story.cluster.owner_sets(v="2")
    assert b"kubernetes-keystone" not in story.cluster.args()
    assert "kubernetes-keystone" in story.config
    story.stage.unit.update_status()
    story.ready()
    assert story.in_force()


def test_a_charm_killed_while_it_tries_an_entry_leaves_none(story: Story) -> None:
    machine, unit = story.stage.machine, story.stage.unit
    unit.configure(policy="")
    failed: list[HookFailed] = []

    def hook() -> None:
        try:
            unit.configure(policy=READERS)
        except HookFailed as error:
            failed.append(error)

    running = threading.Thread(target=hook)
    running.start()
    machine.wait(lambda: "kubernetes-keystone" in story.config, "the trial", 120, every=0.01)
    machine.shell("kill -KILL $(grep -ls 'src/charm[.]py' /proc/[0-9]*/cmdline | cut -d / -f 3)", check=False)
    running.join()
    if failed:  # else it was quicker, and had confirmed it
        machine.wait(lambda: story.config == story.text, "our entry to go out", 60)
        unit.retry()
    story.ready()
    assert story.in_force()


def test_removal_gives_the_file_and_the_manifest_back_byte_for_byte(story: Story) -> None:
    machine = story.stage.machine
    story.stage.unit.remove()
    assert story.config == story.text
    assert story.cluster.args().decode() == story.cluster.manifest()
    assert machine.shell(f"ls -A {FOLDER}") == "config.yaml"
    left = difference(story.inventory, machine.shell(INVENTORY))
    assert [line for line in left if MANIFEST not in line and FOLDER not in line] == []
    assert difference(story.units, machine.shell(UNITS)) == []


def test_no_request_of_the_clusters_own_was_lost_beyond_the_restarts(story: Story) -> None:
    outcome = story.traffic.outcome()
    print(f"{outcome.requests} requests, {outcome.restarts} restarts, {outcome.by_restarts} failed through those")
    assert outcome.requests > 200
    assert outcome.lost == []
