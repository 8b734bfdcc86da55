"""`wanted`: the one file that says what the script before each start may put in, and how often still.

Written whole by one rename, by root alone, under the lock beside it; the script counts in it, and the authenticator's
metrics tell its state (no line is more of a secret than the API server's command line). A line each, in this order:

    wanted 1                     format
    state trial                  trial, confirmed, bypassed (OnFailure=), or acquitted (crashed without our flags, too)
    starts 1                     how many starts with our flags are left
    life BOOT-ID UPTIME          the start that was taken for the API server's present life; "-": it runs without ours
    retry BOOT-ID COUNT UPTIME   after a bypass: how often within a day, and when to come back at the earliest; or "-"
    digest HEX                   `Desired.digest`
    file SHA-256 PATH            each file that the flags name; with another content nothing is put in
    line --flag="value"          the lines of our block
    end

Times are whole seconds of /proc/uptime, which no change of the clock moves.

A static pod has no script before its starts. There the charm takes the one start itself, when it is about to put the
lines in, and the script that watches over the manifest (`apiserver-pod`) reads and counts here; `starts 0` and `life -`
say that it took them out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from apiserver import args, files
from apiserver.model import Desired, Layout, Place, WiringError

STARTS = 3
"""How many starts in a row may end soon before our flags are left out; the script gives as many back."""

_MODE = 0o644
_LOCK_SECONDS = 35  # the script holds the lock for 30 s at most


class Stage(str, Enum):
    """The line `state`."""

    TRIAL = "trial"
    CONFIRMED = "confirmed"
    BYPASSED = "bypassed"
    ACQUITTED = "acquitted"


@dataclass(frozen=True)
class Wanted:
    """What the file says."""

    stage: Stage
    starts: int
    digest: str
    files: tuple[tuple[str, Path], ...]
    lines: tuple[str, ...]
    life: str = "-"
    retry: str = "-"

    @classmethod
    def trial(cls, layout: Layout, desired: Desired) -> Wanted:
        """One start with `desired`, to be confirmed or taken back."""
        sums = tuple((hashlib.sha256(content).hexdigest(), path) for path, content in sorted(desired.files.items()))
        return cls(Stage.TRIAL, 1, desired.digest, sums, args.block(desired, layout.config_folder))

    @property
    def ran_out(self) -> bool:
        """Verified once, but the API server ended too soon too often with our flags, and runs without them since."""
        return self.stage is Stage.CONFIRMED and self.starts < 1 and self.life == "-"

    @property
    def may_come_back(self) -> bool:
        """After a bypass: whether the wait is over."""
        boot, _, rest = self.retry.partition(" ")
        now, until = taken().split(), rest.rpartition(" ")[2]
        return boot != now[0] or not until.isdecimal() or int(now[1]) >= int(until)

    @property
    def text(self) -> str:
        """The file."""
        return "\n".join(
            [
                "wanted 1",
                f"state {self.stage.value}",
                f"starts {self.starts}",
                f"life {self.life}",
                f"retry {self.retry}",
                f"digest {self.digest}",
                *(f"file {checksum} {path}" for checksum, path in self.files),
                *(f"line {line}" for line in self.lines),
                "end\n",
            ]
        )


def read(place: Place) -> Wanted | None:
    """Give what is wanted; None where nothing is, or nothing that can be read (the script puts nothing in then)."""
    content = files.read(place.wanted)
    if content is None:
        return None
    records: list[tuple[str, str]] = []
    for line in content.decode(errors="replace").splitlines():
        key, _, value = line.partition(" ")
        records.append((key, value))
    values = dict(records)
    if not records or records[0] != ("wanted", "1") or records[-1] != ("end", ""):
        return None
    try:
        return Wanted(
            stage=Stage(values["state"]),
            starts=int(values["starts"]),
            digest=values["digest"],
            files=tuple((value[:64], Path(value[65:])) for key, value in records if key == "file"),
            lines=tuple(value for key, value in records if key == "line"),
            life=values["life"],
            retry=values["retry"],
        )
    except (KeyError, ValueError):
        return None


def write(place: Place, wanted: Wanted) -> None:
    """Put `wanted` in force for the next start."""
    with locked(place):
        files.write(place.wanted, wanted.text.encode(), _MODE)


def confirm(place: Place, digest: str) -> bool:
    """End the trial of `digest` well. False where what is wanted is no longer that, or was taken out again."""
    with locked(place):
        wanted = read(place)
        if wanted is None or wanted.digest != digest or wanted.stage not in (Stage.TRIAL, Stage.CONFIRMED):
            return False
        if wanted.life == "-":
            return False
        files.write(place.wanted, replace(wanted, stage=Stage.CONFIRMED, starts=STARTS).text.encode(), _MODE)
    return True


def forget(place: Place) -> None:
    """Want nothing: no start puts our flags in from here on."""
    with locked(place):
        files.remove(place.wanted)


def taken() -> str:
    """Give the line `life` of a start that is taken now."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/uptime').read_text().partition('.')[0]}"


@contextlib.contextmanager
def locked(place: Place) -> Iterator[None]:
    """Hold the lock that the script takes as well: never while the API server is restarted, which runs the script."""
    files.folder(place.lock.parent)
    descriptor = os.open(place.lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WiringError(
                        f"{place.lock} has been held for {_LOCK_SECONDS} s: see who with `fuser -v`"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
