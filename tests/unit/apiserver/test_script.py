"""The real script before each start of the API server, under every shell that is here, on a temporary tree."""

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apiserver import args, wanted
from apiserver.wanted import Stage
from tests.unit.apiserver.support import FIRST_STEP, STRIDE, Tree, others, shells

pytestmark = pytest.mark.slow  # a shell is started many times over

every_shell = pytest.mark.parametrize("shell", shells())


# ---- in and out

ARGS = {
    "as the control-plane charm writes them": None,
    "no newline at the end": '--a="b"\n--feature-gates=""',
    "several newlines at the end": '--a="b"\n\n\n',
    "one flag": "--a=b",
    "nothing": "",
    "a newline alone": "\n",
    "carriage returns": '--a="b"\r\n--c="d"\r\n',
    "carriage returns, none at the end": '--a="b"\r\n--c="d"',
    "spaces and tabs": '  --a "b c"\t--d=e  \n\t\n --f   g',
    "flags of the kinds that we own": (
        '--authorization-mode="RBAC"\n--authorization-webhook-version="v1"\n'
        '--authentication-token-webhook-version="v1"\n--authentication-token-webhook-cache-ttl=10s\n'
    ),
    "backslashes, dollars, percent signs, not ASCII": "--a=\"\\\\n\\t$HOME %s %d\"\n--b='ä & \\1'\n",
}


@every_shell
@pytest.mark.parametrize("text", ARGS.values(), ids=ARGS.keys())
def test_our_flags_go_in_and_come_out_to_the_byte(tree: Tree, text: str | None, shell: str) -> None:
    if text is not None:
        tree.args = text
    before, beside = tree.args, set(tree.args_file.parent.iterdir())
    tree.args_file.chmod(0o640)
    authorization = bool(args.parse(before).items("authorization-mode"))
    tree.want(authorization=authorization)
    for _ in range(2):
        done = tree.script("start", shell)
        assert done.returncode == 0, done.stderr
        found = args.parse(tree.next_start)
        assert found.last("authentication-token-webhook-config-file").endswith("/authentication.kubeconfig")
        if authorization:
            modes = args.parse(before).items("authorization-mode")
            assert found.last("authorization-mode").split(",")[-1] == "Webhook"
            assert found.items("authorization-mode")[: len(modes)] == modes
        assert tree.script("others", shell).stdout.split() == before.split()
    assert tree.args_file.stat().st_mode & 0o777 == 0o640
    assert tree.script("cut", shell).returncode == 0
    assert tree.args == before
    assert set(tree.args_file.parent.iterdir()) == beside


@every_shell
def test_a_block_goes_in_at_the_end(charmed: Tree, shell: str) -> None:
    before = charmed.args
    charmed.want(authorization=True)
    for _ in range(2):
        charmed.script("start", shell)
        assert charmed.args.startswith(before)
        assert charmed.args.count("/begin") == 1
        assert others(charmed.args, charmed.layout.config_folder) == before


def test_owner_and_mode_of_the_args_file_stay(tree: Tree) -> None:
    if os.getuid():
        pytest.skip("only root can give files away")
    os.chown(tree.args_file, 12, 34)
    tree.args_file.chmod(0o604)
    tree.want()
    for mode in ("start", "cut"):
        tree.script(mode)
        info = tree.args_file.stat()
        assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (12, 34, 0o604)


def test_without_wanted_nothing_is_touched(tree: Tree) -> None:
    inode = tree.args_file.stat().st_ino
    assert tree.script("start").returncode == 0
    assert tree.args_file.stat().st_ino == inode


lines = st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=40), max_size=6)
flags_of_ours = st.lists(
    st.sampled_from(
        [
            '--authorization-mode="Webhook"',
            '--authorization-mode="Node,RBAC"',
            '--authorization-webhook-version="v1"',
            "--authentication-token-webhook-cache-ttl=2m",
            '--authentication-token-webhook-config-file="{webhook}"',
            "",
        ]
    ),
    max_size=4,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=lines, second=flags_of_ours, more=lines, ended=st.booleans())
def test_any_other_lines_come_through_unchanged(
    charmed: Tree, first: list[str], second: list[str], more: list[str], ended: bool
) -> None:
    before = "\n".join(first + [line.format(webhook=charmed.webhook) for line in second]) + ("\n" if ended else "")
    charmed.args = before
    modes = args.parse(before).items("authorization-mode")
    charmed.want(authorization=bool(modes) and "Webhook" not in modes)
    charmed.script("start")
    assert charmed.wired
    # Someone adds lines before and after our block.
    added = "".join(f"{line}\n" for line in more)
    charmed.args = added + charmed.args + added
    expected = added + before + ("" if not before or before.endswith("\n") or not added else "\n") + added
    assert others(charmed.args, charmed.layout.config_folder) == expected
    charmed.script("cut")
    assert charmed.args == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_script_and_the_package_tell_our_lines_apart_alike(charmed: Tree, data: st.DataObject) -> None:
    """Whatever has become of the block: torn apart, doubled, in another order."""
    folder = charmed.layout.config_folder
    block = args.block(charmed.desired(authorization=True), folder)
    pool = [*block, block[0].replace("begin", "begin-joined"), '--authorization-mode="RBAC"', "--other=1", "", "\r"]
    text = "\n".join(data.draw(st.lists(st.sampled_from(pool), max_size=12))) + data.draw(st.sampled_from(["", "\n"]))
    charmed.args = text
    charmed.script("cut")
    assert charmed.args == others(text, folder)


def test_a_line_that_someone_put_into_our_block_stays(charmed: Tree) -> None:
    before = charmed.args
    charmed.want(authorization=True)
    charmed.script("start")
    charmed.args = charmed.args.replace('--authorization-mode="Webhook"\n', '--v="4"\n--authorization-mode="Webhook"\n')
    charmed.script("cut")
    assert charmed.args == before + '--v="4"\n'


@every_shell
def test_a_full_disk_does_not_keep_our_flags_in(tree: Tree, shell: str) -> None:
    before = tree.args
    tree.want()
    tree.script("start")
    assert tree.wired
    # No file may get any content: as on a full disk, but for everyone who may not mount one.
    limited = f"trap '' XFSZ; ulimit -f 0; exec {shell} {tree.place.script} start bounded"
    subprocess.run(["sh", "-c", limited], check=False, capture_output=True, timeout=30)
    assert tree.args == before
    assert tree.wanted.starts == 2, "no start was taken, and none given"


# ---- which token webhook is behind ours


@every_shell
@pytest.mark.parametrize(
    "flags",
    [
        '--authentication-token-webhook-config-file="{0}"\n',
        "--authentication-token-webhook-config-file='{0}'\n",
        "--authentication-token-webhook-config-file={0}",
        '--authentication-token-webhook-config-file "{0}"\n',
        "--a=b --authentication-token-webhook-config-file\n{0} --c\n",
        "--authentication_token_webhook_config_file={0}\r\n",
        '--authentication-token-webhook-config-file="/no/such"\n--x\n--authentication-token-webhook-config-file="{0}"\n',
    ],
)
def test_the_displaced_webhook_is_found_however_it_is_written(tree: Tree, flags: str, shell: str) -> None:
    tree.args = flags.format(tree.webhook)
    assert tree.script("chain", shell).returncode == 0
    assert tree.chained() == [
        ["chained", "1"],
        ["version", "v1beta1"],
        ["ttl", "2m"],
        ["kubeconfig", tree.webhook.read_text(), str(tree.webhook)],
        ["file", "the cluster's CA\n", str(tree.ca)],
    ]
    assert tree.place.chain_file.stat().st_mode & 0o777 == 0o640


@every_shell
def test_the_displaced_version_and_ttl_are_noted_and_ours_never_are(tree: Tree, shell: str) -> None:
    tree.args = tree.args.replace('--authentication-token-webhook-cache-ttl="1m0s"\n', "")
    tree.args += '--authentication-token-webhook-version="v1"\n--authentication-token-webhook-cache-ttl=1m0s\n'
    tree.want(authorization=True)
    for mode in ("start", "chain", "start"):
        tree.script(mode, shell)
        assert tree.chained()[1:3] == [["version", "v1"], ["ttl", "1m0s"]]
        assert tree.chained()[3][2] == str(tree.webhook)


def test_no_webhook_behind_ours_is_noted_as_none(tree: Tree) -> None:
    for text in ("--a=b\n", '--authentication-token-webhook-config-file=""\n', ""):
        tree.args = text
        assert tree.script("chain").returncode == 0
        assert tree.chained() == [["chained", "1"], ["none"]]


@every_shell
@pytest.mark.parametrize(
    "kubeconfig",
    [
        "clusters:\n- cluster:\n    certificate-authority: one\nusers:\n- user:\n    client-key: 'two''s'  # it\n",
        '{"clusters":[{"cluster":{"certificate-authority":"one"}}],"users":[{"user":{"tokenFile":"two\'s"}}]}',
        'clusters:\n- cluster: {name: x, certificate-authority: one}\nusers: [{user: {tokenFile: "two\'s"}}]\n',
        '# client-key: no\n"clusters":\n- "cluster":\n    "certificate-authority" : "one"\n    client-key: two\'s\r\n',
    ],
)
def test_the_files_that_a_kubeconfig_names_come_along(tree: Tree, kubeconfig: str, shell: str) -> None:
    folder = tree.webhook.parent
    (folder / "one").write_text("1")
    (folder / "two's").write_text("2")
    tree.webhook.write_bytes(kubeconfig.encode())
    done = tree.script("chain", shell)
    assert done.returncode == 0, done.stderr
    assert tree.chained()[4:] == [["file", "1", str(folder / "one")], ["file", "2", str(folder / "two's")]]


def test_data_that_is_inline_names_no_files(tree: Tree) -> None:
    tree.webhook.write_text("clusters:\n- cluster:\n    certificate-authority-data: AAAA\n    server: https://x\n")
    tree.script("chain")
    assert [record[0] for record in tree.chained()] == ["chained", "version", "ttl", "kubeconfig"]


@pytest.mark.parametrize("damage", ["gone", "empty", "its CA is gone"])
def test_a_webhook_that_cannot_be_read_keeps_the_last_good_note(tree: Tree, damage: str) -> None:
    tree.want()
    tree.script("chain")
    before = tree.chained()
    if damage == "gone":
        tree.webhook.unlink()
    elif damage == "empty":
        tree.webhook.write_text("")
    else:
        tree.ca.unlink()
    done = tree.script("chain")
    assert done.returncode == 1
    assert "cannot read" in done.stderr
    assert tree.chained() == before
    tree.script("start")
    assert tree.wired, "what is known of the webhook is good enough"


@pytest.mark.parametrize("before", ["none", "nothing"])
def test_our_flags_stay_out_where_the_webhook_behind_them_is_unknown(tree: Tree, before: str) -> None:
    tree.want()
    text = tree.args
    if before == "none":
        tree.args = ""
        tree.script("chain")
    tree.webhook.unlink()
    tree.args = text
    tree.script("start")
    assert not tree.wired
    assert tree.wanted.starts == 3


def test_a_chain_file_that_is_right_is_left_alone(tree: Tree) -> None:
    tree.script("chain")
    inode = tree.place.chain_file.stat().st_ino
    tree.script("start")
    assert tree.place.chain_file.stat().st_ino == inode


# ---- what may be put in


@every_shell
def test_a_trial_has_one_start_and_gets_none_back(tree: Tree, shell: str) -> None:
    tree.want("trial", 1)
    tree.script("start", shell)
    assert tree.wired
    assert tree.wanted.starts == 0
    tree.script("stop", shell, SERVICE_RESULT="success")
    tree.script("start", shell)
    assert not tree.wired
    assert (tree.wanted.stage, tree.wanted.starts, tree.wanted.life) == (Stage.TRIAL, 0, "-")


@pytest.mark.slow
@every_shell
def test_three_crashes_in_a_row_end_without_our_flags(tree: Tree, shell: str) -> None:
    tree.want()
    was = []
    for _ in range(4):
        tree.script("start", shell)
        was.append(tree.wired)
        tree.script("stop", shell, SERVICE_RESULT="exit-code")
    assert was == [True, True, True, False]


@every_shell
@pytest.mark.parametrize(
    ("result", "age", "starts"),
    [("success", 1, 3), ("exit-code", 1, 1), ("exit-code", 100, 1), ("exit-code", 121, 3), ("oom-kill", 500, 3)],
)
def test_a_sound_life_gives_the_starts_back(tree: Tree, result: str, age: int, starts: int, shell: str) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    uptime = int(float(Path("/proc/uptime").read_text().split()[0]))
    tree.want("confirmed", 1, life=f"{boot} {uptime - age}")
    tree.script("stop", shell, SERVICE_RESULT=result)
    assert tree.wanted.starts == starts


def test_a_lost_power_supply_is_no_crash(tree: Tree) -> None:
    tree.want("confirmed", 0, life="11111111-2222-3333-4444-555555555555 99999")
    tree.script("start")
    assert tree.wired
    assert tree.wanted.starts == 2
    assert tree.place.wanted.stat().st_mode & 0o777 == 0o644, "the authenticator tells in its metrics what it says"


@pytest.mark.parametrize("stage", ["bypassed", "acquitted"])
def test_what_was_set_aside_stays_out(tree: Tree, stage: str) -> None:
    tree.want(stage, 3)
    tree.script("start")
    assert not tree.wired


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_file_that_is_not_the_one_meant_keeps_our_flags_out_and_takes_no_start(tree: Tree, damage: str) -> None:
    path = tree.want().files[0][1]
    path.unlink()
    if damage == "changed":
        path.write_text("something else")
    done = tree.script("start")
    assert not tree.wired
    assert tree.wanted.starts == 3
    assert "is not what it should be" in done.stderr


@pytest.mark.slow
@every_shell
@pytest.mark.parametrize(
    "flags",
    [
        '--authorization-mode="Node,RBAC,Webhook"\n--authorization-webhook-config-file="/root/cdk/other.yaml"\n',
        "--authorization_webhook_config_file /root/cdk/other.yaml\n",
        '--authorization-config="/root/cdk/authorization.yaml"\n',
    ],
)
def test_our_flags_stay_out_beside_someone_elses_authorization_and_come_back_after_it(
    tree: Tree, flags: str, shell: str
) -> None:
    before = tree.args
    tree.want(authorization=True)
    tree.script("start", shell)
    tree.args = before + flags
    done = tree.script("start", shell)
    assert "is set by others" in done.stderr
    assert "starting without Keystone" in done.stderr
    assert tree.args == before + flags
    assert tree.wanted.starts == 2
    tree.args = before
    tree.script("start", shell)
    assert tree.wired


def test_half_a_wanted_file_is_none(tree: Tree) -> None:
    tree.want(authorization=True)
    text = tree.place.wanted.read_text()
    tree.place.wanted.write_text(text.removesuffix("end\n"))
    tree.script("start")
    assert not tree.wired
    assert wanted.read(tree.place) is None


@every_shell
def test_a_wanted_file_of_another_format_is_none(tree: Tree, shell: str) -> None:
    tree.want(authorization=True)
    text = tree.place.wanted.read_text()
    tree.place.wanted.write_text(text.replace("wanted 1\n", "wanted 2\n", 1))
    tree.script("start", shell)
    assert not tree.wired
    assert wanted.read(tree.place) is None


# ---- killed, stuck, or on its own


PROGRAMS = (
    *(
        "awk",
        "base64",
        "cat",
        "chgrp",
        "chmod",
        "cmp",
        "cp",
        "cut",
        "flock",
        "grep",
        "ln",
        "mv",
        "rm",
        "sed",
        "sha256sum",
    ),
    *("sort", "sync", "tail", "tr", "truncate", "wc"),
)


@pytest.fixture
def killing(tree: Tree, tmp_path: Path) -> dict[str, str]:
    """A PATH on which every program counts, and the one whose turn it is kills the script and all of its helpers."""
    folder = tmp_path / "killing"
    folder.mkdir()
    for name in PROGRAMS:
        shim = folder / name
        shim.write_text(
            '#!/bin/sh\necho >>"$COUNT"\n'
            f'[ "$({shutil.which("wc")} -l <"$COUNT")" -lt "$STEP" ] || kill -KILL 0\n'
            f'exec {shutil.which(name)} "$@"\n'
        )
        shim.chmod(0o755)
    count = tmp_path / "count"
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "COUNT": str(count)}


def killed_at(tree: Tree, killing: dict[str, str], step: int, mode: str) -> bool:
    Path(killing["COUNT"]).write_text("")
    done = subprocess.run(
        ["/bin/sh", str(tree.place.script), mode, "bounded"],
        env={**killing, "STEP": str(step)},
        start_new_session=True,
        check=False,
        capture_output=True,
        timeout=30,
    )
    return done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("wired", [False, True], ids=["nothing in before", "ours in before"])
@pytest.mark.slow
def test_killed_at_any_moment_of_start_our_flags_are_whole_or_absent_and_no_start_is_gained(
    tree: Tree, killing: dict[str, str], wired: bool
) -> None:
    tree.install_script()
    before, beside, managed = tree.next_start, set(tree.args_file.parent.iterdir()), tree.args
    tree.want(authorization=True)
    tree.script("start")
    after = tree.next_start
    step, killed = FIRST_STEP, True
    while killed:
        step += STRIDE
        tree.want(authorization=True)
        if wired:
            tree.script("start")
            tree.want(authorization=True)
        else:
            tree.script("cut")
        assert tree.wired == wired
        killed = killed_at(tree, killing, step, "start")
        assert tree.next_start in (before, after)
        left = tree.wanted.starts
        assert left in (2, 3)
        if not wired:
            assert tree.next_start == before or left == 2, "our flags are in only where a start was taken for them"
    assert step > 25
    assert (tree.next_start, tree.wanted.starts) == (after, 2)
    tree.script("cut")
    assert tree.args == managed
    assert set(tree.args_file.parent.iterdir()) == beside, "nothing of a killed run stays"


@pytest.mark.slow
def test_a_script_that_hangs_is_ended_and_does_not_hold_up_the_start(tree: Tree, tmp_path: Path) -> None:
    tree.want()
    tree.install_script()
    text = tree.place.script.read_text()
    assert "timeout -k 5 30 " in text
    tree.place.script.write_text(text.replace("timeout -k 5 30 ", "timeout -k 1 0.5 "))
    (tmp_path / "bin").mkdir()
    stuck = tmp_path / "bin/sha256sum"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    began = time.monotonic()
    done = subprocess.run(
        ["/bin/sh", str(tree.place.script), "start"],
        env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert time.monotonic() - began < 5
    assert not tree.wired
    assert "status 124" in done.stderr


@pytest.mark.parametrize("mode", ["start", "stop", "chain", "cut", "", "nonsense"])
def test_it_says_0_whatever_is_missing(tree: Tree, mode: str) -> None:
    tree.install_script()
    for folder in (tree.args_file.parent, tree.place.state_folder, tree.place.chain_file.parent):
        shutil.rmtree(folder)
    done = subprocess.run(["/bin/sh", str(tree.place.script), mode], check=False, capture_output=True, timeout=30)
    assert done.returncode == 0


@pytest.mark.slow
def test_it_waits_for_a_charm_that_is_writing_wanted(tree: Tree) -> None:
    found = tree.want(starts=2)
    with wanted.locked(tree.place):
        thread = threading.Thread(target=tree.script, args=("start",))
        thread.start()
        time.sleep(0.4)
        assert not tree.wired
        # As `wanted.write` does, which holds the lock by itself.
        tree.place.wanted.write_text(wanted.replace(found, stage=Stage.TRIAL, starts=1).text)
    thread.join()
    assert tree.wired
    assert (tree.wanted.stage, tree.wanted.starts) == (Stage.TRIAL, 0)
