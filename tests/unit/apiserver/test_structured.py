"""Ours in a file of --authorization-config: put in, tried, confirmed, taken out to the byte, whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import apiserver
import flags
from apiserver import Conflict, Kind, Place, files, lease, script, structured, systemd, wanted, wiring
from apiserver.charmed import Charmed
from apiserver.microk8s import MicroK8s
from apiserver.structured import AuthorizationConfig
from apiserver.unit import Unit
from config import Listen
from tests.unit.apiserver import pods
from tests.unit.apiserver.support import FIRST_STEP, QUICK, STRIDE, Machine, shells

EXAMPLES = 200 if STRIDE == 1 else 20
GOLDEN = Path(__file__).parent / "golden"
LISTEN = Listen(host="127.0.0.1", port=8443)
KUBECONFIG = "kubernetes-keystone-0123456789ab.kubeconfig"
TWO = """\
apiVersion: apiserver.config.k8s.io/v1
kind: AuthorizationConfiguration
authorizers:
- type: Node
  name: node
- type: RBAC
  name: rbac
"""


def authorizer(content: str = "kubeconfig", **how: Any) -> apiserver.Authorizer:
    how.setdefault("names_upstream_way", False)
    return flags.authorizer(LISTEN, content.encode(), **how)


def parsed(text: str) -> AuthorizationConfig:
    return AuthorizationConfig.parse(
        Path("config.yaml"), PurePosixPath("/etc/authorization/config.yaml"), text.encode()
    )


def with_ours(text: str, **how: Any) -> str:
    return parsed(text).with_ours(authorizer(**how), KUBECONFIG)


def script_says(mode: str, given: str, shell: str = "/bin/sh") -> str:
    text = structured._script(Charmed(Place(Path("/nowhere")))).decode()
    command = [*shell.split(), "-c", text, "apiserver-authorizer", mode]
    done = subprocess.run(command, input=given.encode(), capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
    return done.stdout.decode()


# ---- the text


@pytest.mark.parametrize("mode", ["native", "upstream-compatible"])
def test_a_file_with_comments_and_another_webhook_gets_ours_at_its_end(mode: str) -> None:
    text = (GOLDEN / "authorization-config").read_text()
    ours = with_ours(text, names_upstream_way=mode != "native")
    assert ours == (GOLDEN / f"authorization-config-{mode}").read_text()
    assert script_says("others", ours) == text


@pytest.mark.parametrize("version", structured.VERSIONS)
def test_each_version_of_the_format_gets_the_same_entry(version: str) -> None:
    text = TWO.replace("/v1", f"/{version}")
    assert yaml.safe_load(with_ours(text))["authorizers"][2] == yaml.safe_load(with_ours(TWO))["authorizers"][2]
    assert with_ours(text).startswith(text)


@pytest.mark.parametrize(
    "text",
    [
        TWO,
        TWO.removesuffix("\n"),
        TWO + "\n\n# the end\n",
        TWO + "\n\n# the end",
        TWO.replace("\n- ", "\n    - ").replace("\n  name", "\n      name"),
        TWO.replace("authorizers:\n", "authorizers: # in this order\n# first\n"),
        "---\n" + TWO + "...\n",
        "authorizers:\n- name: rbac\n  type: RBAC\n  # no more\nkind: AuthorizationConfiguration\n"
        "apiVersion: apiserver.config.k8s.io/v1beta1\n",
        TWO + "- type: Webhook\n  name: theirs\n  webhook: {timeout: 3s, failurePolicy: Deny}\n",
        TWO + "- type: Webhook\n  name: theirs\n  webhook:\n    matchConditions:\n    - expression: |\n"
        "        true\n\n# x\n",
        TWO + "- {type: Webhook, name: theirs}\n",
        TWO + "# kubernetes-keystone\n",
        "authorizers:\n- type: RBAC\n  name: >-\n    rbac\nkind: AuthorizationConfiguration\n"
        "apiVersion: apiserver.config.k8s.io/v1\n",
    ],
)  # fmt: skip
def test_others_lines_stay_to_the_byte_and_ours_is_the_last_of_the_list(text: str) -> None:
    ours = with_ours(text)
    found = yaml.safe_load(ours)
    assert found["authorizers"][-1]["name"] == "kubernetes-keystone"
    assert {**found, "authorizers": found["authorizers"][:-1]} == yaml.safe_load(text)
    for shell in shells():
        assert script_says("others", ours, shell) == text


@pytest.mark.parametrize("text", [TWO, (GOLDEN / "authorization-config").read_text()], ids=["short", "long"])
def test_ours_is_known_when_somebodys_tool_has_taken_all_comments_away(text: str) -> None:
    tool = yaml.safe_dump(yaml.safe_load(with_ours(text)), sort_keys=random.random() < 0.5)
    for shell in shells():
        assert yaml.safe_load(script_says("others", tool, shell)) == yaml.safe_load(text)
    # Others' entries behind ours stay, too.
    behind = tool.replace("kind: ", "kind: ") if tool.startswith("authorizers") else tool + "- name: a\n  type: ABAC\n"
    assert ("name: a\n" in script_says("others", behind)) == ("name: a\n" in behind)


@given(
    st.lists(st.sampled_from(["node", "rbac", "abac", "theirs", "others-2"]), min_size=1, unique=True),
    st.sampled_from(["", " ", "    "]),
    st.lists(st.sampled_from(["", "# a comment", "  # indented", "#- type: AlwaysAllow"]), max_size=4),
    st.booleans(),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_whatever_the_file_looks_like_ours_goes_in_and_comes_out(
    names: list[str], indent: str, extra: list[str], ended: bool
) -> None:
    items = [line for name in names for line in (f"{indent}- name: {name}", f"{indent}  type: {name.title()}", *extra)]
    head = ["kind: AuthorizationConfiguration", "apiVersion: apiserver.config.k8s.io/v1", "authorizers:"]
    text = "\n".join([*extra, *head, *items]) + ("\n" if ended else "")
    assert script_says("others", with_ours(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not an AuthorizationConfiguration"),
        ("a: [\n", "not one YAML document: .* in line 2"),
        (TWO + "---\n" + TWO, "not one YAML document"),
        (TWO.replace("\n", "\r\n"), "Windows line ends"),
        (TWO.replace("/v1", "/v2"), r"not an AuthorizationConfiguration of apiserver.config.k8s.io \(v1, v1beta1"),
        (TWO.replace("Authorization", "Authentication"), "not an AuthorizationConfiguration"),
        (TWO.partition("- ")[0] + "  []\n", "no list of authorizers"),
        (TWO.replace("name: node", "name: &n node"), "line 5 has an anchor"),
        ('{"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",\n "authorizers": '
         '[{"type": "RBAC", "name": "rbac"}]}\n', "the document is written in braces"),
        (TWO.partition("authorizers")[0] + "authorizers: [{type: RBAC, name: rbac}]\n", "not a list with an item a"),
        (TWO.replace("name: rbac", "name: kubernetes-keystone"), "authorizer called kubernetes-keystone .* not ours"),
        (TWO.replace("RBAC", "AlwaysAllow"), "AlwaysAllow allows everything before"),
    ],
)  # fmt: skip
def test_what_cannot_be_edited_safely_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(Conflict, match=why):
        with_ours(text)


def test_a_flag_may_name_the_file_as_the_snaps_wrappers_have_it(tmp_path: Path) -> None:
    layout = MicroK8s(Place(tmp_path))
    data, common = tmp_path / "var/snap/microk8s/current", tmp_path / "var/snap/microk8s/common"
    for named, path in {
        "${SNAP_DATA}/args/a.yaml": data / "args/a.yaml",
        "$SNAP_DATA/args/a.yaml": data / "args/a.yaml",
        "${SNAP_COMMON}/a.yaml": common / "a.yaml",
        "args/a.yaml": data / "args/a.yaml",
        "/etc/a.yaml": Path("/etc/a.yaml"),
    }.items():
        assert Unit(layout).file(named) == (PurePosixPath(path), path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("last", [True, False], ids=["at the end", "in the middle"])
def test_a_full_disk_keeps_ours_in_only_where_something_stands_behind_it(tmp_path: Path, last: bool) -> None:
    layout = Charmed(Place(tmp_path / "root"))
    layout.config_folder.mkdir(parents=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    file, kubeconfig = folder / "config.yaml", folder / KUBECONFIG
    text = TWO if last else TWO + "# the end\n"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    try:
        config = AuthorizationConfig.parse(file, PurePosixPath(file), text.encode())
        ours = config.with_ours(authorizer(), KUBECONFIG)
        file.write_text(ours)
        kubeconfig.write_text("kubeconfig")
        structured._Record("confirmed", "-", "", kubeconfig, file).write(layout)
        with contextlib.suppress(OSError):
            (folder / "filler").write_bytes(b"x" * 65536)
        if last:
            structured.remove(layout)
            assert file.read_text() == text
            assert not kubeconfig.exists()
        else:
            with pytest.raises(apiserver.WiringError, match="is its disk full"):
                structured.remove(layout)
            assert (file.read_text(), kubeconfig.exists()) == (ours, True)
    finally:
        subprocess.run(["umount", folder], check=True)


# ---- a running server


class Structured:
    """A machine whose API server has its authorization in a file, be it a unit's or a pod's."""

    def __init__(self, machine: Machine | pods.Machine, starts: Callable[[], int]) -> None:
        self.machine, self.layout, self.place = machine, machine.layout, machine.place
        self.starts = starts
        self.folder = machine.root / "etc/authorization"
        self.file = self.folder / "config.yaml"
        self.patience = QUICK if isinstance(machine, Machine) else pods.PATIENCE

    @property
    def text(self) -> str:
        return self.file.read_text()

    @text.setter
    def text(self, text: str) -> None:
        """Write it as others do, who put another file in its place."""
        new = self.folder / "new"
        new.write_text(text)
        new.chmod(0o640)
        new.replace(self.file)

    @property
    def ours(self) -> bool:
        return "kubernetes-keystone" in self.text

    @property
    def left(self) -> set[str]:
        """What lies beside the file."""
        return {path.name for path in self.folder.iterdir()} - {"config.yaml"}

    def desired(self, content: str = "kubeconfig", **how: Any) -> apiserver.Desired:
        return dataclasses.replace(self.machine.desired(), authorizer=authorizer(content, **how))

    def apply(self, content: str = "kubeconfig", probe: Callable[[], None] = lambda: None, **how: Any) -> bool:
        return apiserver.apply(self.layout, self.desired(content, **how), probe, print, self.patience)

    def fails(self, content: str = "kubeconfig") -> apiserver.ApplyFailed:
        with pytest.raises(apiserver.ApplyFailed) as caught:
            self.apply(content)
        return caught.value

    def remove(self) -> bool:
        return apiserver.remove(self.layout, patience=self.patience)

    def look(self) -> None:
        """What comes before the next start of a unit, whose life is a sound one, and every few seconds beside a pod."""
        if isinstance(self.machine, Machine):
            self.machine.script("start")
            self.machine.script("stop", SERVICE_RESULT="success")
        else:
            self.machine.script("look")

    @property
    def accepted(self) -> str:
        """What the running server goes by."""
        reloads = structured._Reloads.read(self.layout)
        return reloads.digest

    def in_force(self) -> bool:
        return self.accepted == structured.hashlib.sha256(self.text.encode()).hexdigest() and self.ours


@pytest.fixture(params=["unit", "pod"])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, tls: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Structured]:
    """A running API server with structured authorization, as a systemd unit or a static pod."""
    file = tmp_path / "root/etc/authorization/config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(TWO)
    file.chmod(0o640)
    if request.param == "unit":
        machine = Machine(tmp_path / "root", tls, random.choice(["charmed", "canonical"]))
        monkeypatch.setenv("PATH", machine.systemd.path)
        lines = [line for line in machine.args.splitlines(keepends=True) if "authorization-mode" not in line]
        machine.args = "".join([*lines, f"--authorization-config={file}\n"])
        machine.systemd.systemctl(["start", machine.layout.service])
        yield Structured(machine, lambda: machine.systemd.restarts)
        machine.systemd.close()
    else:
        pod = pods.Machine(tmp_path, tls)
        monkeypatch.setenv("PATH", pod.path)
        mounted(pod, file)
        with pods.Kubelet(pod) as kubelet:
            pod.wait(lambda: kubelet.starts == 1)
            yield Structured(pod, lambda: kubelet.starts - 1)


def mounted(pod: pods.Machine, file: Path, *, alone: bool = False) -> None:
    """Give the pod the flag and a volume; the stand-in sees the machine's own files, so both have one name."""
    pod.upgrade(authorization_config=str(file))
    manifest = yaml.safe_load(pod.text)
    container, path = manifest["spec"]["containers"][0], str(file if alone else file.parent)
    container["command"] = [word for word in container["command"] if "authorization-mode" not in word]
    container["volumeMounts"].append({"mountPath": path, "name": "authorization", "readOnly": True})
    on_host = f"/{Path(path).relative_to(pod.root)}"
    manifest["spec"]["volumes"].append({"hostPath": {"path": on_host}, "name": "authorization"})
    pod.text = yaml.safe_dump(manifest)


@pytest.mark.slow
def test_ours_comes_into_force_without_a_restart_of_its_own(server: Structured) -> None:
    apiserver.check(server.layout, authorization=True)
    assert server.apply()
    assert server.starts() == 1, "for the flag of the token webhook"
    assert server.in_force()
    assert apiserver.state(server.layout).kind is Kind.IN_FORCE
    entry = yaml.safe_load(server.text)["authorizers"][-1]["webhook"]
    kubeconfig = Path(entry["connectionInfo"]["kubeConfigFile"])
    assert kubeconfig.read_text() == "kubeconfig"
    assert kubeconfig.stat().st_mode & 0o777 == 0o600
    assert server.left == {kubeconfig.name}
    assert server.file.stat().st_mode & 0o777 == 0o640
    before = server.file.stat()
    assert not server.apply(probe=lambda: pytest.fail("there is nothing to ask the authenticator for"))
    assert server.file.stat() == before


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_what_the_server_knows_by_ours_is_told_once_it_has_accepted_it(server: Structured) -> None:
    server.apply()
    assert structured.kubeconfigs(server.layout) == (b"kubeconfig",)
    (name,) = server.left
    (server.file.parent / name).write_text("changed by somebody")
    assert structured.kubeconfigs(server.layout) == (b"",)
    structured.remove(server.layout)
    assert structured.kubeconfigs(server.layout) == ()


@pytest.mark.slow
def test_a_policy_that_is_unset_and_set_again_restarts_nothing(server: Structured) -> None:
    server.apply()
    restarts = server.starts()
    apiserver.apply(server.layout, server.machine.desired(), lambda: None, print, server.patience)
    assert server.text == TWO
    assert server.left == set()
    assert not server.apply()
    assert server.in_force()
    assert server.starts() == restarts


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_another_certificate_or_condition_is_another_configuration_to_the_server(server: Structured) -> None:
    server.apply()
    first = server.text
    structured.apply(server.layout, authorizer("renewed"), lambda: None, server.patience)
    assert server.text != first
    assert server.in_force()
    assert len(server.left) == 1
    structured.apply(server.layout, authorizer("renewed", names_upstream_way=True), lambda: None, server.patience)
    assert "startsWith('keystone:')" not in server.text
    assert server.in_force()
    assert server.starts() == 1


@pytest.mark.slow
def test_removal_leaves_the_file_as_it_was_and_what_others_have_changed_since(server: Structured) -> None:
    server.apply()
    server.remove()
    assert (server.text, server.left) == (TWO, set())
    assert server.file.stat().st_mode & 0o777 == 0o640
    assert not server.place.authorizer_script.exists()
    assert apiserver.wired(server.place) is None
    server.apply()
    server.text = f"# mine\n{server.text}# more\n".replace("name: node\n", "name: node # the kubelets\n")
    server.remove()
    assert server.text == f"# mine\n{TWO}# more\n".replace("name: node\n", "name: node # the kubelets\n")
    assert server.left == set()


@pytest.mark.slow
@pytest.mark.parametrize(("server", "age"), [("unit", "old"), ("pod", "new")], indirect=["server"])
def test_what_the_running_server_does_not_accept_is_taken_back_and_not_tried_again(
    server: Structured, age: str
) -> None:
    server.machine.behave(dislikes="matchConditions", **({"old": ""} if age == "old" else {}))
    error = server.fails()
    assert "does not accept it with Keystone's authorizer" in error.reason
    assert (server.text, server.left) == (TWO, set())
    before = server.file.stat()
    assert server.fails().reason == error.reason
    assert server.file.stat() == before
    assert server.starts() == 1
    server.machine.behave(**({"old": ""} if age == "old" else {}))
    server.fails()
    server.text = TWO + "# another\n"  # what is around it is another: it may be liked now
    server.apply()
    assert server.ours


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "how", "reason"),
    [
        ("unit", {"blind": ""}, "has not read it again"),
        (
            "pod",
            {"evaluates": 'Post "https://127.0.0.1:8443/webhook?timeout=10s": dial tcp: connection refused'},
            "cannot ask Keystone's authorizer",
        ),
    ],
    indirect=["server"],
)
def test_a_server_that_does_not_read_it_or_does_not_reach_us_has_nothing_of_ours(
    server: Structured, how: dict[str, str], reason: str
) -> None:
    server.machine.behave(**how)
    server.patience = dataclasses.replace(server.patience, reload=2, token=2)
    assert reason in server.fails().reason
    assert (server.text, server.left) == (TWO, set())


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_an_error_of_somebody_elses_webhook_is_not_ours(server: Structured) -> None:
    server.machine.behave(evaluates='Post "https://theirs.example/authorize?timeout=3s": no such host')
    server.apply()
    assert server.in_force()


@pytest.mark.slow
def test_a_change_that_is_not_accepted_leaves_in_force_what_was(server: Structured) -> None:
    server.apply()
    before = server.text
    server.machine.behave(dislikes="system:")
    with pytest.raises(apiserver.ApplyFailed):
        structured.apply(server.layout, authorizer(names_upstream_way=True), lambda: None, server.patience)
    assert server.text == before
    assert len(server.left) == 1
    server.look()
    assert server.text == before
    assert not server.apply()


@pytest.mark.slow
def test_a_start_is_not_lost_to_ours_when_its_kubeconfig_has_gone_or_is_another(server: Structured) -> None:
    for damage in (lambda path: path.unlink(), lambda path: path.write_text("{}")):
        server.apply()
        assert server.ours
        damage(server.folder / server.left.pop())
        server.look()
        assert (server.text, server.left) == (TWO, set())


@pytest.mark.slow
def test_ours_stays_through_starts_as_long_as_something_is_wanted(server: Structured) -> None:
    server.apply()
    before = server.text
    server.look()
    assert server.text == before
    server.machine.script("bypass")
    server.look()
    assert server.text == before, "without the authenticator it harms nobody"
    wanted.forget(server.place)
    server.look()
    assert (server.text, server.left) == (TWO, set())


@pytest.mark.slow
def test_a_server_that_keeps_ending_loses_ours_with_our_flags(server: Structured) -> None:
    server.apply()
    found = wanted.read(server.place)
    assert found is not None
    wanted.write(server.place, dataclasses.replace(found, starts=0, life="-"))
    server.look()
    assert (server.text, server.left) == (TWO, set())
    assert apiserver.state(server.layout).kind is Kind.FAILED


@pytest.mark.slow
def test_others_who_write_the_file_anew_without_ours_find_it_there_after_the_next_hook(server: Structured) -> None:
    server.apply()
    server.text = TWO.replace("# ", "") + "# by a tool\n"
    server.look()
    assert not server.ours
    assert not server.apply()
    assert server.in_force()
    assert len(server.left) == 1
    server.remove()
    assert server.text == TWO + "# by a tool\n"


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_comments_that_somebodys_tool_has_dropped_are_no_reason_to_leave_anything_behind(server: Structured) -> None:
    server.apply()
    server.text = yaml.safe_dump(yaml.safe_load(server.text), sort_keys=False, width=1000)
    server.look()
    assert server.ours
    server.remove()
    assert (yaml.safe_load(server.text), server.left) == (yaml.safe_load(TWO), set())


@pytest.mark.slow
def test_where_ours_cannot_be_taken_out_its_kubeconfig_stays_and_the_operator_is_told(server: Structured) -> None:
    server.apply()
    kubeconfig = server.left
    server.text = f"{yaml.safe_load(server.text)}".replace("'", '"')
    with pytest.raises(apiserver.WiringError, match="take that entry out by hand"):
        server.remove()
    assert server.left == kubeconfig
    server.text = TWO
    server.remove()
    assert server.left == set()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_a_file_that_others_have_broken_is_told_and_left_alone(server: Structured) -> None:
    server.text = "authorizers: [\n"
    with pytest.raises(Conflict, match="not one YAML document"):
        apiserver.check(server.layout, authorization=True)
    with pytest.raises(Conflict, match="not one YAML document"):
        server.apply()
    assert server.text == "authorizers: [\n"
    server.file.unlink()
    with pytest.raises(Conflict, match="cannot be read: No such file"):
        apiserver.check(server.layout, authorization=True)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
@pytest.mark.parametrize("line", ["- type: RBAC", "  name: rbac"])
def test_a_line_of_others_that_ends_as_ours_do_is_not_taken_for_one(server: Structured, line: str) -> None:
    server.text = text = TWO.replace(line, f"{line} # kubernetes-keystone")
    with pytest.raises(Conflict, match="it has lines that look like ours"):
        apiserver.check(server.layout, authorization=True)
    with pytest.raises(Conflict, match="it has lines that look like ours"):
        server.apply()
    assert server.text == text


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_a_kubeconfig_of_somebodys_own_beside_ours_stays_whatever_it_is_called(server: Structured) -> None:
    theirs = {f"kubernetes-keystone-{name}.kubeconfig" for name in ("manual", "cafe", "0123456789abcdef")}
    for name in theirs:
        (server.folder / name).write_text("theirs")
    server.text = text = (
        f"{TWO}- type: Webhook\n  name: theirs\n  webhook:\n    connectionInfo:\n      kubeConfigFile: {{}}\n".format(
            server.folder / "kubernetes-keystone-cafe.kubeconfig"
        )
    )
    server.apply()
    server.apply("another")
    assert theirs < server.left
    assert server.text.startswith(text)
    server.remove()
    assert (server.left, server.text) == (theirs, text)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_a_link_stays_one(server: Structured) -> None:
    real = server.folder / "real/config.yaml"
    real.parent.mkdir()
    server.file.rename(real)
    server.file.symlink_to("real/config.yaml")
    server.apply()
    assert server.file.is_symlink()
    assert server.in_force()
    server.remove()
    assert (server.file.readlink(), real.read_text()) == (Path("real/config.yaml"), TWO)
    assert server.left == {"real"}


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_changed(server: Structured) -> None:
    if os.geteuid() != 0:
        server.folder.chmod(0o555)
    else:
        subprocess.run(["mount", "--bind", server.folder, server.folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", server.folder], check=True)
    try:
        with pytest.raises(Conflict, match="is read-only"):
            apiserver.check(server.layout, authorization=True)
    finally:
        if os.geteuid() != 0:
            server.folder.chmod(0o755)
        else:
            subprocess.run(["umount", server.folder], check=True)


@pytest.mark.slow
def test_what_others_change_in_the_middle_of_a_trial_is_kept_and_the_trial_is_for_the_next_hook(
    server: Structured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: object) -> None:
        server.text += "# more\n"

    with monkeypatch.context() as patch:
        patch.setattr(structured, "_until_reviewed", meanwhile)
        with pytest.raises(apiserver.NotReady, match="was changed while our entry was tried"):
            server.apply()
    server.look()
    assert (server.text, server.left) == (TWO + "# more\n", set())
    server.apply()
    assert server.in_force()
    server.remove()
    assert server.text == TWO + "# more\n"


@pytest.mark.slow
def test_a_start_in_the_middle_of_a_trial_is_without_ours_and_a_look_is_no_start(
    server: Structured, monkeypatch: pytest.MonkeyPatch
) -> None:
    apiserver.apply(server.layout, server.machine.desired(), lambda: None, print, server.patience)
    real = structured._Change._until_accepted

    def meanwhile(*given: Any) -> None:
        server.look()
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(structured._Change, "_until_accepted", meanwhile)
        if isinstance(server.machine, Machine):
            with pytest.raises(apiserver.NotReady, match="was taken out while it was tried"):
                server.apply()
            assert (server.text, server.left) == (TWO, set())
        else:
            server.apply()
    server.apply()
    assert server.in_force()


@pytest.mark.slow
def test_another_file_and_back_to_flags_leave_nothing_in_the_one_that_was(server: Structured) -> None:
    server.apply()
    other = server.folder / "other/config.yaml"
    other.parent.mkdir()
    other.write_text(TWO)
    if isinstance(server.machine, Machine):
        server.machine.args = server.machine.args.replace(str(server.file), str(other))
    else:
        mounted(server.machine, other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structured._Change, "_until_accepted", lambda *_: None)  # it was not started with the other yet
        structured.apply(server.layout, authorizer(), lambda: None, server.patience)
    assert (server.text, server.left) == (TWO, {"other"})
    assert "kubernetes-keystone" in other.read_text()
    structured.remove(server.layout)
    assert other.read_text() == TWO


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_nothing_is_added_to_a_server_that_does_not_say_what_it_reads(server: Structured) -> None:
    apiserver.apply(server.layout, server.machine.desired(), lambda: None, print, server.patience)
    with pytest.MonkeyPatch.context() as patch:

        def silent(_: object) -> None:
            raise structured.Unverified("the API server's /metrics says 403")

        patch.setattr(structured._Reloads, "read", silent)
        with pytest.raises(apiserver.NotReady, match="/metrics says 403"):
            server.apply()
    assert (server.text, server.left) == (TWO, set())


def test_a_file_that_a_pod_mounts_alone_would_never_change_for_it(tmp_path: Path, tls: tuple[bytes, bytes]) -> None:
    pod = pods.Machine(tmp_path, tls)
    file = pod.root / "etc/authorization/config.yaml"
    file.parent.mkdir()
    file.write_text(TWO)
    mounted(pod, file, alone=True)
    with pytest.raises(Conflict, match=r"mounts .* alone.*: mount its folder"):
        apiserver.check(pod.layout, authorization=True)
    mounted(pod, file)
    apiserver.check(pod.layout, authorization=True)


# ---- where only the authorizer is missing


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_with_no_flag_of_ours_nothing_is_ever_restarted(server: Structured) -> None:
    machine, before = server.machine, server.machine.snapshot()
    assert isinstance(machine, Machine)
    desired = apiserver.Desired((), {}, authorizer())
    assert not apiserver.apply(server.layout, desired, lambda: None, print, QUICK)
    assert server.in_force()
    assert apiserver.state(server.layout).kind is Kind.IN_FORCE
    ours = server.text
    machine.systemd.systemctl(["restart", machine.layout.service])
    machine.wait_for("the server", lambda: machine.systemd.state == "active")
    assert server.text == ours
    assert server.starts() == 1
    assert not apiserver.apply(server.layout, desired, lambda: None, print, QUICK)
    assert not server.remove()
    after = server.machine.snapshot()
    for folder in ("opt/kubernetes-keystone", "var/lib/kubernetes-keystone"):
        before.pop(folder, None)
        after.pop(folder, None)
    before.pop(str(server.layout.config_folder.relative_to(server.machine.root)))
    assert after == before
    assert server.starts() == 1


@pytest.mark.slow
@pytest.mark.parametrize("server", ["unit"], indirect=True)
def test_with_no_flag_of_ours_a_server_that_keeps_ending_loses_the_authorizer(server: Structured) -> None:
    machine, desired = server.machine, apiserver.Desired((), {}, authorizer())
    assert isinstance(machine, Machine)
    apiserver.apply(server.layout, desired, lambda: None, print, QUICK)
    machine.behave(dislikes="kubernetes-keystone")  # after an upgrade, say
    machine.systemd.systemctl(["restart", machine.layout.service])
    machine.wait_for("the server without ours", lambda: not server.ours and machine.systemd.state == "active")
    assert server.text == TWO
    with pytest.raises(apiserver.ApplyFailed, match="kept ending soon"):
        apiserver.apply(server.layout, desired, lambda: None, print, QUICK)


# ---- a charm that is killed


class Killed(BaseException):
    """Passes every handler, as a kill does."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Before the effect of this number on the machine, the charm is killed."""
    count = [0]

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == step:
                raise Killed
            return function(*args, **kwargs)

        return call

    for module, name in (
        (files, "write"),
        (files, "remove"),
        (structured, "_run"),
        (structured._Change, "_until_accepted"),
        (structured, "_until_reviewed"),
        (structured.verify, "verify"),
        (script, "run"),
        (systemd, "restart"),
        (lease.Turn, "_send"),
        (wiring, "verify"),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))


@pytest.mark.slow
@pytest.mark.parametrize("then", ["a start", "the next hook"])
def test_a_charm_killed_at_any_step_leaves_nothing_unverified_for_a_start(
    server: Structured, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    step, finished = FIRST_STEP, False
    apiserver.apply(server.layout, server.machine.desired(), lambda: None, print, server.patience)
    while not finished:
        step += STRIDE
        before = server.text
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                server.apply(f"certificate {step}" if random.random() < 0.5 else "kubeconfig")
                finished = True
            except Killed:
                pass
        if then == "a start":
            server.look()
            record = structured._Record.read(server.layout)
            assert server.ours == (record is not None and record.state == "confirmed"), f"killed at step {step}"
            assert server.text in (TWO, before) or finished
        server.apply("kubeconfig")
        assert server.in_force(), f"killed at step {step}"
        assert len(server.left) == 1, f"killed at step {step}"
        if random.random() < 0.5:
            structured.remove(server.layout)
            assert (server.text, server.left) == (TWO, set()), f"killed at step {step}"
    server.remove()
    assert (server.text, server.left) == (TWO, set())
    assert step > 8


@pytest.mark.slow
def test_a_charm_killed_at_any_step_of_a_trial_that_fails_leaves_nothing(
    server: Structured, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, finished = FIRST_STEP, False
    apiserver.apply(server.layout, server.machine.desired(), lambda: None, print, server.patience)
    server.machine.behave(dislikes="matchConditions")
    while not finished:
        step += STRIDE
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                server.fails(f"certificate {step}")
                finished = True
            except Killed:
                pass
        server.look()
        assert (server.text, server.left - {".config.yaml.kubernetes-keystone"}) == (TWO, set()), f"step {step}"
        server.fails(f"certificate {step}")
        assert (server.text, server.left) == (TWO, set()), f"killed at step {step}"
    assert step > 8


@pytest.mark.slow
def test_a_charm_killed_at_any_step_of_taking_out_is_done_by_the_next_one(
    server: Structured, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, finished = 0, False
    server.apply()
    while not finished:
        step += 1
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                structured.remove(server.layout)
                finished = True
            except Killed:
                pass
        server.look()  # a start in between finds nothing that it would be lost to
        structured.remove(server.layout)
        assert (server.text, server.left) == (TWO, set()), f"killed at step {step}"
        server.apply()
    assert step > 2
    # Whatever comes after it in a removal, ours is out by then.
    with monkeypatch.context() as patch:
        patch.setattr(wanted, "forget", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            server.remove()
    assert (server.text, server.left) == (TWO, set())
    server.remove()
    assert apiserver.wired(server.place) is None
