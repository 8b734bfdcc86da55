"""YAML files that others keep: read, and looked at closely enough that lines of ours can be put among theirs.

All that is others' stays to the byte: nothing is written from what was parsed, which only says where lines go. Each
line of ours ends in a comment by which it is known again, so that the scripts that take ours out need no YAML.

What cannot be edited so is refused. Whether it could is not argued but looked at: the text with our lines has to mean
what was there and ours; each user of this module compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from apiserver.model import Conflict

MARK = "# kubernetes-keystone"
"""At the end of each line that we have put in."""


class Unsafe(Exception):
    """Why a text cannot be edited."""


def conflict(path: Path, why: object) -> Conflict:
    """Give the error for a file that is not touched."""
    return Conflict(f"{path} cannot be edited safely: {why}; nothing was changed")


def document(content: bytes) -> tuple[str, Any]:
    """Read one document: its text, and what it says.

    Raises:
        Unsafe: it is none, or one whose lines do not stand each for itself.

    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise Unsafe("it is not UTF-8") from None
    for character, name in (("\r", "Windows line ends"), ("\ufeff", "a byte order mark")):
        if character in text:
            raise Unsafe(f"it has {name}")
    if any(character in text for character in "\x85\u2028\u2029"):
        raise Unsafe("it has line ends of another kind")
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if getattr(event, "anchor", None) and event.start_mark:
                raise Unsafe(f"line {event.start_mark.line + 1} has an anchor or an alias")
        return text, yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise Unsafe(f"it is not one YAML document: {error.problem}{line}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Unsafe("it is not YAML") from None


def entries(node: yaml.Node | None, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Give key and value of each entry of a mapping in block style.

    Raises:
        Unsafe: it is not one.

    """
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        raise Unsafe(f"{what} is written in braces")
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {
        key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)
    }
    if len(found) != len(node.value):
        raise Unsafe(f"{what} has an entry twice")
    return found
