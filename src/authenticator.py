"""The workload: install the authenticator, tell it what to do, keep it running, ask it, take it away.

It is a program of its own, shipped ready-made in the charm's folder `authenticator/`. The charm and the program meet in
files (`settings.json`, `policy.json`), at its private listener (`/status`) and on its command line; nothing of it is
imported here.

Not here: certificates and kubeconfigs (webhook.py), the API server's flags (apiserver), an operator's own
k8s-keystone-auth (upstream.py).
"""

from __future__ import annotations

import compileall
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import requests

import files
import host
from config import PRIVATE_PORT, CharmConfig, Listen
from errors import Blocked, ConfigError
from files import NAME, Places
from webhook import Tls

SOCKET = f"{NAME}.socket"
SERVICE = f"{NAME}.service"
LAUNCHER = "keystone-authenticator"
SYNC_SECONDS = 1800.0
"""For a pass of sync that an action waits for."""
SYNC_EVERY = 300
"""Seconds from one pass of the service's own to the next."""
HEALTH_SECONDS = 15.0
"""From a restart, or from a file's change (2 s are promised), to the service's saying that it is in force."""


class WorkloadError(Exception):
    """The authenticator does not do what it is there for; the text says what, and where to look."""


@dataclass(frozen=True)
class Backend:
    """A service behind ours: its URL, and the file of its CA where the system's CAs are not meant."""

    url: str
    ca: Path | None


@dataclass(frozen=True)
class Backends:
    """What stands behind us for tokens and for access reviews; None is our own."""

    authentication: Backend | None = None
    authorization: Backend | None = None


@dataclass(frozen=True)
class InForce:
    """What the settings said when they were written last; empty where there are none."""

    listen: str
    keystone_url: str
    keystone_ca: str
    authentication_url: str
    authorization_url: str
    backend_ca: str
    policy: bool
    chained: bool


@dataclass(frozen=True)
class Policy:
    """A valid policy: the bytes of policy.json, how many items it has, and what its author surely did not mean."""

    content: bytes
    rules: int
    warnings: tuple[str, ...] = ()


class _Part(pydantic.BaseModel, frozen=True):
    hash: str | None = None
    error: str | None = None


class ConfigMap(pydantic.BaseModel, frozen=True):
    """The ConfigMap of a policy: `present`, `absent` or `unknown`, and why it cannot be read."""

    name: str
    state: str
    error: str | None = None


class _PolicyPart(_Part, frozen=True):
    rules: int = 0
    loaded: str | None = None
    source: str = "option"
    configmap: ConfigMap | None = None


class _Passes(pydantic.BaseModel, frozen=True):
    set: bool = False
    error: str | None = None


class Sync(_Part, frozen=True):
    """What the service says of sync."""

    passes: _Passes = _Passes()


class Change(pydantic.BaseModel, frozen=True):
    """What a pass of sync found and did."""

    dry_run: bool
    projects: int
    users: int
    assignments: int
    changes: dict[str, int]
    problems: int
    first_problems: tuple[str, ...]
    keystone_calls: int
    kubernetes_calls: int
    seconds: float
    error: str | None = None


class _ChainPart(_Part, frozen=True):
    state: str = "off"
    outage: str | None = None


class _KeystonePart(pydantic.BaseModel, frozen=True):
    outage: str | None = None


class Status(pydantic.BaseModel, frozen=True):
    """What the running service says of itself (`/status`), as far as the charm needs it."""

    version: str
    policy: _PolicyPart
    settings: _Part
    chained: _ChainPart
    tls: _Part
    keystone: _KeystonePart
    sync: Sync | None = None


class Miss(pydantic.BaseModel, frozen=True):
    """An item of the policy that does not allow a request, and why."""

    item: int
    reason: str


class Explanation(pydantic.BaseModel, frozen=True):
    """Which item of the policy decides a request."""

    allowed: bool
    item: int | None = None
    reason: str
    misses: tuple[Miss, ...] = ()


class Identification(pydantic.BaseModel, frozen=True):
    """Whose a token is, as Keystone itself says now; see `keystone_authenticator.identify`."""

    verdict: Literal["valid", "refused", "cannot-tell", "not-keystones", "elsewhere"]
    reason: str = ""
    user: str = ""
    domain: str = ""
    project: str = ""
    roles: tuple[str, ...] = ()
    expires: str | None = None
    credential: str | None = None
    username: str = ""
    groups: tuple[str, ...] = ()


def shipped_version(places: Places) -> str:
    """Give the version of the tree that the charm ships: the program's own and a hash over all its files."""
    tree = places.charm / "authenticator"
    own = re.search(
        r"""__version__\s*=\s*["']([0-9A-Za-z.+-]+)["']""", files.text(tree / "lib/keystone_authenticator/__init__.py")
    )
    if own is None:
        raise WorkloadError(f"{tree} holds no authenticator: this charm was not packed with charmcraft.yaml's parts")
    return f"{own.group(1)}-{_hash_tree(tree)}"


def install(places: Places) -> None:
    """Put the shipped tree in its versioned folder, swap the link, make user and folders; keep the version before."""
    host.ensure_user(NAME)
    group = host.group_id(NAME)
    files.folder(places.opt, 0o755)
    files.folder(places.state, 0o755)
    files.folder(places.etc, 0o750, group)
    files.folder(places.tls, 0o750, group)
    version = shipped_version(places)
    target = places.opt / version
    if target.exists() and not version.endswith(f"-{_hash_tree(target)}"):
        # Power that failed soon after the copy leaves empty files, and nothing else would ever copy them anew.
        shutil.rmtree(target)
        files.remove(places.state / "started")
    if not target.exists():
        _copy_tree(places.charm / "authenticator", target)
    link = places.opt / "current"
    before = str(link.readlink()) if link.is_symlink() else ""
    if before != version:
        files.remove(places.opt / ".current")
        (places.opt / ".current").symlink_to(version)
        (places.opt / ".current").replace(link)
        for old in places.opt.iterdir():
            if (old / LAUNCHER).exists() and not old.is_symlink() and old.name not in {version, before}:
                shutil.rmtree(old)


def validate_policy(places: Places, config: CharmConfig) -> Policy:
    """Have the shipped authenticator check the policy option, for the mode that the options set.

    Raises:
        ConfigError: it is not valid; the text names line, item and reason of the first error.
    """
    answer = _validated(places, config, "policy", config.policy, "validate-policy", "a policy")
    content = json.dumps(answer["policy"], indent=1, ensure_ascii=False).encode() + b"\n"
    return Policy(content, answer["rules"], tuple(_finding(item) for item in answer["warnings"]))


def validate_sync(places: Places, config: CharmConfig) -> tuple[str, ...]:
    """Have the shipped authenticator check the option sync-config; gives what its author surely did not mean.

    Raises:
        ConfigError: it is not valid; the text names line, key and reason of the first error.
    """
    what = "a sync configuration"
    answer = _validated(places, config, "sync-config", config.sync_config, "validate-sync", what)
    return tuple(_finding(item) for item in answer["warnings"])


def validate_credentials(places: Places, text: str) -> None:
    """Have the shipped authenticator check what sync-credentials names; the text goes over standard input.

    Raises:
        ConfigError: it cannot be used; the text names the key, and no value.
    """
    done = _run_cli(_shipped_program(places), ["validate-credentials"], text)
    if done.returncode != 0:
        raise ConfigError("sync-credentials", _last_line(done.stderr).removeprefix(f"{LAUNCHER}: "))


def sync(places: Places, *, dry_run: bool) -> Change:
    """Bring the cluster in step with Keystone, once, or say what that would be; the table goes to `sync_report`.

    Raises:
        WorkloadError: it could not be done.
    """
    program = places.opt / "current" / LAUNCHER
    if not program.exists():
        raise WorkloadError("the authenticator is not installed yet; the unit's status says why")
    # Names of projects and users are in it.
    files.write(places.sync_report, b"", 0o600)
    arguments = ["sync", "--config", str(places.settings), "--report", str(places.sync_report)]
    done = _run_cli([str(program)], [*arguments, *(["--dry-run"] if dry_run else [])], "", SYNC_SECONDS)
    try:
        answer = Change.model_validate_json(done.stdout)
    except pydantic.ValidationError:
        raise WorkloadError(f"sync does not run: {_last_line(done.stderr)}") from None
    if answer.error:
        raise WorkloadError(f"sync: {answer.error}")
    return answer


def explain(places: Places, request: dict[str, Any]) -> Explanation:
    """Ask the installed authenticator which item of the policy in force decides a request (fields as in its CLI).

    Raises:
        WorkloadError: it is not installed, or cannot tell.
    """
    return Explanation.model_validate_json(_ask_cli(places, "explain", json.dumps(request)))


def identify(places: Places, token: str) -> Identification:
    """Have the installed authenticator ask Keystone whose a token is, past all caches.

    Raises:
        WorkloadError: it is not installed, or does not run.
    """
    return Identification.model_validate_json(_ask_cli(places, "identify", token))


def write_inputs(places: Places, config: CharmConfig, policy: bytes | None, credentials: str = "") -> None:
    """Write the files that the settings name, and an upstream authenticator reads as well: CAs, policy, sync.

    Args:
        places: where.
        config: the options.
        policy: the bytes of policy.json; None leaves the one that is there until the settings no longer name it.
        credentials: Keystone's account for sync.
    """
    group = host.group_id(NAME)
    for path, text in (
        (places.keystone_ca, config.keystone_ca),
        (places.backend_ca, config.auth_server_ca),
        (places.sync_config, config.sync_config.strip() and config.sync_config),
        (places.sync_credentials, credentials),
    ):
        if text:
            files.write(path, text.encode(), 0o640, group)
    if policy is not None:
        files.write(places.policy, policy, 0o640, group)


def write_settings(
    places: Places,
    config: CharmConfig,
    tls: Tls,
    *,
    chained: Path | None,
    certified: bool,
    flags: Path | None,
    authorization: bool,
    backends: Backends,
) -> None:
    """Write what the authenticator is told; a running one has read it within 2 s.

    Args:
        places: where.
        config: the options.
        tls: the certificates.
        chained: the chain file that the wiring writes, or None where no API server asks us about tokens itself.
        certified: whether nobody but who shows the API server's client certificate is answered.
        flags: the file that says whether our flags are in force, or None where nobody sets them; for the metrics alone.
        authorization: whether policy.json is to decide on access.
        backends: what stands behind us.
    """
    settings = {
        "listen": config.listen.address,
        "private_listen": f"127.0.0.1:{PRIVATE_PORT}",
        "tls": {
            "certificate": str(tls.server.certificate),
            "key": str(tls.server.key),
            "client_ca": str(tls.ca),
            "require_client_certificate": certified,
        },
        "keystone": {"url": config.keystone_url, "ca": str(places.keystone_ca) if config.keystone_ca else None},
        "default_domain": config.default_domain,
        "upstream_compatible": config.names_upstream_way,
        "token_cache_ttl": config.token_cache_ttl,
        "outage_grace": config.outage_grace,
        "policy": str(places.policy) if authorization else None,
        "chained": None if chained is None else str(chained),
        "flags": None if flags is None else str(flags),
        "authentication_backend": _backend(backends.authentication),
        "authorization_backend": _backend(backends.authorization),
        "kubeconfig": str(places.kubeconfig) if config.in_cluster else None,
        "sync": {
            "config": str(places.sync_config),
            "credentials": str(places.sync_credentials) if config.sync_credentials else None,
            "prune": config.sync_prune,
            "interval": SYNC_EVERY,
        }
        if config.sync_config.strip()
        else None,
        "policy_configmap": config.policy_configmap or None,
        "log_level": config.log_level,
    }
    files.write(places.settings, json.dumps(settings, indent=1).encode() + b"\n", 0o640, host.group_id(NAME))


def turn_to(places: Places, now: Collection[str], backend: Backend) -> None:
    """Have the authenticator ask another service in the place of one that it asks now, and leave the rest as it is.

    Args:
        places: where.
        now: the URLs that are to be no longer asked.
        backend: what is asked instead.
    """
    settings: dict[str, Any] = json.loads(places.settings.read_bytes())
    for name in ("authentication_backend", "authorization_backend"):
        if (settings[name] or {}).get("url") in now:
            settings[name] = _backend(backend)
    files.write(places.settings, json.dumps(settings, indent=1).encode() + b"\n", 0o640, host.group_id(NAME))


def remove_unused_inputs(places: Places, config: CharmConfig) -> None:
    """Remove the files that the settings no longer name, once nobody reads them any more."""
    for path, text in (
        (places.keystone_ca, config.keystone_ca),
        (places.backend_ca, config.auth_server_ca),
        (places.policy, config.policy.strip()),
        (places.sync_config, config.sync_config.strip()),
        (places.sync_credentials, config.sync_credentials),
        (places.kubeconfig, config.in_cluster),
    ):
        if not text:
            files.remove(path)


def in_force(places: Places) -> InForce:
    """Give what was put in force last, as far as a change of it needs care."""
    try:
        settings: dict[str, Any] = json.loads(files.text(places.settings) or "{}")
    except ValueError:
        settings = {}
    return InForce(
        listen=settings.get("listen", ""),
        keystone_url=(settings.get("keystone") or {}).get("url", ""),
        keystone_ca=files.text(places.keystone_ca) if (settings.get("keystone") or {}).get("ca") else "",
        authentication_url=(settings.get("authentication_backend") or {}).get("url", ""),
        authorization_url=(settings.get("authorization_backend") or {}).get("url", ""),
        backend_ca=files.text(places.backend_ca),
        policy=bool(settings.get("policy")),
        chained=bool(settings.get("chained")),
    )


def group() -> int:
    """Give the ID of the service's group, which `install` makes."""
    return host.group_id(NAME)


def check_ports(places: Places, listen: Listen) -> None:
    """Make sure that nobody else holds a port that we need and do not hold already.

    Raises:
        Blocked: which one is taken, and how to move.
    """
    if not (host.is_active(SOCKET) and in_force(places).listen == listen.address):
        _raise_if_taken(listen)
    if not host.is_active(SOCKET):
        _raise_if_taken(Listen(host="127.0.0.1", port=PRIVATE_PORT))


def start(places: Places, listen: Listen, *, bypass: bool) -> None:
    """Write the units, and (re)start what runs an older program or unit; settings and policy need no restart.

    Args:
        places: where.
        listen: the address that the socket holds.
        bypass: whether systemd takes our flags off the API server when the service cannot be brought back.

    Raises:
        WorkloadError: it does not start; the text has the last line of its log.
    """
    values = {
        "listen": listen.address,
        "private_listen": f"127.0.0.1:{PRIVATE_PORT}",
        "bypass": bypass,
        "program": places.opt / "current" / LAUNCHER,
        "settings": places.settings,
        "user": NAME,
    }
    socket_unit, service_unit = (files.render(places.templates, unit, values).encode() for unit in (SOCKET, SERVICE))
    # What the running service was started with; written after a start that went well, so that a charm that dies in
    # between finds the restart still owed.
    version = str((places.opt / "current").readlink())
    fingerprint = hashlib.sha256(socket_unit + b"\0" + service_unit + b"\0" + version.encode()).hexdigest() + "\n"
    started = places.state / "started"
    moved = not (places.units / SOCKET).exists() or (places.units / SOCKET).read_bytes() != socket_unit
    listening = host.is_active(SOCKET) and not moved
    running = host.is_active(SERVICE)
    if listening and running and files.text(started) == fingerprint:
        return
    if not listening and (running or host.is_active(SOCKET)):
        host.systemctl("stop", SERVICE, SOCKET)
    files.write(places.units / SOCKET, socket_unit, 0o644)
    files.write(places.units / SERVICE, service_unit, 0o644)
    host.systemctl("daemon-reload")
    host.systemctl("enable", "--quiet", SOCKET, SERVICE)
    with contextlib.suppress(host.HostError):
        host.systemctl("reset-failed", SOCKET, SERVICE)
    try:
        host.systemctl("start", SOCKET)
        host.systemctl("restart", SERVICE)
    except host.HostError as error:
        said = host.journal(SERVICE, lines=1)
        raise WorkloadError(
            f"the authenticator does not start: {said or error}; see journalctl -u {SERVICE}"
        ) from error
    files.write(started, fingerprint.encode(), 0o644)


def status() -> Status:
    """Ask the running service what is in force.

    Raises:
        WorkloadError: it does not answer, or not as it should.
    """
    try:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"http://127.0.0.1:{PRIVATE_PORT}/status", timeout=5)
            answer.raise_for_status()
        return Status.model_validate_json(answer.content)
    except (requests.RequestException, pydantic.ValidationError) as error:
        raise WorkloadError(
            f"the authenticator does not say how it is: {error}; see journalctl -u {SERVICE}"
        ) from error


def wait_until_in_force(places: Places, tls: Tls | None = None, seconds: float | None = None) -> Status:
    """Wait until the running service has read the very files that are there now, and give its status.

    Raises:
        WorkloadError: it refuses one of them, or has not read them in time.
    """
    want = {"settings": files.sha256(places.settings)}
    if in_force(places).policy:
        want["policy"] = files.sha256(places.policy)
    if tls is not None:
        want["tls"] = files.sha256(tls.server.certificate)
    return _eventually(lambda: _in_force(want), HEALTH_SECONDS if seconds is None else seconds)


def wait_until_ready(seconds: float | None = None) -> None:
    """Wait until the service could answer every kind of review (`/readyz`).

    Raises:
        WorkloadError: with the service's own reasons.
    """
    _eventually(_ready, HEALTH_SECONDS if seconds is None else seconds)


def is_installed(places: Places) -> bool:
    """Tell whether anything of ours is on the machine."""
    units = (SOCKET, SERVICE)
    return any(
        path.exists() for path in (places.etc, places.opt, places.state, *(places.units / unit for unit in units))
    )


def uninstall(places: Places) -> None:
    """Stop the service and leave nothing of ours: units, folders, user and group. Safe to repeat."""
    present = [unit for unit in (SERVICE, SOCKET) if (places.units / unit).exists()]
    if present:
        host.systemctl("disable", "--now", "--quiet", *present)
        for unit in present:
            files.remove(places.units / unit)
        host.systemctl("daemon-reload")
        with contextlib.suppress(host.HostError):
            host.systemctl("reset-failed", *present)
    for path in (places.etc, places.state, places.opt):
        if path.exists():
            shutil.rmtree(path)
    host.remove_user(NAME)


def _hash_tree(tree: Path) -> str:
    """Give twelve digits that stand for the names and contents of a tree's files, bytecode left out."""
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(tree)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _copy_tree(source: Path, target: Path) -> None:
    """Copy the tree under another name and rename it, readable to all and writable to root alone, bytecode made."""
    partial = target.with_name(f".{target.name}")
    if partial.exists():
        shutil.rmtree(partial)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (partial, *partial.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
    # The service cannot write here; without bytecode each of its starts would compile everything again.
    compileall.compile_dir(partial / "lib", quiet=2)
    partial.replace(target)


def _shipped_program(places: Places) -> list[str]:
    launcher = places.charm / "authenticator" / LAUNCHER
    return [str(launcher)] if launcher.exists() else [sys.executable, "-m", "keystone_authenticator"]


def _run_cli(
    program: list[str], arguments: list[str], text: str, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    # Not the charm's own module path (the launcher takes none anyway), but for the module in a development checkout.
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "PYTHONPATH": str(Path(__file__).parent)}
    try:
        return subprocess.run(
            [*program, *arguments],
            input=text,
            capture_output=True,
            encoding="utf-8",
            timeout=seconds,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkloadError(f"the authenticator's command line does not run: {error}") from error


def _ask_cli(places: Places, command: str, text: str) -> str:
    """Give what a command of the installed authenticator prints about this text, by the settings in force."""
    program = places.opt / "current" / LAUNCHER
    if not program.exists():
        raise WorkloadError("the authenticator is not installed yet; the unit's status says why")
    done = _run_cli([str(program)], [command, "--config", str(places.settings)], text)
    if done.returncode != 0:
        raise WorkloadError(f"the authenticator cannot tell: {_last_line(done.stderr)}")
    return done.stdout


def _validated(places: Places, config: CharmConfig, option: str, text: str, command: str, what: str) -> dict[str, Any]:
    """Have the shipped authenticator check an option's text, for the mode that the options set; gives its answer."""
    mode = ["--upstream-compatible"] if config.names_upstream_way else []
    done = _run_cli(_shipped_program(places), [command, *mode, "-"], text)
    if done.returncode not in {0, 1}:
        raise WorkloadError(f"the authenticator cannot check {what}: {_last_line(done.stderr)}")
    answer: dict[str, Any] = json.loads(done.stdout)
    if not answer["valid"]:
        found = answer["errors"]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigError(option, f"{_finding(found[0])}{more}; nothing was changed")
    return answer


def _finding(item: dict[str, Any]) -> str:
    where = [
        f"{word} {item[key]}" for word, key in (("line", "line"), ("item", "item"), ("key", "key")) if item.get(key)
    ]
    return ", ".join(where) + (": " if where else "") + item["reason"]


def _backend(backend: Backend | None) -> dict[str, str | None] | None:
    return None if backend is None else {"url": backend.url, "ca": None if backend.ca is None else str(backend.ca)}


def _raise_if_taken(listen: Listen) -> None:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As systemd does: connections of a moment ago do not count as somebody else's.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Blocked(
                    f"cannot listen on {listen.address}: {error.strerror}; authn-server-url chooses another"
                ) from error
            if listen.port == PRIVATE_PORT:
                raise Blocked(
                    f"port {listen.port} on loopback, which the authenticator needs, is taken by another program"
                    f" (ss -ltnp 'sport = :{listen.port}')"
                ) from error
            raise Blocked(
                f"{listen.address} is taken by another program (ss -ltnp 'sport = :{listen.port}'): stop it, or"
                f" set authn-server-url=https://127.0.0.1:PORT/webhook to move the endpoint"
            ) from error


def _in_force(want: dict[str, str]) -> Status:
    now = status()
    have: dict[str, _Part] = {"settings": now.settings, "policy": now.policy, "tls": now.tls}
    if now.policy.configmap is not None and now.policy.configmap.state == "present":
        want = {name: digest for name, digest in want.items() if name != "policy"}  # that one is not looked at
    for name, digest in want.items():
        if have[name].error:
            raise WorkloadError(f"the authenticator refuses its {name}: {have[name].error}")
        if have[name].hash != digest:
            raise WorkloadError(f"the authenticator has not read its {name} yet; see journalctl -u {SERVICE}")
    return now


def _ready() -> None:
    try:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"http://127.0.0.1:{PRIVATE_PORT}/readyz", timeout=5)
    except requests.RequestException as error:
        raise WorkloadError(f"the authenticator does not answer: {error}") from error
    if answer.status_code != 200:
        raise WorkloadError("the authenticator is not ready: " + "; ".join(answer.text.split("\n")).strip("; "))


def _eventually(attempt: Callable[[], Any], seconds: float) -> Any:
    """Repeat until it raises no WorkloadError any more; after this time its last one stands."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except WorkloadError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.05)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "it says nothing"
