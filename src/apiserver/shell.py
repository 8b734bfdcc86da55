"""Commands for a person, as lines of a shell: whole, safe to run twice, and with nothing left to fill in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def put(path: Path, text: str) -> tuple[str, ...]:
    """Write a file, root's alone; its folder as well."""
    return (
        f"sudo mkdir -p {path.parent}",
        f"sudo install -m 0600 /dev/stdin {path} <<'EOF'",
        *text.splitlines(),
        "EOF",
    )


def exchange_flags(path: Path, gone: Sequence[str], line: str) -> tuple[str, ...]:
    """Put a line into a file of flags, a line each, for those of these names."""
    names = "|".join([*gone, line[2:].partition("=")[0]])
    return (
        f"sudo sed -Ei '/^--({names})([= ]|$)/d' {path}",
        f"printf '\\n%s\\n' '{line}' | sudo tee -a {path} >/dev/null",
    )
