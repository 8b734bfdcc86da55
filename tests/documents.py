"""Reads the tables of the documentation, so that what they promise is what is tested."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def table(document: str, heading: str) -> list[list[str]]:
    """The rows of the table in `docs/<document>` whose first line begins so; cells without their backquotes."""
    lines = iter((DOCS / document).read_text().splitlines())
    for line in lines:
        if line.startswith(heading):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.split("|")[1:-1]])
    assert rows, f"docs/{document} has no table that begins with {heading}"
    return rows
