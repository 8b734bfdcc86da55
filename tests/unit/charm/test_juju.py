"""Juju as it is: two generations of it, hooks in any order, hooks that fail and come again."""

from __future__ import annotations

import re
from pathlib import Path

import ops
import ops.testing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import again
import authenticator
import which_juju
from which_juju import Juju

PROJECT = Path(__file__).resolve().parents[3]
OLD = "2.9.51"
POLICY = '[{"match": [{"type": "role", "values": ["member"]}], "resource": {"verbs": ["get"]}}]'
RELATED = [
    *("start", "config_changed", "update_status", "upgrade_charm"),
    *("relation_created", "relation_joined", "relation_changed"),
]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.9.51", Juju(2, 9)), ("3.6.9", Juju(3, 6)), ("3.6-rc1", Juju(3, 6)), ("4.0.1.2", Juju(4, 0)), ("", Juju(3, 6))],
)
def test_the_version_is_the_hooks_own(monkeypatch, version, expected):
    monkeypatch.setenv("JUJU_VERSION", version)
    assert which_juju.current() == expected


@pytest.mark.parametrize(
    ("juju", "command", "secrets"),
    [
        (Juju(2, 9), "juju add-relation a b", False),
        (Juju(3, 0), "juju integrate a b", False),
        (Juju(3, 2), "juju integrate a b", False),
        (Juju(3, 3), "juju integrate a b", True),
        (Juju(4, 0), "juju integrate a b", True),
    ],
)
def test_commands_are_those_of_the_operators_juju(juju, command, secrets):
    assert juju.integrate("a", "b") == command
    assert juju.has_operators_secrets == secrets


@pytest.mark.parametrize(("juju", "verb"), [(OLD, "add-relation"), ("3.6.9", "integrate")])
def test_statuses_name_the_command_that_this_juju_has(unit, juju, verb):
    unit.context.juju_version = juju
    assert unit.run() == ops.ActiveStatus("ready: charmed, no policy, RBAC alone decides")
    missing = unit.configure(keystone_url="").run()
    assert missing.message.endswith(f"juju {verb} keystone:identity-credentials kubernetes-keystone")
    alone = unit.unrelate().run()
    assert alone.message == f"not related: juju {verb} kubernetes-control-plane kubernetes-keystone"


def test_the_machines_tool_has_its_names_in_one_place_and_the_scripts_know_the_same(unit, machine, wiring):
    import apiserver

    wiring.raises = {"detect": apiserver.NotFound("no API server found")}
    unit.run()
    found = " || ".join(f"command -v {name}" for name in which_juju.MACHINES_TOOLS)
    assert f"run=$$({found}) && exec" in (machine.places.units / again.SERVICE).read_text()
    for script in ("apiserver-flags", "apiserver-pod"):
        (line,) = re.findall(r"^juju\(\) .*", (PROJECT / "templates/apiserver" / script).read_text(), re.MULTILINE)
        assert f"{{ {found}; }}" in line


# --- any order


def outcome(unit, machine, wiring):
    """What there is in the end, but for what is another each time: keys, and when something was started."""
    found = {path: content.split()[0] for path, content in machine.snapshot().items()}
    for path in found:
        if re.search(r"tls/|kubeconfig|state/started|lib/kubernetes-keystone/started", path):
            found[path] = "there"
    status = (unit.state.unit_status.name, unit.state.unit_status.message)
    return status, wiring.desired is not None, machine.active(authenticator.SERVICE), sorted(found.items())


def again_from_nothing(unit, machine, wiring):
    """Take it away, as a removal does, so that another order begins where the first began."""
    unit.run("relation_broken")
    assert machine.snapshot() == {}
    wiring.restarts = 0


@pytest.fixture
def reference(unit, machine, wiring):
    unit.configure(policy=POLICY)
    for event in RELATED:
        unit.run(event)
    found = outcome(unit, machine, wiring)
    assert found[0] == ("active", "ready: charmed, policy 1 rules")
    again_from_nothing(unit, machine, wiring)
    return found


def lived(unit, machine, wiring, events, failing):
    """Run events; the one before which something breaks fails, and Juju runs it again."""
    for number, event in enumerate(events):
        if number == failing:
            wiring.raises = {"apply": RuntimeError("a fault of ours")}
            with pytest.raises(ops.testing.errors.UncaughtCharmError):
                unit.run(event)
            wiring.raises = {}
        unit.run(event)
    found, restarts = outcome(unit, machine, wiring), wiring.restarts
    again_from_nothing(unit, machine, wiring)
    return found, restarts


@pytest.mark.parametrize(
    ("events", "failing"),
    [
        (["config_changed", "start"], None),
        (["upgrade_charm", "update_status"], 0),
        pytest.param(RELATED[::-1], None, marks=pytest.mark.slow),
        pytest.param(["update_status", *RELATED], 1, marks=pytest.mark.slow),
    ],
    ids=["config-changed before start", "the first fails", "backwards", "the second fails"],
)
def test_events_that_surprise_end_as_the_usual_ones_do(unit, machine, wiring, reference, events, failing):
    found, restarts = lived(unit, machine, wiring, events, failing)
    assert found == reference
    assert restarts == 1


@pytest.mark.slow
def test_any_order_of_events_ends_in_the_same_state_after_one_restart(unit, machine, wiring, reference):
    @given(
        events=st.lists(st.sampled_from(RELATED), min_size=1, max_size=8),
        failing=st.integers(min_value=0, max_value=12),
    )
    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    def run(events: list[str], failing: int) -> None:
        found, restarts = lived(unit, machine, wiring, events, failing)
        assert found == reference
        assert restarts == 1

    run()


@pytest.mark.parametrize("order", [("relation_broken", "stop", "remove"), ("stop", "remove"), ("remove",)])
def test_any_end_leaves_nothing_and_an_update_status_in_between_brings_nothing_back(unit, machine, wiring, order):
    unit.run()
    for number, event in enumerate(order):
        if event == "stop":
            unit.unrelate()
        unit.run(event)
        if number == 0:
            unit.unrelate().run("update_status")
    assert machine.snapshot() == {}
    assert wiring.desired is None
    assert not machine.active(authenticator.SERVICE)


def test_an_upgrade_while_blocked_keeps_what_was_in_force(unit, machine, wiring):
    from tests.unit.charm.conftest import ship

    unit.configure(policy=POLICY).run()
    unit.configure(policy="- resource: {}").run()
    ship(machine.places.charm, "2.0.0")
    status = unit.run("upgrade_charm")

    assert isinstance(status, ops.BlockedStatus)
    assert status.message.startswith("policy")
    assert machine.active(authenticator.SERVICE)
    assert wiring.desired is not None
    assert unit.configure(policy=POLICY).run() == ops.ActiveStatus("ready: charmed, policy 1 rules")
    assert (machine.places.opt / "current").resolve().name.startswith("2.0.0-")
