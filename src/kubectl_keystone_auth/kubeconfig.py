"""Kubeconfigs: the login of a context, and a context put into a file without touching anybody else's.

kubectl itself is asked what counts (`config view` knows KUBECONFIG and how files are merged). It is not asked to write:
it takes a secret only as an argument, which process lists show.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kubectl_keystone_auth import flavours
from kubectl_keystone_auth.errors import BadInput, PluginError

PROGRAM = "kubectl-keystone-auth"
OURS = (PROGRAM, "kubectl-keystone_auth", "client-keystone-auth")
"""Programs whose arguments these are."""


@dataclass(frozen=True)
class Login:
    """How a context logs in: the plug-in's arguments, and what its environment has besides the shell's."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Cluster:
    """An API server: its URL, and the PEM of what signs its certificate; None for what the system trusts."""

    server: str
    ca: bytes | None


def kubectl(*arguments: str, kubeconfig: str = "", context: str = "") -> str:
    """Run kubectl and give what it prints.

    Raises:
        BadInput: it is not there.
        PluginError: it fails; the message is its last line.

    """
    program = shutil.which("kubectl")
    if program is None:
        raise BadInput("kubectl is not on the PATH")
    chosen = [f"--{name}={value}" for name, value in (("kubeconfig", kubeconfig), ("context", context)) if value]
    # It prints UTF-8 everywhere; what Python takes programs to print is another code page on Windows.
    command = [program, *arguments, *chosen]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line] or ["no reason given"]
        raise PluginError(f"kubectl: {lines[-1][:300]}")
    return done.stdout


def current(kubeconfig: str = "", context: str = "", *, flat: bool = False) -> dict[str, Any]:
    """Give the chosen context's own part of the configuration, as kubectl sees it; `flat` with what files it names.

    Raises:
        PluginError: there is none.

    """
    asked = ["config", "view", "--minify", "--raw", "-o", "json", *(["--flatten"] if flat else [])]
    try:
        return json.loads(kubectl(*asked, kubeconfig=kubeconfig, context=context))
    except ValueError:
        raise PluginError("kubectl config view printed no JSON") from None


def login_of(view: Mapping[str, Any]) -> Login | None:
    """Give the login of a context (`current`), if it is by this plug-in, or one of its flavours that says as much."""
    users = view.get("users") or [{}]
    user = users[0].get("user") or {}
    if found := flavours.login(user):
        return Login(*found)
    section = user.get("exec") or {}
    command = str(section.get("command") or "").replace("\\", "/").rpartition("/")[2]
    if command.removesuffix(".exe") not in OURS:
        return None
    environment = {str(one["name"]): str(one["value"]) for one in section.get("env") or []}
    return Login(tuple(str(word) for word in section.get("args") or []), environment)


def cluster_of(view: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give the cluster of a context (`current`), as it stands there."""
    clusters = view.get("clusters") or [{}]
    return clusters[0].get("cluster") or None


def target(kubeconfig: str) -> Path:
    """Give the file that is written: the one named, else what kubectl would write to."""
    named = kubeconfig or next((name for name in os.environ.get("KUBECONFIG", "").split(os.pathsep) if name), "")
    return Path(named).expanduser() if named else Path.home() / ".kube" / "config"


def user_entry(login: Login, note: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Give the user of a kubeconfig that logs in like this, with a note for ourselves that kubectl lets be."""
    section = flavours.section(flavours.PLUGIN, login.environment)
    section["args"] = list(login.arguments)
    if not section["env"]:
        del section["env"]
    return {"exec": section, **({"extensions": [{"name": PROGRAM, "extension": dict(note)}]} if note else {})}


def note_of(view: Mapping[str, Any]) -> dict[str, Any]:
    """Give the note of a context (`current`) that `user_entry` put there; empty without."""
    users = view.get("users") or [{}]
    for one in (users[0].get("user") or {}).get("extensions") or []:
        if one.get("name") == PROGRAM and isinstance(one.get("extension"), dict):
            return one["extension"]
    return {}


def cluster_entry(cluster: Cluster) -> dict[str, Any]:
    """Give the cluster of a kubeconfig."""
    entry = {"server": cluster.server}
    if cluster.ca is not None:
        entry["certificate-authority-data"] = base64.b64encode(cluster.ca).decode()
    return entry


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one kubeconfig of several (`whole`); the first one's context is the current one."""
    made = dict(parts[0])
    for kind in ("clusters", "users", "contexts"):
        made[kind] = [entry for part in parts for entry in part[kind]]
    return made


def whole(name: str, cluster: Mapping[str, Any], user: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    """Give a kubeconfig with this one context."""
    context = {"cluster": name, "user": name, **({"namespace": namespace} if namespace else {})}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": dict(cluster)}],
        "users": [{"name": name, "user": dict(user)}],
        "contexts": [{"name": name, "context": context}],
        "current-context": name,
    }


def text(content: Mapping[str, Any], *, plain: bool = False) -> str:
    """Write it as YAML; `plain` in ASCII alone, for wherever it is printed."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=not plain)


class _Dumper(yaml.SafeDumper):
    """Scripts and certificates are shown as the lines that they are."""

    def represent_text(self, value: str) -> yaml.ScalarNode:
        """Write a text; where a block cannot hold it, the library quotes it all the same."""
        return self.represent_scalar("tag:yaml.org,2002:str", value, style="|" if value.count("\n") > 1 else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def merge(path: Path, ours: Mapping[str, Any], *, use: bool) -> None:
    """Put a context (`whole`) into a file, made if it is not there; everything else in it stays.

    Raises:
        BadInput: the file cannot be read or written, or has something else under that name.

    """
    # Through a link: a kubeconfig is often kept elsewhere.
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path):
            old = _read(path)
            _replace(path, text(_merged(old, ours, use=use, path=path)))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeError, RecursionError):
        # Without the parser's words, which quote the file: there are secrets in it.
        raise BadInput(f"{path} is not YAML; it is left as it is") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadInput(f"{path} is no kubeconfig; it is left as it is")
    return found


def _merged(old: Mapping[str, Any], ours: Mapping[str, Any], *, use: bool, path: Path) -> dict[str, Any]:
    new = {"apiVersion": "v1", "kind": "Config", **old}
    for kind in ("clusters", "users", "contexts"):
        entries = new.get(kind) or []
        if not isinstance(entries, list) or not all(_is_entry(entry, kind) for entry in entries):
            raise BadInput(f"{path}: {kind} is no list of entries; it is left as it is")
        named = {one["name"] for one in ours[kind]}
        for entry in ours[kind]:
            _check(path, kind, entry, [one for one in entries if one.get("name") == entry["name"]], old)
        new[kind] = [one for one in entries if one.get("name") not in named] + list(ours[kind])
    if use or not new.get("current-context"):
        new["current-context"] = ours["current-context"]
    return new


def _is_entry(entry: Any, kind: str) -> bool:
    named = isinstance(entry, dict) and isinstance(entry.get("name"), str)
    return named and isinstance(entry.get(kind.removesuffix("s")) or {}, dict)


def _check(
    path: Path, kind: str, entry: Mapping[str, Any], there: Sequence[Mapping[str, Any]], old: Mapping[str, Any]
) -> None:
    """Refuse to take the place of something else that has the name of an entry of ours."""
    if kind == "users" and there and not _ours(there[0]):
        raise BadInput(f"{path} has a user {entry['name']!r} who logs in otherwise: give --context another name")
    if kind == "clusters" and there and (there[0].get("cluster") or {}).get("server") != entry["cluster"]["server"]:
        raise BadInput(f"{path} has another cluster {entry['name']!r}: give --context another name")
    if kind == "contexts" and there:
        user = str((there[0].get("context") or {}).get("user"))
        # By whatever name: the file that operators hand out has one user for all of its contexts.
        users = [one for one in old.get("users") or [] if one.get("name") == user]
        if user != entry["context"]["user"] and not (users and _ours(users[0])):
            raise BadInput(f"{path} has another context {entry['name']!r}: give --context another name")


def _ours(entry: Mapping[str, Any]) -> bool:
    try:
        return login_of({"users": [entry]}) is not None or flavours.marked(entry.get("user") or {})
    except (AttributeError, KeyError, TypeError):  # nothing that we have written
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock that kubectl holds when it writes this file."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise BadInput(f"{lock} is there: another kubectl writes that file, or was killed while it did") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _replace(path: Path, content: str) -> None:
    """Write a file whole, readable by the user alone."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def read_ca(name: str) -> bytes:
    """Read a CA's file.

    Raises:
        BadInput: there is none, or it is not PEM.

    """
    try:
        content = Path(name).expanduser().read_bytes()
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise BadInput(f"{name} holds no certificate in PEM")
    return content


def words(options: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Write flags as one word each, so that a value that begins with a dash stays a value."""
    return tuple(f"--{name}={value}" for name, value in options)
