"""Small files: written whole, by one rename, with the mode given, and only when they change; all the charm's, too.

Not here: what they say, and where they are.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def read(path: Path) -> bytes | None:
    """Give what is in `path`, None where there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> bool:
    """Make `path` a file that holds `content`, safely on disk when this returns; makes the folders above it.

    Args:
        path: where.
        content: all of it.
        mode: permission bits, whatever the umask says.
        owner: the IDs of user and group; the writer's own otherwise.

    Returns:
        Whether anything was changed.

    Raises:
        OSError: no space, perhaps; the old file is untouched then.

    """
    owner = owner or (os.geteuid(), os.getegid())
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        have = path.lstat()
        same = (have.st_mode, have.st_uid, have.st_gid) == (stat.S_IFREG | mode, *owner)
        if same and path.read_bytes() == content:
            return False
    folder(path.parent)
    # Not the name that the script uses for its own new files, so that neither trips over the other.
    new = _new(path)
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    above = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(above)
    finally:
        os.close(above)
    return True


def folder(path: Path) -> None:
    """Make a folder that all may go through, and those above it, whatever the umask says; one that is there stays."""
    for missing in [one for one in (*reversed(path.parents), path) if not one.exists()]:
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755)


def remove(path: Path) -> bool:
    """Delete a file or link, and what a killed `write` may have left beside it; tells whether there was either."""
    were = [gone for gone in (path, _new(path)) if os.path.lexists(gone)]
    for gone in were:
        gone.unlink(missing_ok=True)
    return bool(were)


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}.kubernetes-keystone")
