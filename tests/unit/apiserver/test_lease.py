"""The Lease: several units at one stand-in of an API server, which they ask over TLS as they do the real one."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

import apiserver
from apiserver import NotOurTurn, Patience, lease
from apiserver.charmed import Charmed
from apiserver.lease import Held, Turn, Unasked
from testbed.processes import free_port
from tests.unit.apiserver.support import TOKEN, Tree

pytestmark = pytest.mark.slow  # what a Lease is about is time

SHORT = Patience(already=0.2, turn=0.2, turns=10, settled=0, between=0.01)
LONG = replace(SHORT, already=20, turn=20, turns=40)


class Clock:
    """The time since the boot, as the units see it; it can be moved on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) + self.ahead


@dataclass
class Cluster:
    """An API server with a Lease, and machines whose own it is."""

    folder: Path
    port: int
    authority: bytes
    behaviour: dict[str, object] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def behave(self, **how: object) -> None:
        """See `support.Machine.behave`; forbidden: no Lease is given out."""
        if self.process is not None and how == self.behaviour:
            return
        self.stop()
        self.behaviour = how
        (self.folder / "behaviour.json").write_text(json.dumps(how))
        program = Path(__file__).with_name("standin.py")
        flags = [str(self.folder), f"--secure-port={self.port}"]
        self.process = subprocess.Popen([sys.executable, "-SI", str(program), *flags])
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            requests.get(f"https://127.0.0.1:{self.port}/", verify=str(self.folder / "ca.pem"), timeout=5)
        except requests.RequestException:
            return False
        return True

    def unit(self, number: int) -> Charmed:
        """Give the layout on the machine of this unit."""
        tree = Tree(self.folder / str(number), "charmed", self.port)
        config = {
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": f"https://127.0.0.1:{self.port}",
                        "certificate-authority-data": base64.b64encode(self.authority).decode(),
                    },
                }
            ],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        }
        tree.layout.admin_kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        tree.layout.admin_kubeconfig.write_text(yaml.safe_dump(config))
        return Charmed(replace(tree.place, unit=f"kubernetes-keystone/{number}"))

    @property
    def lease(self) -> dict[str, Any] | None:
        """The Lease as it is in the cluster."""
        path = self.folder / "leases.json"
        return json.loads(path.read_text())[1] if path.exists() else None

    @lease.setter
    def lease(self, value: dict[str, Any] | None) -> None:
        (self.folder / "leases.json").write_text(json.dumps([3000, value]))

    @property
    def holder(self) -> str:
        """The unit whose Lease it is."""
        return self.lease["spec"]["holderIdentity"].split(" on ")[0] if self.lease else ""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tls: tuple[bytes, bytes]) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "server.pem").write_bytes(tls[0] + tls[1])
    (folder / "ca.pem").write_bytes(tls[0])
    made = Cluster(folder, free_port(), tls[0])
    yield made
    made.stop()


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """The cluster, without a Lease, and without any unit that remembers one."""
    running.lease = None
    for number in range(4):
        shutil.rmtree(running.folder / str(number), ignore_errors=True)
    running.behave()
    return running


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lease, "_now", made)
    return made


def turn(layout: Charmed, patience: Patience = SHORT, announce: Callable[[str], None] = lambda _: None) -> Turn:
    return Turn(layout, announce, patience)


def die(layout: Charmed) -> None:
    """Take the Lease, and never give it back."""
    turn(layout).take()


def gets_it(layout: Charmed) -> bool:
    """Whether a hook of this unit, which waits for next to no time, gets its turn; it gives it back."""
    with turn(layout) as mine:
        try:
            mine.take()
        except NotOurTurn:
            return False
        return True


# ---- in order


def test_the_lease_outlasts_a_restart_with_all_its_deadlines() -> None:
    patience = Patience()
    assert patience.lease > patience.restart + patience.ready + patience.token
    assert patience.lease > patience.restart + patience.removal + patience.token


def test_a_turn_is_a_lease_of_kube_system_and_leaves_nothing_behind(cluster: Cluster) -> None:
    one = cluster.unit(1)
    with turn(one) as mine:
        assert cluster.lease is None, "nothing is asked for before it is needed"
        assert not mine.take()
        assert cluster.lease is not None
        assert cluster.lease["metadata"]["namespace"] == "kube-system"
        assert cluster.lease["spec"]["holderIdentity"].startswith("kubernetes-keystone/1 on ")
        assert cluster.lease["spec"]["leaseDurationSeconds"] == Patience().lease
    assert cluster.lease is None
    assert not one.place.lease.exists()


def test_who_needs_no_turn_asks_for_nothing(cluster: Cluster) -> None:
    cluster.behave(forbidden="--secure-port")
    with turn(cluster.unit(1)):
        pass


def test_another_unit_is_told_whose_turn_it_is_after_a_bounded_wait(cluster: Cluster) -> None:
    with turn(cluster.unit(1)) as first:
        first.take()
        with pytest.raises(NotOurTurn, match="another unit restarts its API server: kubernetes-keystone/1 on "):
            turn(cluster.unit(2)).take()
        assert cluster.holder == "kubernetes-keystone/1"


def test_a_unit_that_waits_has_its_turn_when_the_other_is_done(cluster: Cluster) -> None:
    first = turn(cluster.unit(1))
    first.take()
    said: list[str] = []

    def done(message: str) -> None:
        said.append(message)
        first.__exit__()

    with turn(cluster.unit(2), LONG, done) as second:
        assert second.take(), "it had to be waited for"
        assert cluster.holder == "kubernetes-keystone/2"
    assert len(said) == 1
    assert "kubernetes-keystone/1" in said[0]


def test_progress_makes_the_wait_longer(cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five units the last waits for four restarts, each of which is bounded."""
    first = turn(cluster.unit(1))
    first.take()
    waits: list[float] = []

    def sleep(_: float) -> None:
        waits.append(0.15)
        clock.ahead += 0.15
        if len(waits) < 20:
            first.take()

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(NotOurTurn):
        turn(cluster.unit(2), replace(SHORT, turn=0.4, turns=100)).take()
    assert len(waits) > 20
    waits.clear()
    with pytest.raises(NotOurTurn):
        turn(cluster.unit(2), replace(SHORT, turn=0.4, turns=1)).take()
    assert len(waits) < 20, "but not for ever"


def test_a_turn_that_takes_longer_is_renewed(cluster: Cluster, clock: Clock) -> None:
    first, second = turn(cluster.unit(1)), cluster.unit(2)
    first.take()
    assert cluster.lease is not None
    acquired, renewed = cluster.lease["spec"]["acquireTime"], cluster.lease["spec"]["renewTime"]
    for _ in range(4):
        assert not gets_it(second)
        clock.ahead += Patience().lease - 60
        assert not first.take()
    assert cluster.lease["spec"]["acquireTime"] == acquired
    assert cluster.lease["spec"]["renewTime"] > renewed
    assert cluster.holder == "kubernetes-keystone/1"


def test_a_turn_lasts_until_a_balancer_has_seen_the_server_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders: list[tuple[float, str]] = []
    with turn(cluster.unit(1), replace(SHORT, settled=5)) as mine:
        mine.take()
        monkeypatch.setattr(time, "sleep", lambda seconds: holders.append((seconds, cluster.holder)))
    assert holders == [(5, "kubernetes-keystone/1")]
    assert cluster.lease is None


# ---- a holder that died


def test_who_died_with_the_lease_holds_others_up_for_its_time_only(cluster: Cluster, clock: Clock) -> None:
    die(cluster.unit(1))
    second = cluster.unit(2)
    assert not gets_it(second)
    clock.ahead += Patience().lease - 60
    assert not gets_it(second)
    clock.ahead += 60
    with turn(second) as mine:
        mine.take()
        assert cluster.holder == "kubernetes-keystone/2"
        assert cluster.lease is not None
        assert cluster.lease["spec"]["leaseTransitions"] == 1
    assert cluster.lease is None


def test_the_time_begins_when_the_lease_is_first_seen(cluster: Cluster, clock: Clock) -> None:
    die(cluster.unit(1))
    clock.ahead += 10 * Patience().lease
    assert not gets_it(cluster.unit(2)), "nothing is known of how long it has been there"


def test_the_lease_says_itself_how_long_it_is_good(cluster: Cluster, clock: Clock) -> None:
    """The holder may be of another version of the charm."""
    die(cluster.unit(1))
    assert cluster.lease is not None
    spec = {**cluster.lease["spec"], "leaseDurationSeconds": 1000}
    cluster.lease = {**cluster.lease, "spec": spec}
    assert not gets_it(cluster.unit(2))
    clock.ahead += 900
    assert not gets_it(cluster.unit(2))
    clock.ahead += 200
    assert gets_it(cluster.unit(2))


@pytest.mark.parametrize("year", ["1970", "2026", "9999"])
def test_clocks_of_two_machines_are_never_compared(cluster: Cluster, clock: Clock, year: str) -> None:
    die(cluster.unit(1))
    assert cluster.lease is not None
    spec = {**cluster.lease["spec"], "renewTime": f"{year}-01-01T00:00:00.000000Z"}
    cluster.lease = {**cluster.lease, "spec": spec}
    assert not gets_it(cluster.unit(2))
    clock.ahead += Patience().lease + 1
    assert gets_it(cluster.unit(2))


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.SystemTimeWarning")
def test_a_clock_that_jumps_makes_no_difference(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    die(cluster.unit(1))
    assert not gets_it(cluster.unit(2))
    real = time.time
    for years in (-30, 30):
        monkeypatch.setattr(time, "time", lambda jump=years * 365 * 86400: real() + jump)
        assert not gets_it(cluster.unit(2))


def test_after_a_reboot_the_time_begins_anew(cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    die(cluster.unit(1))
    assert not gets_it(cluster.unit(2))
    clock.ahead += Patience().lease + 1
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_boot", lambda: "another")
        assert not gets_it(cluster.unit(2)), "the times of two boots have nothing to do with each other"
        clock.ahead += Patience().lease + 1
        assert gets_it(cluster.unit(2))


@pytest.mark.parametrize("record", ["", "{", "[]", "null", '{"since": "x"}', '{"ours": 1}'])
def test_a_damaged_record_is_as_good_as_none(cluster: Cluster, clock: Clock, record: str) -> None:
    die(cluster.unit(1))
    second = cluster.unit(2)
    second.place.lease.write_text(record)
    assert not gets_it(second)
    clock.ahead += Patience().lease + 1
    assert gets_it(second)


# ---- races


def beside(mine: Turn, monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Have something happen once, between looking at the Lease and taking it."""
    find, done = mine._find, []

    def then() -> Held | None:
        found = find()
        if not done:
            done.append(True)
            what()
        return found

    monkeypatch.setattr(mine, "_find", then)


def test_of_two_that_find_it_free_one_gets_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = turn(cluster.unit(1)), turn(cluster.unit(2))
    beside(mine, monkeypatch, other.take)
    with pytest.raises(NotOurTurn, match="kubernetes-keystone/2"):
        mine.take()
    mine.__exit__()
    assert cluster.holder == "kubernetes-keystone/2"


def test_of_two_that_find_it_over_one_gets_it(cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    die(cluster.unit(0))
    mine, other = turn(cluster.unit(1)), turn(cluster.unit(2))
    for one in (mine, other):
        with pytest.raises(NotOurTurn, match="kubernetes-keystone/0"):
            one.take()
    clock.ahead += Patience().lease + 1
    beside(mine, monkeypatch, other.take)
    with pytest.raises(NotOurTurn, match="kubernetes-keystone/2"):
        mine.take()
    mine.__exit__()
    assert cluster.holder == "kubernetes-keystone/2"


def test_a_holder_that_renews_in_the_last_moment_keeps_it(
    cluster: Cluster, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, mine = turn(cluster.unit(0)), turn(cluster.unit(1))
    holder.take()
    with pytest.raises(NotOurTurn):
        mine.take()
    clock.ahead += Patience().lease + 1
    beside(mine, monkeypatch, holder.take)
    with pytest.raises(NotOurTurn, match="kubernetes-keystone/0"):
        mine.take()


def test_a_holder_that_was_too_slow_waits_again_and_takes_nothing_from_its_successor(
    cluster: Cluster, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    slow, second = turn(cluster.unit(1)), turn(cluster.unit(2))
    slow.take()
    with pytest.raises(NotOurTurn):
        second.take()
    clock.ahead += Patience().lease + 1
    second.take()
    slow.renew()
    assert "this took too long" in caplog.text
    with pytest.raises(NotOurTurn, match="kubernetes-keystone/2"):
        slow.take()
    slow.__exit__()
    assert cluster.holder == "kubernetes-keystone/2"


def test_a_lease_that_somebody_deletes_or_touches_is_taken_again(cluster: Cluster) -> None:
    mine = turn(cluster.unit(1))
    mine.take()
    cluster.lease = None
    assert not mine.take()
    assert cluster.lease is not None
    cluster.lease = {**cluster.lease, "metadata": {**cluster.lease["metadata"], "resourceVersion": "2000"}}
    assert not mine.take()
    mine.__exit__()
    assert cluster.lease is None


def test_a_lease_without_a_holder_is_nobodys(cluster: Cluster) -> None:
    metadata = {"name": lease.NAME, "namespace": lease.NAMESPACE, "uid": "u", "resourceVersion": "7"}
    cluster.lease = {"metadata": metadata}
    assert gets_it(cluster.unit(1))


# ---- a charm that is killed


class Killed(BaseException):
    """Passes every handler, as a kill does."""


@pytest.mark.parametrize("reached", [False, True], ids=["before the request", "after it"])
def test_a_unit_killed_at_any_step_goes_on_at_its_next_hook_and_leaves_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    one, two = cluster.unit(1), cluster.unit(2)
    send, count = Turn._send, [0]

    for step in range(1, 20):
        count[0] = 0

        def killed(self: Turn, *args: Any, step: int = step, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == step and not reached:
                raise Killed
            answer = send(self, *args, **kwargs)
            if count[0] == step:
                raise Killed
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(Turn, "_send", killed)
            mine = turn(one)
            try:
                mine.take()
                mine.take()
                mine.__exit__()
            except Killed:
                pass
            else:
                assert step > 6
                return
        with turn(one) as again:
            if step % 2:  # the next hook has something to do, or nothing
                assert not again.take(), f"killed at request {step}: its own turn is not waited for"
        assert cluster.lease is None, f"killed at request {step}"
        assert gets_it(two)
    raise AssertionError("it never ends")


CONTENDER = """
import os, random, signal, sys, time
from pathlib import Path
from dataclasses import replace
from apiserver import NotOurTurn, Patience, Place
from apiserver.charmed import Charmed
from apiserver.lease import Turn
root, number, reader, inside = sys.argv[1:]
layout = Charmed(Place(Path(root), reader, f"kubernetes-keystone/{number}"))
patience = Patience(already=20, turn=60, turns=120, settled=0, lease=10, between=0.01)
turns = 0
while turns < 5:
    with Turn(layout, lambda _: None, patience) as turn:
        turn.take()
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another one is in there
        time.sleep(random.random() / 20)
        turns += 1
        os.unlink(inside)
        if number == "0" and turns == 2:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_of_several_processes_one_at_a_time_has_its_turn_although_one_is_killed_with_it(cluster: Cluster) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(apiserver.__file__).parents[1])}
    started = []
    for number in random.sample(range(4), 4):
        layout = cluster.unit(number)
        command = [sys.executable, "-c", CONTENDER, str(layout.place.root), str(number), layout.place.reader]
        command.append(str(cluster.folder / "inside"))
        started.append((number, subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)))
    for number, process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == (-signal.SIGKILL if number == 0 else 0), errors


# ---- an API server that cannot be asked


def test_without_an_answer_about_the_lease_nothing_is_added(cluster: Cluster) -> None:
    cluster.behave(forbidden="--secure-port")
    with pytest.raises(Unasked, match=r"answers 403 to GET of the Lease kube-system/.*: leases are not for you"):
        turn(cluster.unit(1)).take()


def test_taking_out_goes_on_without_an_answer_about_the_lease(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.behave(forbidden="--secure-port")
    with turn(cluster.unit(1)) as mine:
        mine.take_if_in_order()
    assert "without the Lease" in caplog.text


def test_taking_out_waits_for_another_unit_where_the_server_is_in_order(cluster: Cluster) -> None:
    die(cluster.unit(1))
    with pytest.raises(NotOurTurn):
        turn(cluster.unit(2)).take_if_in_order()


@pytest.mark.parametrize("how", ["deaf", "lockout"])
def test_a_server_that_is_not_in_order_needs_no_turn_to_be_freed_of_our_flags(cluster: Cluster, how: str) -> None:
    die(cluster.unit(1))
    cluster.behave(**{how: "--secure-port"})
    with turn(cluster.unit(2)) as mine:
        mine.take_if_in_order()
        assert not mine.held


def test_what_is_no_lease_is_not_taken_for_one(cluster: Cluster) -> None:
    cluster.lease = {"metadata": {"name": lease.NAME}}
    with pytest.raises(Unasked, match=r"gives as Lease kube-system/.* is none"):
        turn(cluster.unit(1)).take()


def test_a_lease_that_cannot_be_given_back_is_given_back_by_the_next_hook(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    one = cluster.unit(1)
    with turn(one) as mine:
        mine.take()
        cluster.behave(deaf="--secure-port")
    assert "is not given back" in caplog.text
    cluster.behave()
    assert cluster.holder == "kubernetes-keystone/1"
    with turn(one):
        pass
    assert cluster.lease is None
    assert not one.place.lease.exists()
