"""What the charm's wiring says of the API server's flags: whether they are in force, for `/metrics` alone.

The file is the charm's (`wanted`, format in its src/apiserver/wanted.py; a test compares), and the scripts that run
without the charm count in it: so it tells at once when they have taken the flags out. Nothing here decides anything.
"""

from __future__ import annotations

from pathlib import Path

NONE, LEFT_OUT = "none", "left_out"
STATES = (NONE, "trial", "confirmed", "bypassed", "acquitted", LEFT_OUT)


def state(path: Path | None) -> str:
    """One of `STATES`: how it is with the flags.

    `none`: there are none, or the file cannot be read; `trial`: they are being tried; `confirmed`: they were verified;
    `bypassed`: taken out, as the authenticator could not be kept running; `acquitted`: the API server ended without
    them, too; `left_out`: it kept ending with them, and runs without.
    """
    try:
        text = path.read_text(encoding="utf-8") if path is not None else ""
    except (OSError, UnicodeDecodeError):
        return NONE
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, values[key] = line.partition(" ")
    found = values.get("state", NONE)
    if found == "confirmed" and values.get("starts") == "0" and values.get("life") == "-":
        return LEFT_OUT
    return found if found in STATES else NONE
