"""The documentation leads where it says: each link and anchor, and each test that the threat model promises."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.documents import table

PROJECT = Path(__file__).parents[2]
PAGES = sorted(path for pattern in ("*.md", "*/*.md") for path in PROJECT.glob(pattern) if path.parts[-2][0] != ".")
# [text](target) and ![text](target); `[text]: target` at the beginning of a line.
LINK = re.compile(r"(?<!\\)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"^\[([^\]]+)\]: (\S+)$", re.MULTILINE)
THREATS = "docs/threat-model.md"
FAULTS = "when-things-break.md"


@cache
def text(path: Path) -> str:
    """A page without its blocks of code, in which nothing is a link."""
    kept, fenced = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            kept.append(line)
    return "\n".join(kept)


@cache
def anchors(path: Path) -> frozenset[str]:
    """What GitHub calls the headings of a page."""
    found: Counter[str] = Counter()
    names = []
    for heading in re.findall(r"^#{1,6} (.*)$", text(path), re.MULTILINE):
        plain = LINK.sub(r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.append(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return frozenset(names)


def problem(page: Path, target: str) -> str | None:
    if re.match(r"[a-z]+:", target):
        return None
    file, _, anchor = unquote(target).partition("#")
    path = (page.parent / file).resolve() if file else page
    if not path.exists():
        return f"{target} is not there"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return f"{target}: there is no such heading, of {sorted(anchors(path))}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    targets = [target for _, target in LINK.findall(text(page))] + [
        target for _, target in REFERENCE.findall(text(page))
    ]
    assert [problem(page, target) for target in targets if problem(page, target)] == []


def test_every_page_can_be_found_from_the_index() -> None:
    index = PROJECT / "docs" / "README.md"
    led_to = {(index.parent / target.partition("#")[0]).resolve() for _, target in LINK.findall(text(index))}
    assert [page.name for page in PAGES if page.parent == index.parent and page not in {*led_to, index}] == []


def test_every_reference_that_a_page_uses_is_explained_there() -> None:
    for page in PAGES:
        used = set(re.findall(r"\[(\d+)\](?![(:])", text(page)))
        assert used <= {name for name, _ in REFERENCE.findall(text(page))}, page


@cache
def named_in(path: Path) -> frozenset[str]:
    """The tests of a module."""
    return frozenset(re.findall(r"^(?:async )?def test_(\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE))


def rows() -> list[str]:
    """The lines of the threat model's tables that are attacks."""
    found = [line for line in text(PROJECT / THREATS).splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(found) > 40
    return found


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = [(name, target) for row in rows() for name, target in LINK.findall(row) if target.startswith("../tests/")]
    assert len(named) > 100
    missing = [
        f"{target}: {name}"
        for name, target in named
        if name.replace(" ", "_") not in named_in((PROJECT / "docs" / target).resolve())
    ]
    assert missing == []


def test_every_attack_has_its_number_a_test_and_a_word_about_what_is_left() -> None:
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows()]
    assert [int(row[0].lstrip("| ")) for row in cells] == list(range(1, len(cells) + 1))
    assert [row[0] for row in cells if len(row) != 5 or "](../tests/" not in row[4] or not all(row[1:4])] == []


def said_by_python(source: str) -> Iterator[str]:
    """What a module can say: its texts, with `…` for what it puts into them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sd]", "…", node.value)


def test_a_fault_is_found_by_the_very_words_that_the_programs_use() -> None:
    programs = [path for path in (PROJECT / "src").rglob("*.py") if "kubectl_keystone_auth" not in path.parts]
    said = [word for path in programs for word in said_by_python(path.read_text("utf-8"))]
    said += [path.read_text("utf-8") for path in (PROJECT / "templates" / "apiserver").iterdir()]
    rows = table(FAULTS, "| words")
    assert len(rows) > 15
    unknown = []
    for words, *_ in rows:
        parts = [re.escape(part) for part in words.strip("`").split("…")]
        if not any(re.search(".*".join(parts), one) for one in said):
            unknown.append(words)
    assert unknown == []
