"""The one program in what was downloaded: itself, or the one file of its name in a tar or zip archive.

Only the bytes of that one regular file are read; no path or link of an archive is ever followed or made on this
machine.

Not here: downloading (download.py), and which layer of an image has the program (image.py).
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from backports import zstd

from download import OPTION
from errors import ConfigError

BINARY = "k8s-keystone-auth"
UNPACKED_BYTES = 1024 * 2**20
"""Of everything in an archive up to the program: what is read to find it."""
HEADER_BYTES = 2**20
"""Of one header in an archive; names are shorter, and a program is read in pieces no longer than this."""
MEMBERS = 200_000
"""Of one archive; a whole Ubuntu has some ten thousand."""
NAME_BYTES = 64 * 2**20
"""Of all names and attributes in an archive: tarfile keeps them all in memory."""

_PACKED = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
    (b"\x28\xb5\x2f\xfd", zstd.open),
)


def extract(source: Path, target: Path, option: str = OPTION) -> None:
    """Take the program out of what was downloaded.

    Raises:
        ConfigError: there is none in it, or more than one, or it is too big.
        OSError: the disk is full.
    """
    with readable(option, "a Linux binary nor a tar or zip archive"):
        with source.open("rb") as stream:
            head = stream.read(4)
        if head == b"\x7fELF":
            shutil.copyfile(source, target)
        elif zipfile.is_zipfile(source):
            with _from_zip(source, option) as member:
                copy(member, target, option)
        else:
            with _from_tar(source, option) as member:
                copy(member, target, option)
    check_kind(target, option)


@contextlib.contextmanager
def readable(option: str, what: str) -> Iterator[None]:
    """Make what an archive's readers raise an error of the option's.

    Raises:
        ConfigError: it is neither `what`.
        OSError: the machine's own, such as a full disk.
    """
    try:
        yield
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        zstd.ZstdError,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        # The readers' own have no number, but for bad seeks; what the system says of its disk is nobody's archive.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ConfigError(option, f"is neither {what} that can be read ({error})") from error


@contextlib.contextmanager
def tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar archive, packed in whatever way."""
    with _unpacked(path) as stream, tarfile.open(fileobj=cast("IO[bytes]", _Sparing(stream)), mode="r:") as archive:
        yield archive


def members(archive: tarfile.TarFile, option: str = OPTION) -> Iterator[tarfile.TarInfo]:
    """Give what is in a tar archive, as long as that is no more than it may be."""
    seen = names = 0
    for number, item in enumerate(archive):
        # Counted before the next header is read, for which this one's content has to be unpacked.
        seen += item.size
        names += len(item.name) + len(item.linkname) + sum(map(len, item.pax_headers.values()))
        if seen > UNPACKED_BYTES:
            raise ConfigError(option, f"that archive unpacks to more than {UNPACKED_BYTES // 2**20} MiB")
        if number >= MEMBERS or names > NAME_BYTES:
            raise ConfigError(option, f"that archive holds more than {MEMBERS} files")
        yield item


def copy(member: IO[bytes], target: Path, option: str = OPTION) -> None:
    """Write the program out, as long as it is no more than it may be."""
    size = 0
    with target.open("wb") as output:
        while chunk := member.read(HEADER_BYTES):
            size += len(chunk)
            if size > UNPACKED_BYTES:
                raise ConfigError(option, f"the {BINARY} in that archive has more than {UNPACKED_BYTES // 2**20} MiB")
            output.write(chunk)


def check_kind(program: Path, option: str = OPTION) -> None:
    """Raise a ConfigError unless it is a Linux program."""
    with program.open("rb") as stream:
        if stream.read(4) != b"\x7fELF":
            raise ConfigError(option, f"the {BINARY} in that archive is no Linux binary")


def not_one(found: int, option: str = OPTION) -> ConfigError:
    """Say that the program is not there exactly once."""
    return ConfigError(option, f"that archive holds {'no' if found == 0 else 'more than one'} file named {BINARY}")


@contextlib.contextmanager
def _from_zip(path: Path, option: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive:
        found = [
            item
            for item in archive.infolist()
            if not item.is_dir() and Path(item.filename).name == BINARY and not stat.S_ISLNK(item.external_attr >> 16)
        ]
        if len(found) != 1:
            raise not_one(len(found), option)
        with archive.open(found[0]) as member:
            yield member


@contextlib.contextmanager
def _from_tar(path: Path, option: str) -> Iterator[IO[bytes]]:
    with tar(path) as archive:
        found = None
        for item in members(archive, option):
            if item.isreg() and Path(item.name).name == BINARY:
                if found is not None:
                    raise not_one(2, option)
                found = item
        member = archive.extractfile(found) if found is not None else None
        if member is None:
            raise not_one(0, option)
        yield member


def _unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        head = stream.read(6)
    for magic, opened in _PACKED:
        if head.startswith(magic):
            return cast("IO[bytes]", opened(path, "rb"))
    return path.open("rb")


class _Sparing:
    """A tar archive that is never read in big pieces: tarfile reads a long name whole, however long it claims to be.

    Nor one of negative length, which tarfile takes for all that there is.
    """

    def __init__(self, stream: IO[bytes]):
        self.seek, self.tell = stream.seek, stream.tell
        self._read = stream.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._read(size)
