"""The story that the project is for, written once: each step is a function of a `Place`, in which somebody plays Juju.

Two drivers tell it. tests/machine has the stand-in, on the machines of the test bed, where each step is one of the
tests (test_story.py, and test_highly_available.py for what needs several machines); tests/integration has a real Juju.
What only one of them can see, such as a machine's files to the byte, is tested there beside the steps. A test
(tests/unit/test_scenarios.py) sees to it that each driver tells every step, in this order.

The commands are an operator's own, so that what works here is what is typed elsewhere.
"""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from testbed import users
from testbed.keystone import Api, ApplicationCredential, Project, User
from tests.juju_output import Status, Task, status, task

CHARM = "kubernetes-keystone"
PODS = {"default/pods": ["get", "list", "watch"]}
READERS = json.dumps([{"users": {"projects": ["demo"], "roles": ["member"]}, "resource_permissions": PODS}])
WRITERS = json.dumps(
    [
        {
            "users": {"projects": ["demo"], "roles": ["member"]},
            "resource_permissions": {**PODS, "default/configmaps": ["*"]},
        }
    ]
)
BAD = "- users: {projects: [demo]}\n  resource_permissions: [oops]\n"
PATIENCE = 1800.0  # seconds until a model is at rest; a real one installs packages and waits for other charms' hooks


class Said(NamedTuple):
    """What kubectl said, errors among it."""

    code: int
    text: str


class Failed(Exception):
    """A command of juju's that ended with an error; `output` is what it printed for programs."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Kind:
    """What the steps have to know of a kind of cluster."""

    layout: str
    """As the charm's status and its option `api-server` call it."""
    service: str
    """The API server's unit of systemd."""
    args: str
    """The file that its owner writes flags to."""
    extra: str
    """The option of the control plane's charm for further flags."""
    forgets: bool
    """Whether a flag leaves the file with the option."""


CHARMED = Kind(
    layout="charmed",
    service="snap.kube-apiserver.daemon.service",
    args="/var/snap/kube-apiserver/current/args",
    extra="api-extra-args",
    forgets=True,
)
CANONICAL = Kind(
    layout="canonical",
    service="snap.k8s.kube-apiserver.service",
    args="/var/snap/k8s/common/args/kube-apiserver",
    extra="kube-apiserver-extra-args",
    forgets=False,
)


class Place(Protocol):
    """A model with a control plane and a Keystone, and whoever plays the operator in it."""

    @property
    def kind(self) -> Kind:
        """What kind of cluster it is."""
        ...

    @property
    def control_plane(self) -> str:
        """The control plane's application."""
        ...

    @property
    def charm(self) -> Path:
        """What is tested."""
        ...

    @property
    def before(self) -> str:
        """The words of `juju deploy` for what is there before it: the last release."""
        ...

    @property
    def keystone(self) -> Api:
        """The cloud's."""
        ...

    @property
    def server(self) -> str:
        """The API server's URL for users."""
        ...

    @property
    def server_ca(self) -> bytes:
        """What signs its certificate, PEM."""
        ...

    @property
    def folder(self) -> Path:
        """For files; relative paths of commands begin there."""
        ...

    def juju(self, line: str) -> str:
        """Run a command, without its `juju`, and wait until its hooks have run; gives what it prints.

        Raises:
            Failed: with what it printed nevertheless.
        """
        ...

    def kubectl(self, *arguments: str, kubeconfig: Path | None = None, server: str | None = None) -> Said:
        """Run kubectl with a kubeconfig, or as an administrator whom no webhook knows; at another server if named."""
        ...

    def settle(self) -> None:
        """Let the hooks run that a real agent runs by itself within minutes."""
        ...


@dataclass
class Story:
    """A place, and what the steps know of each other."""

    place: Place
    demo: Project
    alice: User
    credential: ApplicationCredential
    kubeconfig: Path
    flags: list[str] = field(default_factory=list)

    def alices(self, *arguments: str, server: str | None = None) -> Said:
        """Run kubectl as alice, who has nothing but an application credential."""
        return self.place.kubectl(*arguments, kubeconfig=self.kubeconfig, server=server)

    def eventually(self, *arguments: str, code: int = 0) -> str:
        """Run kubectl as alice until it ends with this code; the API server keeps verdicts for 5 s."""
        wait(lambda: self.alices(*arguments).code == code, f"kubectl {' '.join(arguments)} to end with {code}", 60)
        return self.alices(*arguments).text


def begin(place: Place) -> Story:
    """Make what there is in a cluster and a cloud before the charm is thought of."""
    demo = place.keystone.project("demo")
    alice = place.keystone.member("alice", demo)
    credential = place.keystone.application_credential(alice, demo)
    web = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}],
            "automountServiceAccountToken": False,
        },
    }
    (place.folder / "web.json").write_text(json.dumps(web))
    made = place.kubectl("apply", "-f", str(place.folder / "web.json"))
    assert made.code == 0, made.text
    return Story(place, demo, alice, credential, hand_out(place, credential))


def hand_out(place: Place, credential: ApplicationCredential) -> Path:
    """Write a user's kubeconfig that logs in with `sh` and `curl`."""
    path = place.folder / f"{secrets.token_hex(4)}.kubeconfig"
    path.touch(0o600)
    path.write_text(
        users.kubeconfig(
            credential,
            keystone_url=place.keystone.url,
            keystone_ca=place.keystone.ca,
            server=place.server,
            server_ca=place.server_ca,
        )
    )
    return path


# What the steps look at


def wait(condition: Callable[[], object], what: str, timeout: float) -> None:
    """Wait until something holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout:.0f} s for {what}"
        time.sleep(0.5)


def look(place: Place) -> Status:
    """Give the model's status."""
    return status(place.juju("status --format=json"))


def at_rest(place: Place, state: str, units: int | None = None) -> Status:
    """Wait until each unit of the charm is in this state and no agent is busy; gives the status."""

    def rests() -> bool:
        now = look(place)
        ours, theirs = now.units(CHARM), now.units(place.control_plane)
        right = all(unit.workload == state and unit.agent == "idle" for unit in ours)
        return bool(ours) and right and units in (None, len(ours)) and all(unit.agent == "idle" for unit in theirs)

    try:
        wait(rests, f"{CHARM} to be {state}", PATIENCE)
    except AssertionError as error:
        log = place.juju(f"debug-log --replay --no-tail --include {CHARM}")
        raise AssertionError(f"{error}: {look(place).units(CHARM)}\n{log[-4000:]}") from None
    return look(place)


def first(place: Place) -> str:
    """Name a unit of the charm."""
    return min(unit.name for unit in look(place).units(CHARM))


def act(place: Place, action: str, **params: str) -> Task:
    """Run an action on a unit, as it ends; an underscore in a name here is a hyphen there."""
    unit = first(place)
    words = [f"{name.replace('_', '-')}={value}" for name, value in params.items()]
    try:
        told = place.juju(shlex.join(["run", unit, action, "--format=json", *words]))
    except Failed as error:
        told = error.output
    return task(told, unit)


def on_each(place: Place, command: str) -> list[str]:
    """Run a command on every machine of the control plane; gives what it prints there."""
    told = []
    for unit in look(place).units(place.control_plane):
        done = task(place.juju(f"exec --format=json --unit {unit.name} -- {command}"), unit.name)
        told.append(str(done.results.get("stdout", "")))
    return told


def lives(place: Place) -> list[str]:
    """Which life of each API server this is."""
    return on_each(place, f"systemctl show --property=InvocationID --value {place.kind.service}")


def flags(place: Place) -> list[str]:
    """The file of flags on each machine."""
    return on_each(place, f"cat {place.kind.args}")


def user(said: Said) -> Mapping[str, Any]:
    """Read `kubectl auth whoami -o json`."""
    assert said.code == 0, said.text
    return json.loads(said.text)["status"]["userInfo"]


# The steps, in their order


def before_the_charm_a_keystone_user_is_nobody(story: Story) -> None:
    story.flags = flags(story.place)
    said = story.alices("get", "pods")
    assert said.code != 0
    assert "must be logged in" in said.text or "Unauthorized" in said.text


def two_commands_end_in_active_units(story: Story) -> None:
    """It is the last release that is deployed, so that all that comes later is on an upgraded unit."""
    place = story.place
    (place.folder / "keystone-ca.pem").write_bytes(place.keystone.ca.read_bytes())
    (place.folder / "readers.json").write_text(READERS)
    options = {"keystone-url": place.keystone.url, "keystone-ca": "@keystone-ca.pem", "policy": "@readers.json"}
    words = " ".join(f"--config {name}={value}" for name, value in options.items())
    place.juju(f"deploy {place.before} {CHARM} {words}")
    place.juju(f"integrate {place.control_plane} {CHARM}")
    machines = len(look(place).units(place.control_plane))
    told = at_rest(place, "active", machines)
    for unit in told.units(CHARM):
        assert unit.message == f"ready: {place.kind.layout}, policy 1 rules"
    assert told.applications[CHARM].version


def a_unit_that_is_added_knows_keystones_users_too(story: Story) -> None:
    place = story.place
    before = {unit.name for unit in look(place).units(place.control_plane)}
    place.juju(f"add-unit {place.control_plane}")
    now = at_rest(place, "active", len(before) + 1).units(place.control_plane)
    (added,) = [unit for unit in now if unit.name not in before]
    server = f"https://{added.address}:6443"
    said = story.alices("auth", "whoami", "-o", "json", server=server)
    assert user(said)["username"] == "keystone:alice"


def an_upgrade_from_the_last_release_restarts_no_api_server(story: Story) -> None:
    place, before = story.place, lives(story.place)
    place.juju(f"refresh {CHARM} --path {place.charm}")
    at_rest(place, "active")
    assert lives(place) == before


def a_keystone_user_has_a_name_that_nobody_can_forge(story: Story) -> None:
    alice = user(story.alices("auth", "whoami", "-o", "json"))
    assert alice["username"] == "keystone:alice"
    assert alice["uid"] == story.alice.id
    project = f"keystone:project:{story.demo.id}"
    assert {project, f"{project}:role:member", "system:authenticated"} <= set(alice["groups"])
    assert alice["extra"]["alpha.kubernetes.io/identity/project/id"] == [story.demo.id]


def the_policy_allows_what_it_says_and_nothing_else(story: Story) -> None:
    assert "pod/web\n" in story.alices("get", "pods", "--output=name").text
    for request in (["pods", "--namespace=kube-system"], ["nodes"], ["secrets"]):
        said = story.alices("get", *request)
        assert said.code != 0
        assert "Forbidden" in said.text, request
    for subresource in ("exec", "log"):
        said = story.alices("auth", "can-i", "get", "pods", f"--subresource={subresource}")
        assert said.text.strip().endswith("no")
    assert story.alices("delete", "pod", "web").code != 0


def rbac_can_bind_to_a_role_in_a_project(story: Story) -> None:
    group = f"--group=keystone:project:{story.demo.id}:role:member"
    kubectl = story.place.kubectl
    kubectl("create", "clusterrole", "node-reader", "--verb=get,list", "--resource=nodes")
    kubectl("create", "clusterrolebinding", "node-readers", "--clusterrole=node-reader", group)
    assert "node/" in story.eventually("get", "nodes", "--output=name")
    kubectl("delete", "clusterrolebinding", "node-readers")
    kubectl("delete", "clusterrole", "node-reader")


def a_namesake_of_another_domain_is_somebody_else(story: Story) -> None:
    place, keystone = story.place, story.place.keystone
    evil = keystone.domain("evil")
    project = keystone.project("demo", evil)
    namesake = keystone.member("alice", project, domain=evil)
    keystone.group("system:masters", namesake, domain=evil)
    kubeconfig = hand_out(place, keystone.application_credential(namesake, project))
    found = user(place.kubectl("auth", "whoami", "-o", "json", kubeconfig=kubeconfig))
    assert found["username"] == f"keystone:alice@{evil.id}"
    assert f"keystone:group:system%3Amasters@{evil.id}" in found["groups"]
    assert "system:masters" not in found["groups"]
    for request in (["pods"], ["nodes"]):
        assert "Forbidden" in place.kubectl("get", *request, kubeconfig=kubeconfig).text, request


def from_one_policy_to_another_nothing_restarts(story: Story) -> None:
    place = story.place
    before = lives(place), on_each(place, "systemctl show --property=InvocationID --value kubernetes-keystone.service")
    assert story.alices("get", "configmaps").code != 0
    (place.folder / "writers.json").write_text(WRITERS)
    place.juju(f"config {CHARM} policy=@writers.json")
    story.eventually("get", "configmaps")
    place.juju(f"config {CHARM} policy=@readers.json")
    story.eventually("get", "configmaps", code=1)
    at_rest(place, "active")
    after = lives(place), on_each(place, "systemctl show --property=InvocationID --value kubernetes-keystone.service")
    assert after == before


def a_bad_policy_keeps_the_old_one_in_force(story: Story) -> None:
    place = story.place
    (place.folder / "bad.yaml").write_text(BAD)
    place.juju(f"config {CHARM} policy=@bad.yaml")
    for unit in at_rest(place, "blocked").units(CHARM):
        assert unit.message.startswith("policy: ")
        assert "1" in unit.message
        log = place.juju(f"debug-log --replay --no-tail --include {CHARM}")
        assert unit.message in log, "which tells the same story"
    assert story.alices("get", "pods").code == 0
    refused = act(place, "reload-policy")
    assert refused.status == "failed"
    assert "line" in refused.message
    place.juju(f"config {CHARM} policy=@readers.json")
    at_rest(place, "active")


def actions_tell_what_is_in_force(story: Story) -> None:
    place = story.place
    reloaded = act(place, "reload-policy")
    assert reloaded.status == "completed", reloaded.message
    assert reloaded.results["rules"] == "1"
    assert len(reloaded.results["hash"]) == 64
    question = {"user": "alice", "project_name": "demo", "roles": "member", "namespace": "default"}
    allowed = act(place, "check-access", **question, verb="list", resource="pods")
    assert (allowed.results["allowed"], allowed.results["item"]) == ("true", "1")
    refused = act(place, "check-access", **question, verb="get", resource="pods/exec")
    assert refused.results["allowed"] == "false"
    assert refused.results["misses"]
    shown = act(place, "show-webhook-config")
    assert "Webhook" in shown.results["flags"]
    assert "PRIVATE KEY" not in str(shown.results)
    settings = act(place, "get-horizon-settings", flavour="curl")
    assert settings.status == "completed", settings.message
    compile(settings.results["settings"], settings.results["file"], "exec")
    assert "PRIVATE KEY" not in str(settings.results)


def operators_hand_out_a_file_that_works_once_a_credential_is_in_it(story: Story) -> None:
    place = story.place
    given = act(place, "get-kubeconfig", flavour="curl", projects="demo", namespace="default")
    assert given.status == "completed", given.message
    text = given.results["kubeconfig"].replace("          #- name", "          - name")
    for value in (story.credential.id, story.credential.secret):
        text = text.replace('          #  value: ""', f'            value: "{value}"', 1)
    path = place.folder / "handed-out"
    path.touch(0o600)
    path.write_text(text)
    assert "pod/web\n" in place.kubectl("get", "pods", "-o", "name", kubeconfig=path).text


def a_token_is_followed_through_its_whole_way(story: Story) -> None:
    place = story.place
    token = place.keystone.token(story.alice, story.demo)
    path = place.folder / "token.txt"
    path.touch(0o600)
    path.write_text(f"{token}\n")
    secret = place.juju("add-secret her-token token#file=token.txt").strip()
    assert act(place, "check-authentication", token_secret=secret).status == "failed", "it has not been granted"
    place.juju(f"grant-secret her-token {CHARM}")
    checked = act(place, "check-authentication", token_secret=secret)
    assert checked.status == "completed", checked.message
    assert checked.results["user"] == "keystone:alice"
    assert "list pods: yes" in checked.results["may"]
    assert "create pods/exec: no" in checked.results["may"]
    assert token not in str(checked)
    place.juju("remove-secret her-token")


def keystones_own_charm_says_where_keystone_is(story: Story) -> None:
    """The options are unset, so that its word alone counts; it goes with the relation, and the options come back."""
    place, before = story.place, lives(story.place)
    place.juju(f"integrate keystone:identity-credentials {CHARM}")
    place.juju(f"config {CHARM} --reset keystone-url,keystone-ca")
    at_rest(place, "active")
    assert user(story.alices("auth", "whoami", "-o", "json"))["username"] == "keystone:alice"
    place.juju(f"config {CHARM} keystone-url={place.keystone.url} keystone-ca=@keystone-ca.pem")
    place.juju(f"remove-relation keystone {CHARM}")
    at_rest(place, "active")
    assert lives(place) == before


def the_control_plane_sets_a_flag_of_its_own_and_ours_survive(story: Story) -> None:
    place, before = story.place, lives(story.place)
    place.juju(f"config {place.control_plane} {place.kind.extra}=v=2")
    wait(lambda: not set(lives(place)) & set(before), "the API servers to be restarted by their own charm", PATIENCE)
    story.eventually("get", "pods")
    place.juju(f"config {place.control_plane} --reset {place.kind.extra}")
    place.settle()
    at_rest(place, "active")
    story.eventually("get", "pods")


def removal_leaves_the_control_plane_as_it_was(story: Story) -> None:
    place = story.place
    place.juju(f"remove-relation {place.control_plane} {CHARM}")
    place.juju(f"remove-application {CHARM} --no-prompt")
    wait(lambda: CHARM not in look(place).applications, f"{CHARM} to be gone", PATIENCE)
    wait(
        lambda: all(unit.workload == "active" for unit in look(place).units(place.control_plane)),
        "the control plane to be active",
        PATIENCE,
    )
    now = flags(place)
    assert not [text for text in now if CHARM in text or "--authorization-webhook" in text]
    if place.kind.forgets:
        # A unit that was added meanwhile is behind these.
        assert now[: len(story.flags)] == story.flags
    assert story.alices("get", "pods").code != 0


STORY: tuple[Callable[[Story], None], ...] = (
    before_the_charm_a_keystone_user_is_nobody,
    two_commands_end_in_active_units,
    a_unit_that_is_added_knows_keystones_users_too,
    an_upgrade_from_the_last_release_restarts_no_api_server,
    a_keystone_user_has_a_name_that_nobody_can_forge,
    the_policy_allows_what_it_says_and_nothing_else,
    rbac_can_bind_to_a_role_in_a_project,
    a_namesake_of_another_domain_is_somebody_else,
    from_one_policy_to_another_nothing_restarts,
    a_bad_policy_keeps_the_old_one_in_force,
    actions_tell_what_is_in_force,
    operators_hand_out_a_file_that_works_once_a_credential_is_in_it,
    a_token_is_followed_through_its_whole_way,
    keystones_own_charm_says_where_keystone_is,
    the_control_plane_sets_a_flag_of_its_own_and_ours_survive,
    removal_leaves_the_control_plane_as_it_was,
)
