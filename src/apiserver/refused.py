"""What failed its trial, and why: a record, so that the same is not tried again until it is another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from apiserver import files


@dataclass(frozen=True)
class Refused:
    """One such thing.

    Args:
        digest: of what was tried; the record says nothing about anything else.
        reason: for people.
        log: the API server's last lines.

    """

    digest: str
    reason: str
    log: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Refused | None:
        """Give the record; None where there is none that can be read."""
        try:
            value = json.loads(path.read_bytes())
            return cls(value["digest"], value["reason"], tuple(value["log"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Put it there."""
        files.write(path, json.dumps(vars(self), indent=1).encode(), 0o600)
