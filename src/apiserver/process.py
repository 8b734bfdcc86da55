"""The API servers that run on this machine, as /proc shows them: their flags, their files, when they began."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from apiserver.args import Args, from_words

MOST_BYTES = 256 * 1024
"""Of a file that a process names."""
_PROGRAM = "kube-apiserver"


@dataclass(frozen=True)
class Process:
    """A process of this machine.

    Args:
        pid: its number.
        ticks: when it began, in clock ticks since the machine's boot.
        flags: that it was given.

    """

    pid: int
    ticks: int
    flags: Args

    @classmethod
    def of(cls, pid: int, flags: Args) -> Process:
        """Look when it began.

        Raises:
            OSError: it has ended.

        """
        # The program's name is in it, which may be any bytes, brackets included.
        return cls(pid, int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[19]), flags)

    @property
    def life(self) -> str:
        """A name that no other process has had."""
        return f"{self.pid}:{self.ticks}"

    def older_than(self, path: Path) -> bool:
        """Whether a file was written after the process began; in doubt, which is a second, it was not."""
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        began = int(boot.split()[1]) + self.ticks / os.sysconf("SC_CLK_TCK")
        return path.stat().st_mtime > began + 1

    def path(self, name: str) -> Path:
        """Give the path by which we see the file that the process means by `name`: in its container, its snap."""
        if "$" in name:  # kubelite puts its environment in
            words = Path(f"/proc/{self.pid}/environ").read_bytes().decode(errors="replace").split("\0")
            name = string.Template(name).safe_substitute(
                {word.partition("=")[0]: word.partition("=")[2] for word in words}
            )
        if not PurePosixPath(name).is_absolute():
            return Path(f"/proc/{self.pid}/cwd/{name}")
        return Path(f"/proc/{self.pid}/root{name}")

    def content(self, name: str) -> bytes:
        """Read the file that the process means by `name`: anybody may call a program so, and name a pipe.

        Raises:
            OSError: it cannot be read, is no regular file, or has more than `MOST_BYTES`.

        """
        # Looked at before it is opened: some devices begin something when they are (a watchdog).
        place = os.open(self.path(name), os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode):
                raise OSError(errno.EINVAL, "no regular file", name)
            with Path(f"/proc/self/fd/{place}").open("rb") as file:
                found = file.read(MOST_BYTES + 1)
        finally:
            os.close(place)
        if len(found) > MOST_BYTES:
            raise OSError(errno.EFBIG, f"more than {MOST_BYTES} bytes", name)
        return found


def servers() -> Iterator[Process]:
    """Give the processes that are an API server's program, a container's as well as the machine's own."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # ended in between
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if words and PurePosixPath(words[0]).name == _PROGRAM:
                yield Process.of(int(folder.name), from_words(words))
