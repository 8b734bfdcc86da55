"""How flags reach an API server, and how it is known that they did: what `wiring` asks for, whatever runs the server.

There are two ways. `unit.py`: a systemd unit that reads its flags from a file; a script before each start puts ours in.
`pod.py`: a static pod, which the kubelet restarts when its manifest changes; a script watches over it. Both obey the
one file `wanted`, and count in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol, cast

from apiserver.args import Args
from apiserver.model import Layout, UnitLayout
from apiserver.pod import Pod
from apiserver.process import Process
from apiserver.static_pod import StaticPod
from apiserver.unit import Unit
from apiserver.wanted import Wanted


class Way(Protocol):
    """What can be asked of an API server of any layout. Errors are `WiringError` or `OSError`."""

    # --- what is there

    @property
    def evidence(self) -> str:
        """By what the layout is known, for the log: what runs the server, and where it has its flags."""
        ...

    @property
    def where(self) -> str:
        """Where the flags are, for a message."""
        ...

    @property
    def log(self) -> str:
        """How an operator reads the API server's log, for a message."""
        ...

    def check(self) -> None:
        """Raise `Conflict` where nothing can be put in, whatever it is; changes nothing."""
        ...

    def read(self) -> Args:
        """Read the flags that the next start has, ours included if they are in."""
        ...

    def others(self) -> Args:
        """Read them without ours."""
        ...

    def modes(self, flags: Args) -> tuple[str, ...]:
        """Give the authorization modes among these."""
        ...

    def named(self, path: str) -> bytes:
        """Read a file that one of the flags names."""
        ...

    def seen(self, path: str) -> PurePosixPath:
        """Give the whole path, as the API server knows it, of a file that one of the flags names."""
        ...

    def file(self, path: str) -> tuple[PurePosixPath, Path]:
        """Give a file that one of the flags names and that is to be changed: as the API server knows it, and here.

        Raises:
            Conflict: the API server would not see it change, or it is not on this machine.

        """
        ...

    # --- what keeps it safe without the charm

    def installed(self) -> bool:
        """Whether any of that is here, and is this layout's."""
        ...

    def install(self) -> None:
        """Put it in place, or renew it. Restarts nothing, and sets no flag."""
        ...

    def uninstall(self) -> None:
        """Take it away."""
        ...

    def chain(self) -> None:
        """Write the chain file for the token webhook that others have set now."""
        ...

    # --- the change itself

    def write_files(self, contents: Mapping[Path, bytes]) -> None:
        """Write what the flags name, readable to the API server alone."""
        ...

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """Let it be known that the charm is at work on a trial, until it ends, however it ends."""
        ...

    def start_with(self, trial: Wanted, seconds: float) -> str:
        """Want `trial`, and have the API server started with it. Returns what was complained about."""
        ...

    def cut(self) -> None:
        """Take our flags out of where the next start reads them."""
        ...

    def start_without(self, seconds: float) -> str:
        """Have the API server started, now that ours are cut. Returns what was complained about."""
        ...

    # --- what runs

    def running(self) -> Process | None:
        """Give the running server, None where there is none."""
        ...

    def unread(self, running: Process) -> bool:
        """Whether the flags are read from a file that is newer than the server; False where it shows them itself."""
        ...

    def life(self) -> str:
        """Give a name for the present life of the server: another one after each start."""
        ...

    def down(self, for_any_reason: bool) -> bool:
        """Whether it has been given up (`failed`), or, for any reason, is not running."""
        ...

    def with_ours(self) -> bool:
        """Whether the running server has flags of ours."""
        ...

    def in_force(self, what: Wanted) -> bool:
        """Whether the running server was given every flag of these. A file proves nothing: it may be newer."""
        ...

    def log_tail(self, since: float) -> tuple[str, ...]:
        """Give the last lines of its log since a Unix time, without what may be a secret."""
        ...


def of(layout: Layout) -> Way:
    """Give the way of a layout."""
    if isinstance(layout, StaticPod):
        return Pod(layout)
    return Unit(cast("UnitLayout", layout))
