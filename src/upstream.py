"""An operator's own k8s-keystone-auth behind our endpoint: download, check, install, run.

A new one is taken only when its checksum is the one that `k8s-keystone-auth-sha256` names, or, where that is empty, the
one that the first download had. Until a new one is in place and answers, the last good one keeps serving.

Not here: reviews (the authenticator asks this service over TLS with our CA), and other sources than https.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import platform
import shutil
import socket
import ssl
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from urllib.parse import urljoin, urlsplit

import pydantic
import requests
import urllib3

import files
import host
from authenticator import Backend
from config import UPSTREAM_PORT, CharmConfig
from errors import ConfigError
from files import NAME, Places
from webhook import Tls

SERVICE = f"{NAME}-upstream.service"
BINARY = "k8s-keystone-auth"
OPTION = "k8s-keystone-auth-url"
DOWNLOAD_BYTES = 256 * 2**20
"""The official binary has 60 MB."""
UNPACKED_BYTES = 1024 * 2**20
"""Of everything in an archive up to the binary: what is read to find it."""
HEADER_BYTES = 2**20
"""Of one header in an archive; names are shorter, and a binary is read in pieces no longer than this."""
DOWNLOAD_SECONDS = 300.0
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
REDIRECTS = 5
START_SECONDS = 30.0
_MACHINES = {"x86_64": 62, "aarch64": 183}
"""`e_machine` in an ELF header, by what the kernel calls the machine."""


class Record(pydantic.BaseModel, frozen=True):
    """What is in place: where it came from, the checksum of what was downloaded, and that of the binary in it."""

    url: str
    sha256: str
    binary: str


@dataclass(frozen=True)
class Installed:
    """A checked binary in place, and the record of its download."""

    program: Path
    record: Record


def ensure(places: Places, config: CharmConfig) -> Installed:
    """Have the binary in place that the options ask for; download it only when it is not.

    Raises:
        ConfigError: the URL, what came from it, or its checksum cannot be used; what was in place stays in place.
    """
    record = recorded(places)
    # Trust on first use: until the option names another, only what came first is taken, whatever the URL.
    expected = config.k8s_keystone_auth_sha256 or (record.sha256 if record else "")
    if record and record.url == config.k8s_keystone_auth_url and record.sha256 == expected:
        program = _program(places, record)
        if program.exists() and _sha256(program) == record.binary:
            return Installed(program, record)
    downloads = places.state / "downloads"
    files.folder(places.state, 0o755)
    files.folder(downloads, 0o700)
    with tempfile.TemporaryDirectory(dir=downloads) as scratch:
        download = Path(scratch) / "download"
        got = _download(config.k8s_keystone_auth_url, download)
        if expected and got != expected:
            option = "k8s-keystone-auth-sha256"
            if config.k8s_keystone_auth_sha256:
                raise ConfigError(
                    option,
                    f"expected {expected}, but {config.k8s_keystone_auth_url} gave {got}; nothing was"
                    " changed. Correct the option or the URL",
                )
            raise ConfigError(
                OPTION,
                f"expected {expected} as first downloaded, but {config.k8s_keystone_auth_url} gave"
                f" {got}; nothing was changed. If that is meant: juju config {NAME} {option}={got}",
            )
        binary = Path(scratch) / BINARY
        _extract(download, binary)
        _check_machine(binary)
        record = Record(url=config.k8s_keystone_auth_url, sha256=got, binary=_sha256(binary))
        program = _program(places, record)
        files.folder(places.opt, 0o755)
        files.folder(program.parent.parent, 0o755)
        files.folder(program.parent, 0o755)
        binary.chmod(0o755)
        shutil.copy2(binary, program.with_name(f".{BINARY}"))
        program.with_name(f".{BINARY}").replace(program)
    files.write(_record_file(places), record.model_dump_json(indent=1).encode() + b"\n", 0o644)
    return Installed(program, record)


def recorded(places: Places) -> Record | None:
    """Give the record of the last good download, or None where there was none."""
    try:
        return Record.model_validate_json(_record_file(places).read_bytes())
    except (FileNotFoundError, pydantic.ValidationError):
        return None


def start(places: Places, config: CharmConfig, tls: Tls, installed: Installed, *, with_policy: bool) -> Backend:
    """Run the binary as its own service on loopback; restart it only when something that it reads has changed.

    Args:
        places: where.
        config: the options.
        tls: from `webhook.ensure_tls`: its certificate, and the CA by which we know it.
        installed: from `ensure`.
        with_policy: whether policy.json is there. It reads the file at its start alone.

    Raises:
        ConfigError: it does not come up; the unit before is put back and runs again.
    """
    # Its user is nobody else's and may read nothing of ours: systemd hands it copies of just these (systemd.exec(5)).
    handed = {
        "tls-cert-file": tls.upstream.certificate,
        "tls-private-key-file": tls.upstream.key,
        **({"keystone-ca-file": places.keystone_ca} if config.keystone_ca else {}),
        **({"keystone-policy-file": places.policy} if with_policy else {}),
    }
    arguments = [
        f"--listen=127.0.0.1:{UPSTREAM_PORT}",
        f"--keystone-url={_escape(config.keystone_url)}",
        *(f"--{name}=/run/credentials/{SERVICE}/{name}" for name in handed),
    ]
    values = {"program": installed.program, "arguments": " ".join(arguments), "handed": handed}
    unit = files.render(places.templates, SERVICE, values)
    digest = hashlib.sha256(unit.encode())
    for path in handed.values():
        digest.update(path.read_bytes())
    fingerprint = digest.hexdigest() + "\n"
    started = places.state / "upstream-started"
    backend = Backend(f"https://127.0.0.1:{UPSTREAM_PORT}/webhook", tls.ca)
    if host.is_active(SERVICE) and started.exists() and started.read_text(encoding="utf-8") == fingerprint:
        return backend
    path = places.units / SERVICE
    before = path.read_bytes() if path.exists() else None
    files.write(path, unit.encode(), 0o644)
    problem = _restart(tls)
    if problem:
        said = host.journal(SERVICE, lines=1)
        if before is not None and before != unit.encode():
            files.write(path, before, 0o644)
            _restart(tls)
        elif before is None:
            stop(places)
        raise ConfigError(
            OPTION,
            f"what it names does not run: {problem}{f' ({said})' if said else ''}; what ran before was"
            f" put back. See journalctl -u {SERVICE}",
        )
    files.write(started, fingerprint.encode(), 0o644)
    for old in (places.opt / "upstream").iterdir():
        if old != installed.program.parent:
            shutil.rmtree(old)
    return backend


def stop(places: Places) -> None:
    """Stop the service and remove its unit; the binary and its record stay until the charm goes."""
    if (places.units / SERVICE).exists():
        host.systemctl("disable", "--now", "--quiet", SERVICE)
        files.remove(places.units / SERVICE)
        host.systemctl("daemon-reload")
        with contextlib.suppress(host.HostError):
            host.systemctl("reset-failed", SERVICE)
    files.remove(places.state / "upstream-started")


def _record_file(places: Places) -> Path:
    return places.state / "upstream.json"


def _program(places: Places, record: Record) -> Path:
    return places.opt / "upstream" / record.binary[:12] / BINARY


def _escape(text: str) -> str:
    """In a unit's command line `%` and `$` have a meaning of their own (systemd.service(5)); a URL has no blanks."""
    return text.replace("%", "%%").replace("$", "$$")


def _restart(tls: Tls) -> str:
    """Restart the service and wait until it answers TLS with its certificate; give the problem, empty if none."""
    try:
        host.systemctl("daemon-reload")
        host.systemctl("enable", "--quiet", SERVICE)
        host.systemctl("restart", SERVICE)
    except host.HostError as error:
        return str(error)
    context = ssl.create_default_context(cafile=str(tls.ca))
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", UPSTREAM_PORT), timeout=5) as plain:
                context.wrap_socket(plain, server_hostname="127.0.0.1").close()
                return ""
        except (OSError, ssl.SSLError) as error:
            if time.monotonic() >= deadline:
                return f"nothing answers on port {UPSTREAM_PORT} within {START_SECONDS:.0f} s ({error})"
        time.sleep(0.2)


def _download(url: str, target: Path) -> str:
    """Download over https, within bounds of size and time, and give the SHA-256 (hex) of what came."""
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    digest, size = hashlib.sha256(), 0
    try:
        with requests.Session() as session, target.open("wb") as output:
            session.trust_env = False
            with _follow(session, url) as answer:
                if answer.status_code != 200:
                    raise ConfigError(OPTION, f"{url} was answered with {answer.status_code} {answer.reason}")
                # Not iter_content: it waits for a whole chunk, and a server that trickles would outlast any limit.
                while chunk := answer.raw.read1(2**16):
                    size += len(chunk)
                    if size > DOWNLOAD_BYTES:
                        raise ConfigError(
                            OPTION, f"{url} gives more than {DOWNLOAD_BYTES // 2**20} MiB, which is no {BINARY}"
                        )
                    if time.monotonic() > deadline:
                        raise ConfigError(OPTION, f"{url} has not come within {DOWNLOAD_SECONDS:.0f} s")
                    digest.update(chunk)
                    output.write(chunk)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise ConfigError(OPTION, f"{url} cannot be downloaded: {error}") from error
    return digest.hexdigest()


def _follow(session: requests.Session, url: str) -> requests.Response:
    """Get a URL and where it leads to, as long as that is https."""
    at = url
    for _ in range(REDIRECTS + 1):
        answer = session.get(
            at,
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            verify=_system_ca(),
            headers={"Accept-Encoding": "identity"},
        )
        if not answer.is_redirect:
            return answer
        answer.close()
        at = urljoin(at, answer.headers["Location"])
        if urlsplit(at).scheme != "https":
            raise ConfigError(
                OPTION, f"{url} leads to {urlsplit(at).scheme}://{urlsplit(at).hostname}, and only https is followed"
            )
    raise ConfigError(OPTION, f"{url} leads from one place to another more than {REDIRECTS} times")


def _system_ca() -> str | bool:
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    return str(bundle) if bundle.exists() else True


def _extract(download: Path, target: Path) -> None:
    """Take the binary out of what was downloaded: itself, or the one file of that name in a tar or zip archive.

    Only the bytes of that one regular file are read; no path or link of an archive is ever followed or made.
    """
    with download.open("rb") as stream:
        head = stream.read(4)
    try:
        if head == b"\x7fELF":
            shutil.copyfile(download, target)
        elif zipfile.is_zipfile(download):
            with _from_zip(download) as member:
                _copy(member, target)
        else:
            with _from_tar(download) as member:
                _copy(member, target)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        RuntimeError,
    ) as error:
        raise ConfigError(
            OPTION, f"is neither a Linux binary nor a tar or zip archive that can be read ({error})"
        ) from error
    with target.open("rb") as stream:
        if stream.read(4) != b"\x7fELF":
            raise ConfigError(OPTION, f"the {BINARY} in that archive is no Linux binary")


@contextlib.contextmanager
def _from_zip(path: Path) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive:
        found = [
            item
            for item in archive.infolist()
            if not item.is_dir() and Path(item.filename).name == BINARY and not stat.S_ISLNK(item.external_attr >> 16)
        ]
        if len(found) != 1:
            raise _not_one(len(found))
        with archive.open(found[0]) as member:
            yield member


@contextlib.contextmanager
def _from_tar(path: Path) -> Iterator[IO[bytes]]:
    seen, found = 0, None
    with _unpacked(path) as stream, tarfile.open(fileobj=cast("IO[bytes]", _Sparing(stream)), mode="r:") as archive:
        for item in archive:
            # Counted before the next header is read, for which this one's content has to be unpacked.
            seen += item.size
            if seen > UNPACKED_BYTES:
                raise ConfigError(OPTION, f"that archive unpacks to more than {UNPACKED_BYTES // 2**20} MiB")
            if item.isreg() and Path(item.name).name == BINARY:
                if found is not None:
                    raise _not_one(2)
                found = item
        member = archive.extractfile(found) if found is not None else None
        if member is None:
            raise _not_one(0)
        yield member


def _unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        head = stream.read(6)
    for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if head.startswith(magic):
            return cast("IO[bytes]", opened(path, "rb"))
    return path.open("rb")


class _Sparing:
    """A tar archive that is never read in big pieces: tarfile reads a long name whole, however long it claims to be."""

    def __init__(self, stream: IO[bytes]):
        self.seek, self.tell = stream.seek, stream.tell
        self._read = stream.read

    def read(self, size: int) -> bytes:
        if size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._read(size)


def _not_one(found: int) -> ConfigError:
    return ConfigError(OPTION, f"that archive holds {'no' if found == 0 else 'more than one'} file named {BINARY}")


def _copy(member: IO[bytes], target: Path) -> None:
    size = 0
    with target.open("wb") as output:
        while chunk := member.read(2**20):
            size += len(chunk)
            if size > UNPACKED_BYTES:
                raise ConfigError(OPTION, f"the {BINARY} in that archive has more than {UNPACKED_BYTES // 2**20} MiB")
            output.write(chunk)


def _check_machine(binary: Path) -> None:
    with binary.open("rb") as stream:
        header = stream.read(20)
    machine = int.from_bytes(header[18:20], "big" if header[5:6] == b"\x02" else "little")
    wanted = _MACHINES.get(platform.machine())
    if wanted is not None and machine != wanted:
        raise ConfigError(OPTION, f"that binary is made for another kind of machine than this {platform.machine()} one")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
