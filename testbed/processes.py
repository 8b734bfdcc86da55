"""Programs that run for a while beside us, on free ports, and end with us."""

from __future__ import annotations

import abc
import contextlib
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

_S = TypeVar("_S", bound="Standing")


class Standing(abc.ABC):
    """Something made of programs that run beside us: up inside the context, and all of it gone behind it."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self: _S) -> _S:
        """Start it, and wait until it answers."""
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it and remove everything of it."""
        self._stack.close()

    @abc.abstractmethod
    def _begin(self) -> None:
        """Start everything, each with its end in `self._stack`."""


def free_port() -> int:
    """Find a free port of 127.0.0.1, below those for outgoing connections: one of these could take it meanwhile."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def process(
    log: Path,
    command: Sequence[str | Path],
    descriptors: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the context ends, or this process does; what it says goes to the end of `log`.

    Args:
        log: a file.
        command: the program and its arguments.
        descriptors: what it inherits.
        environment: what to add to ours.

    """
    with log.open("ab") as output:
        started = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", *map(str, command)],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=descriptors,
        )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(5)
        started.kill()
        started.wait()
