"""The faults that docs/observing.md lists: each is met by a test on a real machine, and each alert named is there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import yaml

import observability
from tests.machine.telling import NOWHERE, faults

MACHINE = Path(__file__).parents[1] / "machine"
WORDS_AT = {"told_everywhere": 1, "fault": 0}
"""Which argument they are."""


def _looked_for() -> Iterator[str]:
    """The words that the machine tests look for."""
    for path in MACHINE.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if isinstance(node, ast.Call) and name in WORDS_AT:
                yield ast.literal_eval(node.args[WORDS_AT[name]])


def test_every_fault_is_met_on_a_real_machine() -> None:
    assert {one.words for one in faults()} == set(_looked_for())


def test_every_alert_of_a_fault_is_there() -> None:
    rules = yaml.safe_load((observability.RULES / "kubernetes-keystone.yaml").read_text())["groups"][0]["rules"]
    assert {one.alert for one in faults()} - {NOWHERE} <= {rule["alert"] for rule in rules}


def test_every_fault_names_a_next_step_and_a_place_to_find_it() -> None:
    for one in faults():
        assert one.do
        assert {one.status, one.level, one.journal} != {NOWHERE}, one.what
