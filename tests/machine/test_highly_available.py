"""Several control-plane machines behind a balancer: one API server at a time, so that nobody notices more than that.

The tests stand in the order of the story, whose steps are those of tests/scenarios.py as far as they need several
machines. Two clients run kubectl through the balancer all the time, one with a token of the cluster's own, one with
Keystone's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from testbed.agent import HookFailed, Unit
from testbed.cache import TestbedError
from testbed.charmed import Charmed
from testbed.highly_available import HighlyAvailable
from testbed.juju import Juju
from testbed.traffic import lives_of
from tests import scenarios
from tests.machine.place import StandIn
from tests.machine.telling import fault

POLICY = json.dumps([{"users": {"projects": ["demo"]}, "resource_permissions": {"default/pods": ["list"]}}])
LEASE = ["--namespace=kube-system", "get", "lease", "kubernetes-keystone-restart"]
# On the machine, which sees its own processes alone; and not this shell.
KILL_HOOK = """
for process in /proc/[0-9]*; do
    ! grep -q '[s]rc/charm.py' "$process/cmdline" || kill -KILL "${process#/proc/}"
done
"""
PAUSE = 0.2

pytestmark = pytest.mark.timeout(1800)  # three machines take their time on two cores


class Call(NamedTuple):
    """One run of kubectl, in Unix times."""

    client: str
    began: float
    ended: float
    failure: str


class Down(NamedTuple):
    """When an API server was not there: from its end to when the balancer saw that it was ready again."""

    began: float
    ended: float
    member: str


@dataclass
class Story:
    """What the tests know of each other."""

    plane: HighlyAvailable
    model: Juju
    told: scenarios.Story
    kubeconfigs: dict[str, Path]
    args: list[bytes]
    calls: list[Call] = field(default_factory=list)
    lost: dict[str, list[Call]] = field(default_factory=dict)
    died: list[float] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)

    @property
    def units(self) -> list[Unit]:
        """Those whose machines are in the model."""
        return self.model.units

    def each(self, what: Callable[[Unit], None]) -> None:
        """Do the same on every unit at once, as Juju does."""
        with ThreadPoolExecutor(len(self.units)) as pool:
            for done in [pool.submit(what, unit) for unit in self.units]:
                done.result()

    def downs(self, since: float) -> list[Down]:
        """The restarts of all API servers since then, in order."""
        found = []
        for member in self.plane.members:
            seen = self.plane.balancer.seen[member.machine.name]
            lives = lives_of(member) if member.machine.on else []
            for before, after in itertools.pairwise(lives):
                if since < before.ending < float("inf"):  # that of a machine that lost its power has no end
                    ready = (one.at for one in seen if one.ready and one.at > after.began)
                    found.append(Down(before.ending, next(ready, float("inf")), member.machine.name))
        return sorted(found)

    @contextlib.contextmanager
    def traffic(self, phase: str, *clients: str) -> Iterator[None]:
        """Run the clients; afterwards no two API servers may have been down at once."""
        stop, since = threading.Event(), time.time()
        calls: list[Call] = []
        threads = [threading.Thread(target=self._loop, args=(client, stop, calls)) for client in clients]
        for thread in threads:
            thread.start()
        try:
            yield
            self.settle()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        downs = self.downs(since)
        # What was under way when a machine lost its power is its own; a connection to it may only then have been begun.
        with_it = [one for one in calls if any(one.began - 1 <= at <= one.ended for at in self.died)]
        self.lost[phase] = [call for call in calls if call.failure and call not in with_it]
        self.restarts[phase] = len(downs)
        print(f"{phase}: {len(calls)} requests, {len(downs)} restarts, {len(self.lost[phase])} lost")
        for call in self.lost[phase]:
            print(f"  {call.client}: {call.failure[-200:]}")
        for one, other in itertools.pairwise(downs):
            assert one.ended <= other.began, f"{one} and {other} were down at once"

    def settle(self) -> None:
        """Wait until the balancer sees every server ready that has power."""
        for member in (one for one in self.plane.members if one.machine.on):
            seen = self.plane.balancer.seen[member.machine.name]
            member.machine.wait(lambda seen=seen: seen[-1].ready, "the balancer to see it", 120)

    def _loop(self, client: str, stop: threading.Event, calls: list[Call]) -> None:
        what = {"cluster": "namespaces", "keystone": "pods"}[client]
        command = [str(self.plane.first.kubectl_path), f"--kubeconfig={self.kubeconfigs[client]}", "get", what]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.plane.folder)}
        while not stop.wait(PAUSE):
            began = time.time()
            done = subprocess.run(
                [*command, "--request-timeout=30s"], env=environment, capture_output=True, text=True, timeout=120
            )
            calls.append(Call(client, began, time.time(), done.stderr or "no" if done.returncode else ""))


@pytest.fixture(scope="module")
def story(charm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with HighlyAvailable(charm=charm) as plane:
        keystone, first = plane.keystone, plane.first
        units = [
            Unit(member.machine, principal=f"kubernetes-master/{number}", number=number)
            for number, member in enumerate(plane.members)
        ]
        model = Juju(units, charm, plane.members, keystone, machines=2)
        told = scenarios.begin(StandIn(model, units, first, keystone, charm, tmp_path_factory.mktemp("operator")))
        alice, demo = told.alice, told.demo
        group = f"--group=keystone:project:{demo.id}:role:member"
        # Good with a policy and without one. Roles like `edit` are empty here, where no controller fills them.
        first.kubectl("create", "role", "pods", "--namespace=default", "--verb=list", "--resource=pods")
        first.kubectl("create", "rolebinding", "pods", "--namespace=default", "--role=pods", group)
        kubeconfigs = {
            client: first.kubeconfig(token, plane.balancer.url)
            for client, token in (
                ("cluster", plane.tokens["admin"].token),
                ("keystone", keystone.token(alice, demo)),
            )
        }
        yield Story(plane, model, told, kubeconfigs, [member.args() for member in plane.members])


def one_restart_each(story: Story, since: float) -> None:
    assert sorted(down.member for down in story.downs(since)) == [unit.machine.name for unit in story.units]


def active(story: Story) -> None:
    assert [unit.status.name for unit in story.units] == ["active"] * len(story.units), [
        unit.status for unit in story.units
    ]


def restart(story: Story, member: Charmed) -> None:
    """Restart an API server as anybody does, and wait until the balancer sees that it is ready."""
    began = time.time()
    member.machine.run("systemctl", "restart", member.service)
    member.wait_ready()
    seen = story.plane.balancer.seen[member.machine.name]
    member.machine.wait(lambda: seen[-1].ready and seen[-1].at > began, "the balancer to see it", 120)


def test_before_the_charm_a_keystone_user_is_nobody(story: Story) -> None:
    scenarios.before_the_charm_a_keystone_user_is_nobody(story.told)


def test_units_deployed_at_once_restart_their_servers_one_after_the_other(story: Story) -> None:
    since = time.time()
    with story.traffic("deployed", "cluster"):
        scenarios.two_commands_end_in_active_units(story.told)
    active(story)
    one_restart_each(story, since)
    told = [status.message for unit in story.units for status in unit.history]
    said = fault("another unit restarts its API server").words
    assert any(f"waiting: {said}: kubernetes-keystone/" in one for one in told)
    assert any(f"waiting: {said}: kubernetes-keystone/" in unit.debug_log(10_000) for unit in story.units)


def test_a_unit_that_is_added_restarts_its_own_server_alone(story: Story) -> None:
    since, before = time.time(), story.units
    # Its API server is behind the balancer already, and knows no Keystone user until it has been restarted.
    with story.traffic("a unit added", "cluster"):
        scenarios.a_unit_that_is_added_knows_keystones_users_too(story.told)
    active(story)
    (added,) = [unit for unit in story.units if unit not in before]
    assert [down.member for down in story.downs(since)] == [added.machine.name]


def test_an_upgrade_of_the_charm_restarts_no_api_server_and_loses_nothing(story: Story) -> None:
    link = "readlink /opt/kubernetes-keystone/current"
    before = [unit.machine.shell(link) for unit in story.units]
    with story.traffic("upgraded", "cluster", "keystone"):
        scenarios.an_upgrade_from_the_last_release_restarts_no_api_server(story.told)
    active(story)
    assert not set(before) & {unit.machine.shell(link) for unit in story.units}
    assert (story.restarts["upgraded"], story.lost["upgraded"]) == (0, [])


def test_restarts_without_us_one_at_a_time_are_what_ours_are_compared_with(story: Story) -> None:
    with story.traffic("without us", "cluster", "keystone"):
        for member in story.plane.members:
            restart(story, member)
    assert story.restarts["without us"] == len(story.units)


def test_a_policy_unset_is_one_restart_each_and_one_at_a_time(story: Story) -> None:
    since = time.time()
    with story.traffic("policy unset", "cluster", "keystone"):
        story.each(lambda unit: unit.configure(policy=""))
    active(story)
    one_restart_each(story, since)


def test_an_authenticator_that_is_stopped_is_not_missed(story: Story) -> None:
    with story.traffic("an authenticator stopped", "cluster", "keystone"):
        story.plane.first.machine.run("systemctl", "stop", "kubernetes-keystone.service")
        time.sleep(3)  # a moment of traffic; nothing is waited for
    assert story.restarts["an authenticator stopped"] == 0
    assert story.lost["an authenticator stopped"] == []


def holder(story: Story) -> int | None:
    """The number of the unit whose Lease it is."""
    for member in story.plane.members:
        done = member.kubectl(*LEASE, "--output=jsonpath={.spec.holderIdentity}", check=False)
        if done.returncode == 0:
            return int(done.stdout.split(" on ")[0].rpartition("/")[2])
    return None


def with_the_lease(story: Story, do: Callable[[int], object], but_not: int | None = None) -> threading.Thread:
    """Do something to the first unit that is seen to hold the Lease, while the others go on."""

    def watch() -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end:
            found = holder(story)
            if found not in (None, but_not):
                do(found)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_unit_that_is_killed_with_the_lease_is_waited_for_and_goes_on_with_it(story: Story) -> None:
    since, failed = time.time(), []

    def configure(unit: Unit) -> None:
        try:
            unit.configure(policy=POLICY)
        except HookFailed:
            failed.append(unit)
            unit.retry()

    with story.traffic("a unit killed with the Lease", "cluster", "keystone"):
        killer = with_the_lease(story, lambda number: story.units[number].machine.shell(KILL_HOOK, check=False))
        story.each(configure)
        killer.join()
    assert len(failed) == 1
    active(story)
    assert {down.member for down in story.downs(since)} == {one.machine.name for one in story.plane.members}
    assert holder(story) is None


def test_a_machine_that_dies_with_the_lease_holds_the_others_up_no_longer_than_the_leases_time(story: Story) -> None:
    since, dead = time.time(), []

    def configure(unit: Unit) -> None:
        try:
            unit.configure(policy="")
        except TestbedError:
            assert [unit] == dead

    def cut_the_power(number: int) -> None:
        dead.append(story.units[number])
        story.died.append(time.time())
        dead[0].machine.power_off()
        # Seven minutes otherwise. It is a change of the Lease, so that its time begins anew, as after a renewal.
        story.plane.first.kubectl(
            *LEASE[:1], "patch", *LEASE[2:], "--patch", json.dumps({"spec": {"leaseDurationSeconds": 15}})
        )

    with story.traffic("a machine dead with the Lease", "cluster", "keystone"):
        # What all machines share, such as etcd, is at an address that goes with the first one's power.
        killer = with_the_lease(story, cut_the_power, but_not=0)
        story.each(configure)
        killer.join()
    others = [unit for unit in story.units if unit not in dead]
    assert [unit.status.name for unit in others] == ["active"] * 2
    assert sorted(down.member for down in story.downs(since)) == [unit.machine.name for unit in others]

    # A trial that was cut off ends without our flags, so that no Keystone user is known there until the hook has run.
    with story.traffic("it comes back", "cluster"):
        dead[0].machine.power_on()
        story.plane.members[story.units.index(dead[0])].wait_ready()
        dead[0].hook("config-changed")  # the one that was cut off
        dead[0].hook("start")
    active(story)
    assert holder(story) is None


def test_all_units_removed_at_once_restart_their_servers_one_after_the_other(story: Story) -> None:
    since = time.time()
    with story.traffic("removed", "cluster"):
        scenarios.removal_leaves_the_control_plane_as_it_was(story.told)
    one_restart_each(story, since)
    assert [member.args() for member in story.plane.members] == story.args
    assert holder(story) is None


def test_no_more_requests_are_lost_than_in_as_many_restarts_without_us(story: Story) -> None:
    without = len(story.lost.pop("without us")) / story.restarts.pop("without us")
    lost, restarts = sum(map(len, story.lost.values())), sum(story.restarts.values())
    print(f"{lost} requests lost in {restarts} restarts of ours, {without:.1f} in each without us")
    assert lost <= without * restarts
