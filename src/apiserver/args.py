"""Read an API server's flags, from its args file or from the running process; say what our own block looks like.

One parser for everything that wants to know what is set. It reads words and quotes as a shell does, a flag's value in
the same word (`--flag=value`) or in the next (`--flag value`), and of a flag given several times all the values.

Not here: which flags in a file are ours, and changing it. That is the script's (`templates/apiserver/apiserver-flags`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apiserver.model import MANAGED, Desired, Flag, UnitLayout

BEGIN = "begin"
"""The file name, never opened, by which the first line of our block is known."""

MODE = "authorization-mode"
_WEBHOOK = re.compile(r"(--(?:authentication-token|authorization)-webhook-config-file)=[\"']?(.*)")


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

    def include(self, flag: Flag) -> bool:
        """Whether this flag is among them; of a mode's it is enough to be one of the items, for modes add up."""
        if flag.name == MODE:
            return set(flag.value.split(",")) <= set(self.items(flag.name))
        return flag in self.flags

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


def sources(layout: UnitLayout) -> tuple[Path, ...]:
    """Give the files whose flags the next start reads, in order: of a flag with one value the last one counts."""
    folder = layout.args_folder
    if folder is None or not (folder / MANAGED).is_file():
        return (layout.args_file,)
    return tuple(sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")))


def read(layout: UnitLayout) -> Args:
    """Read the flags that the next start reads, ours included if they are in.

    Raises:
        OSError: a file cannot be read.

    """
    return parse("\n".join(path.read_text(errors="replace") for path in sources(layout)))


def modes(layout: UnitLayout, flags: Args) -> tuple[str, ...]:
    """Give the authorization modes of a layout: those of several lines add up, those of several files do not."""
    if sources(layout) == (layout.args_file,):
        return flags.items(MODE)
    return tuple(filter(None, flags.last(MODE).split(",")))


def flag_lines(lines: Iterable[str]) -> Args:
    """Read the flags of a block: all but its first line, which only marks its beginning."""
    return parse("\n".join(list(lines)[1:]))


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
