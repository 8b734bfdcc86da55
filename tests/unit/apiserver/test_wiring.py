"""apply, remove and state, with the real script and a running service."""

import base64
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import apiserver
from apiserver import Conflict, Kind, Knows, Place, files, layouts, lease, script, systemd, wanted, wiring
from apiserver.verify import Unverified, verify
from testbed.owners import canonical_charm
from tests.unit.apiserver.support import FIRST_STEP, QUICK, STRIDE, TOKEN, Machine, Tree

pytestmark = pytest.mark.slow  # real processes, started and ended many times
URL = "https://127.0.0.1:8443/webhook"


def nothing_wrong() -> None:
    """A probe that finds the authenticator in order."""


def apply(machine: Machine, probe: Callable[[], None] = nothing_wrong, **desired: Any) -> bool:
    said: list[str] = []
    restarted = apiserver.apply(machine.layout, machine.desired(**desired), probe, said.append, QUICK)
    assert bool(said) == restarted, "each restart is announced, and nothing else"
    return restarted


def apply_fails(machine: Machine, **desired: Any) -> apiserver.ApplyFailed:
    with pytest.raises(apiserver.ApplyFailed) as caught:
        apply(machine, **desired)
    return caught.value


def test_flags_come_into_force_with_one_restart_and_are_confirmed(machine: Machine) -> None:
    before = machine.args
    apiserver.chain(machine.layout)
    assert apply(machine, authorization=True)
    assert machine.in_force
    assert machine.systemd.restarts == 1
    if not machine.layout.whole_values:
        assert machine.args.startswith(before)
    assert (machine.wanted.stage, machine.wanted.starts) == (wanted.Stage.CONFIRMED, 3)
    assert apiserver.state(machine.layout) == apiserver.State(
        Kind.IN_FORCE, "", machine.desired(authorization=True).digest
    )
    for path in machine.desired(authorization=True).files:
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_second_apply_changes_nothing_and_asks_nobody(machine: Machine) -> None:
    apply(machine)
    before, process = machine.snapshot(), machine.systemd.process

    def probe() -> None:
        raise AssertionError("there is nothing to ask the authenticator for")

    assert not apply(machine, probe)
    assert machine.snapshot() == before
    assert machine.systemd.process is process


def test_after_a_newer_charm_whose_file_is_of_another_format_ours_come_back_by_a_trial(machine: Machine) -> None:
    apply(machine)
    path = machine.place.wanted
    path.write_text(path.read_text().replace("wanted 1", "wanted 2", 1))
    machine.systemd.systemctl(["restart", machine.layout.service])
    assert not machine.wired, "nothing is put in that is not understood"

    assert apply(machine)
    assert machine.in_force
    assert machine.wanted.stage is wanted.Stage.CONFIRMED


def test_a_changed_kubeconfig_needs_a_restart_although_no_flag_changes(machine: Machine) -> None:
    apply(machine)
    assert apply(machine, content="another certificate")
    assert machine.systemd.restarts == 2
    assert machine.wanted.digest == machine.desired("another certificate").digest


def kubeconfig(authorities: str, client: str = "me") -> str:
    """Give as much of one as says what its API server knows."""
    told = {"certificate-authority-data": base64.b64encode(authorities.encode()).decode()}
    user = {"client-certificate-data": base64.b64encode(client.encode()).decode()}
    return json.dumps({"clusters": [{"cluster": told}], "users": [{"user": user}]})


def test_what_the_server_knows_of_us_is_what_it_was_started_with(machine: Machine) -> None:
    assert apiserver.knows(machine.layout) is None
    apply(machine, content=kubeconfig("the old CA"))
    assert apiserver.knows(machine.layout) == (Knows(b"the old CA", b"me"),)

    # As a charm leaves it that was killed between the files and the restart.
    (path,) = machine.desired().files
    path.write_text(kubeconfig("both CAs"))
    assert apiserver.knows(machine.layout) == (Knows(),)
    apply(machine, content=kubeconfig("both CAs"), authorization=True)
    assert apiserver.knows(machine.layout) == (Knows(b"both CAs", b"me"),) * 2
    machine.systemd.systemctl(["stop", machine.layout.service])
    assert apiserver.knows(machine.layout) == (Knows(),)
    machine.systemd.systemctl(["start", machine.layout.service])
    apiserver.remove(machine.layout, patience=QUICK)
    assert apiserver.knows(machine.layout) is None


def test_an_authenticator_that_does_not_answer_keeps_everything_as_it_is(machine: Machine) -> None:
    before = machine.args

    def probe() -> None:
        raise RuntimeError("the authenticator says 503")

    with pytest.raises(RuntimeError, match="503"):
        apply(machine, probe)
    assert machine.args == before
    assert machine.systemd.restarts == 0
    assert apiserver.state(machine.layout).kind is Kind.ABSENT


def test_nothing_is_added_to_a_server_that_is_not_ready(machine: Machine) -> None:
    machine.behave(deaf="--secure-port")
    machine.systemd.systemctl(["restart", machine.layout.service])
    with pytest.raises(apiserver.NotReady, match="/readyz says 500"):
        apply(machine)
    assert not machine.wired
    assert machine.systemd.restarts == 1


def test_nothing_is_added_where_the_cluster_token_is_refused_already(machine: Machine) -> None:
    machine.behave(lockout="--secure-port")
    machine.systemd.systemctl(["restart", machine.layout.service])
    with pytest.raises(apiserver.NotReady, match="answers 401 to the cluster token"):
        apply(machine)
    assert not machine.wired


def test_a_server_that_stops_working_later_is_told_and_left_alone(machine: Machine) -> None:
    apply(machine)
    machine.behave(deaf="kubernetes-keystone")
    machine.systemd.systemctl(["restart", machine.layout.service])
    restarts = machine.systemd.restarts
    with pytest.raises(apiserver.NotReady, match="runs with Keystone's flags, but is not in order"):
        apply(machine)
    assert machine.systemd.restarts == restarts
    assert machine.in_force


def test_flags_of_ours_that_lead_nowhere_any_more_do_not_keep_the_way_out_shut(machine: Machine) -> None:
    apply(machine)
    machine.behave(lockout="kubernetes-keystone")
    machine.systemd.systemctl(["restart", machine.layout.service])
    machine.wait_for("the lock-out", lambda: "401" in lockout(machine))
    apply_fails(machine, content="another certificate")
    assert not machine.wired
    assert lockout(machine) == ""


def lockout(machine: Machine) -> str:
    """How the server answers the cluster's token; empty if well."""
    try:
        verify(machine.layout, 1, 0, 0.05)
    except Unverified as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("crash", "did not keep running"), ("deaf", "/readyz says 500"), ("lockout", "401 to the cluster token")],
)
def test_a_server_that_does_not_work_with_our_flags_gets_its_own_back(
    machine: Machine, behaviour: str, reason: str
) -> None:
    before = machine.args
    machine.behave(**{behaviour: "kubernetes-keystone"})
    error = apply_fails(machine)
    assert reason in error.reason
    machine.wait_for("the server without our flags", lambda: machine.systemd.state == "active")
    assert not machine.in_force
    assert machine.args == before
    state = apiserver.state(machine.layout)
    assert (state.kind, state.reason) == (Kind.FAILED, error.reason)
    assert not any(TOKEN in line or "gAAAAA" in line for line in error.log)


def test_an_administrator_with_a_certificate_still_shows_a_webhook_that_is_not_reached(machine: Machine) -> None:
    before = machine.args
    machine.layout.admin_kubeconfig.write_text(machine.with_certificate)
    machine.behave(certificate="--secure-port", unreached="kubernetes-keystone")
    machine.systemd.systemctl(["restart", machine.layout.service])
    assert "cannot ask its token webhook: Post" in apply_fails(machine).reason
    assert not machine.in_force
    assert machine.args == before
    machine.behave(certificate="--secure-port")
    assert apply(machine, content="another")


def test_the_log_of_a_crash_is_told_without_the_secrets_in_it(machine: Machine) -> None:
    machine.behave(crash="kubernetes-keystone")
    log = apply_fails(machine).log
    assert log[0] == "panic: bearer […]: the flags are not to its liking"
    assert not any("with Keystone" in line for line in log), "what it says without our flags is no reason"


def test_what_failed_is_not_tried_again_until_something_else_is_desired(machine: Machine) -> None:
    machine.behave(crash="kubernetes-keystone")
    first = apply_fails(machine)
    restarts = machine.systemd.restarts
    machine.behave()
    again = apply_fails(machine)
    assert (again.reason, again.log) == (first.reason, first.log)
    assert machine.systemd.restarts == restarts
    assert apply(machine, content="something else")
    assert apiserver.state(machine.layout).kind is Kind.IN_FORCE


def test_removal_lets_what_failed_be_tried_again(machine: Machine) -> None:
    machine.behave(crash="kubernetes-keystone")
    apply_fails(machine)
    machine.behave()
    apiserver.remove(machine.layout, patience=QUICK)
    assert apply(machine)


def test_a_change_that_fails_leaves_in_force_what_worked_before(machine: Machine) -> None:
    apply(machine)
    good = machine.wanted.digest
    machine.behave(deaf="authorization-webhook")
    apply_fails(machine, authorization=True)
    assert machine.in_force
    assert not any("authorization-webhook" in word for word in machine.running_flags())
    state = apiserver.state(machine.layout)
    assert (state.kind, state.digest) == (Kind.IN_FORCE, good)
    assert "taken back" in state.reason
    assert not apply(machine)
    assert apiserver.state(machine.layout).reason == ""


# ---- one unit at a time


def others_turn(machine: Machine) -> None:
    """Another unit restarts its API server, for longer than we wait."""
    metadata = {"name": lease.NAME, "namespace": lease.NAMESPACE, "uid": "u", "resourceVersion": "1"}
    machine.lease = {
        "metadata": metadata,
        "spec": {"holderIdentity": "kubernetes-keystone/7", "leaseDurationSeconds": 420},
    }


def test_no_flag_is_added_while_another_unit_restarts_its_server(machine: Machine) -> None:
    before, process = machine.args, machine.systemd.process
    others_turn(machine)
    with pytest.raises(apiserver.NotOurTurn, match="another unit restarts its API server: kubernetes-keystone/7"):
        apiserver.apply(machine.layout, machine.desired(), nothing_wrong, lambda _: None, QUICK)
    assert (machine.args, machine.systemd.process) == (before, process)
    assert apiserver.state(machine.layout).kind is Kind.ABSENT
    machine.lease = None
    assert apply(machine)
    assert machine.lease is None


def test_no_flag_is_taken_out_while_another_unit_restarts_its_server(machine: Machine) -> None:
    apply(machine)
    process = machine.systemd.process
    others_turn(machine)
    with pytest.raises(apiserver.NotOurTurn):
        apiserver.remove(machine.layout, patience=QUICK)
    assert machine.systemd.process is process
    assert apiserver.state(machine.layout).kind is Kind.IN_FORCE
    machine.lease = None
    assert apiserver.remove(machine.layout, patience=QUICK)
    assert machine.lease is None


def test_flags_are_taken_out_of_a_server_that_is_down_or_not_ready_whoever_has_the_turn(machine: Machine) -> None:
    before = machine.args
    apply(machine)
    machine.behave(deaf="kubernetes-keystone")
    machine.systemd.systemctl(["restart", machine.layout.service])
    others_turn(machine)
    assert apiserver.remove(machine.layout, patience=QUICK)
    assert machine.args == before
    assert not machine.in_force
    assert machine.lease is not None


def test_a_hook_with_nothing_to_do_asks_for_no_turn(machine: Machine) -> None:
    apply(machine)
    others_turn(machine)
    assert not apply(machine)
    machine.systemd.systemctl(["stop", machine.layout.service])
    assert not apiserver.remove(machine.layout, patience=QUICK), "nothing has to be restarted"


def test_the_turn_is_held_through_the_restart_and_given_back_after_it(machine: Machine) -> None:
    held: list[bool] = []
    restart = machine.systemd.systemctl

    def watched(words: list[str]) -> tuple[int, str, str]:
        if "restart" in words:
            held.append(machine.lease is not None)
        return restart(words)

    machine.systemd.systemctl = watched
    apply(machine)
    apply(machine, content="another")
    apiserver.remove(machine.layout, patience=QUICK)
    assert held == [True, True, True]
    assert machine.lease is None


def test_a_trial_that_fails_gives_the_turn_back(machine: Machine) -> None:
    machine.behave(lockout="kubernetes-keystone")
    apply_fails(machine)
    assert machine.lease is None


# ---- what happens on its own


def test_a_file_that_others_merge_has_nothing_of_ours_once_it_has_been_read(machine: Machine) -> None:
    before = machine.args
    apply(machine, authorization=True)
    assert machine.in_force
    assert machine.wired == (machine.kind != "canonical")
    if machine.kind == "canonical":
        assert machine.args == before
        assert machine.layout.args_file.read_text() == before
    machine.systemd.systemctl(["stop", machine.layout.service])
    if machine.layout.whole_values:
        assert machine.args == before
    machine.systemd.systemctl(["start", machine.layout.service])
    machine.wait_for("our flags", lambda: machine.in_force)


@pytest.mark.parametrize("machine", ["canonical"], indirect=True)
def test_an_owner_who_wrote_our_flags_down_in_the_middle_of_a_start_loses_no_webhook(machine: Machine) -> None:
    machine.args = before = canonical_charm(machine.args)
    apiserver.chain(machine.layout)
    apply(machine, authorization=True)
    machine.script("start")
    machine.args = canonical_charm(machine.args, {"v": "4"})
    assert machine.wired
    machine.systemd.systemctl(["restart", machine.layout.service])
    assert machine.in_force
    assert machine.chained()[3][2] == str(machine.webhook)
    assert machine.args == canonical_charm(before, {"v": "4"})
    machine.args = canonical_charm(machine.args)
    assert apiserver.remove(machine.layout, patience=QUICK)
    assert machine.args == canonical_charm(before, {"v": "4"})
    assert not machine.in_force


@pytest.mark.parametrize("machine", ["canonical"], indirect=True)
def test_removal_undoes_what_was_written_back_while_it_restarted_the_server(machine: Machine) -> None:
    """By a daemon that had read the file in the middle of a start, and writes it when we think that we are out."""
    before = machine.args
    apply(machine, authorization=True)
    machine.script("start")
    read = machine.args
    machine.script("cut")

    def late(_: str) -> None:
        machine.args = read

    # Written before the restart, it is the start that takes it out; written after it, `remove` itself.
    assert apiserver.remove(machine.layout, late, QUICK)
    assert machine.args == before


def test_our_flags_survive_a_rewrite_of_the_args_file_and_need_no_restart_by_us(machine: Machine) -> None:
    rewritten = machine.args.splitlines(keepends=True)[:-1]
    apply(machine)
    machine.args = "".join(rewritten)
    assert not apply(machine), "rewritten but not restarted: the running server still has the flags"
    machine.systemd.systemctl(["restart", machine.layout.service])
    machine.wait_for("our flags", lambda: machine.in_force)
    restarts = machine.systemd.restarts
    assert not apply(machine)
    assert machine.systemd.restarts == restarts
    apiserver.remove(machine.layout, patience=QUICK)
    assert machine.args == "".join(rewritten)


def test_a_server_that_keeps_crashing_under_our_flags_comes_back_without_them(machine: Machine) -> None:
    apply(machine)
    machine.behave(crash="kubernetes-keystone")
    machine.systemd.systemctl(["restart", machine.layout.service])
    machine.wait_for("the last start to be lost", lambda: machine.wanted.ran_out)
    machine.wait_for("a running server", lambda: machine.systemd.state == "active")
    assert not machine.wired
    state = apiserver.state(machine.layout)
    assert state.kind is Kind.FAILED
    assert "kept ending soon" in state.reason
    restarts = machine.systemd.restarts
    assert "kept ending soon" in apply_fails(machine).reason
    assert machine.systemd.restarts == restarts
    machine.behave()
    assert apply(machine, content="something else")


def test_a_server_that_crashes_without_our_flags_as_well_gets_them_back(machine: Machine) -> None:
    """Its etcd was away, say."""
    apply(machine)
    machine.behave(crash="--secure-port")
    machine.systemd.systemctl(["restart", machine.layout.service])
    machine.wait_for("systemd giving up", lambda: machine.systemd.state == "failed")
    assert machine.wanted.stage is wanted.Stage.ACQUITTED
    machine.behave()
    machine.systemd.systemctl(["reset-failed", machine.layout.service])
    machine.systemd.systemctl(["start", machine.layout.service])
    assert not machine.in_force
    assert apply(machine)
    assert machine.in_force


def test_a_file_of_ours_that_someone_changed_is_put_right_without_a_restart(machine: Machine) -> None:
    apply(machine)
    path = next(iter(machine.desired().files))
    path.write_text("garbage")
    assert not apply(machine)
    assert path.read_text() == "kubeconfig"


def test_a_server_started_without_our_flags_is_tried_again(machine: Machine) -> None:
    apply(machine)
    next(iter(machine.desired().files)).write_text("garbage")
    machine.systemd.systemctl(["restart", machine.layout.service])
    assert not machine.in_force
    assert apiserver.state(machine.layout).kind is Kind.PENDING
    assert apply(machine)
    assert machine.in_force


# ---- the authenticator cannot be kept running


def bypass(machine: Machine) -> None:
    subprocess.run(["/bin/sh", str(machine.place.script), "bypass"], check=True)
    machine.wait_for("a server without our flags", lambda: machine.systemd.state == "active" and not machine.in_force)


def retry(machine: Machine) -> None:
    subprocess.run(["/bin/sh", str(machine.place.script), "retry"], check=True)


def without_curl(machine: Machine) -> None:
    """Is-active alone decides then; nothing listens on the authenticator's port here."""
    (Path(machine.systemd.path.split(":")[0]) / "curl").write_text("#!/bin/sh\nexit 0\n")
    (Path(machine.systemd.path.split(":")[0]) / "curl").chmod(0o755)


def test_bypass_takes_our_flags_out_and_restarts_the_server(machine: Machine) -> None:
    before = machine.args
    apply(machine)
    bypass(machine)
    assert machine.args == before
    assert apiserver.state(machine.layout).kind is Kind.BYPASSED
    assert machine.systemd.units["kubernetes-keystone-retry.timer"] == "active"
    machine.systemd.systemctl(["restart", machine.layout.service])
    assert not machine.in_force, "a clean end gives nothing back"
    restarts = machine.systemd.restarts
    assert not apply(machine)
    assert machine.systemd.restarts == restarts, "it comes back with the authenticator, not with a hook"


def test_bypass_restarts_nothing_that_runs_without_our_flags(machine: Machine) -> None:
    apply(machine)
    bypass(machine)
    restarts = machine.systemd.restarts
    bypass(machine)
    time.sleep(0.3)
    assert machine.systemd.restarts == restarts


def test_our_flags_come_back_with_the_authenticator(machine: Machine) -> None:
    without_curl(machine)
    apply(machine)
    bypass(machine)
    machine.systemd.units["kubernetes-keystone.service"] = "failed"
    # The wait is a minute: let it be over.
    found = machine.wanted
    boot, count, _ = found.retry.split()
    wanted.write(machine.place, wanted.replace(found, retry=f"{boot} {count} 1"))
    retry(machine)
    assert machine.systemd.units["kubernetes-keystone.service"] == "active", "it is started again"
    assert not machine.in_force, "and asked a minute later"
    retry(machine)
    machine.wait_for("our flags", lambda: machine.systemd.state == "active" and machine.in_force)
    assert machine.systemd.units["kubernetes-keystone-retry.timer"] == "inactive"
    assert apiserver.state(machine.layout).kind is Kind.IN_FORCE


def let_the_wait_be_over(machine: Machine, seconds: int = 0) -> None:
    """Let it have been over for so long."""
    found = machine.wanted
    boot, count, _ = found.retry.split()
    now = int(float(Path("/proc/uptime").read_text().split()[0]))
    wanted.write(machine.place, wanted.replace(found, retry=f"{boot} {count} {now - seconds}"))


def test_a_hook_brings_the_flags_back_in_its_turn_once_the_wait_is_over(machine: Machine) -> None:
    without_curl(machine)
    apply(machine)
    bypass(machine)
    machine.wait_for("the server without", lambda: machine.systemd.state == "active" and not machine.in_force)
    assert not apply(machine), "the wait is not over"
    let_the_wait_be_over(machine)
    asked: list[Any] = []
    assert apply(machine, lambda: asked.append(machine.lease))
    assert asked[0]["spec"]["holderIdentity"], "no other machine restarts its API server meanwhile"
    assert machine.in_force
    assert machine.wanted.stage is wanted.Stage.CONFIRMED
    assert machine.wanted.retry.split()[1] == "1", "the next time is the second, with twice the wait"


def test_where_juju_can_be_asked_the_script_leaves_the_way_back_to_a_hook(machine: Machine) -> None:
    without_curl(machine)
    juju = Path(machine.systemd.path.partition(":")[0], "juju-exec")
    juju.write_text("#!/bin/sh\n")
    juju.chmod(0o755)
    machine.place.hook.write_text("[Service]\n")
    apply(machine)
    bypass(machine)
    let_the_wait_be_over(machine, 600)
    retry(machine)
    assert ["start", "--no-block", machine.place.hook.name] in machine.systemd.asked
    assert machine.wanted.stage is wanted.Stage.BYPASSED
    let_the_wait_be_over(machine, 900)
    retry(machine)
    machine.wait_for("our flags", lambda: machine.in_force)  # no hook has come


def test_machines_that_no_hook_brings_back_do_not_come_back_at_once(machine: Machine) -> None:
    without_curl(machine)
    places = [Place(machine.root, machine.place.reader, f"kubernetes-keystone/{number}") for number in range(4)]
    assert [place.alone for place in places] == [0, 120, 240, 360]
    kind: Any = type(machine.layout)
    machine.layout = kind(places[3])
    apply(machine)
    bypass(machine)
    let_the_wait_be_over(machine, 300)
    retry(machine)
    assert machine.wanted.stage is wanted.Stage.BYPASSED
    let_the_wait_be_over(machine, 360)
    retry(machine)
    machine.wait_for("our flags", lambda: machine.in_force)


def test_each_bypass_doubles_the_wait(machine: Machine) -> None:
    without_curl(machine)
    apply(machine)
    waits = []
    for _ in range(7):
        found = machine.wanted
        wanted.write(machine.place, wanted.replace(found, stage=wanted.Stage.CONFIRMED, starts=3))
        machine.script("bypass")
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        waits.append(round((int(machine.wanted.retry.split()[2]) - uptime) / 60))
        retry(machine)
        assert machine.wanted.stage is wanted.Stage.BYPASSED, "not before the wait is over"
    assert waits == [1, 2, 4, 8, 16, 32, 32]


# ---- removal


def test_removal_leaves_the_machine_as_it_was(machine: Machine) -> None:
    shutil.rmtree(machine.layout.config_folder)
    machine.args = machine.args.removesuffix("\n")
    before = machine.snapshot()
    apiserver.chain(machine.layout)
    apply(machine, authorization=True)
    restarts = machine.systemd.restarts
    assert apiserver.remove(machine.layout, patience=QUICK)
    assert machine.systemd.restarts == restarts + 1
    assert not machine.in_force
    after = machine.snapshot()
    # These two folders are the whole charm's, made beforehand by the test and left to whoever uses them last.
    for folder in ("opt/kubernetes-keystone", "var/lib/kubernetes-keystone"):
        before.pop(folder)
        after.pop(folder, None)
    assert after == before
    assert apiserver.state(machine.layout).kind is Kind.ABSENT


def test_removal_twice_or_of_nothing_does_nothing(machine: Machine) -> None:
    shutil.rmtree(machine.layout.config_folder)
    before, process = machine.args, machine.systemd.process
    assert not apiserver.remove(machine.layout, patience=QUICK)
    apply(machine)
    assert apiserver.wired(machine.place) == machine.layout
    assert apiserver.remove(machine.layout, patience=QUICK)
    assert apiserver.wired(machine.place) is None
    process = machine.systemd.process
    assert not apiserver.remove(machine.layout, patience=QUICK)
    assert machine.systemd.process is process
    assert machine.args == before


def test_chain_writes_its_file_and_nothing_that_would_have_to_be_taken_out_of_an_api_server(machine: Machine) -> None:
    machine.layout.config_folder.rmdir()
    before = machine.snapshot()
    apiserver.chain(machine.layout)
    new = machine.snapshot().keys() - before.keys()
    assert new == {str(path.relative_to(machine.root)) for path in (machine.place.chain_file, machine.place.lock)}
    assert apiserver.wired(machine.place) is None
    apiserver.remove(machine.layout)
    assert not machine.place.chain_file.exists()


def test_removal_works_while_the_server_is_down(machine: Machine) -> None:
    before = machine.args
    apply(machine)
    machine.systemd.systemctl(["stop", machine.layout.service])
    assert not apiserver.remove(machine.layout, patience=QUICK)
    assert machine.args == before
    assert machine.systemd.state == "inactive", "who stopped it had a reason"


def test_removal_works_when_the_server_does_not_come_back(machine: Machine) -> None:
    before = machine.args
    apply(machine)
    machine.behave(deaf="--secure-port")
    assert apiserver.remove(machine.layout, patience=QUICK)
    assert machine.args == before
    assert not machine.place.script.exists()


def test_removal_works_when_the_snap_is_gone(machine: Machine) -> None:
    apply(machine)
    machine.systemd.systemctl(["stop", machine.layout.service])
    shutil.rmtree(machine.root / "var/snap")
    (machine.place.unit_folder / machine.layout.service).unlink()
    with pytest.raises(apiserver.NotFound):
        apiserver.detect("auto", machine.place)
    layout = apiserver.wired(machine.place)
    assert layout is not None
    assert not apiserver.remove(layout, patience=QUICK)
    assert apiserver.wired(machine.place) is None


# ---- a charm that is killed


class Killed(BaseException):
    """Passes every handler, as a kill does; the kernel lets go of the lock as `finally` does."""


def count_effects(monkeypatch: pytest.MonkeyPatch, kill_at: int) -> list[int]:
    """Count what the package does to the machine; before the effect number `kill_at`, the charm is killed."""
    count = [0]

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == kill_at:
                raise Killed
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(files, "write", guarded(files.write))
    monkeypatch.setattr(files, "remove", guarded(files.remove))
    monkeypatch.setattr(script, "run", guarded(script.run))
    monkeypatch.setattr(systemd, "restart", guarded(systemd.restart))
    monkeypatch.setattr(systemd, "daemon_reload", guarded(systemd.daemon_reload))
    monkeypatch.setattr(wiring, "verify", guarded(wiring.verify))
    monkeypatch.setattr(lease.Turn, "_send", guarded(lease.Turn._send))
    return count


@pytest.mark.parametrize("crash", [False, True], ids=["server keeps running", "server is killed as well"])
def test_a_charm_killed_at_any_step_of_apply_ends_well(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, crash: bool
) -> None:
    before = machine.args
    step, finished = FIRST_STEP, False
    while not finished:
        step += STRIDE
        with monkeypatch.context() as patch:
            count_effects(patch, step)
            try:
                apply(machine, content=f"certificate {step}")
                finished = True
            except Killed:
                pass
        if crash and machine.systemd.process:
            machine.systemd.process.kill()
        machine.wait_for("a running server", lambda: machine.systemd.state == "active" and machine.systemd.process)
        machine.systemd.began.clear()
        apply(machine, content=f"certificate {step}")
        assert machine.in_force, f"killed at step {step}"
        assert machine.lease is None, f"killed at step {step}"
        assert apiserver.state(machine.layout).kind is Kind.IN_FORCE
        if random.random() < 0.5:  # the next one starts from nothing, or from what is in force
            apiserver.remove(machine.layout, patience=QUICK)
            assert machine.args == before
    assert step > 8


def test_a_charm_killed_at_any_step_of_a_failing_apply_ends_without_our_flags(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine.args
    machine.behave(lockout="kubernetes-keystone")
    step, finished = FIRST_STEP, False
    while not finished:
        step += STRIDE
        with monkeypatch.context() as patch:
            count_effects(patch, step)
            try:
                apply_fails(machine, content=f"certificate {step}")
                finished = True
            except Killed:
                pass
        machine.wait_for("a running server", lambda: machine.systemd.state == "active" and machine.systemd.process)
        machine.systemd.began.clear()
        apply_fails(machine, content=f"certificate {step}")
        assert not machine.in_force, f"killed at step {step}"
        assert machine.lease is None, f"killed at step {step}"
        assert machine.args == before
    assert step > 8


def test_a_charm_killed_at_any_step_of_removal_is_done_by_the_next_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine.args
    step, finished = FIRST_STEP, False
    while not finished:
        step += STRIDE
        apply(machine)
        machine.systemd.began.clear()
        with monkeypatch.context() as patch:
            count_effects(patch, step)
            try:
                apiserver.remove(machine.layout, patience=QUICK)
                finished = True
            except Killed:
                pass
        apiserver.remove(machine.layout, patience=QUICK)
        assert machine.args == before
        assert not machine.in_force
        assert apiserver.wired(machine.place) is None
        assert machine.systemd._loaded == "", f"killed at step {step}"
    assert step > 5


def test_a_charm_killed_for_real_in_the_middle_of_a_trial_is_confirmed_by_the_next_hook(machine: Machine) -> None:
    code = (
        "import sys; from pathlib import Path; from apiserver import *; import apiserver.wiring as w, os, signal\n"
        "real = w.verify; calls = []\n"
        "def verify(*a):\n"
        "    real(*a); calls.append(1)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "w.verify = verify\n"
        "layout = detect('auto', Place(Path(sys.argv[2]), sys.argv[3]))\n"
        "path = layout.config_folder / 'authentication.kubeconfig'\n"
        "flags = (Flag('authentication-token-webhook-config-file', str(path)),)\n"
        "apply(layout, Desired(flags, {path: b'k'}), lambda: None, lambda _: None)\n"
    )
    command = [sys.executable, "-c", code, "x", str(machine.root), machine.place.reader]
    source = str(Path(apiserver.__file__).parents[1])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": source}, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert machine.in_force
    assert (machine.wanted.stage, machine.wanted.starts) == (wanted.Stage.TRIAL, 0)
    assert apiserver.state(machine.layout).kind is Kind.TRIAL
    path = machine.layout.config_folder / "authentication.kubeconfig"
    desired = apiserver.Desired((apiserver.Flag("authentication-token-webhook-config-file", str(path)),), {path: b"k"})
    restarts = machine.systemd.restarts
    assert not apiserver.apply(machine.layout, desired, nothing_wrong, print, QUICK)
    assert machine.wanted.stage is wanted.Stage.CONFIRMED
    assert machine.systemd.restarts == restarts


# ---- finding and checking


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("CUSTOM_AUTHN_ENDPOINT = 'https://127.0.0.1:8443/webhook'\n", True),
        ('CUSTOM_AUTHN_ENDPOINT = "https://localhost:8443/webhook"\n', True),
        ("    url = 'https://127.0.0.1:8443/webhook'\n", True),
        ("CUSTOM_AUTHN_ENDPOINT = ''\n", False),
        ("CUSTOM_AUTHN_ENDPOINT = 'https://10.0.0.9:8443/webhook'\n", False),
        ("# https://127.0.0.1:8443/webhook\n", False),
        (None, False),
    ],
)
def test_charmed_kubernetes_own_webhook_says_whom_it_asks(charmed: Tree, program: str | None, told: bool) -> None:
    if program is not None:
        (charmed.root / "root/cdk/auth-webhook/auth-webhook.py").write_text(f"import json\n\n{program}\napp = None\n")
    assert apiserver.asked(charmed.layout, URL) == apiserver.Asked(authentication=told)


def test_access_is_asked_about_already_only_beside_the_clusters_own_webhook(charmed: Tree) -> None:
    config = charmed.root / "root/cdk/authz.yaml"
    config.write_text(f'{{"clusters": [{{"name": "x", "cluster": {{"server": "{URL}"}}}}]}}\n')
    charmed.args += f'--authorization-webhook-config-file="{config}"\n'
    assert apiserver.asked(charmed.layout, URL) == apiserver.Asked()
    (charmed.root / "root/cdk/auth-webhook/auth-webhook.py").write_text(f"CUSTOM_AUTHN_ENDPOINT = '{URL}'\n")
    assert apiserver.asked(charmed.layout, URL) == apiserver.Asked(True, True)
    for other in ("clusters: [", "a: b", '{"clusters": [{"cluster": {"server": "https://x"}}]}'):
        config.write_text(other)
        assert apiserver.asked(charmed.layout, URL) == apiserver.Asked(True, False)


@pytest.mark.parametrize("tree", ["canonical", "microk8s"], indirect=True)
def test_no_other_layout_has_a_webhook_that_asks_others(tree: Tree) -> None:
    assert apiserver.asked(tree.layout, URL) == apiserver.Asked()


def test_authorization_alone_goes_in_and_comes_out(machine: Machine) -> None:
    """What is left to set where the cluster's own webhook asks us about tokens."""
    before = machine.args
    both = machine.desired(authorization=True)
    alone = apiserver.Desired(
        tuple(flag for flag in both.flags if flag.name.startswith("authorization")),
        {path: content for path, content in both.files.items() if path.name.startswith("authorization")},
    )
    assert apiserver.apply(machine.layout, alone, nothing_wrong, print, QUICK)
    machine.wait_for("our flags", lambda: machine.in_force)
    assert not any("authentication.kubeconfig" in word for word in machine.running_flags())
    assert apiserver.state(machine.layout).kind is Kind.IN_FORCE
    assert apiserver.remove(machine.layout, patience=QUICK)
    assert machine.args == before


def test_for_tokens_alone_we_go_in_front_and_an_authorization_webhook_set_by_hand_stays(machine: Machine) -> None:
    """The first step of who comes over from another authenticator (docs/migration.md)."""
    machine.args = re.sub("Node,RBAC|RBAC,Node", r"\g<0>,Webhook", machine.args)
    machine.args += '--authorization-webhook-config-file="/root/cdk/theirs.yaml"\n'
    before = machine.args
    assert "RBAC,Webhook" in before or "Node,Webhook" in before
    apiserver.check(machine.layout, authorization=False)
    apiserver.chain(machine.layout)
    assert apply(machine, authorization=False)
    flags = [word for word in machine.running_flags() if "webhook-config-file" in word]
    assert [word for word in flags if "authorization" in word] == [
        "--authorization-webhook-config-file=/root/cdk/theirs.yaml"
    ]
    assert flags[-1 if "authentication" in flags[-1] else -2].endswith("/authentication.kubeconfig")
    assert apiserver.remove(machine.layout, patience=QUICK)
    assert machine.args == before


@pytest.mark.parametrize("missing", ["unit", "flags"])
def test_a_machine_without_the_unit_or_its_flags_has_no_api_server(tree: Tree, missing: str) -> None:
    assert apiserver.detect("auto", tree.place) == tree.layout
    gone = tree.args_file if missing == "flags" else tree.place.unit_folder / tree.layout.service
    gone.unlink()
    for choice in ("auto", tree.layout.name):
        with pytest.raises(apiserver.NotFound, match=tree.layout.service):
            apiserver.detect(choice, tree.place)


def test_two_layouts_at_once_are_for_the_operator_to_tell_apart(charmed: Tree) -> None:
    canonical = Tree(charmed.root, "canonical").layout
    with pytest.raises(apiserver.Ambiguous, match=r"charmed \(.*\), canonical \(.*set api-server"):
        apiserver.detect("auto", charmed.place)
    for layout in (charmed.layout, canonical):
        assert apiserver.detect(layout.name, charmed.place) == layout


def test_an_unknown_layout_is_refused_with_those_that_there_are(tree: Tree) -> None:
    with pytest.raises(apiserver.Unknown, match="use auto or one of: charmed, canonical"):
        apiserver.detect("openshift", tree.place)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ('--authorization-webhook-config-file="/root/cdk/authz.conf"\n', "/root/cdk/authz.conf"),
        ("--authorization-webhook-config-file '/root/cdk/authz.conf'\n", "/root/cdk/authz.conf"),
        ("--authorization_webhook_config_file=/root/cdk/authz.conf\n", "/root/cdk/authz.conf"),
        ('--authorization-config="/root/cdk/authz.yaml"\n', "/root/cdk/authz.yaml"),
        ('--authorization-mode="AlwaysAllow"\n', "AlwaysAllow allows everything"),
        ("--authorization-mode RBAC,Webhook\n", "Webhook is set without"),
    ],
)
def test_check_names_what_is_in_the_way_of_a_policy(tree: Tree, extra: str, named: str) -> None:
    tree.args += extra
    before = tree.snapshot()
    with pytest.raises(Conflict, match=named):
        apiserver.check(tree.layout, authorization=True)
    apiserver.check(tree.layout, authorization=False)
    assert tree.snapshot() == before


@pytest.mark.parametrize("mode", ["", '--authorization-mode=""\n'])
def test_check_wants_an_authorization_mode_to_add_to(tree: Tree, mode: str) -> None:
    tree.args = re.sub('--authorization-mode="?(Node,RBAC|RBAC,Node)"?\n', mode, tree.args)
    with pytest.raises(Conflict, match="no --authorization-mode is set"):
        apiserver.check(tree.layout, authorization=True)


def test_check_does_not_take_our_own_flags_for_someone_elses(machine: Machine) -> None:
    machine.want(authorization=True)
    machine.script("start")
    assert machine.wired
    apiserver.check(machine.layout, authorization=True)


def test_the_state_is_told_on_a_machine_that_has_nothing(tmp_path: Path) -> None:
    place = apiserver.Place(tmp_path)
    assert apiserver.wired(place) is None
    assert json.dumps(apiserver.state(layouts.LAYOUTS[0](place)).kind) == '"absent"'
