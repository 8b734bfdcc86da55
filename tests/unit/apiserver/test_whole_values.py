"""A file that its owners merge: what a start reads, and what becomes of it whoever writes it back and when."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from apiserver import args
from testbed.owners import canonical_charm, canonical_daemon, microk8s_tools
from tests.unit.apiserver.support import Tree

pytestmark = pytest.mark.slow  # a shell is started many times over

GOLDEN = Path(__file__).parent / "golden"
MODE = "authorization-mode"
MODES = re.compile('--authorization-mode="?(Node,RBAC|RBAC,Node)"?\n')
WEBHOOK = "authentication-token-webhook-config-file"


def golden(tree: Tree, name: str, text: str) -> None:
    """Compare with a file of the real paths."""
    assert text.replace(str(tree.root), "") == (GOLDEN / name).read_text()


def as_the_charm_writes_it(tree: Tree) -> None:
    tree.args = canonical_charm(tree.args)


def start(tree: Tree) -> None:
    done = tree.script("start")
    assert done.returncode == 0, done.stderr


def flags(text: str) -> dict[str, list[str]]:
    """Every flag with its values."""
    found: dict[str, list[str]] = {}
    for flag in args.parse(text).flags:
        found.setdefault(flag.name, []).append(flag.value)
    return found


@pytest.mark.parametrize("owner", ["daemon", "charm"])
def test_a_start_reads_whole_values_in_the_place_of_others(canonical: Tree, owner: str) -> None:
    if owner == "charm":
        as_the_charm_writes_it(canonical)
    before = canonical.args
    golden(canonical, f"canonical-{owner}", before)
    canonical.want(authorization=True)
    start(canonical)
    golden(canonical, f"canonical-{owner}-start", canonical.args)
    inode = (canonical.layout.config_folder / "args.before").stat().st_ino
    canonical.script("cut")
    assert canonical.args == before
    assert canonical.args_file.stat().st_ino == inode, "it is the very file that was there"


def test_a_folder_gets_a_file_of_our_own(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "root", "canonical-folder")
    others = tree.args_file.with_name("01-charm-managed")
    others.write_text('--authorization-mode="Node,RBAC,ABAC"\n')
    before = tree.args
    tree.want(authorization=True)
    start(tree)
    assert tree.own_file
    golden(tree, "canonical-99-kubernetes-keystone", tree.own_file.read_text())
    assert tree.own_file.stat().st_mode & 0o777 == 0o600
    assert (tree.args, others.read_text()) == (before, '--authorization-mode="Node,RBAC,ABAC"\n')
    tree.script("cut")
    assert not tree.own_file.exists()


@pytest.mark.parametrize("shape", ["--authorization-mode Node,RBAC\n", "  --authorization_mode='Node,RBAC' \n"])
def test_a_mode_is_displaced_however_it_is_written(canonical: Tree, shape: str) -> None:
    canonical.args = before = canonical.args.replace("--authorization-mode=Node,RBAC\n", shape)
    canonical.want(authorization=True)
    start(canonical)
    assert flags(canonical.args)[MODE] == ["Node,RBAC,Webhook"]
    canonical.script("cut")
    assert canonical.args == before


@pytest.mark.parametrize("shape", ["--v=4 --authorization-mode=Node,RBAC\n", "--authorization-mode\nNode,RBAC\n"])
def test_a_mode_that_cannot_be_displaced_keeps_ours_out(canonical: Tree, shape: str) -> None:
    """Two lines with modes would add up to a mode named twice, with which no API server starts."""
    canonical.args = before = canonical.args.replace("--authorization-mode=Node,RBAC\n", shape)
    canonical.want(authorization=True)
    done = canonical.script("start")
    assert "cannot put our flags into" in done.stderr
    assert (canonical.args, canonical.wanted.starts) == (before, 3)


@pytest.mark.parametrize("modes", ["", "--authorization-mode=\n", "--authorization-mode=RBAC,Webhook\n"])
def test_our_mode_is_never_the_only_one_and_never_given_twice(tree: Tree, modes: str) -> None:
    tree.args = before = MODES.sub(modes, tree.args)
    tree.want(authorization=True)
    done = tree.script("start")
    assert "starting without Keystone" in done.stderr
    assert (tree.next_start.rstrip("\n"), tree.wanted.starts) == (before.rstrip("\n"), 3)
    tree.want()
    start(tree)
    assert tree.wired, "without a policy there is no mode to add"


# ---- somebody read the file in the middle of a start, and writes back what he read


def untouched(text: str) -> str:
    return text


MERGES: dict[str, Callable[[str], str]] = {
    "the charm": canonical_charm,
    "the charm, with a flag of its operator's": lambda text: canonical_charm(text, {"v": "4"}),
    "the daemon": lambda text: canonical_daemon(text, {"etcd-servers": "https://10.5.0.12:2379"}, ["profiling"]),
    "an operator's cat >>": lambda text: text + "--audit-log-maxage=30\n",
    "an operator's sed -i": lambda text: re.sub("(?m)^--request-timeout=.*", "--request-timeout=60s", text),
    "somebody who copied it": untouched,
}


@pytest.mark.slow
@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES.keys())
@pytest.mark.parametrize("again", ["cut", "start"])
def test_what_was_written_back_is_undone_and_others_changes_stay(
    canonical: Tree, merge: Callable[[str], str], again: str
) -> None:
    as_the_charm_writes_it(canonical)
    without_us = merge(canonical.args)
    canonical.want(authorization=True)
    start(canonical)
    read = canonical.args
    canonical.script("cut")
    canonical.args = merge(read)
    if again == "start":
        assert canonical.script("others").stdout == without_us
        start(canonical)
        assert flags(canonical.args)[MODE] == ["Node,RBAC,Webhook"]
        assert len(flags(canonical.args)[WEBHOOK]) == 1
        assert canonical.chained()[3][2] == str(canonical.webhook)
    canonical.script("cut")
    assert canonical.args == without_us


@pytest.mark.slow
@pytest.mark.parametrize("first", MERGES.values(), ids=MERGES.keys())
def test_the_clusters_own_webhook_is_never_lost(canonical: Tree, first: Callable[[str], str]) -> None:
    """However often, whoever and in whatever form: what a start chains to is what was there before us."""
    original = flags(canonical.args)
    canonical.want(authorization=True)
    for merge in itertools.islice(itertools.cycle([first, canonical_charm, canonical_daemon]), 5):
        start(canonical)
        assert canonical.chained()[3][2] == str(canonical.webhook)
        assert canonical.chained()[1:3] == [["version", "v1beta1"], ["ttl", "2m"]]
        canonical.args = merge(canonical.args)
    canonical.script("cut")
    left = flags(canonical.args)
    assert {name: left[name] for name in (MODE, WEBHOOK)} == {name: original[name] for name in (MODE, WEBHOOK)}
    assert not canonical.wired
    assert set(left) <= {*original, "v", "audit-log-maxage"}


def test_what_others_set_in_the_place_of_ours_is_theirs(canonical: Tree) -> None:
    canonical.want(authorization=True)
    start(canonical)
    other = canonical.webhook.with_name("other.conf")
    other.write_text("clusters: []\n")
    set_by_others = {MODE: "Node,RBAC,ABAC", WEBHOOK: str(other)}
    canonical.args = canonical_charm(canonical.args, set_by_others)
    start(canonical)
    assert canonical.chained()[3][2] == str(other)
    assert flags(canonical.args)[MODE] == ["Node,RBAC,ABAC,Webhook"]
    canonical.script("cut")
    left = flags(canonical.args)
    assert {name: left[name] for name in set_by_others} == {name: [value] for name, value in set_by_others.items()}


def test_a_mode_that_others_set_after_ours_are_out_is_theirs(canonical: Tree) -> None:
    """It is, to the byte, what we had written; but nothing of ours is beside it."""
    canonical.want(authorization=True)
    start(canonical)
    canonical.script("cut")
    canonical.args = re.sub("(?m)^--authorization-mode=.*", '--authorization-mode="Node,RBAC,Webhook"', canonical.args)
    canonical.args += "--authorization-webhook-config-file=/etc/theirs\n"
    before = canonical.args
    done = canonical.script("start")
    assert "--authorization-webhook-config-file is set by others" in done.stderr
    assert canonical.args == before


def test_a_snap_that_goes_over_to_the_folder_takes_nothing_of_ours_along(canonical: Tree) -> None:
    before = canonical.args
    canonical.want(authorization=True)
    start(canonical)
    folder = canonical.layout.args_folder
    assert folder
    folder.mkdir()
    (folder / "00-snap-managed").write_text(before)
    start(canonical)
    assert canonical.args == before, "the old file is left without us"
    assert (folder / "99-kubernetes-keystone").exists()
    assert (folder / "00-snap-managed").read_text() == before
    canonical.script("cut")
    assert [path.name for path in folder.iterdir()] == ["00-snap-managed"]


def test_half_a_record_undoes_nothing_by_guess(canonical: Tree) -> None:
    canonical.want()
    start(canonical)
    record = canonical.layout.config_folder / "displaced"
    assert record.stat().st_mode & 0o777 == 0o600
    record.write_text(record.read_text().removesuffix("end\n"))
    canonical.script("cut")
    assert not canonical.wired


# ---- where they stay until the end, and no command line shows them


@pytest.fixture
def microk8s(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "root", "microk8s")


def test_microk8s_variables_quotes_and_comments_stay_as_they_are(microk8s: Tree) -> None:
    before = microk8s.args
    microk8s.want(authorization=True)
    start(microk8s)
    golden(microk8s, "microk8s", before)
    golden(microk8s, "microk8s-start", microk8s.args)
    assert microk8s.chained()[3][2] == str(microk8s.webhook), "a path that begins with ${SNAP_DATA}"
    microk8s.script("stop", SERVICE_RESULT="success")
    assert microk8s.args == before


@pytest.mark.parametrize(
    ("flag", "value"),
    [(MODE, "Node,RBAC,ABAC"), ("audit-log-maxage", "30"), ("event-ttl", "10m"), (WEBHOOK, "/theirs")],
)
def test_what_microk8s_tools_set_while_ours_are_in_stays(microk8s: Tree, flag: str, value: str) -> None:
    """`microk8s enable rbac` replaces every line of the flag; a second one of ours would be a mode given twice."""
    as_without_us = microk8s_tools(microk8s.args, flag, value)
    microk8s.want(authorization=True)
    start(microk8s)
    microk8s.args = microk8s_tools(microk8s.args, flag, value)
    assert flags(microk8s.args)[flag] == [value]
    microk8s.script("cut")
    assert microk8s.args == as_without_us


def test_an_authorization_of_a_users_own_is_whole_after_ours(microk8s: Tree) -> None:
    microk8s.want(authorization=True)
    start(microk8s)
    for flag, value in (("authorization-webhook-config-file", "/theirs"), (MODE, "RBAC,Node,Webhook")):
        microk8s.args = microk8s_tools(microk8s.args, flag, value)
    microk8s.script("cut")
    left = flags(microk8s.args)
    assert (left[MODE], left["authorization-webhook-config-file"]) == (["RBAC,Node,Webhook"], ["/theirs"])
    assert "authorization-webhook-version" not in left


def test_a_mode_goes_with_the_webhook_that_it_was_for(microk8s: Tree) -> None:
    """No API server starts with a mode Webhook and no webhook."""
    before = microk8s.args
    microk8s.want(authorization=True)
    start(microk8s)
    microk8s.args = re.sub("(?m)^--authorization-webhook-config-file=.*\n", "", microk8s.args)
    microk8s.script("cut")
    assert microk8s.args == before


def test_it_is_written_down_what_a_start_was_given(microk8s: Tree) -> None:
    given = microk8s.layout.config_folder / "given"
    found = microk8s.want(authorization=True)
    start(microk8s)
    assert given.read_text() == f"yes {found.digest}\n"
    assert given.stat().st_mode & 0o777 == 0o600
    microk8s.script("stop", SERVICE_RESULT="success")
    assert given.exists(), "the next start says otherwise, not the end of this one"
    next(iter(microk8s.desired().files)).unlink()
    microk8s.script("start")
    assert not given.exists()
