"""Which unit has this machine: two would take turns in writing over each other's files, ports and flags.

Two applications of this charm related to one control plane, or one application related to two principals of a machine,
make two units on it. The first one has it; the other says so and touches nothing. Juju runs one hook a machine at a
time, so that no lock is needed. Not here: several machines, of which one restarts at a time (apiserver/lease.py).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import files
from errors import Blocked
from files import Places


def other(places: Places, unit: str) -> str | None:
    """Name the unit that has this machine, if that is another one than this and Juju still knows it."""
    with contextlib.suppress(FileNotFoundError):
        owner = _record(places).read_text(encoding="utf-8").strip()
        if owner != unit and _is_there(places, owner):
            return owner
    return None


def check(places: Places, unit: str) -> None:
    """Make sure that this unit may touch the machine.

    Args:
        places: where.
        unit: this unit's name, such as `kubernetes-keystone/0`.

    Raises:
        Blocked: another unit has it; the text names it and says how to choose.
    """
    owner = other(places, unit)
    if owner is not None:
        application = unit.partition("/")[0]
        raise Blocked(
            f"{owner} serves this machine already, and a machine has room for one unit of this charm: remove either,"
            f" for example juju remove-application {application}"
        )


def claim(places: Places, unit: str) -> None:
    """Record that this unit has the machine; the folder `places.state` must exist."""
    files.write(_record(places), f"{unit}\n".encode(), 0o644)


def _record(places: Places) -> Path:
    return places.state / "unit"


def _is_there(places: Places, unit: str) -> bool:
    """Tell whether Juju still knows this unit: its agent's folder goes with it, also where it is removed by force."""
    return (places.root / "var/lib/juju/agents" / f"unit-{unit.replace('/', '-')}").exists()
