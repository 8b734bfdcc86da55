"""The story that the project is for, told once on real parts: deploy, relate, use, change, be overwritten, remove.

The tests stand in the order of the story and share one stage; traffic of the cluster's own runs through all of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import users
from testbed.charmed import API_SERVER
from testbed.keystone import Project, User
from testbed.stage import Stage
from testbed.traffic import Traffic, lives_of
from tests.machine import sandbox
from tests.machine.telling import told_everywhere

SERVICE = "kubernetes-keystone.service"
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
    """What the tests know of each other."""

    stage: Stage
    demo: Project
    alice: User
    kubeconfig: Path
    traffic: Traffic
    args: bytes
    inventory: str
    units: str

    def kubectl(self, *arguments: str) -> tuple[int, str]:
        """Run kubectl as alice, who has nothing but an application credential."""
        done = self.stage.cluster.kubectl(*arguments, kubeconfig=self.kubeconfig, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def story(stage: Stage) -> Iterator[Story]:
    cluster, keystone, machine = stage.cluster, stage.keystone, stage.machine
    cluster.pod("default", "web")
    demo = keystone.project("demo")
    alice = keystone.member("alice", demo)
    credential = keystone.application_credential(alice, demo)
    kubeconfig = users.hand_out(credential, keystone, cluster)
    with Traffic(cluster) as traffic:
        inventory, units = machine.shell(INVENTORY), machine.shell(UNITS)
        yield Story(stage, demo, alice, kubeconfig, traffic, cluster.args(), inventory, units)


def lives(story: Story) -> int:
    """How often the API server has been started."""
    return len(lives_of(story.stage.cluster))


def authenticator(story: Story) -> str:
    """Which life of the authenticator this is."""
    return story.stage.machine.show(SERVICE, "InvocationID")["InvocationID"]


def eventually(story: Story, *arguments: str, code: int = 0) -> str:
    """Run kubectl as alice until it ends with this code; the API server keeps verdicts for 5 s."""
    story.stage.machine.wait(lambda: story.kubectl(*arguments)[0] == code, f"kubectl {arguments}", 30, every=0.5)
    return story.kubectl(*arguments)[1]


def test_before_the_charm_a_keystone_user_is_nobody(story: Story) -> None:
    code, output = story.kubectl("get", "pods")
    assert code != 0
    assert "must be logged in" in output or "Unauthorized" in output


def test_deploy_and_relate_end_in_an_active_unit_after_exactly_one_restart(story: Story) -> None:
    unit, before = story.stage.unit, lives(story)
    unit.deploy(story.stage.charm, {**story.stage.keystone_options, "policy": READERS})
    unit.relate()
    assert unit.status == ("active", "ready: charmed, policy 1 rules")
    assert unit.workload_version
    assert lives(story) == before + 1
    announced = [status.message for status in unit.history if status.name == "maintenance"]
    assert any("restarting the API server" in message for message in announced)


def test_a_keystone_user_has_a_name_that_nobody_can_forge(story: Story) -> None:
    code, output = story.kubectl("auth", "whoami", "-o", "json")
    assert code == 0, output
    user = json.loads(output)["status"]["userInfo"]
    assert user["username"] == "keystone:alice"
    assert user["uid"] == story.alice.id
    project = f"keystone:project:{story.demo.id}"
    assert {project, f"{project}:role:member", "system:authenticated"} <= set(user["groups"])
    assert user["extra"]["alpha.kubernetes.io/identity/project/id"] == [story.demo.id]


def test_the_policy_allows_what_it_says_and_nothing_else(story: Story) -> None:
    code, output = story.kubectl("get", "pods", "--output=name")
    assert (code, output) == (0, "pod/web\n")
    for request in (["pods", "--namespace=kube-system"], ["nodes"], ["secrets"]):
        code, output = story.kubectl("get", *request)
        assert code != 0
        assert "Forbidden" in output, request
    for subresource in ("exec", "log"):
        assert story.kubectl("auth", "can-i", "get", "pods", f"--subresource={subresource}")[1].strip().endswith("no")
    assert story.kubectl("delete", "pod", "web")[0] != 0


def test_rbac_can_bind_to_a_role_in_a_project(story: Story) -> None:
    group = f"keystone:project:{story.demo.id}:role:member"
    story.stage.cluster.kubectl("create", "clusterrole", "node-reader", "--verb=get,list", "--resource=nodes")
    binding = ["create", "clusterrolebinding", "node-readers", "--clusterrole=node-reader", f"--group={group}"]
    story.stage.cluster.kubectl(*binding)
    assert "worker-0" in eventually(story, "get", "nodes")
    story.stage.cluster.kubectl("delete", "clusterrolebinding", "node-readers")
    story.stage.cluster.kubectl("delete", "clusterrole", "node-reader")


def test_a_namesake_of_another_domain_is_somebody_else(story: Story) -> None:
    keystone, cluster = story.stage.keystone, story.stage.cluster
    evil = keystone.domain("evil")
    project = keystone.project("demo", evil)
    namesake = keystone.member("alice", project, domain=evil)
    keystone.group("system:masters", namesake, domain=evil)
    kubeconfig = users.hand_out(keystone.application_credential(namesake, project), keystone, cluster)
    done = cluster.kubectl("auth", "whoami", "-o", "json", kubeconfig=kubeconfig)
    user = json.loads(done.stdout)["status"]["userInfo"]
    assert user["username"] == f"keystone:alice@{evil.id}"
    assert f"keystone:group:system%3Amasters@{evil.id}" in user["groups"]
    assert "system:masters" not in user["groups"]
    for request in (["pods"], ["nodes"]):
        refused = cluster.kubectl("get", *request, kubeconfig=kubeconfig, check=False)
        assert "Forbidden" in refused.stderr, request


def test_raw_reviews_need_the_api_servers_certificate(story: Story) -> None:
    review = '{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"x"}}'
    ca = "/etc/kubernetes-keystone/tls/ca.crt"
    said = story.stage.machine.shell(
        f"curl -s -o /dev/null -w '%{{http_code}}' --cacert $(ls {ca} /etc/kubernetes-keystone/tls/*ca*.crt "
        f"/etc/kubernetes-keystone/tls/*ca*.pem 2>/dev/null | head -n 1) -d '{review}' https://127.0.0.1:8443/webhook",
        check=False,
    )
    assert said in ("403", "000")


def test_from_one_policy_to_another_nothing_restarts(story: Story) -> None:
    before, service = lives(story), authenticator(story)
    assert story.kubectl("get", "configmaps")[0] != 0
    story.stage.unit.configure(policy=WRITERS)
    eventually(story, "get", "configmaps")
    story.stage.unit.configure(policy=READERS)
    eventually(story, "get", "configmaps", code=1)
    assert (lives(story), authenticator(story)) == (before, service)


def test_a_bad_policy_keeps_the_old_one_in_force(story: Story) -> None:
    unit = story.stage.unit
    unit.configure(policy="- users: {projects: [demo]}\n  resource_permissions: [oops]\n")
    told_everywhere(unit, "policy: ")
    assert unit.status.message in unit.debug_log(), "which tells the same story"
    assert story.kubectl("get", "pods")[0] == 0
    refused = unit.run_action("reload-policy")
    assert refused.status == "failed"
    assert "line" in refused.message
    unit.configure(policy=READERS)
    assert unit.status.name == "active"


def test_actions_tell_what_is_in_force(story: Story) -> None:
    unit = story.stage.unit
    reloaded = unit.run_action("reload-policy")
    assert reloaded.status == "completed", reloaded.message
    content = story.stage.machine.read("/etc/kubernetes-keystone/policy.json")
    assert reloaded.results["hash"] == hashlib.sha256(content).hexdigest()
    assert reloaded.results["rules"] == "1"
    question = {"user": "alice", "project_name": "demo", "roles": "member", "namespace": "default"}
    allowed = unit.run_action("check-access", **question, verb="list", resource="pods")
    assert (allowed.results["allowed"], allowed.results["item"]) == ("true", "1")
    refused = unit.run_action("check-access", **question, verb="get", resource="pods/exec")
    assert refused.results["allowed"] == "false"
    assert refused.results["misses"]
    shown = unit.run_action("show-webhook-config")
    assert "--authorization-mode=Webhook" in shown.results["flags"]
    assert "PRIVATE KEY" not in str(shown.results)
    settings = unit.run_action("get-horizon-settings", flavour="curl")
    assert settings.status == "completed", settings.message
    compile(settings.results["settings"], settings.results["file"], "exec")
    assert "PRIVATE KEY" not in str(settings.results)


def test_operators_hand_out_a_file_that_works_as_it_is(story: Story) -> None:
    unit, cluster, machine = story.stage.unit, story.stage.cluster, story.stage.machine
    credential = story.stage.keystone.application_credential(story.alice, story.demo)
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
    path = cluster.folder / "handed-out"
    path.write_text(given.results["kubeconfig"].replace("          #- name", "          - name"))
    for value in (credential.id, credential.secret):
        filled = path.read_text().replace('          #  value: ""', f'            value: "{value}"', 1)
        path.write_text(filled)
    assert cluster.kubectl("get", "pods", "-o", "name", kubeconfig=path).stdout == "pod/web\n"
    machine.write("/root/.kube/config", admin, 0o600)


def test_a_token_is_followed_through_its_whole_way(story: Story) -> None:
    unit, machine, keystone = story.stage.unit, story.stage.machine, story.stage.keystone
    place, token = "/root/token", keystone.token(story.alice, story.demo)
    machine.write(place, f"{token}\n", 0o600)
    for source in ({"token_file": place}, {"token_secret": unit.add_secret(token=token)}):
        checked = unit.run_action("check-authentication", **source)
        assert (checked.status, checked.message) == ("completed", "")
        assert checked.results["user"] == "keystone:alice"
        assert "list pods: yes" in checked.results["may"]
        assert "create pods/exec: no" in checked.results["may"]
        assert token not in str(checked)
    # The cluster's own: chained, and not shown to Keystone (a test below looks at what Keystone saw).
    machine.write(place, story.stage.cluster.tokens["admin"].token, 0o600)
    checked = unit.run_action("check-authentication", token_file=place)
    assert checked.results["chain"] == "ok: the cluster's own token webhook, behind ours, knows it"
    assert (checked.results["user"], checked.results["groups"].splitlines()[0]) == ("admin", "system:masters")
    machine.write(place, keystone.token(story.alice), 0o600)
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


def test_the_control_plane_rewrites_all_its_flags_and_everything_still_works(story: Story) -> None:
    before = lives(story)
    story.stage.cluster.control_plane_reconcile()
    assert lives(story) == before + 1
    eventually(story, "get", "pods")
    story.stage.unit.update_status()
    assert story.stage.unit.status.name == "active"
    assert lives(story) == before + 1


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


def test_systemd_thinks_little_exposed(story: Story) -> None:
    assert sandbox.exposure(story.stage.machine, SERVICE) < 2.0


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


def test_removal_takes_one_restart_and_leaves_the_machine_as_it_was(story: Story) -> None:
    before = lives(story)
    story.stage.unit.remove()
    assert lives(story) == before + 1
    assert story.stage.cluster.args() == story.args
    assert difference(story.inventory, story.stage.machine.shell(INVENTORY)) == []
    assert difference(story.units, story.stage.machine.shell(UNITS)) == []
    assert story.kubectl("get", "pods")[0] != 0


def test_no_request_of_the_clusters_own_was_lost_beyond_the_restarts(story: Story) -> None:
    outcome = story.traffic.outcome()
    print(f"{outcome.requests} requests, {outcome.restarts} restarts, {outcome.by_restarts} failed through those")
    assert outcome.requests > 200
    assert outcome.restarts == 3  # relate, the control plane's own, removal
    assert outcome.lost == []


def difference(before: str, after: str) -> list[str]:
    """The lines that only one of two texts has."""
    return sorted(set(before.splitlines()) ^ set(after.splitlines()))
