"""What docs/observing.md says of each fault, looked for in each place where it says that it stands.

Its table "One story" is what these tests go by: a row's words, and where they are told. So the table cannot promise
what a real run does not show; that each row is met by a test is tests/unit/test_story.py's.
"""

from __future__ import annotations

from typing import NamedTuple

from testbed.agent import Unit
from tests.documents import table

NOWHERE = "-"


class Fault(NamedTuple):
    """A row of the table."""

    what: str
    words: str
    status: str
    """The unit's status, such as `blocked`."""
    level: str
    """That of the line in `juju debug-log`."""
    journal: str
    """The unit of systemd in whose journal the words stand."""
    alert: str
    do: str


def faults() -> list[Fault]:
    """Give all of them."""
    return [Fault(*row) for row in table("observing.md", "| What is wrong |")]


def fault(words: str) -> Fault:
    """Give the one with these words."""
    (found,) = [one for one in faults() if one.words == words]
    return found


def told_everywhere(unit: Unit, words: str, journal: str = "", log: int = 100) -> Fault:
    """See that a fault is told in the documented words, in each place that its row names.

    Args:
        unit: after a hook in which it is there.
        words: of its row.
        journal: the unit of systemd, where the row only says whose it is.
        log: how many of the last lines of `juju debug-log` may have it.

    """
    found = fault(words)
    if found.status != NOWHERE:
        assert unit.status.name == found.status, unit.status
        assert words in unit.status.message
    if found.level != NOWHERE:
        lines = [line for line in unit.debug_log(log).splitlines() if words in line]
        assert any(f" {found.level} " in line for line in lines), unit.debug_log(log)
    if found.journal != NOWHERE:
        name = journal or found.journal
        assert words in unit.machine.journal(name, 100_000), f"nothing of it in the journal of {name}"
    return found
