"""Keeping tokens, and logging in one at a time: what only a call without a token at hand does.

Of many calls at once one asks Keystone, under a lock, and the others take what it got: a token, or its refusal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from kubectl_keystone_auth.cache import FORMAT, NOFOLLOW, WINDOWS, Cache, Entry, caller, private

FAILED = 15.0
"""A failure holds for so many seconds for the caller that it was told to: kubectl asks five times."""
PATIENCE = 90.0
"""How many seconds somebody else's login is waited for."""
NAMES = re.compile(r"[0-9a-f]{16}(\.(handed|failed))?(\.[0-9]+\.new)?")
OLD = 7 * 86400.0
"""What was not touched for so many seconds is removed."""


class Store(Cache):
    """What is kept of one login, to be changed."""

    def put(self, entry: Entry) -> None:
        """Keep a token. Where that is impossible, nothing is kept."""
        text = f"{FORMAT}\n{self.login}\n{entry.issued:.3f}\n{entry.expires:.3f}\n{entry.token}\n"
        with contextlib.suppress(OSError, ValueError):
            self._replace(self.path, text.encode("ascii"))
        self._remove(f"{self.path}.handed")
        self._remove(f"{self.path}.failed")
        self._tidy()

    def drop(self) -> bool:
        """Forget the token; says whether there was one."""
        self._remove(f"{self.path}.handed")
        self._remove(f"{self.path}.failed")
        return self._remove(self.path)

    def fail(self, code: int, message: str) -> None:
        """Note a failure, for those who ask again at once."""
        text = f"{time.time()!r}\n{caller()}\n{code}\n{' '.join(message.split())}\n"
        with contextlib.suppress(OSError, ValueError):
            self._replace(f"{self.path}.failed", text.encode("utf-8", "backslashreplace"))

    def failure(self, since: float | None, code: int | None = None) -> tuple[int, str] | None:
        """Give the failure that this call need not repeat: its code and message.

        That is one that the caller was told a moment ago, or one of a login that this call has waited for.

        Args:
            since: when this call began; None: it repeats what failed for it.
            code: a failure of this code counts for a moment whoever was told it.

        """
        try:
            text = self.read(f"{self.path}.failed").decode("utf-8")
            at, who, number, message, _ = text.split("\n")
            age, failed = time.time() - float(at), int(number)
        except (OSError, ValueError):
            return None
        recent = 0 <= age < FAILED
        waited = since is not None and 0 <= age <= time.time() - since
        told = since is not None and recent and who == str(caller())
        return (failed, message) if waited or told or (recent and failed == code) else None

    def _replace(self, path: str, content: bytes) -> None:
        if not prepare(self.place):
            raise ValueError(self.place)
        new = f"{path}.{os.getpid()}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW
        try:
            descriptor = os.open(new, flags, 0o600)
        except FileExistsError:
            Path(new).unlink()
            descriptor = os.open(new, flags, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            _swap(new, path)
        except BaseException:
            self._remove(new)
            raise

    @staticmethod
    def _remove(path: str) -> bool:
        try:
            Path(path).unlink()
        except OSError:
            return False
        return True

    def _tidy(self) -> None:
        """Remove what nobody has used for a week."""
        with contextlib.suppress(OSError):
            for path in ours(self.place):
                if time.time() - path.lstat().st_mtime > OLD:
                    self._remove(str(path))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this login's lock. After `PATIENCE`, or where nothing can be kept, go on without."""
        try:
            descriptor = self._open_lock()
        except (OSError, ValueError):
            yield
            return
        try:
            # One file for all, a byte of it a login: a file that is locked could not be removed without a race.
            _wait_for(descriptor, int(self.name[:7], 16))
            yield
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        if not prepare(self.place):
            raise ValueError(self.place)
        path = f"{self.place}{os.sep}lock"
        return os.open(path, os.O_RDWR | os.O_CREAT | NOFOLLOW, 0o600)


def _wait_for(descriptor: int, position: int) -> None:
    end, pause = time.monotonic() + PATIENCE, 0.01
    while not _try(descriptor, position) and time.monotonic() < end:
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def _try(descriptor: int, position: int) -> bool:
    """Tell whether there is nobody to wait for."""
    try:
        if WINDOWS:
            import msvcrt

            os.lseek(descriptor, position, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            import fcntl

            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
    except OSError as error:
        # Anything else says that there are no locks here, as in a home on some network's filesystem.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK, errno.EINTR)
    return True


def _swap(new: str, path: str) -> None:
    """Put a file in another's place; on Windows that fails while somebody reads the other."""
    end = time.monotonic() + (1 if WINDOWS else 0)
    while time.monotonic() < end:
        with contextlib.suppress(PermissionError):
            Path(new).replace(path)
            return
        time.sleep(0.01)
    Path(new).replace(path)


def ours(place: str) -> list[Path]:
    """Give the files of tokens in a folder; a user may have named one for it in which there is more.

    Raises:
        OSError: the folder cannot be read.

    """
    return [path for path in Path(place).iterdir() if NAMES.fullmatch(path.name)]


def prepare(place: str) -> bool:
    """Make the folder where it is not there; says whether it is the user's alone."""
    with contextlib.suppress(OSError):
        folder = Path(place)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(0o700)
    return private(place)
