"""SECURITY.md promises a test for each line of its table: they are there, under these names."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "SECURITY.md").read_text()


def test_every_test_that_it_names_is_there() -> None:
    named = re.findall(r"\[([^\]]+)\]\((tests/[^)]+)\)", TEXT)
    assert len(named) > 20
    missing = [
        f"{path}: {name}"
        for name, path in named
        if f"def test_{name.replace(' ', '_')}(" not in (PROJECT / path).read_text()
    ]
    assert missing == []


def test_every_line_of_its_table_names_one() -> None:
    rows = [
        line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| Somebody", "| ---"))
    ]
    assert rows
    assert [row for row in rows if "](tests/" not in row] == []
