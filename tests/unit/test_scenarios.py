"""The scenarios are told whole by each driver, and what reads Juju's output reads what Juju's documentation shows."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests import scenarios
from tests.juju_output import Unit, status, task

TESTS = Path(__file__).parents[1]
STEPS = [step.__name__ for step in scenarios.STORY]

# As `juju status --format=json` of Juju 3.6 has them; 2.9 names series in the place of bases.
MODEL = {
    "model": {"name": "k8s", "type": "iaas", "controller": "lxd", "cloud": "localhost", "version": "3.6.1"},
    "machines": {"0": {"juju-status": {"current": "started"}, "dns-name": "10.20.30.40"}},
    "applications": {
        "kubernetes-control-plane": {
            "charm": "kubernetes-control-plane",
            "base": {"name": "ubuntu", "channel": "22.04"},
            "charm-origin": "charmhub",
            "exposed": False,
            "application-status": {"current": "active", "message": "Ready", "since": "24 Feb 2025 12:03:17+13:00"},
            "units": {
                f"kubernetes-control-plane/{number}": {
                    "workload-status": {"current": "active", "message": "Ready"},
                    "juju-status": {"current": "idle", "version": "3.6.1"},
                    "machine": str(number),
                    "public-address": f"10.20.30.4{number}",
                    "subordinates": {
                        f"kubernetes-keystone/{number}": {
                            "workload-status": {"current": "blocked", "message": "policy: line 2"},
                            "juju-status": {"current": "executing", "message": "running config-changed hook"},
                            "public-address": f"10.20.30.4{number}",
                        }
                    },
                }
                for number in (10, 9)
            },
        },
        "kubernetes-keystone": {
            "charm": "local:kubernetes-keystone-0",
            "exposed": False,
            "application-status": {"current": "blocked", "message": "policy: line 2"},
            "subordinate-to": ["kubernetes-control-plane"],
            "version": "0.1.0",
        },
        "nothing-yet": {"charm": "ubuntu", "exposed": False},
    },
}


def calls(path: Path) -> list[str]:
    """The steps that a module calls, in the order in which they stand."""
    return [name for name in re.findall(r"scenarios\.(\w+)\(", path.read_text()) if name in STEPS]


def test_the_stand_in_tells_every_step_in_order() -> None:
    one_machine = calls(TESTS / "machine" / "test_story.py")
    several = calls(TESTS / "machine" / "test_highly_available.py")
    canonical = calls(TESTS / "machine" / "test_story_on_canonical_kubernetes.py")
    assert set(one_machine) | set(several) == set(STEPS)
    assert {*STEPS[:2], STEPS[-1]} <= set(canonical)
    for told in (one_machine, several, canonical):
        assert told == [name for name in STEPS if name in told], "in the story's order, each once"


def test_every_function_that_is_a_step_is_in_the_story() -> None:
    tree = ast.parse((TESTS / "scenarios.py").read_text())
    taking = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and [a.arg for a in node.args.args] == ["story"]
    ]
    assert taking == STEPS


def test_a_status_has_applications_and_the_units_of_subordinates_by_number() -> None:
    told = status(json.dumps(MODEL))
    assert set(told.applications) == set(MODEL["applications"])
    assert told.applications["kubernetes-keystone"].version == "0.1.0"
    assert told.applications["nothing-yet"].state == "unknown"
    assert told.units("nothing-yet") == []
    nine, ten = told.units("kubernetes-keystone")
    assert nine == Unit("kubernetes-keystone/9", "blocked", "policy: line 2", "executing", "10.20.30.49")
    assert ten.name == "kubernetes-keystone/10"
    assert [unit.workload for unit in told.units("kubernetes-control-plane")] == ["active", "active"]


def test_a_task_has_its_results_apart_from_its_exit_code() -> None:
    completed = {"id": "42", "results": {"return-code": 0, "user": "alice"}, "status": "completed", "unit": "mysql/0"}
    read = task(json.dumps({"mysql/0": completed}), "mysql/0")
    assert (read.status, read.results, read.message, read.code) == ("completed", {"user": "alice"}, "", 0)


def test_a_task_that_failed_says_why() -> None:
    failed = {"id": "42", "message": "no such thing", "results": {"return-code": 0}, "status": "failed"}
    read = task(json.dumps({"mysql/0": failed}), "mysql/0")
    assert (read.status, read.message) == ("failed", "no such thing")
    crashed = {"id": "42", "results": {"return-code": 1, "stderr": "Uncaught"}, "status": "failed"}
    assert task(json.dumps({"mysql/0": crashed}), "mysql/0").code == 1


@pytest.mark.parametrize("text", ["", "ERROR no such unit", "{}", '{"mysql/1": {}}'])
def test_output_without_the_task_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ValueError, match="nothing of a task of mysql/0"):
        task(text, "mysql/0")
