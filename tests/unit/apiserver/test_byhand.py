"""Flags that somebody sets by hand: what is found missing, that it is noticed when it is done, the commands."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import flags
from apiserver import Flag, Hand, Place, byhand, layouts, process, structured
from apiserver.byhand import Endpoint
from apiserver.pod import Pod
from apiserver.process import Process
from apiserver.static_pod import StaticPod
from config import CharmConfig
from tests.unit.apiserver import pods
from tests.unit.apiserver.support import Machine, Tree, certificate

URL = "https://127.0.0.1:8443/webhook"
TOKENS = "--authentication-token-webhook-config-file"
ACCESS = "--authorization-webhook-config-file"


@pytest.fixture(scope="session")
def endpoint(tls: tuple[bytes, bytes]) -> Endpoint:
    return Endpoint(URL, tls[0], certificate()[0])


def kubeconfig(endpoint: Endpoint, **changes: Any) -> str:
    """Give the kubeconfig that leads to the endpoint, but for the changes; None takes something out."""
    told = {"server": endpoint.url, "ca": endpoint.ca, "client": endpoint.client, **changes}
    cluster = {"server": told["server"]}
    if told["ca"]:
        cluster["certificate-authority-data"] = base64.b64encode(told["ca"]).decode()
    user = {"client-certificate-data": base64.b64encode(told["client"]).decode()} if told["client"] else {}
    return yaml.safe_dump(
        {
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
    )


def written(path: Path, seconds: float) -> None:
    """Let a file have been written so many seconds from now."""
    at = time.time() + seconds
    os.utime(path, (at, at))


def hand(place: Place, endpoint: Endpoint, **options: Any) -> tuple[tuple[Any, Hand], ...]:
    config = CharmConfig(keystone_url="https://keystone.example", policy="[]", **options)
    make = flags.by_hand(config, "principal", place.root / "etc/kubernetes-keystone/manual.kubeconfig", "open\n")
    return byhand.hands(place, make)


# ---- any API server's process


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Start a program that is called kube-apiserver with these flags, the only one that is seen."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, executable: Path = Path(sys.executable)) -> None:
        program = "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"
        command = ["/usr/bin/kube-apiserver", "-SIc", program, *words]
        pipe = subprocess.PIPE
        one = subprocess.Popen(command, executable=executable, cwd=tmp_path, stdin=pipe, stdout=pipe)
        started.append(one)
        assert one.stdout
        one.stdout.read(1)  # its command line is its own now

    every = process.servers
    monkeypatch.setattr(process, "servers", lambda: (o for o in every() if o.pid in {s.pid for s in started}))
    yield start
    for one in started:
        one.communicate()


def missing(folder: Path, endpoint: Endpoint, authorization: bool = False) -> tuple[str, ...]:
    (found,) = byhand.look(Place(folder / "machine"), endpoint, authorization)
    assert (found.layout, found.runs, found.behind) == (None, True, False)
    return found.missing


def test_where_no_api_server_runs_there_is_nothing_to_say(tmp_path: Path, endpoint: Endpoint, running: Any) -> None:
    assert byhand.look(Place(tmp_path), endpoint, authorization=True) == ()


def test_an_api_server_of_another_kind_that_asks_us_about_both_is_noticed(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None]
) -> None:
    (tmp_path / "webhook.yaml").write_text(kubeconfig(endpoint))
    running(f"{TOKENS}=webhook.yaml", "--authorization-mode", "RBAC,Webhook", f"{ACCESS}={tmp_path}/webhook.yaml")
    assert missing(tmp_path, endpoint, authorization=True) == ()


@pytest.mark.parametrize(
    "content",
    [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.write_text("[" * 600)],
    ids=["pipe", "device", "brackets"],
)
def test_whoever_calls_a_program_kube_apiserver_has_no_hook_read_without_end(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None], content: Callable[[Path], Any]
) -> None:
    content(tmp_path / "file")
    running(f"{TOKENS}=file", f"--{structured.FLAG}=file")
    assert missing(tmp_path, endpoint, authorization=True) == (
        f"{TOKENS}=file cannot be read, or is no kubeconfig",
        f"--{structured.FLAG}=file has no webhook that asks us",
    )


def test_a_program_may_have_any_name_besides(tmp_path: Path, endpoint: Endpoint, running: Callable[..., None]) -> None:
    (odd := Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff) \n"))).symlink_to(sys.executable)
    running(executable=odd)
    assert missing(tmp_path, endpoint) == (f"{TOKENS} is not set",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"server": "https://127.0.0.1:5000/v1"}, "leads to https://127.0.0.1:5000/v1, which does not ask us"),
        ({"server": "https://me:secret@10.0.0.1/v1"}, "leads to https://10.0.0.1/v1, which does not ask us"),
        ({"ca": None}, "does not name the CA by which our endpoint is known (certificate-authority-data)"),
        ({"ca": b"-----BEGIN CERTIFICATE-----\nanother\n"}, "does not name the CA by which our endpoint is known"),
        ({"client": b"an older one"}, "shows a client certificate that is not the present one: copy the kubeconfig"),
    ],
)
def test_a_kubeconfig_that_is_half_right_is_named_with_what_is_wrong(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None], changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "webhook.yaml"
    path.write_text(kubeconfig(endpoint, **changes))
    running(f"{TOKENS}={path}")
    (told,) = missing(tmp_path, endpoint)
    assert str(path) in told
    assert said in told


@pytest.mark.parametrize(
    "content", [None, "clusters: [", "a: b", "[]", "clusters: []", '{"clusters": [{"name": "c"}]}']
)
def test_a_kubeconfig_that_cannot_be_read_is_named(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "webhook.yaml").write_text(content)
    running(f"{TOKENS}=webhook.yaml")
    assert missing(tmp_path, endpoint) == (f"{TOKENS}=webhook.yaml cannot be read, or is no kubeconfig",)


def test_a_certificate_in_a_file_beside_is_as_good_and_so_is_localhost(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None]
) -> None:
    text = kubeconfig(endpoint, ca=None, client=None, server=URL.replace("127.0.0.1", "localhost"))
    (tmp_path / "webhook.yaml").write_text(
        text.replace("cluster:\n", "cluster:\n    certificate-authority: ca.pem\n", 1)
    )
    (tmp_path / "ca.pem").write_bytes(b"others first\n" + endpoint.ca.replace(b"\n", b"\r\n"))
    running(f"{TOKENS}=webhook.yaml")
    assert missing(tmp_path, endpoint) == ()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["--authentication-token-webhook-config-file is not set"]),
        (["good", "--authentication-token-webhook-version=v1beta1"], []),
        (["good", "--authentication-token-webhook-version=v2"], ["version=v2 is neither v1 nor v1beta1"]),
    ],
)
def test_what_is_missing_about_tokens_is_said(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None], words: list[str], said: list[str]
) -> None:
    (tmp_path / "webhook.yaml").write_text(kubeconfig(endpoint))
    running(*(f"{TOKENS}=webhook.yaml" if word == "good" else word for word in words))
    told = missing(tmp_path, endpoint)
    assert len(told) == len(said)
    assert all(part in one for part, one in zip(said, told, strict=True))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--authorization-mode=Node,RBAC"], ["is not set", "--authorization-mode=Node,RBAC has no Webhook"]),
        ([f"{ACCESS}=webhook.yaml"], ["--authorization-mode is not set, so everything is allowed"]),
        ([f"{ACCESS}=webhook.yaml", "--authorization-mode=RBAC"], ["--authorization-mode=RBAC has no Webhook"]),
        (
            [f"{ACCESS}=webhook.yaml", "--authorization-mode=AlwaysAllow,Webhook"],
            ["AlwaysAllow allows everything before we are asked"],
        ),
        ([f"{ACCESS}=other.yaml", "--authorization-mode=Webhook"], ["leads to https://other, which does not ask us"]),
        (["--authorization-config=/a.yaml"], ["--authorization-config=/a.yaml has no webhook that asks us"]),
        ([f"{ACCESS}=webhook.yaml", "--authorization-mode=RBAC,Webhook"], []),
    ],
)
def test_what_is_missing_about_access_is_said_where_there_is_a_policy(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None], words: list[str], said: list[str]
) -> None:
    (tmp_path / "webhook.yaml").write_text(kubeconfig(endpoint))
    (tmp_path / "other.yaml").write_text(kubeconfig(endpoint, server="https://other"))
    running(f"{TOKENS}=webhook.yaml", *words)
    told = missing(tmp_path, endpoint, authorization=True)
    assert len(told) == len(said), told
    assert all(part in one for part, one in zip(said, told, strict=True))
    assert missing(tmp_path, endpoint) == ()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"type": "Node"}, {"type": "Webhook", "webhook": "webhook.yaml"}], []),
        ([{"type": "Webhook", "webhook": "other.yaml"}], ["authorization.yaml has no webhook that asks us"]),
        ([{"type": "Webhook", "webhook": "strange.yaml"}], ["strange.yaml does not name the CA"]),
        (None, ["authorization.yaml has no webhook that asks us"]),
    ],
)
def test_where_authorization_is_in_a_file_ours_is_looked_for_in_there(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None], entries: list[dict] | None, said: list[str]
) -> None:
    (tmp_path / "webhook.yaml").write_text(kubeconfig(endpoint))
    (tmp_path / "other.yaml").write_text(kubeconfig(endpoint, server="https://other"))
    (tmp_path / "strange.yaml").write_text(kubeconfig(endpoint, ca=None))
    for one in entries or ():
        if "webhook" in one:
            one["webhook"] = {"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": one["webhook"]}}
    (tmp_path / "authorization.yaml").write_text(yaml.safe_dump({"authorizers": entries}))
    running(f"{TOKENS}=webhook.yaml", "--authorization-config=authorization.yaml")
    told = missing(tmp_path, endpoint, authorization=True)
    assert len(told) == len(said), told
    assert all(part in one for part, one in zip(said, told, strict=True))


def test_a_file_that_is_newer_than_the_process_counts_from_its_next_start(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None]
) -> None:
    path = tmp_path / "webhook.yaml"
    path.write_text(kubeconfig(endpoint))
    running(f"{TOKENS}={path}")
    assert missing(tmp_path, endpoint) == ()
    written(path, 5)
    assert missing(tmp_path, endpoint) == (f"{path} was changed after the API server's start: restart it",)


def test_what_a_server_knows_of_us_is_what_the_files_said_that_it_has_read(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None]
) -> None:
    place = Place(tmp_path / "machine")
    assert byhand.knows(place, URL) == ()
    path, other, file = (tmp_path / name for name in ("webhook.yaml", "other.yaml", "file.yaml"))
    path.write_text(kubeconfig(endpoint))
    other.write_text(kubeconfig(endpoint, server="https://other"))
    webhook = {"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": str(path)}}
    file.write_text(yaml.safe_dump({"authorizers": [{"type": "Webhook", "webhook": webhook}]}))
    known = byhand.Knows(endpoint.ca, endpoint.client)

    running(f"{TOKENS}={path}", f"{ACCESS}={path}")
    assert byhand.knows(place, URL) == (known,)
    written(path, 5)
    assert byhand.knows(place, URL) == (byhand.Knows(),)
    running(f"{TOKENS}={other}")
    assert byhand.knows(place, URL) == (byhand.Knows(),)
    running(f"--authorization-config={file}")  # which is read again
    assert sorted(byhand.knows(place, URL), key=str) == sorted([byhand.Knows(), known], key=str)


def test_a_variable_in_a_flag_is_the_processs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAP_DATA", str(tmp_path))
    (tmp_path / "here").write_text("x")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin
        assert cat.stdout
        cat.stdin.write(b"it runs\n")
        cat.stdin.flush()
        cat.stdout.readline()  # its environment is its own now
        found = Process.of(cat.pid, process.from_words([]))
        assert found.path("${SNAP_DATA}/here").read_text() == "x"


# ---- the layouts


def copy(machine: Machine | pods.Machine, text: str) -> None:
    """Put the kubeconfig where the commands have it put."""
    path = machine.layout.config_folder.with_name("kubernetes-keystone-manual") / "webhook.kubeconfig"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    written(path, -60)


@pytest.mark.slow  # a server is restarted
def test_each_layouts_flags_are_noticed_as_soon_as_they_are_in_force(machine: Machine, endpoint: Endpoint) -> None:
    ((layout, wanted),) = hand(machine.place, endpoint)

    def look() -> tuple[str, ...]:
        (found,) = byhand.look(machine.place, endpoint, authorization=True)
        assert (found.layout, found.runs) == (layout, True)
        return found.missing

    first = look()
    assert "leads to https://127.0.0.1:5000/v1, which does not ask us" in first[0]
    assert byhand.keep_displaced(machine.place, endpoint)
    displaced = machine.chained()
    assert [kind for kind, *_ in displaced] == ["chained", "version", "ttl", "kubeconfig", "file"]

    copy(machine, kubeconfig(endpoint, client=None))
    machine.args = machine.args.rstrip("\n") + "\n" + "\n".join(wanted.lines) + "\n"
    written(machine.args_file, 5)
    machine.systemd.systemctl(["restart", machine.layout.service])
    written(machine.args_file, -5)
    assert "shows no client certificate, without which the cluster's own tokens would be refused" in look()[0]
    copy(machine, kubeconfig(endpoint))
    assert look() == ()
    assert byhand.keep_displaced(machine.place, endpoint), "what ours has displaced is not to be found any more"
    assert machine.chained() == displaced
    assert layouts.wired(machine.place) is None or machine.layout.config_folder.exists()


@pytest.mark.slow
def test_flags_that_wait_for_a_restart_are_told_from_flags_that_are_missing(
    machine: Machine, endpoint: Endpoint
) -> None:
    ((_, wanted),) = hand(machine.place, endpoint)
    copy(machine, kubeconfig(endpoint))
    machine.args = machine.args.rstrip("\n") + "\n" + "\n".join(wanted.lines) + "\n"
    written(machine.args_file, 5)
    (found,) = byhand.look(machine.place, endpoint, authorization=True)
    if machine.layout.flags_shown:
        assert found.missing == ("its flags are set, but it has not been restarted since",)
    else:
        assert found.missing == ("its flags were changed after its start: restart it",)


def test_an_api_server_that_does_not_run_is_no_fault_of_the_flags(
    charmed: Tree, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apiserver.systemd.show", lambda *_: "0")
    (found,) = byhand.look(charmed.place, endpoint, authorization=True)
    assert (found.name, found.runs) == ("charmed", False)


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["charmed"], indirect=True)
def test_charmed_kubernetes_own_webhook_may_ask_us_and_then_only_access_is_looked_at(
    machine: Machine, endpoint: Endpoint
) -> None:
    webhook = machine.root / "root/cdk/auth-webhook/auth-webhook.py"
    webhook.write_text(f"CUSTOM_AUTHN_ENDPOINT = '{URL}'\n")
    (found,) = byhand.look(machine.place, endpoint, authorization=False)
    assert (found.missing, found.behind) == ((), True)
    (found,) = byhand.look(machine.place, endpoint, authorization=True)
    assert [one.partition(" ")[0] for one in found.missing] == [ACCESS, "--authorization-mode=Node,RBAC"]
    assert not byhand.keep_displaced(machine.place, endpoint), "no cluster token passes us"


@pytest.mark.slow
def test_a_static_pod_is_told_from_other_api_servers_that_are_seen_from_the_machine(
    tmp_path: Path, tls: tuple[bytes, bytes], endpoint: Endpoint, running: Callable[..., None]
) -> None:
    machine = pods.Machine(tmp_path, tls)
    copy(machine, kubeconfig(endpoint))
    ((layout, wanted),) = hand(machine.place, endpoint)
    running("--advertise-address=172.18.0.2", "--secure-port=6443")  # such as kind's
    assert Pod(StaticPod(machine.place)).running() is None
    running("--advertise-address=127.0.0.1", f"--secure-port={machine.port}", "--authorization-mode=Node,RBAC")
    (found,) = byhand.look(machine.place, endpoint, authorization=True)
    assert (found.layout, len(found.missing)) == (layout, 3)
    running("--advertise-address=127.0.0.1", "--secure-port=1", *wanted.lines)
    machine.upgrade(secure_port="1", **{flag.name: flag.value for flag in wanted.flags})
    (found,) = byhand.look(machine.place, endpoint, authorization=True)
    assert found.missing == ()


def test_a_static_pod_whose_manifest_cannot_be_read_is_known_by_its_process(
    tmp_path: Path, tls: tuple[bytes, bytes], endpoint: Endpoint, running: Callable[..., None]
) -> None:
    machine = pods.Machine(tmp_path, tls)
    machine.text = machine.text.replace("    - kube-apiserver\n", "    - sh\n    - -c\n    - exec kube-apiserver\n", 1)
    copy(machine, kubeconfig(endpoint))
    ((_, wanted),) = hand(machine.place, endpoint)
    assert "a shell's" in byhand.commands(hand(machine.place, endpoint))
    running(*wanted.lines)
    (found,) = byhand.look(machine.place, endpoint, authorization=True)
    assert found.missing == ()
    assert not byhand.keep_displaced(machine.place, endpoint)


# ---- the commands


def test_values_are_whole_and_keep_the_modes_that_are_set(tree: Tree, endpoint: Endpoint) -> None:
    ((_, found),) = hand(tree.place, endpoint)
    modes = {"microk8s": "RBAC,Node,Webhook"}.get(tree.kind, "Node,RBAC,Webhook")
    assert Flag("authorization-mode", modes) in found.flags
    assert {flag.value for flag in found.flags if flag.name.endswith("config-file")} == {str(found.copy)}
    assert found.copy.parent == tree.layout.config_folder.with_name("kubernetes-keystone-manual")


@pytest.mark.parametrize(
    ("modes", "whole"),
    [
        ((), "Node,RBAC,Webhook"),
        (("AlwaysAllow",), "Node,RBAC,Webhook"),
        (("Node", "AlwaysAllow"), "Node,Webhook"),
        (("Webhook", "RBAC"), "RBAC,Webhook"),
        (("ABAC", "RBAC"), "ABAC,RBAC,Webhook"),
    ],
)
def test_a_mode_before_which_nobody_is_asked_is_not_kept(modes: tuple[str, ...], whole: str, tmp_path: Path) -> None:
    config = CharmConfig(keystone_url="https://keystone.example", policy="[]")
    made = flags.by_hand(config, "k8s", tmp_path, "")(tmp_path / "copy", modes, False)
    assert made.value("authorization-mode") == whole


def test_where_authorization_is_in_a_file_no_flag_that_it_excludes_is_printed_but_the_entry_for_it(
    tmp_path: Path, endpoint: Endpoint, running: Callable[..., None]
) -> None:
    running("--authorization-config=/etc/kubernetes/authorization.yaml")
    told = byhand.commands(hand(Place(root=tmp_path), endpoint))
    assert "authentication-token-webhook-config-file" in told
    assert "--authorization-mode" not in told
    entry = told.partition("list authorizers there:\n")[2].replace("#   ", "")
    ((ours),) = yaml.safe_load(entry)
    copy = tmp_path / "etc/kubernetes/kubernetes-keystone-manual/webhook.kubeconfig"
    assert ours["webhook"]["connectionInfo"]["kubeConfigFile"] == str(copy)


def test_charmed_kubernetes_is_told_by_its_own_options(charmed: Tree, endpoint: Endpoint) -> None:
    assert byhand.commands(hand(charmed.place, endpoint)).splitlines() == [
        f"juju config principal authn-webhook-endpoint={URL}",
        "juju config principal authorization-mode=Node,RBAC,Webhook \\",
        "  authorization-webhook-config-file=\"$(cat <<'EOF'",
        "open",
        "EOF",
        ')"',
    ]


def test_canonical_kubernetes_is_told_by_its_own_option_and_what_is_in_it_stays(
    canonical: Tree, endpoint: Endpoint
) -> None:
    ((_, found),) = hand(canonical.place, endpoint)
    commands = byhand.commands(hand(canonical.place, endpoint)).splitlines()
    assert commands[1] == f"sudo install -D -m 0600 {found.kubeconfig} {found.copy}"
    option = "principal kube-apiserver-extra-args"
    words = " ".join(line.removeprefix("--") for line in found.lines)
    assert commands[-1] == f'juju config {option}="$(juju config {option}) {words}"'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `sudo` and `systemctl` are, for commands that are run to the letter."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sudo", 'exec "$@"'), ("systemctl", f'echo "$@" >>{tmp_path}/asked')):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def run(commands: str) -> None:
    done = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("end", ["", "\n"])
def test_microk8s_commands_put_one_line_of_each_flag_into_its_file(root: Path, endpoint: Endpoint, end: str) -> None:
    tree = Tree(root / "root", "microk8s")
    before = tree.args
    tree.args = before.rstrip("\n") + end
    ((_, found),) = hand(tree.place, endpoint)
    found.kubeconfig.parent.mkdir(exist_ok=True)
    found.kubeconfig.write_text("with a key")
    for _ in range(2):
        run(byhand.commands(hand(tree.place, endpoint)))
    names = [line.partition("=")[0] for line in tree.args.splitlines() if line.startswith("--")]
    assert len(names) == len(set(names))
    assert set(found.lines) <= set(tree.args.splitlines())
    ours = {flag.name for flag in found.flags}
    assert [line for line in tree.args.splitlines() if line and line[2:].partition("=")[0] not in ours] == [
        line for line in before.splitlines() if line and line[2:].partition("=")[0] not in ours
    ]
    assert found.copy.read_text() == "with a key"
    assert found.copy.stat().st_mode & 0o777 == 0o600
    assert f"restart {tree.layout.service}" in (root / "asked").read_text()


@pytest.mark.parametrize("version", ["v1.29.0", "v1.36.3"])
def test_a_static_pods_commands_are_a_patch_that_applies_and_has_nothing_of_ours(
    root: Path, tls: tuple[bytes, bytes], endpoint: Endpoint, version: str
) -> None:
    machine = pods.Machine(root, tls, version)
    before = yaml.safe_load(machine.text)
    ((_, found),) = hand(machine.place, endpoint)
    found.kubeconfig.parent.mkdir(exist_ok=True)
    found.kubeconfig.write_text("with a key")
    run(byhand.commands(hand(machine.place, endpoint)))
    assert "# kubernetes-keystone" not in machine.text
    after = yaml.safe_load(machine.text)
    command = after["spec"]["containers"][0]["command"]
    assert set(found.lines) <= set(command)
    assert [word for word in command if word.startswith("--authorization-mode")] == [
        "--authorization-mode=Node,RBAC,Webhook"
    ]
    mounts = after["spec"]["containers"][0]["volumeMounts"]
    assert mounts[0] == {
        "mountPath": str(found.copy.parent), "name": "kubernetes-keystone-manual", "readOnly": True,
    }  # fmt: skip
    assert after["spec"]["volumes"][0]["hostPath"]["path"] == str(found.copy.parent)
    assert mounts[1:] == before["spec"]["containers"][0]["volumeMounts"]
    assert sorted(path.name for path in machine.layout.manifest.parent.iterdir()) == ["kube-apiserver.yaml"]
    assert machine.layout.manifest.stat().st_mode & 0o777 == 0o600
    again = byhand.commands(hand(machine.place, endpoint))
    assert "@@" not in again, "what is there already is not put in a second time"


def test_a_manifest_that_cannot_be_edited_is_left_to_its_owner_with_the_reason(
    root: Path, tls: tuple[bytes, bytes], endpoint: Endpoint
) -> None:
    machine = pods.Machine(root, tls)
    machine.text = machine.text.replace("    - --authorization-mode=Node,RBAC\n", "")
    commands = byhand.commands(hand(machine.place, endpoint))
    assert "has no --authorization-mode, so everything is allowed: set one first" in commands
    assert "#   --authorization-mode=Node,RBAC,Webhook" in commands


def test_where_nothing_is_found_the_general_commands_are_given(
    tmp_path: Path, endpoint: Endpoint, running: Any
) -> None:
    ((layout, found),) = hand(Place(tmp_path), endpoint)
    assert layout is None
    commands = byhand.commands(((layout, found),))
    assert found.install in commands
    assert "#   --authorization-mode=Node,RBAC,Webhook" in commands


def test_several_kinds_on_one_machine_get_commands_each(charmed: Tree, endpoint: Endpoint) -> None:
    Tree(charmed.root, "microk8s")
    commands = byhand.commands(hand(charmed.place, endpoint))
    assert [line.split()[2] for line in commands.splitlines() if line.startswith("# if ")] == ["charmed", "microk8s"]
