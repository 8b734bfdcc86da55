"""Read an API server's flags, from its args file or from the running process; say what our own block looks like.

One parser for everything that wants to know what is set. It reads words and quotes as a shell does, a flag's value in
the same word (`--flag=value`) or in the next (`--flag value`), and of a flag given several times all the values.

`others` is the script's rule (`templates/apiserver/apiserver-flags`) once more, for reading only: what changes the file
is the script, always. A test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apiserver.model import Desired, Flag

BEGIN = "begin"
"""The file name, never opened, by which the first line of our block is known."""

_WEBHOOK = re.compile(r"(--(?:authentication-token|authorization)-webhook-config-file)=[\"']?(.*)")
_PLAIN = re.compile(
    r"--authorization-mode=[\"']?Webhook[\"']?\r?$"
    r"|--(authentication-token|authorization)-webhook-(version|cache-([a-z]+-)?ttl)="
)


@dataclass(frozen=True)
class Args:
    """The flags of an API server, in order."""

    flags: tuple[Flag, ...]

    def all(self, name: str) -> tuple[str, ...]:
        """Give every value of a flag, in order."""
        return tuple(flag.value for flag in self.flags if flag.name == name)

    def last(self, name: str) -> str:
        """Give the value that counts for a flag that takes one; empty where it is not set, which means the same."""
        return (self.all(name) or ("",))[-1]

    def items(self, name: str) -> tuple[str, ...]:
        """Give the items of a flag that takes a list: those of all its values, for such a flag adds up."""
        return tuple(item.strip() for value in self.all(name) for item in value.split(",") if item.strip())

    def mentions(self, folder: Path) -> bool:
        """Whether any value is a path in `folder`."""
        return any(flag.value.startswith(f"{folder}/") for flag in self.flags)


def words(line: str) -> list[str]:
    """Split a line as a shell does: quotes and backslashes are taken off; a quote does not go on in the next line."""
    found: list[str] = []
    word: str | None = None
    quote = ""
    characters = iter(line)
    for character in characters:
        if not quote and character in " \t\r\n":
            if word is not None:
                found.append(word)
            word = None
            continue
        word = word or ""
        if character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote = character
        elif character == "\\" and quote != "'":
            word += next(characters, "")
        else:
            word += character
    return found if word is None else [*found, word]


def from_words(given: Iterable[str]) -> Args:
    """Read the flags from a command line's words; words that belong to no flag are passed over."""
    flags: list[Flag] = []
    name = None
    for word in given:
        if not word.startswith("--"):
            if name is not None:
                flags.append(Flag(name, word))
            name = None
            continue
        if name is not None:
            flags.append(Flag(name, "true"))  # a switch without a value
        name, is_set, value = word[2:].partition("=")
        name = name.replace("_", "-")  # Kubernetes takes either
        if is_set:
            flags.append(Flag(name, value))
            name = None
    if name is not None:
        flags.append(Flag(name, "true"))
    return Args(tuple(flags))


def parse(text: str) -> Args:
    """Read the flags from the text of an args file."""
    return from_words(word for line in text.split("\n") for word in words(line))


def block(desired: Desired, folder: Path) -> tuple[str, ...]:
    """Give the lines that put `desired` into an args file, known again by their first and last.

    Raises:
        ValueError: a name or value could be read as something else, or no flag is there to know the block by.

    """
    for flag in desired.flags:
        if not re.fullmatch(r"[a-z0-9-]+", flag.name) or re.search(r"[\"'\\$`\s]", flag.value):
            raise ValueError(f"--{flag.name}={flag.value} cannot be written into an args file")
    hinges = [
        flag for flag in desired.flags if flag.value.startswith(f"{folder}/") and _WEBHOOK.match(f"--{flag.name}=")
    ]
    if not hinges:
        raise ValueError(f"none of the flags is a webhook's file in {folder}")
    hinge = hinges[0]
    middle = [flag for flag in desired.flags if flag != hinge]
    first = Flag(hinge.name, f"{folder}/{BEGIN}")
    return tuple(f'--{flag.name}="{flag.value}"' for flag in (first, *middle, hinge))


def others(text: str, folder: Path) -> str:
    """Give the text of an args file without our block, as the script leaves it."""
    lines = text.split("\n")
    ended = lines[-1] == ""
    if ended:
        lines.pop()

    def ours(index: int) -> tuple[str, str] | None:
        match = _WEBHOOK.match(lines[index])
        return (match[1], match[2]) if match and match[2].startswith(f"{folder}/") else None

    dropped: set[int] = set()
    joined = -1
    for index in range(len(lines)):
        found = ours(index)
        if found is None:
            continue
        dropped.add(index)
        name, value = found
        if not value.startswith(f"{folder}/{BEGIN}"):
            continue
        if value.startswith(f"{folder}/{BEGIN}-joined"):
            joined = index
        end = next((i for i in range(index + 1, len(lines)) if (ours(i) or ("",))[0] == name), len(lines))
        for inside in range(index + 1, end):
            if _PLAIN.match(lines[inside]):
                dropped.add(inside)
            elif end == len(lines) and ours(inside) is None:
                break
    kept = [index for index in range(len(lines)) if index not in dropped]
    if not kept:
        return ""
    closed = not ((kept[-1] == len(lines) - 1 and not ended) or joined > kept[-1])
    return "\n".join(lines[index] for index in kept) + ("\n" if closed else "")
