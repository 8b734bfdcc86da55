"""An operator's own k8s-keystone-auth behind our endpoint: have it, start it, put it behind, keep the one before.

Versions are kept by checksum, the one in force and the one before. A new one runs beside the one in force, on another
port, and is asked; only when it answers as it should does the authenticator turn to it, and only then is it recorded.
So one that does not run changes nothing, and the way back is one option and no download.

Not here: reviews (the authenticator asks this service over TLS with our CA), downloads (download.py), images (image.py)
and archives (archive.py).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import hashlib
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

import archive
import authenticator
import files
import host
import image
import reach
import secret
from archive import BINARY
from authenticator import Backend
from config import RESOURCE, UPSTREAM_PORTS, CharmConfig
from download import MOST_BYTES, OPTION, Answered, Web, shown
from errors import ConfigError
from files import NAME, Places
from image import Login, Reference
from webhook import Tls

UNIT = f"{NAME}-upstream"
SHA256 = "k8s-keystone-auth-sha256"
CREDENTIALS = "k8s-keystone-auth-credentials"
FROM_RESOURCE = f"resource:{RESOURCE}"
"""In a record, where a URL stands otherwise."""
KEPT = 2
START_SECONDS = 30.0
RESTARTS = 3
"""So often within that, and it will not come up."""
_MACHINES = {"x86_64": 62, "aarch64": 183}
"""`e_machine` in an ELF header, by what the kernel calls the machine."""

Secret = Callable[[str], Mapping[str, str]]
"""Gives the content of a Juju secret by its ID, or raises ConfigError."""


class Record(pydantic.BaseModel, frozen=True):
    """A version: where it came from, the checksum of what the URL names (of an image: its digest), and the binary's."""

    url: str
    sha256: str
    binary: str


class _Kept(pydantic.BaseModel, frozen=True):
    """What was put behind the endpoint: the last one first."""

    versions: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Installed:
    """A checked binary in place, and the record of where it is from."""

    program: Path
    record: Record

    @property
    def option(self) -> str:
        """What an operator has to look at if it is no good."""
        return f"resource {RESOURCE}" if self.record.url == FROM_RESOURCE else OPTION


def service(port: int) -> str:
    """Give the unit that listens on a port."""
    return f"{UNIT}-{port}.service"


def ensure(
    places: Places, config: CharmConfig, granted: Secret, announce: Callable[[str], None] = lambda _: None
) -> Installed:
    """Have the binary in place that the options ask for; get it only when it is not.

    Raises:
        ConfigError: the URL, what came from it, or its checksum cannot be used; what was in place stays in place.
    """
    url = config.k8s_keystone_auth_url or FROM_RESOURCE
    # Juju has compared the resource with what was uploaded, and whoever uploads has said which one it shall be.
    sha256 = config.k8s_keystone_auth_sha256
    if url.startswith("oci://"):
        sha256 = Reference.parse(url).digest.partition(":")[2] or sha256
    elif config.resource is not None and not sha256:
        sha256 = files.sha256(config.resource)
    kept = _kept(places)
    for record in kept:
        if record.sha256 == sha256 if sha256 else record.url == url:
            program = _program(places, record)
            if program.exists() and files.sha256(program) == record.binary:
                return Installed(program, record.model_copy(update={"url": url}))
    # Trust on first use: until the option names another, only what was first put in force is taken, whatever the URL.
    expected = sha256 or (kept[0].sha256 if kept else "")
    announce("getting k8s-keystone-auth")
    downloads, versions = places.state / "downloads", places.opt / "upstream"
    for folder, mode in ((places.state, 0o755), (downloads, 0o700), (places.opt, 0o755), (versions, 0o755)):
        files.folder(folder, mode)
    try:
        # Where it will lie, so that it need not be copied once more.
        with tempfile.TemporaryDirectory(dir=versions, prefix=".") as scratch:
            binary = Path(scratch) / BINARY
            got = _get(places, config, granted, expected, downloads, binary)
            _check_machine(binary, OPTION if config.k8s_keystone_auth_url else f"resource {RESOURCE}")
            record = Record(url=url, sha256=got, binary=files.sha256(binary))
            program = _program(places, record)
            files.folder(program.parent, 0o755)
            binary.chmod(0o755)
            return Installed(binary.replace(program), record)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # Of a full disk nothing is kept to go on from: the machine has others that need the room.
            shutil.rmtree(downloads, ignore_errors=True)
        raise


def in_force(places: Places) -> Installed | None:
    """Give the version that stands behind the endpoint, or did last; None where there was none."""
    kept = _kept(places)
    return Installed(_program(places, kept[0]), kept[0]) if kept else None


def asked(places: Places) -> Installed | None:
    """Give the version that the authenticator asks now; None where it asks none."""
    return in_force(places) if port_in_force(places) else None


def start(places: Places, config: CharmConfig, tls: Tls, installed: Installed, *, with_policy: bool) -> Backend:
    """Have the binary run as a service on loopback with these options, and answer; what is in force is not touched.

    Args:
        places: where.
        config: the options.
        tls: from `webhook.ensure_tls`: its certificate, and the CA by which we know it.
        installed: from `ensure`.
        with_policy: whether policy.json is there. It reads the file at its start alone.

    Returns:
        What to put behind the endpoint; `settle` is due when it is there.

    Raises:
        ConfigError: it does not come up, or does not answer; it is gone again, and what ran before goes on.
    """
    now = port_in_force(places)
    for port in sorted(UPSTREAM_PORTS, key=lambda port: port != now):
        unit, fingerprint = _unit(places, config, tls, installed, port, with_policy=with_policy)
        backend = Backend(_url(port), tls.ca)
        if host.is_active(service(port)) and files.text(_started(places, service(port))) == fingerprint:
            return backend
        if port == now:
            continue
        _end(places, service(port))
        files.write(places.units / service(port), unit.encode(), 0o644)
        problem = _bring_up(port, tls)
        if problem:
            said = host.journal(service(port), lines=1)
            _end(places, service(port))
            if installed.record.binary not in {record.binary for record in _kept(places)}:
                shutil.rmtree(installed.program.parent, ignore_errors=True)
            stays = "what was in force stays" if now else "nothing was put behind the endpoint"
            raise ConfigError(
                installed.option,
                f"what it names does not run: {problem}{f' ({said})' if said else ''}; {stays}."
                f" See journalctl -u {service(port)}",
            )
        files.write(_started(places, service(port)), fingerprint.encode(), 0o644)
        return backend
    raise AssertionError("there are two ports")


def settle(places: Places, installed: Installed) -> None:
    """Once the authenticator asks the new one: record it, and let go of what ran before and of what is not kept."""
    now = port_in_force(places)
    _end_all(places, but=now)
    kept = [installed.record, *(one for one in _kept(places) if one.sha256 != installed.record.sha256)][:KEPT]
    # Where it came from may hold a signature that lets anybody download.
    files.write(_record_file(places), _Kept(versions=tuple(kept)).model_dump_json(indent=1).encode() + b"\n", 0o600)
    wanted = {_program(places, one).parent for one in kept}
    for old in (places.opt / "upstream").iterdir():
        if old not in wanted:
            shutil.rmtree(old)
    if (places.state / "downloads").exists():
        shutil.rmtree(places.state / "downloads")


def stop(places: Places) -> None:
    """Stop the service and remove its unit; the versions and their records stay until the charm goes."""
    _end_all(places, but=None)


def port_in_force(places: Places) -> int | None:
    """Give the port that the authenticator asks now; its settings say so, and nothing else could be as right."""
    now = authenticator.in_force(places)
    asked = {now.authentication_url, now.authorization_url}
    return next((port for port in UPSTREAM_PORTS if _url(port) in asked), None)


def urls() -> set[str]:
    """Give all that the authenticator may have been told to ask for the program."""
    return {_url(port) for port in UPSTREAM_PORTS}


# ------------------------------------------------------------------------------------------------------ getting it


def _get(places: Places, config: CharmConfig, granted: Secret, expected: str, downloads: Path, binary: Path) -> str:
    """Have the binary from where the options say, and give the checksum (hex) of what they name."""
    url = config.k8s_keystone_auth_url
    if config.resource is not None:
        got = files.sha256(config.resource)
        _check_sum(config, got, expected, f"the resource {RESOURCE}")
        archive.extract(config.resource, binary, f"resource {RESOURCE}")
        return got
    # What a former attempt left is gone on from, if it was for this URL.
    folder = downloads / hashlib.sha256(url.encode()).hexdigest()[:16]
    for other in set(downloads.iterdir()) - {folder}:
        shutil.rmtree(other)
    files.folder(folder, 0o700)
    if url.startswith("oci://"):
        reference = Reference.parse(url)
        with Web(config.k8s_keystone_auth_ca) as web:
            layers = image.fetch(
                web, reference, f"sha256:{expected}", lambda: _login(places, config, reference, granted), folder
            )
        image.extract(layers, binary)
        return expected
    download = folder / "download"
    if url.startswith("file://"):
        _take_in(places, Path(url.removeprefix("file://")), download)
    else:
        with Web(config.k8s_keystone_auth_ca) as web:
            try:
                web.fetch(url, download, MOST_BYTES)
            except Answered as answered:
                raise ConfigError(OPTION, str(answered)) from None
    got = files.sha256(download)
    _check_sum(config, got, expected, shown(url))
    archive.extract(download, binary)
    return got


def _check_sum(config: CharmConfig, got: str, expected: str, where: str) -> None:
    if not expected or got == expected:
        return
    if config.k8s_keystone_auth_sha256:
        raise ConfigError(
            SHA256,
            f"expected {expected}, but {where} gave {got}; nothing was changed. Correct the option or what is there",
        )
    raise ConfigError(
        OPTION,
        f"expected {expected} as first downloaded, but {where} gave {got}; nothing was changed."
        f" If that is meant: juju config {NAME} {SHA256}={got}",
    )


def _take_in(places: Places, path: Path, target: Path) -> None:
    """Copy what an operator has put into the one folder for it; what is judged is the copy."""
    try:
        with files.open_plain(places.root, path) as source:
            size = 0
            with target.open("wb") as output:
                while chunk := source.read(2**20):
                    size += len(chunk)
                    if size > MOST_BYTES:
                        raise ConfigError(OPTION, f"{path} has more than {MOST_BYTES // 2**20} MiB")
                    output.write(chunk)
    except FileNotFoundError:
        raise ConfigError(
            OPTION, f"{path} is not on this unit; as root there: install -D -m 0600 k8s-keystone-auth {path}"
        ) from None
    except files.NotPlain as error:
        raise ConfigError(OPTION, f"{error}; only a file that no link leads to is taken") from None


def _login(places: Places, config: CharmConfig, reference: Reference, granted: Secret) -> Login | None:
    """Give the registry's account, from a Juju secret or from a file of docker's form that root alone can read."""
    value = config.k8s_keystone_auth_credentials
    if not value:
        return None
    if value.startswith("secret:"):
        content = granted(value)
        if not content.get("username") or not content.get("password"):
            raise ConfigError(CREDENTIALS, f"the secret {value} has to have the keys username and password")
        return Login(content["username"], content["password"])
    try:
        content = json.loads(secret.of_file(CREDENTIALS, value, places.root))
    except ValueError:
        raise ConfigError(CREDENTIALS, f"{value} is not JSON of docker's form, as docker login writes it") from None
    try:
        # docker login files the one registry whose address is another under an older one.
        names = ["https://index.docker.io/v1/"] if reference.registry == "docker.io" else []
        account = next(content["auths"][name] for name in [*names, reference.registry] if name in content["auths"])
        username, colon, password = base64.b64decode(account["auth"], validate=True).decode().partition(":")
    except (KeyError, StopIteration, TypeError, binascii.Error, ValueError):
        username = colon = password = ""
    if not username or not colon or not password:
        raise ConfigError(
            CREDENTIALS,
            f'{value} has no {{"auths": {{"{reference.registry}": {{"auth": …}}}}}}, as docker login writes',
        )
    return Login(username, password)


def _check_machine(binary: Path, option: str) -> None:
    with binary.open("rb") as stream:
        header = stream.read(20)
    machine = int.from_bytes(header[18:20], "big" if header[5:6] == b"\x02" else "little")
    wanted = _MACHINES.get(platform.machine())
    if wanted is not None and machine != wanted:
        raise ConfigError(option, f"that binary is made for another kind of machine than this {platform.machine()} one")


# ------------------------------------------------------------------------------------------------------ running it


def _unit(
    places: Places, config: CharmConfig, tls: Tls, installed: Installed, port: int, *, with_policy: bool
) -> tuple[str, str]:
    """Give the unit for a port, and what stands for all that the program reads at its start."""
    # Its user is nobody else's and may read nothing of ours: systemd hands it copies of just these (systemd.exec(5)).
    handed = {
        "tls-cert-file": tls.upstream.certificate,
        "tls-private-key-file": tls.upstream.key,
        **({"keystone-ca-file": places.keystone_ca} if config.keystone_ca else {}),
        **({"keystone-policy-file": places.policy} if with_policy else {}),
    }
    arguments = [
        f"--listen=127.0.0.1:{port}",
        f"--keystone-url={_escape(config.keystone_url)}",
        *(f"--{name}=/run/credentials/{service(port)}/{name}" for name in handed),
    ]
    values = {"program": installed.program, "arguments": " ".join(arguments), "handed": handed}
    unit = files.render(places.templates, f"{UNIT}.service", values)
    digest = hashlib.sha256(unit.encode())
    for path in handed.values():
        digest.update(path.read_bytes())
    return unit, digest.hexdigest() + "\n"


def _bring_up(port: int, tls: Tls) -> str:
    """Start the service and wait until it answers as it should; give the problem, empty if there is none."""
    unit = service(port)
    try:
        host.systemctl("daemon-reload")
        # Now, not when it is in force: a machine that starts again in between has it then.
        host.systemctl("enable", "--quiet", unit)
        host.systemctl("start", unit)
    except host.HostError as error:
        return str(error)
    ca = tls.ca.read_text(encoding="utf-8")
    deadline = time.monotonic() + START_SECONDS
    while True:
        problem = reach.program(_url(port), ca)
        if not problem or time.monotonic() >= deadline:
            return problem
        if _restarts(unit) >= RESTARTS:
            return f"it ended {RESTARTS} times"
        time.sleep(0.2)


def _end_all(places: Places, but: int | None) -> None:
    # By what is there: an older charm had one unit, of another name.
    for path in sorted(places.units.glob(f"{UNIT}*.service")):
        if but is None or path.name != service(but):
            _end(places, path.name)


def _end(places: Places, unit: str) -> None:
    if (places.units / unit).exists():
        host.systemctl("disable", "--now", "--quiet", unit)
        files.remove(places.units / unit)
        host.systemctl("daemon-reload")
        with contextlib.suppress(host.HostError):
            host.systemctl("reset-failed", unit)
    files.remove(_started(places, unit))


def _restarts(unit: str) -> int:
    told = host.systemctl("show", "--property=NRestarts", "--value", unit).strip()
    return int(told) if told.isdecimal() else 0


def _escape(text: str) -> str:
    """In a unit's command line `%` and `$` have a meaning of their own (systemd.service(5)); a URL has no blanks."""
    return text.replace("%", "%%").replace("$", "$$")


def _url(port: int) -> str:
    return f"https://127.0.0.1:{port}/webhook"


# ----------------------------------------------------------------------------------------------- what was recorded


def _record_file(places: Places) -> Path:
    return places.state / "upstream.json"


def _kept(places: Places) -> tuple[Record, ...]:
    try:
        found: Any = json.loads(_record_file(places).read_bytes())
        # Before versions were kept there was the one record, and its checksum must not be forgotten by an upgrade.
        return _Kept.model_validate(found if "versions" in found else {"versions": [found]}).versions
    except (FileNotFoundError, ValueError, TypeError):
        return ()


def _program(places: Places, record: Record) -> Path:
    return places.opt / "upstream" / record.binary[:12] / BINARY


def _started(places: Places, unit: str) -> Path:
    """Give the file that says what a unit was started with; written when it has answered."""
    return places.state / f"started-{unit}"
