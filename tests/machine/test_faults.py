"""What goes wrong on a control plane, done for real: every time the cluster's own tokens have to be good in the end.

Each test has a unit of its own on one stage, and leaves the machine as it found it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator

import pytest

from testbed.agent import Unit
from testbed.charmed import API_SERVER, AUTH_WEBHOOK, Charmed
from testbed.stage import Stage
from testbed.traffic import lives_of
from tests.machine.telling import told_everywhere

POLICY = json.dumps([{"users": {"projects": ["demo"]}, "resource_permissions": {"default/pods": ["list"]}}])
OURS = (
    "/etc/kubernetes-keystone",
    "/opt/kubernetes-keystone",
    "/var/lib/kubernetes-keystone",
    "/var/snap/kube-apiserver/common/kubernetes-keystone",
)
SQUATTER = "import socket, time; s = socket.create_server(('127.0.0.1', 8443)); time.sleep(300)"
SERVICE = "kubernetes-keystone.service"
SOCKET = "kubernetes-keystone.socket"
LOOK = "kubernetes-keystone-hook.timer"
ANOTHER_PYTHONS = """
for folder in /opt/kubernetes-keystone/current/lib /var/lib/juju/agents/unit-kubernetes-keystone-0/charm/venv; do
    find "$folder/" -name '*.cpython-*.so' | while read -r file; do
        mv "$file" "$(echo "$file" | sed 's/cpython-[0-9]*/cpython-39/')"
    done
done
"""


@pytest.fixture
def unit(stage: Stage) -> Iterator[Unit]:
    """A unit that is deployed with a policy and not related yet; whatever a test leaves of it is removed."""
    cluster, args, flags = stage.cluster, stage.cluster.args(), dict(stage.cluster.flags)
    made = Unit(stage.machine, juju_exec=True)
    made.deploy(stage.charm, {**stage.keystone_options, "policy": POLICY})
    yield made
    stage.keystone.start()
    if made.related:
        made.remove()
    cluster.flags = flags
    if cluster.args() != args:
        cluster.control_plane_reconcile()
    is_clean(stage)


def is_clean(stage: Stage) -> None:
    """Nothing of ours is left, and the cluster works."""
    left = [
        path for path in (*OURS, "/var/snap/kube-apiserver/common/kubernetes-keystone") if stage.machine.exists(path)
    ]
    assert left == []
    assert b"kubernetes-keystone" not in stage.cluster.args()
    cluster_tokens_work(stage.cluster)


def metric(stage: Stage, sample: str) -> float:
    """A sample of the authenticator's, by name and labels."""
    page = stage.machine.run("curl", "-s", "http://127.0.0.1:8444/metrics").stdout
    (line,) = [line for line in page.splitlines() if line.startswith(f"kubernetes_keystone_{sample} ")]
    return float(line.rpartition(" ")[2])


def asked_at_each_hook(stage: Stage, unit: Unit) -> None:
    """Where nobody logs in the API server asks all the same: an alert counts on it."""
    age = 'last_review_age_seconds{kind="TokenReview"}'
    assert metric(stage, "token_reviews_expected") == 1
    # It keeps the verdict about the administrator's token for 10 s.
    stage.machine.wait(lambda: metric(stage, age) > 11, "nobody to ask for a while", 60, every=1)
    unit.update_status()
    assert metric(stage, age) < 11


def cluster_tokens_work(cluster: Charmed) -> None:
    cluster.wait_ready()
    assert cluster.status("/api/v1/namespaces", cluster.tokens["admin"].token) == 200


@pytest.fixture(scope="module")
def token(stage: Stage) -> Callable[[], str]:
    """Tokens of a member of the project that the policy names."""
    project = stage.keystone.project("demo")
    member = stage.keystone.member("alice", project)
    return lambda: stage.keystone.token(member, project)


@pytest.fixture
def refuses_our_flags(stage: Stage) -> Iterator[Callable[[bool], None]]:
    """Make the API server end at once when it is started with flags of ours."""
    path = "/usr/bin/snap"
    good = stage.machine.read(path).decode()
    bad = good.replace(
        "set -e\n", 'set -e\ngrep -q kubernetes-keystone "/var/snap/kube-apiserver/x1/args" && exit 7\n', 1
    )
    assert bad != good

    def switch(on: bool) -> None:
        stage.machine.write(path, bad if on else good, 0o755)

    yield switch
    switch(False)


def pods(stage: Stage, token: str) -> int:
    return stage.cluster.status("/api/v1/namespaces/default/pods", token)


def test_flags_that_the_api_server_cannot_run_with_are_taken_out_and_not_tried_again(
    stage: Stage, unit: Unit, token: Callable[[], str], refuses_our_flags: Callable[[bool], None]
) -> None:
    args = stage.cluster.args()
    refuses_our_flags(True)
    unit.relate()
    told_everywhere(unit, "the API server did not keep running with Keystone's flags")
    assert "API server: " in unit.debug_log(), "its last lines"
    assert stage.cluster.args() == args
    cluster_tokens_work(stage.cluster)
    tried = len(lives_of(stage.cluster))
    unit.update_status()
    unit.configure(log_level="debug")
    assert len(lives_of(stage.cluster)) == tried
    assert unit.status.name == "blocked"

    refuses_our_flags(False)
    unit.configure(api_server="manual")
    assert "--authentication-token-webhook-config-file" in unit.status.message
    unit.reset("api-server")
    assert unit.status.name == "active"
    assert pods(stage, token()) == 200


def test_an_api_server_that_crash_loops_with_our_flags_comes_back_without_them(
    stage: Stage, unit: Unit, refuses_our_flags: Callable[[bool], None]
) -> None:
    unit.relate()
    assert unit.status.name == "active"
    refuses_our_flags(True)
    stage.cluster.control_plane_reconcile()
    cluster_tokens_work(stage.cluster)
    assert b"kubernetes-keystone" not in stage.cluster.args()
    unit.update_status()
    told_everywhere(unit, "the API server kept ending soon after its starts with Keystone's flags", API_SERVER)


def test_an_authenticator_that_cannot_be_brought_back_holds_no_token_hostage(
    stage: Stage, unit: Unit, token: Callable[[], str]
) -> None:
    unit.relate()
    machine, program = stage.machine, "/opt/kubernetes-keystone/current/keystone-authenticator"
    good = machine.read(program)
    machine.write(program, "#!/bin/sh\nexit 1\n", 0o755)
    machine.run("systemctl", "kill", "--signal=KILL", SERVICE)
    machine.wait(lambda: b"kubernetes-keystone" not in stage.cluster.args(), "our flags to be taken out", 90)
    cluster_tokens_work(stage.cluster)
    # The hook makes the program whole again, but what came of it before is still so: flags come back after a while.
    unit.update_status()
    told_everywhere(
        unit, "the authenticator could not be kept running: the API server goes on without Keystone until it is back"
    )
    told_everywhere(unit, "code=killed")

    machine.write(program, good, 0o755)
    comes_right(stage, unit)
    assert pods(stage, token()) == 200


def comes_right(stage: Stage, unit: Unit) -> None:
    """Wait until a hook that systemd asked Juju's agent for says that all is well."""
    history = len(unit.history)

    def is_active() -> bool:
        unit.catch_up()
        return any(status.name == "active" for status in unit.history[history:])

    stage.machine.wait(is_active, "a hook to bring the flags back", 300, every=1)
    stage.machine.wait(
        lambda: stage.machine.show(LOOK, "ActiveState")["ActiveState"] == "inactive", "nothing to be waited for", 30
    )


def test_a_machine_whose_python_no_longer_fits_loses_no_cluster_token_and_says_what_to_do(
    stage: Stage, unit: Unit, token: Callable[[], str]
) -> None:
    unit.relate()
    machine = stage.machine
    machine.shell(ANOTHER_PYTHONS)  # as a release upgrade does, which brings another Python
    machine.run("systemctl", "kill", "--signal=KILL", SERVICE)
    machine.wait(lambda: b"kubernetes-keystone" not in stage.cluster.args(), "our flags to be taken out", 90)
    cluster_tokens_work(stage.cluster)
    unit.update_status()
    here = machine.shell("python3 -c 'import sys; print(*sys.version_info[:2], sep=chr(46))'")
    said = f"Python {here} is not what the charm was packed for (3.9): juju refresh kubernetes-keystone"
    assert unit.status.name == "blocked"
    assert unit.status.message.startswith(said)
    assert unit.run_action("show-webhook-config").message.startswith(said)

    unit.upgrade(stage.charm)
    assert unit.status.name == "waiting"
    assert machine.show(LOOK, "ActiveState")["ActiveState"] == "active"
    # The minute that is waited after a bypass is another test's.
    machine.shell("sed -i 's/^\\(retry .*\\) [0-9]*$/\\1 0/' /var/lib/kubernetes-keystone/wanted")
    look(stage)
    comes_right(stage, unit)
    assert pods(stage, token()) == 200


def look(stage: Stage) -> None:
    """Do what the timer does once a minute."""
    stage.machine.run("systemctl", "start", LOOK.replace(".timer", ".service"))


def test_an_api_server_that_is_installed_after_us_is_found_without_waiting_for_juju(
    stage: Stage, unit: Unit, token: Callable[[], str]
) -> None:
    machine, installed = stage.machine, f"/etc/systemd/system/{API_SERVER}"
    machine.run("mv", installed, "/root/not-yet")
    unit.relate()
    assert unit.status.name == "waiting"
    assert machine.show(LOOK, "ActiveState")["ActiveState"] == "active"
    machine.run("mv", "/root/not-yet", installed)
    look(stage)
    comes_right(stage, unit)
    assert pods(stage, token()) == 200


def test_a_power_cut_during_the_trial_ends_without_our_flags_and_the_next_hook_tries_anew(
    stage: Stage, unit: Unit, token: Callable[[], str]
) -> None:
    unit.relate()
    wanted = stage.machine.read("/var/lib/kubernetes-keystone/wanted").decode()
    # As it was between the restart of a trial and the word that it went well.
    trial = re.sub("(?m)^starts .*", "starts 0", wanted.replace("state confirmed", "state trial"))
    assert trial != wanted
    stage.machine.write("/var/lib/kubernetes-keystone/wanted", trial, 0o600)
    stage.machine.power_off()
    stage.machine.power_on()
    cluster_tokens_work(stage.cluster)
    assert b"kubernetes-keystone" not in stage.cluster.args()
    unit.hook("start")
    unit.update_status()
    assert unit.status.name == "active"
    assert pods(stage, token()) == 200


def test_an_operator_can_take_the_flags_out_on_the_machine_and_keep_them_out(stage: Stage, unit: Unit) -> None:
    unit.relate()
    assert b"kubernetes-keystone" in stage.cluster.args()
    stage.machine.run("systemctl", "start", "kubernetes-keystone-bypass")
    cluster_tokens_work(stage.cluster)
    assert b"kubernetes-keystone" not in stage.cluster.args()
    unit.configure(api_server="manual")
    unit.update_status()
    assert unit.status.name == "blocked"
    assert b"kubernetes-keystone" not in stage.cluster.args()
    cluster_tokens_work(stage.cluster)


def test_a_machine_that_starts_without_juju_lets_keystones_users_in(
    stage: Stage, unit: Unit, token: Callable[[], str]
) -> None:
    unit.relate()
    told = unit.hooks[:]
    stage.machine.reboot()
    stage.machine.wait(lambda: pods(stage, token()) == 200, "a Keystone user to get in", 60)
    assert b"kubernetes-keystone" in stage.cluster.args()
    assert stage.machine.show(LOOK, "ActiveState")["ActiveState"] == "inactive"
    assert unit.hooks == told, "no hook has run"


@pytest.mark.parametrize(
    "order",
    [("departed", "broken", "stop", "remove"), ("stop", "remove"), ("remove",), ("broken", "departed", "remove")],
)
def test_removal_works_in_any_order_with_keystone_and_the_authenticator_down(
    stage: Stage, unit: Unit, order: tuple[str, ...]
) -> None:
    unit.relate()
    assert unit.status.name == "active"
    stage.keystone.stop()
    stage.machine.run("systemctl", "stop", SERVICE, SOCKET)
    unit.remove(order)
    stage.keystone.start()
    is_clean(stage)
    assert stage.machine.run("getent", "passwd", "kubernetes-keystone", check=False).returncode != 0


def test_removal_works_while_the_api_server_is_down(stage: Stage, unit: Unit) -> None:
    unit.relate()
    stage.machine.run("systemctl", "stop", API_SERVER)
    unit.remove()
    stage.machine.run("systemctl", "start", API_SERVER)
    is_clean(stage)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"authorization-webhook-config-file": "/root/cdk/other.yaml", "authorization-mode": "Node,RBAC,Webhook"},
            "other.yaml",
        ),
        ({"authorization-mode": "AlwaysAllow"}, "AlwaysAllow"),
        ({"authorization-mode": None}, "authorization-mode"),
    ],
)
def test_what_cannot_be_combined_blocks_and_changes_nothing(
    stage: Stage, unit: Unit, change: dict[str, str | None], said: str
) -> None:
    cluster = stage.cluster
    for name, value in change.items():
        cluster.flags.pop(name, None)
        if value is not None:
            cluster.flags[name] = value
    lines = "".join(f'--{name}="{value}"\n' for name, value in cluster.flags.items())
    stage.machine.write("/var/snap/kube-apiserver/current/args", lines)
    before = len(lives_of(cluster))
    unit.relate()
    assert unit.status.name == "blocked"
    assert said in unit.status.message
    if "authorization-webhook-config-file" in change:
        told_everywhere(unit, "another authorization webhook is set already")
    assert cluster.args().decode() == lines
    assert len(lives_of(cluster)) == before
    assert not stage.machine.exists("/etc/kubernetes-keystone/settings.json")


@contextlib.contextmanager
def taken_port(stage: Stage) -> Iterator[None]:
    """Another program listens where our endpoint is to be."""
    stage.machine.run("systemd-run", "--unit=squatter", "python3", "-c", SQUATTER)
    stage.machine.wait(lambda: "8443" in stage.machine.shell("ss -Hltn"), "the port to be taken")
    yield
    stage.machine.run("systemctl", "stop", "squatter")


def test_a_taken_port_blocks_and_names_it(stage: Stage, unit: Unit) -> None:
    before = len(lives_of(stage.cluster))
    with taken_port(stage):
        unit.relate()
        told_everywhere(unit, "127.0.0.1:8443 is taken by another program")
        assert len(lives_of(stage.cluster)) == before
    unit.update_status()
    assert unit.status.name == "active"


def test_a_port_that_is_taken_before_we_start_again_leaves_the_api_server_without_us(stage: Stage, unit: Unit) -> None:
    unit.relate()
    machine = stage.machine
    machine.run("systemctl", "stop", SERVICE, SOCKET)
    with taken_port(stage):  # as by a program that a machine's boot starts earlier
        machine.run("systemctl", "start", SERVICE, check=False)
        machine.wait(lambda: b"kubernetes-keystone" not in stage.cluster.args(), "our flags to be taken out", 90)
        cluster_tokens_work(stage.cluster)
        unit.update_status()
        told_everywhere(unit, "127.0.0.1:8443 is taken by another program")
        assert "127.0.0.1:8443): Address already in use" in machine.journal(SOCKET)


def test_keystone_away_at_deployment_is_said_and_changes_nothing(stage: Stage, unit: Unit) -> None:
    stage.keystone.stop()
    before = len(lives_of(stage.cluster))
    unit.relate()
    told_everywhere(unit, "does not answer (Connection refused); nothing was changed")
    assert unit.status.message.startswith("keystone-url: ")
    assert len(lives_of(stage.cluster)) == before
    stage.keystone.start()
    unit.update_status()
    assert unit.status.name == "active"


def test_known_users_go_on_while_keystone_is_away(stage: Stage, unit: Unit, token: Callable[[], str]) -> None:
    unit.relate()
    asked_at_each_hook(stage, unit)
    known, unknown = token(), token()
    assert pods(stage, known) == 200
    stage.keystone.stop()
    assert pods(stage, known) == 200
    assert pods(stage, unknown) == 401
    unit.update_status()
    told_everywhere(unit, "no answers about Keystone's tokens: Keystone cannot be reached: Connection refused")
    stage.keystone.start()
    stage.machine.wait(lambda: pods(stage, unknown) == 200, "the unknown user to be known", 10)


def test_another_ca_of_keystones_is_told_and_is_one_option(stage: Stage, unit: Unit, token: Callable[[], str]) -> None:
    unit.relate()
    stage.keystone.change_authority()
    unknown = token()
    assert pods(stage, unknown) == 401
    unit.update_status()
    told_everywhere(
        unit, "no answers about Keystone's tokens: Keystone cannot be reached: its certificate is not trusted"
    )
    unit.configure(keystone_ca=stage.keystone.ca.read_text())
    assert unit.status.name == "active"
    stage.machine.wait(lambda: pods(stage, unknown) == 200, "the unknown user to be known", 10)


def test_a_token_webhook_of_the_clusters_that_is_silent_is_told_from_any_place(stage: Stage, unit: Unit) -> None:
    unit.relate()
    stage.machine.run("systemctl", "stop", AUTH_WEBHOOK)
    try:
        # One that nobody has asked about yet; the others are remembered for as long as they were without us.
        assert stage.cluster.status("/api/v1/nodes", stage.cluster.tokens["kube-proxy"].token) == 401
        unit.update_status()
        told_everywhere(unit, "the cluster's own token webhook cannot be reached: Connection refused")
    finally:
        stage.machine.run("systemctl", "start", AUTH_WEBHOOK)
    proxy = stage.cluster.tokens["kube-proxy"].token
    stage.machine.wait(lambda: stage.cluster.status("/api/v1/nodes", proxy) == 200, "it to be known again", 60)
    unit.update_status()
    assert "token webhook" not in unit.status.message
