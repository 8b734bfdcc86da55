"""Tokens at hand: a file a login, in a folder that is the user's alone. What every call does; `store` does the rest.

A token is found by what names its login, never by a secret. Reading takes no lock: files are replaced whole. What is
damaged, or not the user's own, counts as absent.

kubectl does not say that a token was refused. It asks again, the same process, before the token has ended: so beside
each token stands who was handed it, and who asks twice is given a new one.
"""

from __future__ import annotations

import os
import stat
import time
from binascii import crc32

FORMAT = "kubectl-keystone-auth 1"
RENEWED = 120.0
"""A token is renewed so many seconds before its end, or a tenth of its life before it if that is less."""
YOUNG = 60.0
"""A token of fewer seconds is not asked for anew: another would hardly be better. It bounds the logins of programs that
ask for one cluster after another, or at each call."""
TOGETHER = 10.0
"""Two calls within so many seconds count as one caller's where callers cannot be told: on Windows the launchers of pip
and venv stand between kubectl and this process."""
MOST = 65536
"""Bytes of a token, and of the list of callers."""

WINDOWS = os.name == "nt"
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Entry:
    """A token with what there is to know of it; times are seconds since the epoch by this machine's clock."""

    __slots__ = ("expires", "issued", "token")

    def __init__(self, token: str, issued: float, expires: float) -> None:
        self.token = token
        self.issued = issued
        self.expires = expires

    @property
    def renew(self) -> float:
        """When it is to be renewed: this is what kubectl is told as its end."""
        return self.expires - min(RENEWED, max(0.0, self.expires - self.issued) / 10)

    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.issued <= time.time() + TOGETHER and time.time() < self.expires

    def fresh(self) -> bool:
        """Whether it need not be renewed yet."""
        return self.alive() and time.time() < self.renew


def folder() -> str:
    """Give the folder of tokens: beside kubectl's own caches, the same on every system."""
    given = os.environ.get("KEYSTONE_AUTH_CACHE")
    return given or os.path.join(os.path.expanduser("~"), ".kube", "cache", "keystone-auth")


def caller() -> int | None:
    """Tell who asks, where that can be told."""
    return None if WINDOWS else os.getppid()


class Cache:
    """What is kept of one login."""

    def __init__(self, place: str, login: str) -> None:
        """Take the folder and the name of the login (`Options.login`)."""
        text = login.encode("ascii")
        self.place = place
        # Only to spread: what a file belongs to stands in it. (hashlib would cost a quarter of the whole call.)
        self.name = f"{crc32(text):08x}{crc32(text[::-1]):08x}"
        self.login = login
        self.path = os.path.join(place, self.name)

    def entry(self) -> Entry | None:
        """Give what is kept, if it is of this login and sound; it may have ended."""
        try:
            lines = self.read(self.path).decode("ascii").split("\n")
            form, login, issued, expires, token, end = lines
            entry = Entry(token, float(issued), float(expires))
        except (OSError, ValueError):
            return None
        return entry if (form, login, end) == (FORMAT, self.login, "") and usable(token) else None

    def refused(self, entry: Entry) -> bool:
        """Whether the caller was handed this token before, and comes back for a better one."""
        if time.time() - entry.issued < YOUNG:
            return False
        path = f"{self.path}.handed"
        try:
            who = caller()
            if who is None:
                return time.time() - os.stat(path).st_mtime < TOGETHER
            return str(who).encode() in self.read(path)[-4096:].split(b"\n")
        except (OSError, ValueError):
            return False

    def read(self, path: str) -> bytes:
        """Read a file that is the user's alone.

        Raises:
            OSError: there is none.
            ValueError: it is somebody else's, or others could have written it.

        """
        if not private(self.place):
            raise ValueError(self.place)
        descriptor = os.open(path, os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0))
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1 or not own(state) or state.st_size > 2 * MOST:
                raise ValueError(path)
            return os.read(descriptor, 2 * MOST)
        finally:
            os.close(descriptor)

    def handed(self) -> None:
        """Note that the caller is handed what is kept."""
        if not private(self.place):
            return
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NOFOLLOW
            descriptor = os.open(f"{self.path}.handed", flags, 0o600)
        except OSError:
            return
        try:
            state = os.fstat(descriptor)
            if stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and own(state):
                if state.st_size > MOST:
                    os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{caller()}\n".encode())
        except OSError:
            pass
        finally:
            os.close(descriptor)


def own(state: os.stat_result) -> bool:
    """Whether a file or folder is the user's, and nobody else's to read or write. On Windows profiles are."""
    return WINDOWS or (state.st_uid == os.geteuid() and not state.st_mode & 0o077)


def private(place: str) -> bool:
    """Whether the folder is there and the user's alone."""
    try:
        state = os.lstat(place)
    except OSError:
        return False
    return stat.S_ISDIR(state.st_mode) and own(state)


def usable(token: str) -> bool:
    """Whether a text has nothing in it that would need quoting, in JSON or a header: tokens of Keystone's have not."""
    return 0 < len(token) <= MOST and token.isascii() and token.isprintable() and not set(token) & set(" \"'\\<>")
