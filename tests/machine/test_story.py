"""The story that the project is for (tests/scenarios.py), on one machine: the steps, and what a machine shows of them.

The tests stand in the order of the story and share one stage; traffic of the cluster's own runs through all of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import keystone_authenticator
from testbed.charmed import API_SERVER
from testbed.keystone import Project, User
from testbed.stage import Stage
from testbed.traffic import Traffic, lives_of
from tests import scenarios
from tests.documents import table
from tests.machine import sandbox
from tests.machine.place import StandIn
from tests.machine.telling import told_everywhere

SERVICE = "kubernetes-keystone.service"
# charmcraft puts hooks of the time before `dispatch` into each charm, which lead to it; ops warns of any.
LEGACY = "DeprecationWarning: Legacy hooks are deprecated."
READERS = scenarios.READERS
# What is on the machine: kind, mode, owner and content. Left out is what others write all the time, and the copies that
# the user tools make of the files they change.
LEFT_OUT = ("/var/lib/juju", "/var/lib/systemd", "/var/lib/etcd", "/var/snap/etcd", "/root/cdk/audit", "/etc/.pwd.lock")
COPIES = tuple(f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid"))
FIND = "find /etc /opt /usr/local /root /home /srv /var/lib /var/snap -xdev " + " ".join(
    f"-not -path '{path}' -not -path '{path}/*'" for path in (*LEFT_OUT, *COPIES)
)
INVENTORY = f"{FIND} -printf '%p %y %m %u %g %l\\n' | sort; {FIND} -type f -exec sha256sum {{}} + | sort -k 2"
UNITS = "systemctl --no-legend --plain list-unit-files; systemctl --plain --state=active list-units | cut -c1-60"


@dataclass
class Story:
    """What the tests know of each other; `told` is what the steps do."""

    stage: Stage
    told: scenarios.Story
    traffic: Traffic
    args: bytes
    inventory: str
    units: str

    @property
    def demo(self) -> Project:
        return self.told.demo

    @property
    def alice(self) -> User:
        return self.told.alice

    def kubectl(self, *arguments: str) -> tuple[int, str]:
        """Run kubectl as alice, who has nothing but an application credential."""
        return self.told.alices(*arguments)


@pytest.fixture(scope="module")
def story(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("operator")
    place = StandIn(stage.juju, [stage.unit], stage.cluster, stage.keystone, stage.charm, folder)
    told = scenarios.begin(place)
    with Traffic(stage.cluster) as traffic:
        inventory, units = stage.machine.shell(INVENTORY), stage.machine.shell(UNITS)
        yield Story(stage, told, traffic, stage.cluster.args(), inventory, units)


def lives(story: Story) -> int:
    """How often the API server has been started."""
    return len(lives_of(story.stage.cluster))


def authenticator(story: Story) -> str:
    """Which life of the authenticator this is."""
    return story.stage.machine.show(SERVICE, "InvocationID")["InvocationID"]


def eventually(story: Story, *arguments: str, code: int = 0) -> str:
    """Run kubectl as alice until it ends with this code."""
    return story.told.eventually(*arguments, code=code)


def test_before_the_charm_a_keystone_user_is_nobody(story: Story) -> None:
    scenarios.before_the_charm_a_keystone_user_is_nobody(story.told)


def test_deploy_and_relate_end_in_an_active_unit_after_exactly_one_restart(story: Story) -> None:
    unit, before = story.stage.unit, lives(story)
    scenarios.two_commands_end_in_active_units(story.told)
    assert unit.workload_version == keystone_authenticator.__version__
    assert lives(story) == before + 1
    announced = [status.message for status in unit.history if status.name == "maintenance"]
    assert any("restarting the API server" in message for message in announced)


def test_an_upgrade_puts_the_new_version_in_force(story: Story) -> None:
    link = "readlink /opt/kubernetes-keystone/current"
    before = story.stage.machine.shell(link)
    scenarios.an_upgrade_from_the_last_release_restarts_no_api_server(story.told)
    assert story.stage.machine.shell(link) != before


def test_a_keystone_user_has_a_name_that_nobody_can_forge(story: Story) -> None:
    scenarios.a_keystone_user_has_a_name_that_nobody_can_forge(story.told)


def test_the_policy_allows_what_it_says_and_nothing_else(story: Story) -> None:
    scenarios.the_policy_allows_what_it_says_and_nothing_else(story.told)


def test_rbac_can_bind_to_a_role_in_a_project(story: Story) -> None:
    scenarios.rbac_can_bind_to_a_role_in_a_project(story.told)


def test_a_namesake_of_another_domain_is_somebody_else(story: Story) -> None:
    scenarios.a_namesake_of_another_domain_is_somebody_else(story.told)


def test_raw_reviews_need_the_api_servers_certificate(story: Story) -> None:
    review = '{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"x"}}'
    tls = "/etc/kubernetes-keystone/tls"
    ask = f"curl -sS -o /dev/null -w '%{{http_code}}' --cacert {tls}/ca.crt -H 'Content-Type: application/json'"
    for shown, answer in (
        ("", "403"),
        (f"--cert {tls}/client.crt --key {tls}/client.key", "200"),
        # The endpoint's own, which the authenticator can read, is nobody's who asks: there is no connection.
        (f"--cert {tls}/server.crt --key {tls}/server.key", "000"),
    ):
        command = f"{ask} {shown} -d '{review}' https://127.0.0.1:8443/webhook 2>/dev/null || true"
        assert story.stage.machine.shell(command) == answer, shown


def test_files_are_whose_the_documentation_says(story: Story) -> None:
    folder, rows = "/var/snap/kube-apiserver/common/kubernetes-keystone", table("explanation.md", "| path |")
    wanted = {path.replace("…", folder): owner for path, owner, _, _ in rows}
    found = story.stage.machine.run("stat", "--format=%n|%U:%G %a", *wanted).stdout.split("\n")[:-1]
    assert dict(line.split("|") for line in found) == wanted
    secret = "/etc/kubernetes-keystone /var/lib/kubernetes-keystone " + folder
    open_to_all = story.stage.machine.shell(
        f"find {secret} -type f -perm /o=rwx -print; find {secret} /opt/kubernetes-keystone ! -type l -perm /o=w"
    ).split()
    names = ("wanted", "started", "unit")
    assert set(open_to_all) <= {f"/var/lib/kubernetes-keystone/{name}" for name in names}


def test_from_one_policy_to_another_nothing_restarts(story: Story) -> None:
    scenarios.from_one_policy_to_another_nothing_restarts(story.told)


def test_a_bad_policy_keeps_the_old_one_in_force(story: Story) -> None:
    unit = story.stage.unit
    unit.configure(policy="- users: {projects: [demo]}\n  resource_permissions: [oops]\n")
    told_everywhere(unit, "policy: ")
    unit.configure(policy=READERS)
    scenarios.a_bad_policy_keeps_the_old_one_in_force(story.told)


def test_actions_tell_what_is_in_force(story: Story) -> None:
    scenarios.actions_tell_what_is_in_force(story.told)
    content = story.stage.machine.read("/etc/kubernetes-keystone/policy.json")
    reloaded = story.stage.unit.run_action("reload-policy")
    assert reloaded.results["hash"] == hashlib.sha256(content).hexdigest()


def test_operators_hand_out_a_file_that_works_as_it_is(story: Story) -> None:
    scenarios.operators_hand_out_a_file_that_works_once_a_credential_is_in_it(story.told)
    unit, cluster, machine = story.stage.unit, story.stage.cluster, story.stage.machine
    admin = machine.read("/root/.kube/config")
    for content, found in (
        (admin, "the administrator's kubeconfig /root/.kube/config"),
        # What the control-plane charm writes, which is of no use elsewhere.
        (admin.replace(cluster.server.encode(), b"https://127.0.0.1:6443"), "the API server's --advertise-address"),
    ):
        machine.write("/root/.kube/config", content, 0o600)
        given = unit.run_action("get-kubeconfig", flavour="curl", projects="demo", namespace="default")
        assert (given.status, given.message) == ("completed", "")
        assert given.results["found"] == found
        assert given.results["server"] == cluster.server
    machine.write("/root/.kube/config", admin, 0o600)


def test_a_token_is_followed_through_its_whole_way(story: Story) -> None:
    scenarios.a_token_is_followed_through_its_whole_way(story.told)
    unit, machine, keystone = story.stage.unit, story.stage.machine, story.stage.keystone
    place, alice = "/root/token", story.alice
    token = keystone.token(alice, story.demo)
    machine.write(place, f"{token}\n", 0o600)
    checked = unit.run_action("check-authentication", token_file=place)
    assert (checked.status, checked.message) == ("completed", "")
    assert checked.results["user"] == "keystone:alice"
    # The cluster's own: chained, and not shown to Keystone (a test below looks at what Keystone saw).
    machine.write(place, story.stage.cluster.tokens["admin"].token, 0o600)
    checked = unit.run_action("check-authentication", token_file=place)
    assert checked.results["chain"] == "ok: the cluster's own token webhook, behind ours, knows it"
    assert (checked.results["user"], checked.results["groups"].splitlines()[0]) == ("admin", "system:masters")
    machine.write(place, keystone.token(alice), 0o600)
    checked = unit.run_action("check-authentication", token_file=place)
    assert (checked.status, "stopped at keystone" in checked.message) == ("failed", True)
    machine.write(place, token, 0o644)
    assert "is not root's alone" in unit.run_action("check-authentication", token_file=place).message
    machine.run("rm", place)


def test_a_second_reconcile_changes_nothing_and_restarts_nothing(story: Story) -> None:
    places = "/etc/kubernetes-keystone /opt/kubernetes-keystone /var/lib/kubernetes-keystone /etc/systemd /var/snap"
    look = f"find {places} -xdev -not -path '/var/snap/etcd*' -printf '%p %i %T@ %C@\\n' | sort"
    before = (lives(story), authenticator(story), story.stage.machine.shell(look))
    story.stage.unit.update_status()
    story.stage.unit.hook("config-changed")
    assert (lives(story), authenticator(story), story.stage.machine.shell(look)) == before
    assert story.stage.unit.status.name == "active"


def test_a_monitoring_agent_that_comes_and_goes_changes_nothing_and_finds_what_it_was_told(story: Story) -> None:
    unit, before, process = story.stage.unit, lives(story), authenticator(story)
    unit.integrate("cos-agent", "grafana-agent/0")
    told = json.loads(unit.said("cos-agent")["config"])
    (job,) = told["metrics_scrape_jobs"]
    (target,) = job["static_configs"][0]["targets"]
    page = story.stage.machine.run("curl", "-s", f"http://{target}{job['metrics_path']}").stdout
    assert "kubernetes_keystone_ready 1" in page
    assert told["metrics_alert_rules"]["groups"]
    assert told["dashboards"]
    unit.separate("cos-agent")
    assert unit.status == ("active", "ready: charmed, policy 1 rules")
    assert (lives(story), authenticator(story)) == (before, process)


def test_keystones_own_charm_says_where_keystone_is(story: Story) -> None:
    scenarios.keystones_own_charm_says_where_keystone_is(story.told)


def test_the_control_plane_rewrites_all_its_flags_and_everything_still_works(story: Story) -> None:
    before = lives(story)
    scenarios.the_control_plane_sets_a_flag_of_its_own_and_ours_survive(story.told)
    assert lives(story) == before + 2, "its own, for the flag that came and for the flag that went"


SQUATTER = """
import socket, time
end = time.monotonic() + 12
while time.monotonic() < end:
    for port in (8443, 8444):
        try:
            socket.socket().bind(("127.0.0.1", port))
        except OSError:
            continue
        raise SystemExit(f"took {port}")
    time.sleep(0.001)
"""


def test_the_authenticator_can_be_killed_and_nobody_notices_or_takes_its_place(story: Story) -> None:
    machine, before = story.stage.machine, authenticator(story)
    machine.run("systemd-run", "--unit=squatter", "--uid=nobody", "python3", "-c", SQUATTER)
    for _ in range(3):
        machine.run("systemctl", "kill", "--signal=KILL", SERVICE)
        time.sleep(2)  # a moment of traffic without it; nothing is waited for
    machine.wait(lambda: authenticator(story) not in ("", before), "the authenticator")
    eventually(story, "get", "pods")
    machine.wait(lambda: machine.show("squatter", "ActiveState")["ActiveState"] != "active", "the squatter's end", 30)
    assert "took" not in machine.journal("squatter")


def test_the_clusters_own_tokens_never_reach_keystone(story: Story) -> None:
    cluster, keystone = story.stage.cluster, story.stage.keystone
    ours = {keystone.digest(token.token) for token in cluster.tokens.values()}
    seen = {digest for call in keystone.calls() for digest in (call.subject, call.token)}
    assert seen - {None}, "the record of Keystone's requests is empty, so this test could not fail"
    assert not ours & seen
    assert {digest for digest, _ in cluster.webhook_reviews()} >= {keystone.digest(cluster.tokens["admin"].token)}


# Somebody's in the machine's /tmp; the administrator's; the API server's and its webhooks'; the charm's.
HIDDEN = (
    "/tmp/of-somebody",
    "/etc/shadow",
    "/root/.kube/config",
    "/root/cdk/server.key",
    "/root/cdk/serviceaccount.key",
    "/var/snap/kube-apiserver/common/kubernetes-keystone/authentication.kubeconfig",
    "/etc/kubernetes-keystone/tls/ca.key",
    "/etc/kubernetes-keystone/tls/client.key",
)


def test_whoever_takes_the_authenticator_over_gets_nothing_else(story: Story) -> None:
    """But connections: Keystone may be anywhere, so that the unit limits no address."""
    machine, settings = story.stage.machine, "/etc/kubernetes-keystone/settings.json"
    machine.write("/tmp/of-somebody", "x")
    assert [path for path in HIDDEN if not machine.exists(path)] == []
    outcomes = sandbox.intrude(machine, SERVICE, readable=[settings], hidden=HIDDEN)
    got = {attempt for attempt, outcome in outcomes.items() if outcome == "done"}
    assert got == {f"read {settings}", "write to /tmp"}, "a /tmp of its own"
    assert set(outcomes.values()) == {"done", "EACCES", "EPERM", "EROFS", "EAFNOSUPPORT", "ENOENT"}
    without = sandbox.intrude(machine, SERVICE, readable=[settings], hidden=HIDDEN, sandbox=False)
    more = {attempt for attempt, outcome in without.items() if outcome == "done"} - got
    assert {"read /tmp/of-somebody", "see other processes", "map memory that can be written and executed"} <= more
    machine.run("rm", "/tmp/of-somebody")


def test_a_crash_leaves_no_core_with_tokens_in_it(story: Story) -> None:
    pid = story.stage.machine.show(SERVICE, "MainPID")["MainPID"]
    (limit,) = [
        line for line in story.stage.machine.read(f"/proc/{pid}/limits").decode().splitlines() if "core" in line
    ]
    assert limit.split()[4:6] == ["0", "0"]


def test_systemd_thinks_little_exposed(story: Story) -> None:
    assert sandbox.exposure(story.stage.machine, SERVICE) < 2.0


# Any user's way to look at others: says each command line that has a token of Keystone's or of the cluster's in it.
ONLOOKER = """
import pathlib, time
said, end = set(), time.monotonic() + 120
while time.monotonic() < end:
    for place in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes().replace(b"\\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if ("gA" + "AAAA" in line or "admin:" + ":" in line) and line not in said:
            said.add(line)
            print("saw", line, flush=True)
"""


GONE = "for _ in $(seq 100); do systemctl cat {} >/dev/null 2>&1 || exit 0; sleep 0.1; done; exit 1"


def test_no_process_list_shows_a_token(story: Story) -> None:
    machine, unit, keystone = story.stage.machine, story.stage.unit, story.stage.keystone
    machine.run("systemd-run", "--unit=onlooker", "--uid=nobody", "python3", "-c", ONLOOKER)
    try:
        machine.run("python3", "-c", "import time; time.sleep(2)", "gAAAAA-in-a-command-line")
        token = keystone.token(story.alice, story.demo)
        machine.write("/root/token", token, 0o600)
        for source in ({"token_file": "/root/token"}, {"token_secret": unit.add_secret(token=token)}):
            assert unit.run_action("check-authentication", **source).status == "completed"
        machine.write("/root/token", story.stage.cluster.tokens["admin"].token, 0o600)
        assert unit.run_action("check-authentication", token_file="/root/token").status == "completed"
        unit.update_status()
        eventually(story, "get", "pods")
    finally:
        machine.run("systemctl", "stop", "onlooker")
        machine.run("sh", "-c", GONE.format("onlooker"))  # what is there at the end is compared
        machine.run("rm", "-f", "/root/token")
    saw = [line for line in machine.journal("onlooker").splitlines() if line.startswith("saw ")]
    assert [line.split()[-1] for line in saw] == ["gAAAAA-in-a-command-line"]


def test_no_secret_is_in_a_log_or_a_status(story: Story) -> None:
    cluster, unit = story.stage.cluster, story.stage.unit
    told = [line.message for line in unit.log] + [status.message for status in unit.history]
    told += [
        story.stage.machine.run("journalctl", "-q", "-o", "cat", "--no-pager", "-u", "kubernetes-keystone*").stdout
    ]
    told += [story.stage.machine.journal(API_SERVER, 100000)]
    text = "\n".join(told)
    assert "keystone" in text
    for token in cluster.tokens.values():
        assert token.token not in text
    assert "gAAAA" not in text
    assert "PRIVATE KEY" not in text


def test_no_hook_was_warned_by_ops_or_python(story: Story) -> None:
    """ops logs Python's warnings, its own among them, with the name of their kind."""
    warned = {line.message for line in story.stage.unit.log if "Warning: " in line.message}
    assert [said for said in warned if not said.endswith(LEGACY)] == []


def test_removal_takes_one_restart_and_leaves_the_machine_as_it_was(story: Story) -> None:
    before = lives(story)
    scenarios.removal_leaves_the_control_plane_as_it_was(story.told)
    assert lives(story) == before + 1
    assert story.stage.cluster.args() == story.args
    assert difference(story.inventory, story.stage.machine.shell(INVENTORY)) == []
    assert difference(story.units, story.stage.machine.shell(UNITS)) == []


def test_no_request_of_the_clusters_own_was_lost_beyond_the_restarts(story: Story) -> None:
    outcome = story.traffic.outcome()
    print(f"{outcome.requests} requests, {outcome.restarts} restarts, {outcome.by_restarts} failed through those")
    assert outcome.requests > 200
    assert outcome.restarts == 4  # relate, the control plane's own two, removal
    assert outcome.lost == []


def difference(before: str, after: str) -> list[str]:
    """The lines that only one of two texts has."""
    return sorted(set(before.splitlines()) ^ set(after.splitlines()))
