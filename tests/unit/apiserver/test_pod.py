"""Flags in a static pod: the trial, the way back from every crash, what others do to the manifest, removal."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import apiserver
from apiserver import Conflict, Kind, Patience, files, wanted, ways, wiring
from apiserver.pod import Pod
from apiserver.wanted import Stage
from tests.unit.apiserver.pods import LESS, PATIENCE, Kubelet, Machine
from tests.unit.apiserver.support import FIRST_STEP, STRIDE

pytestmark = pytest.mark.slow  # a kubelet and scripts that look every so often: each takes seconds

SOON = {"KUBERNETES_KEYSTONE_LIMIT": "3", "KUBERNETES_KEYSTONE_SOUND": "1", "KUBERNETES_KEYSTONE_EVERY": "0.2"}


@pytest.fixture
def machine(tmp_path: Path, tls: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose kubelet does not run."""
    made = Machine(tmp_path, tls)
    monkeypatch.setenv("PATH", made.path)
    return made


@pytest.fixture
def kubelet(machine: Machine) -> Iterator[Kubelet]:
    """Its kubelet, with an API server that has nothing of ours."""
    with Kubelet(machine) as running:
        machine.wait(lambda: running.starts == 1)
        yield running


def nothing_wrong() -> None:
    pass


def apply(machine: Machine, content: str = "kubeconfig", **how: Any) -> bool:
    desired = machine.desired(content, how.pop("authorization", True))
    how.setdefault("patience", PATIENCE)
    return apiserver.apply(machine.layout, desired, how.pop("probe", nothing_wrong), print, **how)


class Watch:
    """The script, watching, with less patience than on a real machine."""

    def __init__(self, machine: Machine) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", str(machine.place.pod_script), "watch"],
            env={**os.environ, **SOON},
            start_new_session=True,
        )

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def test_the_layout_is_known_by_its_manifest(machine: Machine) -> None:
    assert apiserver.detect("auto", machine.place) == machine.layout
    assert apiserver.evidence(machine.layout) == f"the kubelet with {machine.layout.manifest}"
    machine.layout.manifest.unlink()
    with pytest.raises(apiserver.NotFound, match="static-pod"):
        apiserver.detect("static-pod", machine.place)


def test_flags_are_tried_verified_and_confirmed_in_one_start(machine: Machine, kubelet: Kubelet) -> None:
    assert apply(machine)
    assert machine.in_force
    assert kubelet.starts == 2
    assert (machine.wanted.stage, machine.wanted.starts) == (Stage.CONFIRMED, 3)
    assert apiserver.state(machine.layout).kind is Kind.IN_FORCE
    assert "enable --now kubernetes-keystone-watch.service" in machine.asked
    before = machine.text, machine.layout.manifest.stat().st_mtime_ns
    assert not apply(machine)
    assert (machine.text, machine.layout.manifest.stat().st_mtime_ns) == before
    assert kubelet.starts == 2


def test_no_file_of_ours_is_ever_among_the_manifests(machine: Machine, kubelet: Kubelet) -> None:
    folder = machine.layout.manifest.parent
    seen: set[str] = set()
    write = files.write

    def look(*args: Any, **kwargs: Any) -> Any:
        done = write(*args, **kwargs)
        seen.update(path.name for path in folder.iterdir())
        return done

    files.write, kept = look, files.write
    try:
        apply(machine)
        apiserver.remove(machine.layout, patience=PATIENCE)
    finally:
        files.write = kept
    assert seen == {"kube-apiserver.yaml"}


def test_removal_leaves_the_machine_as_it_was(machine: Machine, kubelet: Kubelet) -> None:
    before, inode = machine.snapshot(), machine.layout.manifest.stat().st_ino
    apiserver.chain(machine.layout)
    apply(machine)
    assert apiserver.wired(machine.place) == machine.layout
    assert apiserver.remove(machine.layout, patience=PATIENCE)
    machine.place.state_folder.mkdir(exist_ok=True)
    after = machine.snapshot()
    after.pop("var/lib/kubernetes-keystone", None)
    assert after.keys() - before.keys() == set()
    assert {name: what for name, what in after.items() if before[name] != what} == {}
    assert machine.layout.manifest.stat().st_ino == inode
    assert not machine.in_force
    assert apiserver.wired(machine.place) is None
    assert not apiserver.remove(machine.layout, patience=PATIENCE)


def test_removal_keeps_what_others_have_changed(machine: Machine, kubelet: Kubelet) -> None:
    before = machine.text
    apply(machine)
    machine.text = machine.text.replace("cpu: 250m", "cpu: 500m")
    apiserver.remove(machine.layout, patience=PATIENCE)
    assert machine.text == before.replace("cpu: 250m", "cpu: 500m")


def test_removal_works_without_a_kubelet(machine: Machine) -> None:
    before = machine.text
    with Kubelet(machine) as kubelet:
        machine.wait(lambda: kubelet.starts == 1)
        apply(machine)
    apiserver.remove(machine.layout, patience=LESS)
    assert machine.text == before


@pytest.mark.parametrize(
    "how",
    [
        {"crash": "kubernetes-keystone"},
        pytest.param({"deaf": "kubernetes-keystone"}, marks=pytest.mark.slow),
        pytest.param({"unreached": "kubernetes-keystone"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_flags_that_the_server_does_not_work_with_are_taken_back(
    machine: Machine, kubelet: Kubelet, how: dict[str, str]
) -> None:
    before = machine.text
    machine.behave(**how)
    with pytest.raises(apiserver.ApplyFailed) as failed:
        apply(machine, patience=LESS)
    assert machine.text == before
    machine.wait(lambda: not machine.in_force)
    assert apiserver.state(machine.layout).kind is Kind.FAILED
    if "crash" in how:
        assert any("not to its liking" in line for line in failed.value.log), failed.value.log
        assert "gAAAA" not in str(failed.value.log)
    starts = kubelet.starts
    with pytest.raises(apiserver.ApplyFailed):
        apply(machine, patience=LESS)
    assert kubelet.starts == starts


@pytest.mark.slow
def test_a_change_that_fails_puts_back_what_had_been_verified(machine: Machine, kubelet: Kubelet) -> None:
    apply(machine, authorization=False)
    before = machine.text
    machine.behave(deaf="authorization-webhook")
    with pytest.raises(apiserver.ApplyFailed):
        apply(machine)
    assert machine.text == before
    assert machine.in_force
    assert machine.wanted.stage is Stage.CONFIRMED


def test_an_upgrade_by_kubeadm_is_noticed_and_followed_by_a_trial(machine: Machine, kubelet: Kubelet) -> None:
    apply(machine)
    machine.upgrade("v1.37.0", v="2")
    upgraded = machine.text
    machine.wait(lambda: not machine.in_force)
    machine.script("look", "0")
    assert machine.text == upgraded
    assert apiserver.state(machine.layout).kind is Kind.PENDING
    asked: list[int] = []
    assert apply(machine, probe=lambda: asked.append(1))
    assert asked == [1]
    assert machine.in_force
    apiserver.remove(machine.layout, patience=PATIENCE)
    assert machine.text == upgraded


def test_nothing_is_added_to_a_server_that_is_not_in_order(machine: Machine) -> None:
    before = machine.text
    with pytest.raises(apiserver.NotReady):
        apply(machine, patience=Patience(already=0.2))
    assert machine.text == before


# ---- crashes


class Killed(BaseException):
    """The charm is killed here."""


def count_effects(monkeypatch: pytest.MonkeyPatch, kill_at: int) -> None:
    """Before the effect of this number on the machine, the charm is killed."""
    count = [0]

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == kill_at:
                raise Killed
            return function(*args, **kwargs)

        return call

    for module, name in ((files, "write"), (files, "remove"), (Pod, "_run"), (wiring, "verify"), (os, "link")):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, guarded(getattr(Path, name)))


@pytest.mark.slow
@pytest.mark.parametrize("then", ["the watch", "the next hook"])
def test_a_charm_killed_at_any_step_of_apply_leaves_no_unverified_flag(
    machine: Machine, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    before = machine.text
    step, finished = FIRST_STEP, False
    while not finished:
        step += STRIDE
        with monkeypatch.context() as patch:
            count_effects(patch, step)
            try:
                apply(machine)
                finished = True
            except Killed:
                pass
        if then == "the watch":
            if not finished and machine.place.pod_script.exists():
                machine.script("look", "0")
                confirmed = machine.place.wanted.exists() and machine.wanted.stage is Stage.CONFIRMED
                assert machine.wired == confirmed, f"killed at step {step}"
                assert confirmed or machine.text == before
        else:
            apply(machine)
            assert machine.in_force, f"killed at step {step}"
        apiserver.remove(machine.layout, patience=PATIENCE)
        assert machine.text == before, f"killed at step {step}"
        machine.wait(lambda: not machine.in_force)
    assert step > 10


@pytest.mark.slow
def test_a_charm_killed_at_any_step_of_removal_is_done_by_the_next_one(
    machine: Machine, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine.text
    step, finished = FIRST_STEP, False
    while not finished:
        step += STRIDE
        apply(machine)
        with monkeypatch.context() as patch:
            count_effects(patch, step)
            try:
                apiserver.remove(machine.layout, patience=PATIENCE)
                finished = True
            except Killed:
                pass
        apiserver.remove(machine.layout, patience=PATIENCE)
        assert machine.text == before, f"killed at step {step}"
        assert apiserver.wired(machine.place) is None


KILLED_IN_ITS_TRIAL = """
import os, signal, sys
from pathlib import Path
from apiserver import *
import apiserver.wiring as w
real, calls = w.verify, []
def verify(*a):
    real(*a); calls.append(1)
    if len(calls) == 2: os.kill(os.getpid(), getattr(signal, sys.argv[4]))
w.verify = verify
layout = detect('auto', Place(Path(sys.argv[2]), sys.argv[3]))
path = layout.config_folder / 'authentication.kubeconfig'
flags = (Flag('authentication-token-webhook-config-file', str(path)),)
apply(layout, Desired(flags, {path: b'k'}), lambda: None, lambda _: None)
"""


def in_its_trial(machine: Machine, how: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", KILLED_IN_ITS_TRIAL, "x", str(machine.root), machine.place.reader, how]
    source = str(Path(apiserver.__file__).parents[1])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source})


def test_a_charm_killed_in_its_trial_is_noticed_and_the_flags_go_out(machine: Machine, kubelet: Kubelet) -> None:
    before = machine.text
    assert in_its_trial(machine, "SIGKILL").wait(60) == -signal.SIGKILL
    assert machine.in_force
    assert machine.wanted.stage is Stage.TRIAL
    with Watch(machine):
        machine.wait(lambda: not machine.wired)
    assert machine.text == before
    assert apply(machine)


def test_a_trial_is_left_alone_as_long_as_the_charm_is_at_work_but_not_for_ever(
    machine: Machine, kubelet: Kubelet
) -> None:
    charm = in_its_trial(machine, "SIGSTOP")
    try:
        machine.wait(lambda: "T" in Path(f"/proc/{charm.pid}/stat").read_text().rpartition(") ")[2][:1])
        machine.script("look", "0")
        assert machine.wired
        boot, _, began = machine.wanted.life.partition(" ")
        text = machine.wanted.text
        files.write(machine.place.wanted, text.replace(f"{boot} {began}", f"{boot} {int(began) - 500}").encode(), 0o600)
        machine.script("look", "0")
        assert not machine.wired
        # It goes on, and does not take for confirmed what is out.
        assert not wanted.confirm(machine.place, machine.wanted.digest)
    finally:
        charm.kill()
        charm.wait()


def test_after_a_start_of_the_machine_nothing_is_on_trial(machine: Machine, kubelet: Kubelet) -> None:
    before = machine.text
    charm = in_its_trial(machine, "SIGSTOP")
    try:
        machine.wait(lambda: "T" in Path(f"/proc/{charm.pid}/stat").read_text().rpartition(") ")[2][:1])
        text = machine.wanted.text.replace(machine.wanted.life.partition(" ")[0], "another-boot")
        files.write(machine.place.wanted, text.encode(), 0o600)
        machine.script("look", "0")
        assert machine.text == before
    finally:
        charm.kill()
        charm.wait()


def test_a_trial_is_given_more_time_than_the_charm_takes_for_it(machine: Machine) -> None:
    script = Pod(machine.layout)._script().decode()
    limit = int(next(line for line in script.splitlines() if line.startswith("TRIAL=")).split()[0].partition("=")[2])
    patience = apiserver.Patience()
    assert limit > patience.restart + patience.ready + patience.token + 60


@pytest.mark.slow
def test_a_server_that_keeps_ending_with_our_flags_goes_on_without_them(machine: Machine, kubelet: Kubelet) -> None:
    before = machine.text
    apply(machine)
    with Watch(machine):
        machine.behave(crash="kubernetes-keystone")
        machine.text = machine.text.replace("cpu: 250m", "cpu: 500m")  # something that has it started again
        machine.wait(lambda: not machine.wired, 60)
        assert machine.text == before.replace("cpu: 250m", "cpu: 500m")
        assert apiserver.state(machine.layout).kind is Kind.FAILED
    with pytest.raises(apiserver.ApplyFailed, match="kept ending"):
        apply(machine)


@pytest.mark.slow
def test_a_sound_server_is_left_alone(machine: Machine, kubelet: Kubelet) -> None:
    apply(machine)
    with Watch(machine):
        time.sleep(6)  # twice the limit; there is nothing to wait for
    assert machine.wired
    assert kubelet.starts == 2


def test_flags_that_nobody_wants_go_out(machine: Machine, kubelet: Kubelet) -> None:
    before = machine.text
    apply(machine)
    wanted.forget(machine.place)
    machine.script("look", "0")
    assert machine.text == before


def test_flags_of_a_newer_charm_whose_file_is_of_another_format_go_out(machine: Machine, kubelet: Kubelet) -> None:
    before = machine.text
    apply(machine)
    wanted = machine.place.wanted
    wanted.write_text(wanted.read_text().replace("wanted 1\n", "wanted 2\n", 1))
    machine.script("look", "0")
    assert machine.text == before
    assert apply(machine), "and ours come back by a trial"


# ---- the authenticator


def test_without_the_authenticator_the_flags_go_out_and_come_back_with_it(machine: Machine, kubelet: Kubelet) -> None:
    before = machine.text
    apply(machine)
    ours = machine.text
    machine.script("bypass")
    assert machine.text == before
    assert apiserver.state(machine.layout).kind is Kind.BYPASSED
    assert machine.place.wanted.stat().st_mode & 0o777 == 0o644, "the authenticator tells in its metrics what it says"
    assert not apply(machine)
    machine.script("look", "0")
    assert machine.text == before  # the wait is not over
    over(machine)
    machine.script("look", "0")
    assert machine.text == before  # the authenticator is not back
    assert "start --no-block kubernetes-keystone.socket kubernetes-keystone.service" in machine.asked
    (machine.folder / "authenticator").touch()
    machine.script("look", "0")
    assert machine.text == ours
    machine.wait(lambda: machine.in_force)
    assert apiserver.state(machine.layout).kind is Kind.IN_FORCE


def test_where_the_manifest_is_another_one_meanwhile_the_next_hook_tries_again(
    machine: Machine, kubelet: Kubelet
) -> None:
    apply(machine)
    machine.script("bypass")
    machine.upgrade(v="3")
    upgraded = machine.text
    over(machine)
    (machine.folder / "authenticator").touch()
    machine.script("look", "0")
    assert machine.text == upgraded
    machine.wait(lambda: not machine.in_force)
    assert apply(machine)
    assert machine.in_force


def over(machine: Machine) -> None:
    """Let the wait after a bypass be over."""
    boot, count, _ = machine.wanted.retry.split()
    text = machine.wanted.text.replace(f"retry {machine.wanted.retry}", f"retry {boot} {count} 1")
    files.write(machine.place.wanted, text.encode(), 0o600)


# ---- what is in the way, and what was there


def test_the_webhook_that_was_there_is_found_through_the_pods_volumes(machine: Machine) -> None:
    assert os.geteuid() == 0 or os.access(machine.root, os.W_OK)
    folder = machine.root / "etc/kubernetes/pki"
    config = {
        "clusters": [{"name": "w", "cluster": {"server": "https://127.0.0.1:5000", "certificate-authority": "w.crt"}}],
        "users": [{"name": "u", "user": {"client-key": "/etc/kubernetes/pki/u.key"}}],
    }
    (folder / "webhook.yaml").write_text(yaml.safe_dump(config))
    (folder / "w.crt").write_text("CA")
    (folder / "u.key").write_text("KEY")
    machine.upgrade(authentication_token_webhook_config_file="/etc/kubernetes/pki/webhook.yaml")
    apiserver.chain(machine.layout)
    lines = machine.place.chain_file.read_text().splitlines()
    assert lines[:3] == ["chained 1", "version v1beta1", "ttl 2m"]
    names = [(line.split()[0], base64.b64decode(line.split()[1]), line.split()[2]) for line in lines[3:]]
    assert names == [
        ("kubeconfig", (folder / "webhook.yaml").read_bytes(), "/etc/kubernetes/pki/webhook.yaml"),
        ("file", b"KEY", "/etc/kubernetes/pki/u.key"),
        ("file", b"CA", "/etc/kubernetes/pki/w.crt"),
    ]
    (folder / "w.crt").unlink()
    with pytest.raises(apiserver.WiringError, match=r"cannot read /etc/kubernetes/pki/w.crt"):
        apiserver.chain(machine.layout)
    machine.upgrade(authentication_token_webhook_config_file="/opt/webhook.yaml")
    with pytest.raises(apiserver.WiringError, match="is in no hostPath volume"):
        apiserver.chain(machine.layout)
    machine.upgrade()
    apiserver.chain(machine.layout)
    assert machine.place.chain_file.read_text() == "chained 1\nnone\n"


def test_a_pod_that_cannot_reach_us_is_a_conflict(machine: Machine) -> None:
    machine.text = machine.text.replace("  hostNetwork: true\n", "")
    with pytest.raises(Conflict, match="hostNetwork"):
        apiserver.check(machine.layout, authorization=False)


def test_a_line_of_others_that_ends_as_ours_do_is_not_taken_for_one(machine: Machine) -> None:
    machine.text = machine.text.replace("--allow-privileged=true", "--allow-privileged=true # kubernetes-keystone")
    number = 1 + next(n for n, line in enumerate(machine.text.splitlines()) if "allow-privileged" in line)
    with pytest.raises(Conflict, match=f"line {number} ends in '# kubernetes-keystone' and is not ours"):
        apiserver.check(machine.layout, authorization=False)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"authorization_config": "/etc/a.yaml"}, "/etc/a.yaml is in no hostPath volume"),
        ({"authorization_webhook_config_file": "/etc/a.yaml"}, "another authorization webhook"),
        ({"authorization_mode": "AlwaysAllow"}, "AlwaysAllow"),
    ],
)
def test_another_authorization_is_a_conflict_where_a_policy_is_set(
    machine: Machine, flags: dict[str, str], why: str
) -> None:
    machine.upgrade(**flags)
    apiserver.check(machine.layout, authorization=False)
    with pytest.raises(Conflict, match=why):
        apiserver.check(machine.layout, authorization=True)


def test_our_files_are_for_the_containers_user(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    machine.text = machine.text.replace("    name: kube-apiserver\n", "    name: kube-apiserver\n    securityContext:\n"
        "      runAsUser: 2001\n      runAsGroup: 2002\n")  # fmt: skip
    desired = machine.desired()
    ways.of(machine.layout).write_files(desired.files)
    for path in desired.files:
        have = path.stat()
        assert (have.st_uid, have.st_gid, have.st_mode & 0o777) == (2001, 2002, 0o600)
