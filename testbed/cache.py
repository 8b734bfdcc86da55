"""The test bed's cache: what takes long to make is made once, in a folder outside the checkout, a version a folder.

It knows how to make an artefact safely (one maker at a time, an interrupted one starts anew) and how to say so, and it
has the folders of what runs. What is made, and how, is `testbed.setup`'s.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

DONE = ".complete"


class TestbedError(RuntimeError):
    """Something of the test bed does not work; the message says what, where and what to do."""

    __test__ = False  # not a test class, whatever pytest makes of its name


def root() -> Path:
    """Give the cache's folder: `KUBERNETES_KEYSTONE_CACHE`, or one in the user's cache."""
    named = os.environ.get("KUBERNETES_KEYSTONE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else base / "kubernetes-keystone"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def say(text: str) -> None:
    """Print a line of progress at once (standard error, so that it never mixes with a command's output)."""
    print(f"==> {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of that name against every other process that uses this cache."""
    path = root() / f"{name}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def artefact(name: str, what: str, takes: str, make: Callable[[Path], None]) -> Path:
    """Give the folder `name` of the cache, made by `make` if it is not there whole.

    Args:
        name: the folder's name, with all in it that its content depends on.
        what: what it is, for the line of progress.
        takes: how long making it usually takes.
        make: fills the folder, which is there and empty. It is made at its final place (virtual environments cannot
            move), so it counts only once `make` has returned.

    """
    folder = root() / name
    if (folder / DONE).exists():
        return folder
    with locked(name):
        if (folder / DONE).exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        say(f"{what}: making it, once; usually {takes}")
        start = time.monotonic()
        make(folder)
        (folder / DONE).touch()
        say(f"{what}: done in {time.monotonic() - start:.0f} s")
    return folder


class Run:
    """A folder for something that runs, in use for as long as this process lives (and does not remove it)."""

    def __init__(self, name: str) -> None:
        runs = root() / "runs"
        runs.mkdir(exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=runs))
        self._mark = (self.folder / "in-use").open("w")
        fcntl.flock(self._mark, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder, trying for a few seconds: the kernel takes a moment to let go of what was killed."""
        remove(self.folder)
        self._mark.close()


def remove(folder: Path) -> None:
    """Remove a folder of `Run`."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
    say(f"cannot remove {folder}: remove it by hand")


def stale_runs() -> list[Path]:
    """Give the folders of `Run` that killed processes left."""
    return [folder for folder in (root() / "runs").glob("*/") if not _in_use(folder)]


def _in_use(folder: Path) -> bool:
    try:
        with (folder / "in-use").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime < 60  # it may just be being made
    return False


def call(
    command: Sequence[str | Path],
    hint: str,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
) -> str:
    """Run a command of the set-up and give its output.

    Args:
        command: the program and its arguments.
        hint: what to do when it fails.
        cwd: where it runs.
        env: what to add to the environment.
        input: what to give it on standard input.

    Raises:
        TestbedError: if it fails, with the end of its output and the hint.

    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise TestbedError(f"{words[0]} is not installed: {hint}") from error
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise TestbedError(f"{' '.join(words)} failed with {done.returncode}: {hint}\n{end}")
    return done.stdout
