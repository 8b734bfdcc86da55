"""What a monitoring agent is told when it comes, when something changes, and when one of the two goes."""

from __future__ import annotations

import dataclasses
import json

import ops.testing
import pytest
import yaml
from cosl import JujuTopology, LZMABase64
from cosl.rules import Rules

import authenticator
import charm
import observability
from tests.unit.charm.conftest import PROJECT, Unit, _spec

LABELS = {
    "juju_model": "a-model",
    "juju_model_uuid": "00000000-0000-4000-8000-000000000000",
    "juju_application": "kk",
    "juju_charm": "kubernetes-keystone",
}


def agent(unit: Unit) -> ops.testing.Relation:
    (found,) = unit.state.get_relations("cos-agent")
    assert isinstance(found, ops.testing.Relation)
    return found


def relate(unit: Unit) -> Unit:
    """`juju integrate grafana-agent kubernetes-keystone`: both are subordinates of the control plane."""
    relation = ops.testing.Relation("cos-agent", remote_app_name="grafana-agent")
    unit.state = dataclasses.replace(unit.state, relations={*unit.state.relations, relation})
    return unit


def told(unit: Unit) -> dict:
    return json.loads(agent(unit).local_unit_data["config"])


def fire(unit: Unit, event: str) -> None:
    made = getattr(unit.context.on, event)(agent(unit))
    unit.state = unit.context.run(made, unit.state)


@pytest.fixture(params=["2.9.52", "3.6.9"])
def versioned(request: pytest.FixtureRequest, unit: Unit) -> Unit:
    """The unit, as either Juju runs it."""
    unit.context = ops.testing.Context(charm.KubernetesKeystoneCharm, juju_version=request.param, **_spec())
    return unit


def test_an_agent_that_comes_is_told_where_the_metrics_are_and_what_to_make_of_them(versioned, machine):
    versioned.run()
    relate(versioned)
    fire(versioned, "relation_created")

    data = told(versioned)
    assert data["metrics_scrape_jobs"] == [
        {
            "job_name": "kubernetes-keystone",
            "metrics_path": "/metrics",
            "static_configs": [{"targets": ["127.0.0.1:8444"]}],
        }
    ]
    rules = [rule for group in data["metrics_alert_rules"]["groups"] for rule in group["rules"]]
    assert "KeystoneAuthenticatorDown" in {rule["alert"] for rule in rules}
    assert all(versioned.state.model.uuid in rule["expr"] for rule in rules)
    (dashboard,) = data["dashboards"]
    assert json.loads(LZMABase64.decompress(dashboard))["title"] == "Keystone accounts for Kubernetes"
    assert (data["log_slots"], data["log_alert_rules"]) == ([], {}), "the log is the journal's, which the agent reads"
    assert versioned.state.unit_status.name == "active"


def test_it_is_told_whichever_of_the_two_relations_came_first(unit, machine):
    relation = unit.relation
    relate(unit.unrelate())
    fire(unit, "relation_created")
    assert agent(unit).local_unit_data.get("config") is None, "there is nothing to watch yet"

    unit.state = dataclasses.replace(unit.state, relations={*unit.state.relations, relation})
    unit.run("relation_created")
    assert told(unit)["metrics_scrape_jobs"]


def test_it_is_told_anew_after_an_upgrade_and_nothing_when_nothing_has_changed(unit, machine):
    relate(unit).run()
    first = agent(unit)
    unit.run("update_status")
    assert agent(unit) == first

    unit.state = dataclasses.replace(
        unit.state,
        relations={unit.relation, dataclasses.replace(first, local_unit_data={"config": "what an older charm said"})},
    )
    unit.run("upgrade_charm")
    assert told(unit) == json.loads(first.local_unit_data["config"])


def test_without_a_control_plane_it_is_told_to_watch_nothing(unit, machine):
    """A service that was taken away on purpose must not raise an alarm."""
    relate(unit).run()
    assert told(unit)
    unit.run("relation_broken")

    assert not machine.active(authenticator.SERVICE)
    assert not agent(unit).local_unit_data.get("config")


def test_a_second_unit_on_the_machine_has_nothing_to_show(unit, machine):
    relate(unit).run()
    (machine.places.root / "var/lib/juju/agents/unit-keystone-too-3").mkdir(parents=True)
    (machine.places.state / "unit").write_text("keystone-too/3\n")
    unit.run()

    assert "keystone-too/3" in unit.state.unit_status.message
    assert not agent(unit).local_unit_data.get("config"), "the first one's agent scrapes that port already"


def test_an_agent_that_goes_changes_nothing_for_the_authenticator(unit, machine, wiring):
    relate(unit).run()
    before = machine.snapshot()
    fire(unit, "relation_broken")
    unit.state = dataclasses.replace(unit.state, relations={unit.relation})

    assert unit.run() == ops.ActiveStatus("ready: charmed, no policy, RBAC alone decides")
    assert machine.snapshot() == before
    assert wiring.restarts == 1


def test_what_is_wrong_with_the_options_keeps_no_alert_from_an_agent(unit, machine):
    relate(unit).run()
    agent_before = agent(unit)
    unit.configure(policy="[{}]").run()

    assert unit.state.unit_status.name == "blocked"
    assert agent(unit) == agent_before


def test_the_rules_are_what_the_agents_own_library_makes_of_the_file(tmp_path):
    """But for the matchers, which the library leaves to a program of its own."""
    topology = JujuTopology(
        LABELS["juju_model"], LABELS["juju_model_uuid"], LABELS["juju_application"], "kk/0", LABELS["juju_charm"]
    )
    theirs = Rules("promql", topology)
    theirs.add_path(observability.RULES)
    matchers = ",".join(f'{name}="{value}"' for name, value in LABELS.items() if name != "juju_charm")
    ours = json.loads(json.dumps(observability.alert_rules(LABELS)))
    for group in ours["groups"]:
        for rule in group["rules"]:
            assert matchers in rule["expr"]
            rule["expr"] = rule["expr"].replace(f"{matchers},", "").replace(matchers, "")

    assert ours == theirs.as_dict()


def test_no_selector_looks_at_what_is_not_ours():
    for group in yaml.safe_load((observability.RULES / "kubernetes-keystone.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["expr"].count("{") == rule["expr"].count("%%juju_topology%%")


def test_the_alerts_are_documented():
    documented = (PROJECT / "docs/observing.md").read_text()
    for group in observability.alert_rules(LABELS)["groups"]:
        for rule in group["rules"]:
            assert f"`{rule['alert']}`" in documented
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}
