"""Reads what `juju` prints for programs: `juju status --format=json`, and the tasks of `juju run` and `juju exec`.

The fields are those of Juju 2.9 and 3.x; of them only what the scenarios look at is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """A unit, a subordinate or not; `agent` is `idle` where no hook of it runs or waits."""

    name: str
    workload: str
    message: str
    agent: str
    address: str


@dataclass(frozen=True)
class Application:
    """An application; `version` is its workload's."""

    name: str
    state: str
    message: str
    version: str


@dataclass(frozen=True)
class Status:
    """A model."""

    applications: Mapping[str, Application]
    all_units: tuple[Unit, ...]

    def units(self, application: str) -> list[Unit]:
        """Give an application's units, by number; a subordinate's are wherever their principals are."""
        found = [unit for unit in self.all_units if unit.name.partition("/")[0] == application]
        return sorted(found, key=lambda unit: int(unit.name.partition("/")[2]))


@dataclass(frozen=True)
class Task:
    """How an action ended, or a command on a unit; `code` is its exit code."""

    status: str
    results: Mapping[str, Any]
    message: str
    code: int


def status(text: str) -> Status:
    """Read `juju status --format=json`."""
    told = json.loads(text)
    applications = {
        name: Application(
            name,
            one.get("application-status", {}).get("current", "unknown"),
            one.get("application-status", {}).get("message", ""),
            one.get("version", ""),
        )
        for name, one in told.get("applications", {}).items()
    }
    units = [unit for one in told.get("applications", {}).values() for unit in _units(one.get("units") or {})]
    return Status(applications, tuple(units))


def _units(units: Mapping[str, Any]) -> Iterator[Unit]:
    for name, one in units.items():
        workload, agent = one.get("workload-status", {}), one.get("juju-status", {})
        yield Unit(
            name,
            workload.get("current", "unknown"),
            workload.get("message", ""),
            agent.get("current", "unknown"),
            one.get("public-address", ""),
        )
        yield from _units(one.get("subordinates") or {})


def task(text: str, unit: str) -> Task:
    """Read the task of one unit in what `juju run --format=json` or `juju exec --format=json` prints.

    Raises:
        ValueError: it has nothing of this unit.

    """
    try:
        told = json.loads(text)[unit]
    except (ValueError, KeyError):
        raise ValueError(f"juju says nothing of a task of {unit}: {text[:500]!r}") from None
    results = dict(told.get("results") or {})
    code = int(results.pop("return-code", results.pop("Code", 0)))
    return Task(told.get("status", "unknown"), results, told.get("message", ""), code)
