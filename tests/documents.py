"""Reads the documentation: its tables and its commands, so that what it promises is what is tested."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs"
ARROW = "──>"
NAMED = re.compile(r"as `([^`]+\.ya?ml)`")


class Step(NamedTuple):
    """What a reader does next.

    `kind` is `command`; `answer`, what the commands before it print, or lines of that; `file`, one to save, with its
    name; or `note`, a comment to those who test the page.
    """

    kind: str
    text: str
    heading: str
    line: int
    name: str = ""


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


def steps(document: str) -> list[Step]:
    """What a reader of a document (by its path in the repository) does: the blocks for a shell, command by command.

    Those are the blocks that are indented, pictures with arrows aside, and the fenced ones without a language or of
    `sh`, `bash` or `console`; of `text` are answers.
    """
    return list(_steps((PROJECT / document).read_text()))


def below(document: str, heading: str) -> list[Step]:
    """What of `steps` stands below a heading, up to the next one."""
    found = [step for step in steps(document) if step.heading == heading]
    assert found, f"{document} has nothing to do below a heading {heading!r}"
    return found


def _steps(text: str) -> Iterator[Step]:
    lines, heading, paragraph, number = text.splitlines(), "", "", 0
    while number < len(lines):
        line, began = lines[number], number + 1
        number += 1
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
        elif line.startswith("<!--"):
            yield Step("note", line.removeprefix("<!--").removesuffix("-->").strip(), heading, began)
        elif line.startswith("```"):
            end = next(at for at in range(number, len(lines)) if lines[at].startswith("```"))
            body, language, number = lines[number:end], line[3:].strip(), end + 1
            if language in ("", "sh", "bash", "console"):
                yield from _commands(body, heading, began + 1)
            elif language == "text":
                yield Step("answer", "\n".join(body), heading, began + 1)
            elif language == "yaml" and (named := NAMED.findall(paragraph)):
                yield Step("file", "\n".join(body) + "\n", heading, began, named[-1])
        elif line.startswith("    ") and not paragraph.startswith(("- ", "* ")):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            if ARROW not in "".join(lines[number - 1 : end]):
                yield from _commands([one[4:] for one in lines[number - 1 : end]], heading, began)
            number = end
        else:
            # Of a list, its items are what an indented line belongs to.
            new = not line.strip() or line.startswith(("- ", "* ")) or not lines[number - 2].strip()
            paragraph = line if new and line.strip() else paragraph if not line.strip() else f"{paragraph} {line}"


def _commands(lines: list[str], heading: str, began: int) -> Iterator[Step]:
    """Put together what one command has in several lines."""
    held: list[str] = []
    for at, line in enumerate(lines):
        if not held and not line.strip():
            continue
        held.append(line)
        text = "\n".join(held)
        if not text.endswith("\\") and _whole(text):
            yield Step("command", text, heading, began + at - len(held) + 1)
            held = []
    if held:
        yield Step("command", "\n".join(held), heading, began)


def _whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True
