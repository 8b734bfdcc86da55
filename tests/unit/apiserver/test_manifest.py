"""Lines of ours in a manifest: put in where they belong, known again, taken out to the byte."""

from __future__ import annotations

import random
from pathlib import Path, PurePosixPath

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apiserver import Conflict, Desired, Flag, wanted
from apiserver.manifest import Manifest
from testbed.owners import kubeadm
from tests.unit.apiserver.pods import Machine
from tests.unit.apiserver.support import STRIDE, shells

EXAMPLES = 200 if STRIDE == 1 else 20
GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path("/etc/kubernetes/kubernetes-keystone")
OURS = (
    Flag("authentication-token-webhook-config-file", f"{FOLDER}/authentication.kubeconfig"),
    Flag("authentication-token-webhook-version", "v1"),
    Flag("authorization-mode", "Webhook"),
    Flag("authorization-webhook-config-file", f"{FOLDER}/authorization.kubeconfig"),
)
FLAGS = {
    "advertise-address": "10.5.0.11",
    "allow-privileged": "true",
    "authorization-mode": "Node,RBAC",
    "client-ca-file": "/etc/kubernetes/pki/ca.crt",
    "etcd-servers": "https://127.0.0.1:2379",
    "secure-port": "6443",
    "service-cluster-ip-range": "10.96.0.0/12",
    "tls-private-key-file": "/etc/kubernetes/pki/apiserver.key",
}
MOUNTS = {
    "ca-certs": ("/etc/ssl/certs", "/etc/ssl/certs"),
    "k8s-certs": ("/etc/kubernetes/pki", "/etc/kubernetes/pki"),
}
SMALL = """\
apiVersion: v1
kind: Pod
metadata: {name: kube-apiserver}
spec:
  hostNetwork: true
  containers:
  - name: kube-apiserver
    command:
    - kube-apiserver
    - --authorization-mode=Node,RBAC
    - --secure-port=6443
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """For its script."""
    return Machine(tmp_path_factory.mktemp("machine"), (b"", b""))


def manifest(text: str) -> Manifest:
    return Manifest.parse(Path("kube-apiserver.yaml"), text.encode())


def edited(text: str, flags: tuple[Flag, ...] = OURS) -> str:
    return manifest(text).with_flags(flags, FOLDER)


@pytest.mark.parametrize("version", ["v1.29.0", "v1.31.4", "v1.34.1", "v1.36.3"])
def test_kubeadms_manifests_with_ours_and_back(machine: Machine, version: str) -> None:
    text = kubeadm(version, "10.5.0.11", FLAGS, MOUNTS)
    minor = version.rpartition(".")[0]
    assert text == (GOLDEN / f"static-pod-{minor}").read_text()
    assert edited(text) == (GOLDEN / f"static-pod-{minor}-ours").read_text()
    assert machine.script("others", given=edited(text)) == text


def test_the_modes_are_one_flag_with_ours_at_its_end() -> None:
    flags = manifest(edited(SMALL)).args
    assert flags.all("authorization-mode") == ("Node,RBAC,Webhook",)
    in_two_words = SMALL.replace("--authorization-mode=Node,RBAC", "--authorization_mode\n    - 'Node,RBAC' # both")
    assert manifest(edited(in_two_words)).args.all("authorization-mode") == ("Node,RBAC,Webhook",)


def test_flags_in_args_are_as_good_as_in_command() -> None:
    text = SMALL.replace("    - kube-apiserver\n", "    - kube-apiserver\n    args:\n")
    words = yaml.safe_load(edited(text))["spec"]["containers"][0]
    assert words["command"] == ["kube-apiserver"]
    assert words["args"][-1] == f"--authorization-webhook-config-file={FOLDER}/authorization.kubeconfig"
    assert words["args"][0] == "--authorization-mode=Node,RBAC,Webhook"


def test_of_several_containers_the_one_with_the_name_is_meant(machine: Machine) -> None:
    text = SMALL.replace("  - name: kube-apiserver\n", "  - name: kms\n    image: kms:1\n  - name: kube-apiserver\n")
    assert machine.script("others", given=edited(text)) == text
    assert "command" not in yaml.safe_load(edited(text))["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kind: Deployment\n", "not a Pod"),
        ("kind: Pod\nspec: {}\n", "no containers"),
        ("a: [\n", "not one YAML document: .* in line 2"),
        (SMALL + "---\n" + SMALL, "not one YAML document"),
        (SMALL.replace("\n", "\r\n"), "Windows line ends"),
        ("\ufeff" + SMALL, "byte order mark"),
        (SMALL.replace("name: kube-apiserver}", "name: &n kube-apiserver}"), "line 3 has an anchor"),
        (SMALL.replace("    - kube-apiserver\n", "    - sh\n    - -c\n"), "but a shell's"),
        (SMALL.replace("    - kube-apiserver\n", "    - hyperkube\n"), "but another one"),
        (
            SMALL.replace("    command:\n", "").replace("    - ", "    #"),
            "neither `command` nor `args`",
        ),
        (
            SMALL.replace("  - name: kube-apiserver\n", "  - name: a\n  - name: b\n"),
            "none or several of its 2 containers",
        ),
        (SMALL.replace("--secure-port=6443", ">-\n      --secure-port=6443"), "line 11 is longer than its line"),
        (SMALL.replace("--secure-port=6443", '"--secure-port=\\\n      6443"'), "line 11 is longer than its line"),
        (SMALL.rstrip("\n"), "last line does not end"),
        (SMALL + "    volumeMounts: []\n", "`volumeMounts` is not a list"),
        (SMALL + "    volumeMounts: [{name: a, mountPath: /a}]\n", "`volumeMounts` is not a list"),
        (SMALL + "    name: kube-apiserver\n", "an entry twice"),
        (yaml.safe_dump(yaml.safe_load(SMALL), default_flow_style=True), "braces"),
        (SMALL.replace("    - --secure", "    - --authorization-mode=RBAC\n    - --secure"), "given twice"),
        (
            SMALL + "  volumes:\n  - name: kubernetes-keystone\n    emptyDir: {}\n",
            "another volume is called kubernetes-keystone",
        ),
    ],
)
def test_what_cannot_be_edited_safely_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(Conflict, match=f"cannot be edited safely: .*{why}.*nothing was changed"):
        edited(text)


def test_what_others_change_beside_our_lines_stays(machine: Machine) -> None:
    text = edited(SMALL)
    changed = text.replace("--secure-port=6443", "--secure-port=7443 # moved").replace(
        "hostNetwork", "#\n  hostNetwork"
    )
    expected = SMALL.replace("--secure-port=6443", "--secure-port=7443 # moved").replace(
        "hostNetwork", "#\n  hostNetwork"
    )
    assert machine.script("others", given=changed) == expected


def test_a_comment_of_others_that_reads_like_ours_stays(machine: Machine) -> None:
    text = SMALL.replace("    - --secure", "    # kubernetes-keystone\n    - --secure")
    assert machine.script("others", given=text) == text
    assert machine.script("others", given=edited(text)) == text


def test_a_mode_that_others_add_to_the_line_that_we_changed_stays(machine: Machine) -> None:
    text = edited(SMALL).replace("Node,RBAC,Webhook", "Node,RBAC,Webhook,ABAC")
    assert machine.script("others", given=text) == SMALL.replace("Node,RBAC", "Node,RBAC,ABAC")


def test_without_the_comment_above_the_modes_are_still_there(machine: Machine) -> None:
    lines = edited(SMALL).split("\n")
    text = "\n".join(line for line in lines if " was:" not in line)
    assert machine.script("others", given=text) == SMALL


def test_a_tool_that_takes_the_comments_away_leaves_no_flag_of_ours_behind(machine: Machine) -> None:
    folder = machine.layout.config_folder
    ours = tuple(Flag(flag.name, flag.value.replace(str(FOLDER), str(folder))) for flag in OURS)
    trial = wanted.Wanted.trial(machine.layout, Desired(ours, {}))
    wanted.write(machine.place, trial)
    try:
        text = manifest(SMALL).with_flags(ours, folder)
        dumped = yaml.safe_dump(yaml.safe_load(text), width=1000)
        flags = manifest(machine.script("others", given=dumped)).args
        assert flags == manifest(SMALL).args
        again = manifest(machine.script("others", given=dumped)).with_flags(ours, folder)
        assert len(yaml.safe_load(again)["spec"]["volumes"]) == 1
    finally:
        wanted.forget(machine.place)


@pytest.mark.parametrize("shell", shells())
def test_every_shell_takes_the_same_out(machine: Machine, shell: str) -> None:
    text = kubeadm("v1.36.3", "10.5.0.11", FLAGS, MOUNTS)
    assert machine.script("others", given=edited(text), shell=shell) == text


def test_a_file_is_found_through_the_volume_that_is_mounted_deepest() -> None:
    mounts = {"a": ("/srv/a", "/etc"), "b": ("/srv/b", "/etc/deep"), "c": ("/srv/c", "/other")}
    found = manifest(kubeadm("v1.36.3", "10.5.0.11", FLAGS, mounts))
    assert found.on_host(PurePosixPath("/etc/x/y")) == Path("/srv/a/x/y")
    assert found.on_host(PurePosixPath("/etc/deep/y")) == Path("/srv/b/y")
    assert found.on_host(PurePosixPath("/elsewhere")) is None


def test_the_user_is_the_containers_else_the_pods_else_root() -> None:
    assert manifest(SMALL).owner == (0, 0)
    pods = SMALL.replace("  hostNetwork", "  securityContext:\n    runAsUser: 101\n    runAsGroup: 102\n  hostNetwork")
    assert manifest(pods).owner == (101, 102)
    containers = pods + "    securityContext:\n      runAsUser: 201\n"
    assert manifest(containers).owner == (201, 102)


@st.composite
def manifests(draw: st.DrawFn) -> str:
    """Manifests as people write them: any order, indentation, quotes and comments."""
    word = st.text("abcxyz0189-_.,:/=#@% ", min_size=1, max_size=12).map(str.strip).filter(bool)
    quote = st.sampled_from(["{}", "'{}'", '"{}"'])
    comment = st.sampled_from(["", " # a note", "   #", " # kubernetes: keystone"])
    deeper = draw(st.sampled_from(["", "  ", "    "]))
    step = draw(st.sampled_from(["  ", "    "]))
    gap = st.sampled_from(["", "", "", "\n", "# between\n", "      # far in\n"])
    flags = [
        f"--{draw(st.sampled_from(['a', 'b-c', 'feature-gates']))}={draw(word)}" for _ in range(draw(st.integers(0, 4)))
    ]
    flags.insert(draw(st.integers(0, len(flags))), "--authorization-mode=Node,RBAC")
    items = ["kube-apiserver", *flags]
    inner = f"{step}{deeper}  "
    command = f"{inner}command:{draw(comment)}\n" + "".join(
        f"{draw(gap)}{inner}{deeper}- {draw(quote).format(item)}{draw(comment)}\n" for item in items
    )
    parts = [command, f"{inner}name: kube-apiserver{draw(comment)}\n"]
    if draw(st.booleans()):
        parts.append(f"{inner}volumeMounts:\n{inner}{deeper}- mountPath: /a{draw(comment)}\n{inner}{deeper}  name: a\n")
    if draw(st.booleans()):
        parts.append(f"{inner}env:\n{inner}- name: X\n{inner}  value: |\n{inner}    # text\n{inner}    - --x=y\n")
    draw(st.randoms()).shuffle(parts)
    body = "".join(parts)
    containers = f"{step}containers:{draw(comment)}\n{step}{deeper}- {body[len(inner) :]}"
    spec = [containers, f"{step}hostNetwork: true\n"]
    if draw(st.booleans()):
        spec.append(f"{step}volumes:\n{draw(gap)}{step}{deeper}- name: a\n{step}{deeper}  hostPath: {{path: /a}}\n")
    draw(st.randoms()).shuffle(spec)
    top = ["apiVersion: v1\n", "kind: Pod\n", f"spec:{draw(comment)}\n" + "".join(spec)]
    draw(st.randoms()).shuffle(top)
    text = draw(gap) + "".join(top)
    return text if draw(st.booleans()) else text.rstrip("\n")


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(text=manifests(), seed=st.integers(0, 1000))
def test_whatever_is_accepted_comes_back_to_the_byte(machine: Machine, text: str, seed: int) -> None:
    try:
        ours = edited(text)
    except Conflict:
        return
    assert machine.script("others", given=ours) == text
    # And where others add lines of their own afterwards, these are all that is left.
    lines = ours.split("\n")
    kept = [n for n, line in enumerate(lines) if "# kubernetes-keystone" not in line]
    at = random.Random(seed).choice(kept)
    after = "\n".join([*lines[:at], "# somebody's", *lines[at:]])
    back = machine.script("others", given=after)
    assert [line for line in back.split("\n") if line != "# somebody's"] == text.split("\n")
    assert back.count("# somebody's") == 1


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=manifests())
def test_most_of_what_people_write_is_accepted(text: str) -> None:
    try:
        edited(text)
    except Conflict as refused:
        assert any(why in str(refused) for why in ("is not", "last line", "no place", "longer")), refused  # noqa: PT017
