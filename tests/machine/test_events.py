"""Juju's events as they surprise, on Juju 2.9: retried, between any two, out of order, late, twice on one machine.

One story on one stage, with two applications of this charm. What is usual with Juju 3 is told by the other stories.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.agent import HookFailed, Unit
from testbed.charmed import API_SERVER
from testbed.stage import Stage
from testbed.traffic import lives_of
from tests.machine.test_story import LEGACY

POLICY = json.dumps([{"users": {"projects": ["demo"]}, "resource_permissions": {"default/pods": ["list"]}}])
JUJU = "2.9.51"
STRICT = {"PYTHONWARNINGS": "default"}  # of what will change as well, which Python does not tell unless asked
KILL = "kill -KILL $(grep -ls 'src/charm[.]py' /proc/[0-9]*/cmdline | cut -d / -f 3)"
OURS = ("/etc/kubernetes-keystone", "/opt/kubernetes-keystone", "/var/lib/kubernetes-keystone")


class Restless(Unit):
    """A unit between any two of whose events there is an update-status."""

    seen: list[tuple[str, str]]

    def hook(self, hook: str, **extra: str) -> None:
        """Run a hook, and the one that Juju runs whenever nothing else is to do."""
        super().hook(hook, **extra)
        self.seen.append((hook, self.status.name))
        if hook != "install" and not self._leaving:
            super().hook("update-status")


@pytest.fixture(scope="module")
def first(stage: Stage) -> Restless:
    unit = Restless(stage.machine, juju_version=JUJU, juju_exec=True, environment=STRICT)
    unit.seen = []
    unit.deploy(stage.charm, {**stage.keystone_options, "policy": POLICY})
    return unit


@pytest.fixture(scope="module")
def second(stage: Stage) -> Unit:
    """Another application of this charm, related to the same control plane."""
    unit = Unit(stage.machine, "keystone-too", juju_version=JUJU, juju_exec=True, environment=STRICT)
    unit.deploy(stage.charm, {**stage.keystone_options, "policy": POLICY})
    return unit


@pytest.fixture(scope="module")
def token(stage: Stage) -> Callable[[], str]:
    project = stage.keystone.project("demo")
    member = stage.keystone.member("alice", project)
    return lambda: stage.keystone.token(member, project)


@pytest.fixture(scope="module", autouse=True)
def _no_warning_of_anybodys(first: Unit, second: Unit) -> Iterator[None]:
    """What ops has to say against a charm or its Juju it logs as a warning, and Python's own warnings with it."""
    yield
    told = [line for unit in (first, second) for line in unit.log if line.level in ("WARNING", "ERROR")]
    ours = re.compile(r"([\w-]+:\d+: )?(blocked|policy): ")  # in a relation's event ops puts its name in front
    told = [line for line in told if not ours.match(line.message) and "Killed" not in line.message]
    assert [line for line in told if not line.message.endswith(LEGACY)] == []


def lists_pods(stage: Stage, token: str) -> bool:
    return stage.cluster.status("/api/v1/namespaces/default/pods", token) == 200


def test_an_event_that_is_killed_comes_again_and_what_follows_it_ends_well(
    stage: Stage, first: Restless, token: Callable[[], str]
) -> None:
    """Killed in the API server's restart; update-status between any two events, and config-changed before start."""
    args, before = stage.cluster.args(), len(lives_of(stage.cluster))
    failed: list[HookFailed] = []

    def relate() -> None:
        try:
            first.relate()
        except HookFailed as error:
            failed.append(error)

    running = threading.Thread(target=relate)
    running.start()
    stage.machine.wait(lambda: stage.cluster.args() != args, "our flags to be put in", 180, every=0.02)
    stage.machine.shell(KILL)
    running.join()
    assert len(failed) == 1
    assert first.failed_hook is not None
    assert first.failed_hook.name == "kubernetes-master-relation-created"
    assert first.status.name == "maintenance", "what it said last, for whoever looks"

    first.retry()
    assert first.status == ("active", "ready: charmed, policy 1 rules")
    own = [hook for hook in first.hooks if hook != "update-status"]
    assert own == [
        "install",
        *["kubernetes-master-relation-created"] * 2,
        *("leader-elected", "config-changed", "start"),
        *("kubernetes-master-relation-joined", "kubernetes-master-relation-changed"),
    ]
    assert dict(first.seen)["config-changed"] == "active", "it does not wait for start"
    assert lists_pods(stage, token())
    # Of the one that was cut off, of taking its trial back, and of the one that counts.
    assert len(lives_of(stage.cluster)) <= before + 3


def test_jujus_tool_of_2_9_runs_a_hook_from_outside(stage: Stage, first: Unit) -> None:
    assert not stage.machine.exists("/usr/bin/juju-exec")
    first.catch_up()
    history = len(first.history)
    stage.machine.run("systemctl", "start", "kubernetes-keystone-hook.service")
    first.catch_up()
    assert [status.name for status in first.history[history:]] == ["active"]


def test_what_needs_secrets_names_the_other_way(first: Unit) -> None:
    first.configure(sync_config="data-types-to-sync: [projects]", sync_credentials="secret:d0000000000000000000")
    said = "sync-credentials: this Juju has no secrets (3.3 has): name a file of root's on the unit instead"
    assert first.status == ("blocked", said)
    assert first.run_action("check-authentication", token_secret="secret:x").message.startswith("token-secret: this")


def test_an_upgrade_while_blocked_keeps_what_was_in_force(stage: Stage, first: Unit, token: Callable[[], str]) -> None:
    before = len(lives_of(stage.cluster))
    assert first.status.name == "blocked"
    first.upgrade(stage.charm)
    assert first.status.name == "blocked"
    assert lists_pods(stage, token())
    first.reset("sync-config", "sync-credentials")
    assert first.status.name == "active"
    assert len(lives_of(stage.cluster)) == before


def test_a_second_application_on_the_machine_is_refused_and_touches_nothing(
    stage: Stage, first: Unit, second: Unit, token: Callable[[], str]
) -> None:
    before, args = len(lives_of(stage.cluster)), stage.cluster.args()
    second.relate()
    said = "kubernetes-keystone/0 serves this machine already, and a machine has room for one unit of this charm"
    assert second.status.name == "blocked"
    assert second.status.message.startswith(said)
    assert "juju remove-application keystone-too" in second.status.message
    assert second.run_action("show-webhook-config").message.startswith(said)
    assert (len(lives_of(stage.cluster)), stage.cluster.args()) == (before, args)
    first.update_status()
    assert first.status.name == "active"
    assert lists_pods(stage, token())


def test_the_second_takes_the_machine_over_when_the_first_is_gone(
    stage: Stage, first: Unit, second: Unit, token: Callable[[], str]
) -> None:
    first.remove()
    second.update_status()
    assert second.status == ("active", "ready: charmed, policy 1 rules")
    assert lists_pods(stage, token())


def test_departed_and_broken_that_come_after_the_principal_has_gone_leave_nothing(stage: Stage, second: Unit) -> None:
    """The control plane's charm has taken its API server away by then."""
    machine = stage.machine
    machine.run("systemctl", "disable", "--now", API_SERVER)
    machine.shell(
        f"rm -rf /etc/systemd/system/{API_SERVER} /var/snap/kube-apiserver/x1 /var/snap/kube-apiserver/current"
    )
    machine.run("systemctl", "daemon-reload")
    second.remove()
    assert second.status.name == "terminated"
    assert [
        path for path in (*OURS, "/var/snap/kube-apiserver/common/kubernetes-keystone") if machine.exists(path)
    ] == []
    assert machine.shell("find /etc/systemd -path '*keystone*'") == ""
    assert machine.run("getent", "passwd", "kubernetes-keystone", check=False).returncode != 0
    assert not machine.exists(str(Path("/var/lib/juju/agents/unit-keystone-too-0")))
