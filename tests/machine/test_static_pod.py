"""The short story on a kubeadm control plane: relate, use, be upgraded, crash, be killed, remove.

The tests stand in the order of the story and share one stage; the cluster's own traffic runs all along.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from testbed.agent import HookFailed
from testbed.stage import StageOf
from testbed.static_pod import MANIFEST, StaticPod
from tests.machine.in_use import InUse, in_use
from tests.machine.test_story import INVENTORY, READERS, UNITS, difference

OURS = "/etc/kubernetes/kubernetes-keystone"
WANTED = "/var/lib/kubernetes-keystone/wanted"


@dataclass
class Story(InUse[StaticPod]):
    """What the tests know of each other."""

    nobody: tuple[float, float] = (0, 0)
    """From when to when nobody answered for tokens."""

    def administrators(self) -> int:
        """Run kubectl on the machine's own administrator's certificate, as long as the API server may take to start."""
        admin = self.cluster.folder / "admin.kubeconfig"
        admin.write_bytes(self.stage.machine.read("/etc/kubernetes/admin.conf"))
        return self.cluster.kubectl("get", "nodes", kubeconfig=admin, check=False).returncode

    def wired(self) -> bool:
        """Whether our flags are in the manifest."""
        return OURS.encode() in self.cluster.args()

    def without(self) -> bool:
        """Whether the API server runs, and without them."""
        return not self.wired() and self.administrators() == 0 and not self.in_force()


@pytest.fixture(scope="module")
def story(kubeadm: StageOf[StaticPod]) -> Iterator[Story]:
    with in_use(kubeadm, Story) as begun:
        yield begun


def test_relating_finds_the_manifest_and_takes_one_restart(story: Story) -> None:
    unit, before = story.stage.unit, story.lives()
    unit.deploy(story.stage.charm, {**story.stage.keystone_options, "policy": READERS})
    unit.relate()
    assert unit.status == ("active", "ready: static-pod, policy 1 rules"), unit.debug_log()
    assert story.lives() == before + 1
    assert f"api-server=auto: static-pod, the kubelet with {MANIFEST}" in unit.debug_log()
    assert story.stage.machine.shell(f"ls -A {MANIFEST.rpartition('/')[0]}") == "kube-apiserver.yaml"


def test_a_keystone_user_may_do_what_the_policy_says(story: Story) -> None:
    code, output = story.kubectl("auth", "whoami", "-o", "json")
    assert code == 0, output
    assert json.loads(output)["status"]["userInfo"]["username"] == "keystone:alice"
    assert story.kubectl("get", "pods", "--output=name") == (0, "pod/web\n")
    code, output = story.kubectl("get", "nodes")
    assert code != 0
    assert "Forbidden" in output
    assert story.administrators() == 0


def test_the_webhook_that_was_there_goes_on_answering_and_keystone_sees_no_token_of_the_clusters(story: Story) -> None:
    keystone, tokens = story.stage.keystone, story.cluster.tokens.values()
    for known in tokens:
        assert story.cluster.status("/api/v1/nodes/worker-0", known.token) == 200
    reviews = dict(story.cluster.webhook_reviews())
    assert [reviews[keystone.digest(known.token)] for known in tokens] == [known.username for known in tokens]
    ours = {keystone.digest(known.token) for known in tokens}
    assert not ours & {digest for call in keystone.calls() for digest in (call.subject, call.token)}


def test_a_second_reconcile_changes_nothing_and_restarts_nothing(story: Story) -> None:
    before = story.lives(), story.stage.machine.shell(f"stat -c '%i %Z' {MANIFEST}")
    story.stage.unit.update_status()
    assert story.stage.unit.status.name == "active"
    assert (story.lives(), story.stage.machine.shell(f"stat -c '%i %Z' {MANIFEST}")) == before


def test_an_upgrade_by_kubeadm_is_followed_at_the_next_hook(story: Story) -> None:
    assert story.cluster.owner_sets(v="2")
    assert not story.wired()
    story.stage.unit.update_status()
    assert story.stage.unit.status.name == "active", story.stage.unit.debug_log()
    assert story.in_force()
    assert b"--v=2" in story.cluster.args()


def test_an_authenticator_that_cannot_be_kept_running_lets_the_api_server_go_on_without_it(story: Story) -> None:
    machine, unit = story.stage.machine, story.stage.unit
    program = machine.shell("readlink -f /opt/kubernetes-keystone/current")
    machine.run("mv", program, f"{program}.away")
    given_up = time.time()
    machine.run("systemctl", "kill", "--signal=KILL", "kubernetes-keystone.service")
    machine.wait(lambda: not story.wired(), "our flags to go out", 180)
    story.nobody = (given_up, time.time())
    machine.run("mv", f"{program}.away", program)
    machine.wait(story.without, "the API server without our flags", 180, every=1)
    machine.wait(story.wired, "our flags to come back", 300)
    machine.wait(story.in_force, "the API server with our flags", 180, every=1)
    unit.update_status()
    assert unit.status.name == "active", unit.debug_log()


def test_flags_that_the_api_server_cannot_run_with_are_taken_back(story: Story) -> None:
    machine, unit = story.stage.machine, story.stage.unit
    unit.configure(api_server="manual")
    assert unit.status.message.startswith("manual, the API server does not ask us yet: static-pod: --"), unit.status
    assert story.without()
    manifest, kubelet = story.cluster.args(), machine.read("/opt/kubelet/kubelet.py").decode()
    # The container does not get what the flags name: as if a security module forbade it.
    each = 'while [ "$1" != -- ]; do\n'
    bad = kubelet.replace(each, f'{each}    [ "$1" != {OURS} ] || {{ shift 3; continue; }}\n', 1)
    assert bad != kubelet
    with as_kubelet(story, bad, kubelet):
        unit.configure(api_server="auto")
        assert unit.status.name == "blocked"
        assert "API server" in unit.status.message
        assert story.cluster.args() == manifest
        story.cluster.wait_ready()
        assert story.administrators() == 0
    unit.configure(api_server="manual")
    unit.configure(api_server="auto")
    assert unit.status.name == "active", unit.debug_log()
    assert story.in_force()


@contextlib.contextmanager
def as_kubelet(story: Story, program: str, before: str) -> Iterator[None]:
    """Have the kubelet be another one for a while; the pod is begun anew by it."""
    for text in (program, before):
        story.stage.machine.write("/opt/kubelet/kubelet.py", text, 0o600)
        story.stage.machine.shell("systemctl stop kubelet kube-apiserver; systemctl start kubelet")
        story.cluster.wait_ready()
        if text == program:
            yield


def test_a_charm_killed_in_its_trial_leaves_no_flag_that_nobody_has_verified(story: Story) -> None:
    machine, unit = story.stage.machine, story.stage.unit
    assert story.cluster.owner_sets(v="3")
    upgraded = story.cluster.args()
    failed: list[HookFailed] = []

    def hook() -> None:
        try:
            unit.update_status()
        except HookFailed as error:
            failed.append(error)

    running = threading.Thread(target=hook)
    running.start()
    machine.wait(story.wired, "the trial", 120, every=0.05)
    assert "state trial" in machine.read(WANTED).decode()
    machine.shell("kill -KILL $(grep -ls 'src/charm[.]py' /proc/[0-9]*/cmdline | cut -d / -f 3)", check=False)
    running.join()
    assert failed
    machine.wait(lambda: not story.wired(), "our flags to go out", 60)
    assert story.cluster.args() == upgraded
    machine.wait(story.without, "the API server without our flags", 180, every=1)
    unit.retry()
    assert unit.status.name == "active", unit.debug_log()
    assert story.in_force()


def test_removal_gives_the_manifest_back_byte_for_byte(story: Story) -> None:
    machine, before = story.stage.machine, story.lives()
    story.stage.unit.remove()
    assert story.cluster.args().decode() == story.cluster.manifest()
    machine.wait(story.without, "the API server without our flags", 180, every=1)
    assert story.lives() > before
    left = difference(story.inventory, machine.shell(INVENTORY))
    assert [line for line in left if MANIFEST not in line] == [], "what kubeadm has written since is not ours"
    assert difference(story.units, machine.shell(UNITS)) == []


def test_no_request_of_the_clusters_own_was_lost_beyond_the_restarts(story: Story) -> None:
    outcome = story.traffic.outcome()
    print(f"{outcome.requests} requests, {outcome.restarts} restarts, {outcome.by_restarts} failed through those")
    assert outcome.requests > 200
    # Until the authenticator is given up nobody answers for the cluster's tokens; what a busy machine needs for it may
    # be longer than the API server remembers them.
    began, ended = story.nobody
    assert [one for one in outcome.lost if not began <= one.ended <= ended] == []
