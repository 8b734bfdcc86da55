"""The authenticator under systemd with clients that never rest: killed, restarted, hung; nobody is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed import pack, setup
from testbed.reviewers import CLIENTS, Review, Reviewers, Seen, token_review
from testbed.stage import Stage
from testbed.traffic import lives_of
from tests.machine.telling import told_everywhere

SERVICE = "kubernetes-keystone.service"
SOCKET = "kubernetes-keystone.socket"
POLICY = json.dumps([{"users": {"projects": ["demo"]}, "resource_permissions": {"default/pods": ["list"]}}])
KILLS = 15
FULL = ("/etc/kubernetes-keystone", "/var/lib/kubernetes-keystone", "/tmp", "/var/tmp", "/run/log")


@pytest.fixture(scope="module")
def reviews(wired: Stage) -> list[Review]:
    """A token of the cluster's own, one of Keystone's, and a question of access."""
    project = wired.keystone.project("demo")
    alice = wired.keystone.member("alice", project)
    extra = "alpha.kubernetes.io/identity/"
    spec = {
        "user": "keystone:alice",
        "uid": alice.id,
        "groups": [f"keystone:project:{project.id}", "system:authenticated"],
        "extra": {
            f"{extra}roles": ["member"],
            f"{extra}project/id": [project.id],
            f"{extra}project/name": ["demo"],
            f"{extra}project/domain/id": ["default"],
            f"{extra}user/domain/id": ["default"],
            f"{extra}user/domain/name": ["Default"],
        },
        "resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default", "version": "v1"},
    }
    access = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    return [
        token_review(wired.cluster.tokens["admin"].token, "admin"),
        token_review(wired.keystone.token(alice, project), "keystone:alice"),
        Review(access, '"allowed":true'),
    ]


@pytest.fixture
def load(wired: Stage, reviews: list[Review]) -> Iterator[Reviewers]:
    """Clients at work; nothing that a test does to the authenticator may reach the API server or the socket."""
    # What other tests did to it does not count against the start limit here.
    wired.machine.run("systemctl", "reset-failed", SERVICE)
    lives, socket = len(lives_of(wired.cluster)), wired.machine.show(SOCKET, "InvocationID", "ActiveState")
    with Reviewers(wired.machine, *reviews) as clients:
        time.sleep(1)  # at work
        yield clients
    assert wired.machine.show(SOCKET, "InvocationID", "ActiveState") == socket
    assert len(lives_of(wired.cluster)) == lives
    assert b"kubernetes-keystone" in wired.cluster.args()


def process(stage: Stage) -> str:
    """The authenticator's process, when it is ready."""
    shown = stage.machine.show(SERVICE, "ActiveState", "SubState", "MainPID")
    return shown["MainPID"] if (shown["ActiveState"], shown["SubState"]) == ("active", "running") else ""


def another(stage: Stage, before: str = "", seconds: float = 60) -> str:
    """Wait for another process to be ready, and give it; a busy machine may take more than one start for it."""
    stage.machine.wait(lambda: process(stage) not in ("", before), "another authenticator", seconds, every=0.02)
    return process(stage)


def kill(stage: Stage, times: int) -> None:
    """Kill it again and again, each as soon as it is ready."""
    for _ in range(times):
        before = another(stage)
        stage.machine.shell(f"kill -KILL {before}")
        another(stage, before)


def report(what: str, seen: Seen) -> None:
    print(f"{what}: {seen.answered} answered, failures {seen.kinds or 'none'}, slowest {seen.slowest:.2f} s")


def only_what_was_in_flight(seen: Seen, kills: int) -> None:
    """Each client has one review under way at most; nothing else may have failed."""
    assert set(seen.kinds) <= {"lost"}, seen.failures
    assert len(seen.failures) <= kills * CLIENTS


def test_a_loop_of_kills_closes_no_port_and_costs_the_reviews_in_flight(wired: Stage, load: Reviewers) -> None:
    kill(wired, KILLS)
    time.sleep(1)
    seen = load.end()
    report(f"{KILLS} kills", seen)
    only_what_was_in_flight(seen, KILLS)
    assert seen.answered > 20 * CLIENTS


def test_restarts_refuse_nobody_and_lose_nothing(wired: Stage, load: Reviewers) -> None:
    for _ in range(4):
        before = another(wired)
        wired.machine.run("systemctl", "restart", SERVICE, check=False)
        assert another(wired, before) != before
        time.sleep(1)
    seen = load.end()
    report("4 restarts", seen)
    assert seen.failures == []
    assert seen.answered > 20 * CLIENTS


def test_an_upgrade_of_the_charm_refuses_nobody_and_loses_nothing(
    wired: Stage, load: Reviewers, tmp_path: Path
) -> None:
    before, link = process(wired), wired.machine.shell("readlink /opt/kubernetes-keystone/current")
    wired.unit.upgrade(pack.changed(wired.charm, tmp_path / "changed.charm"))
    assert wired.unit.status.name == "active"
    assert wired.machine.shell("readlink /opt/kubernetes-keystone/current") != link
    assert process(wired) not in ("", before)
    time.sleep(1)
    seen = load.end()
    report("an upgrade", seen)
    assert seen.failures == []
    assert seen.answered > 20 * CLIENTS


@pytest.fixture
def full_disk(wired: Stage) -> Iterator[None]:
    """All that the authenticator could write to is a file system of its own without a free byte."""
    machine = wired.machine
    mounted = []
    for folder in FULL:
        machine.shell(
            f"cp -a {folder} /root/kept && mount -t tmpfs -o size=1m,mode=$(stat -c %a {folder}) tmpfs {folder} && "
            f"cp -a /root/kept/. {folder}/ && chown --reference=/root/kept {folder}; rm -rf /root/kept"
        )
        machine.shell(f"cat /dev/zero > {folder}/filler || true", check=False)
        mounted.append(folder)
        assert machine.run("sh", "-c", f"echo more > {folder}/more", check=False).returncode != 0
    yield
    for folder in reversed(mounted):
        machine.run("umount", "--lazy", folder)
    wired.unit.update_status()
    assert wired.unit.status.name == "active"


def test_a_full_disk_changes_nothing_of_that(wired: Stage, load: Reviewers, full_disk: None) -> None:
    kill(wired, 4)
    before = process(wired)
    wired.machine.run("systemctl", "restart", SERVICE, check=False)
    another(wired, before)
    assert wired.machine.shell("curl -s http://127.0.0.1:8444/readyz") == "ok"
    time.sleep(1)
    # It would not notice, as it writes nothing: not a block, and no file is its user's.
    assert "\nwrite_bytes: 0\n" in wired.machine.shell(f"cat /proc/{process(wired)}/io")
    assert wired.machine.shell("find / -xdev -user kubernetes-keystone -not -path '/proc/*'") == ""
    seen = load.end()
    report("4 kills and a restart with a full disk", seen)
    only_what_was_in_flight(seen, 4)
    assert seen.answered > 20 * CLIENTS
    wired.unit.configure(token_cache_ttl=59)
    told_everywhere(wired.unit, "make room, or the disk writable")


@pytest.fixture
def jumping_clock(wired: Stage) -> Iterator[Callable[[str], None]]:
    """Set the clock that the authenticator sees: `+1h`, `-1h`, `+0`.

    The machine shares its clock with the system around it, which is not to be touched; libfaketime stands between this
    one process and the C library, and leaves the monotonic clock alone, as setting a clock does.
    """
    setup.apt("libfaketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    machine, there, file = wired.machine, "/usr/local/lib/libfaketimeMT.so.1", "/etc/faketime"
    drop_in = f"/etc/systemd/system/{SERVICE}.d/clock.conf"
    machine.write(there, library.read_bytes(), 0o755)
    machine.write(file, "+0\n")
    settings = f"LD_PRELOAD={there} FAKETIME_TIMESTAMP_FILE={file} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1"
    machine.write(drop_in, f"[Service]\nEnvironment={settings}\n")
    wired.unit.configure(token_cache_ttl=1)  # so that Keystone is asked, and times are looked at, all the time
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", SERVICE, check=False)
    another(wired)
    yield lambda offset: machine.write(file, f"{offset}\n")
    machine.run("rm", drop_in)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", SERVICE, check=False)
    another(wired)
    wired.unit.reset("token-cache-ttl")


def seen_time(stage: Stage) -> float:
    """What the authenticator takes for the time, by the age that it gives its policy."""
    page = stage.machine.shell("curl -s http://127.0.0.1:8444/metrics").splitlines()
    return next(float(line.split()[1]) for line in page if line.startswith("kubernetes_keystone_policy_age_seconds"))


def test_a_clock_that_jumps_changes_nothing_of_that(
    wired: Stage, jumping_clock: Callable[[str], None], load: Reviewers
) -> None:
    for offset, jump in (("+1h", 3600), ("-1h", -7200), ("+0", 3600)):
        before = seen_time(wired)
        jumping_clock(offset)
        wired.machine.wait(lambda b=before, j=jump: abs(seen_time(wired) - b - j) < 100, "the clock to jump", 10)
        time.sleep(4)
        if jump > 0:
            kill(wired, 2)
    seen = load.end()
    report("a clock that jumps an hour forth and two back, and 4 kills", seen)
    only_what_was_in_flight(seen, 4)
    assert seen.answered > 20 * CLIENTS


def test_a_process_that_hangs_is_replaced_within_10_s(wired: Stage, load: Reviewers) -> None:
    began = time.monotonic()
    kill(wired, 1)
    start = time.monotonic() - began
    before = process(wired)
    began = time.monotonic()
    wired.machine.shell(f"kill -STOP {before}")
    another(wired, before)
    seconds = time.monotonic() - began
    time.sleep(1)
    seen = load.end()
    report(f"a hung process, replaced after {seconds:.1f} s", seen)
    # On a machine so busy that a start alone takes seconds, that much more.
    assert seconds < max(10.0, 8.0 + 3 * start)
    only_what_was_in_flight(seen, 2)
    assert "watchdog" in wired.machine.run("journalctl", "-q", "-o", "cat", f"UNIT={SERVICE}").stdout.lower()


def test_a_start_that_hangs_is_given_up_in_its_time_though_it_does_not_listen(wired: Stage) -> None:
    """Otherwise so few starts would be tried in the limit's time that it would never be reached."""
    machine, program = wired.machine, "/opt/kubernetes-keystone/current/keystone-authenticator"
    good, before = machine.read(program), another(wired)
    machine.write(program, "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n", 0o755)
    machine.shell(f"kill -KILL {before}")
    try:
        tried = int(machine.show(SERVICE, "NRestarts")["NRestarts"])
        machine.wait(lambda: int(machine.show(SERVICE, "NRestarts")["NRestarts"]) >= tried + 3, "three starts", 45)
    finally:
        machine.write(program, good, 0o755)
    another(wired)
