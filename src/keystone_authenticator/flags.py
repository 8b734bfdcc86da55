"""What the charm's wiring says of the API server's flags: whether they are in force, for `/metrics` alone.

The file is the charm's (`wanted`, format in its src/apiserver/wanted.py; a test compares), and the scripts that run
without the charm count in it: so it tells at once when they have taken the flags out. Nothing here decides anything.
"""

from __future__ import annotations

from pathlib import Path

NONE, CONFIRMED, PENDING, LEFT_OUT = "none", "confirmed", "pending", "left_out"
STATES = (NONE, "trial", CONFIRMED, PENDING, "bypassed", "acquitted", LEFT_OUT)


def state(path: Path | None) -> str:
    """One of `STATES`: how it is with the flags.

    `none`: there are none, or the file cannot be read; `trial`: they are being tried; `confirmed`: they were verified,
    and the API server was started with them; `pending`: they were verified, and it was started without; `bypassed`:
    taken out, as the authenticator could not be kept running; `left_out`: the API server kept ending with them, and
    runs without; `acquitted`: it ended without them, too.
    """
    try:
        text = path.read_text(encoding="utf-8") if path is not None else ""
    except (OSError, UnicodeDecodeError):
        return NONE
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        values[key] = value
    found = values.get("state", NONE)
    if found == CONFIRMED and values.get("life") == "-":
        return LEFT_OUT if values.get("starts") == "0" else PENDING
    return found if found in STATES else NONE
