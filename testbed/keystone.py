"""A real Keystone for tests and the demo: SQLite, gunicorn, TLS with a CA of its own; ready within seconds.

It starts from a bootstrapped copy that `testbed.setup` keeps, on the addresses given and a free port, and everything
goes when the context ends. It can be made slow, deaf or absent, and tells which requests it got.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from testbed import setup
from testbed.cache import Run, TestbedError
from testbed.certificates import Authority

DEFAULT_DOMAIN = "default"
START_TIMEOUT = 60.0  # seconds; 2 to 4 are usual


@dataclass(frozen=True)
class Domain:
    """A Keystone domain."""

    id: str
    name: str


@dataclass(frozen=True)
class Project:
    """A Keystone project."""

    id: str
    name: str
    domain_id: str


@dataclass(frozen=True)
class User:
    """A Keystone user, with the password it was made with."""

    id: str
    name: str
    domain_id: str
    password: str


@dataclass(frozen=True)
class Group:
    """A Keystone group."""

    id: str
    name: str
    domain_id: str


@dataclass(frozen=True)
class ApplicationCredential:
    """An application credential: what a user takes away from Keystone or Horizon."""

    id: str
    name: str
    secret: str
    user_id: str


@dataclass(frozen=True)
class Call:
    """A request that Keystone answered. Tokens are SHA-256 digests (hex), see `Keystone.digest`."""

    at: float
    method: str
    path: str
    query: str
    status: int
    agent: str
    subject: str | None
    token: str | None


class Api:
    """What a Keystone does for its administrator and its users, over its API; a deployed one, or the test bed's.

    Args:
        url: ends in `/v3`.
        ca: a file with what signs its certificate.
        password: of `admin` in the project `admin`, which may be unknown until the first request.
        domain: that both are of, as Keystone's API names a domain.

    """

    def __init__(self, url: str, ca: Path, password: str, domain: Mapping[str, str] | None = None) -> None:
        self.url, self.ca, self._password = url, ca, password
        self._domain = dict(domain or {"id": DEFAULT_DOMAIN})
        self._admin_token: str | None = None
        self._session = requests.Session()
        self._session.trust_env = False

    @property
    def admin_password(self) -> str:
        """The administrator's password."""
        return self._password

    # --- requests

    def send(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30,
    ) -> requests.Response:
        """Send a request (path below `/v3`) and give the response, whatever it is. Without a token it carries none."""
        carried = {**({"X-Auth-Token": token} if token else {}), **(headers or {})}
        return self._session.request(
            method, self.url + path, json=json, headers=carried, verify=str(self.ca), timeout=timeout
        )

    def request(self, method: str, path: str, json: Any = None) -> Any:
        """Send a request as the administrator and give the answer's JSON (nothing if it has none).

        Raises:
            TestbedError: for any answer that is no success.

        """
        if self._admin_token is None:
            self._admin_token = self._authenticate(
                {
                    "methods": ["password"],
                    "password": {
                        "user": {
                            "name": "admin",
                            "domain": self._domain,
                            "password": self.admin_password,
                        }
                    },
                },
                {"project": {"name": "admin", "domain": self._domain}},
            )
        response = self.send(method, path, token=self._admin_token, json=json)
        if not response.ok:
            raise TestbedError(f"Keystone: {method} {path}: {response.status_code} {response.text}")
        return response.json() if response.content else None

    def _authenticate(self, identity: dict[str, Any], scope: dict[str, Any] | str | None) -> str:
        auth: dict[str, Any] = {"identity": identity}
        if scope is not None:
            auth["scope"] = scope
        response = self.send("POST", "/auth/tokens", json={"auth": auth})
        if response.status_code != 201:
            raise TestbedError(f"Keystone: no token: {response.status_code} {response.text}")
        return response.headers["X-Subject-Token"]

    # --- who is there

    def domain(self, name: str) -> Domain:
        """Make a domain."""
        made = self.request("POST", "/domains", {"domain": {"name": name}})["domain"]
        return Domain(made["id"], made["name"])

    def project(self, name: str, domain: Domain | str = DEFAULT_DOMAIN) -> Project:
        """Make a project in a domain (or a domain's ID)."""
        body = {"project": {"name": name, "domain_id": _id(domain)}}
        made = self.request("POST", "/projects", body)["project"]
        return Project(made["id"], made["name"], made["domain_id"])

    def user(self, name: str, domain: Domain | str = DEFAULT_DOMAIN, password: str | None = None) -> User:
        """Make a user in a domain."""
        password = password or uuid.uuid4().hex
        body = {"user": {"name": name, "domain_id": _id(domain), "password": password}}
        made = self.request("POST", "/users", body)["user"]
        return User(made["id"], made["name"], made["domain_id"], password)

    def group(self, name: str, *members: User, domain: Domain | str = DEFAULT_DOMAIN) -> Group:
        """Make a group with these members."""
        made = self.request("POST", "/groups", {"group": {"name": name, "domain_id": _id(domain)}})["group"]
        group = Group(made["id"], made["name"], made["domain_id"])
        for member in members:
            self.join(group, member)
        return group

    def join(self, group: Group, user: User) -> None:
        """Put a user into a group."""
        self.request("PUT", f"/groups/{group.id}/users/{user.id}")

    def leave(self, group: Group, user: User) -> None:
        """Take a user out of a group."""
        self.request("DELETE", f"/groups/{group.id}/users/{user.id}")

    def role(self, name: str) -> str:
        """Give the ID of a (global) role, made if it is not there: `admin`, `member`, `reader` … are."""
        found = self.request("GET", f"/roles?name={quote(name)}")["roles"]
        return found[0]["id"] if found else self.request("POST", "/roles", {"role": {"name": name}})["role"]["id"]

    def grant(self, role: str, who: User | Group, where: Project | Domain | None = None) -> None:
        """Give a user or group a role (by name) in a project, in a domain or, without either, on the system."""
        self.request("PUT", self._assignment(role, who, where))

    def revoke(self, role: str, who: User | Group, where: Project | Domain | None = None) -> None:
        """Take a role back that `grant` gave."""
        self.request("DELETE", self._assignment(role, who, where))

    def _assignment(self, role: str, who: User | Group, where: Project | Domain | None) -> str:
        place = "/system" if where is None else f"/{type(where).__name__.lower()}s/{where.id}"
        return f"{place}/{type(who).__name__.lower()}s/{who.id}/roles/{self.role(role)}"

    def member(self, name: str, project: Project, *roles: str, domain: Domain | str = DEFAULT_DOMAIN) -> User:
        """Make a user with these roles (`member` if none is named) in a project."""
        user = self.user(name, domain)
        for role in roles or ("member",):
            self.grant(role, user, project)
        return user

    def update(self, what: User | Group | Project | Domain, **changes: Any) -> None:
        """Change attributes, such as `enabled=False`, `name=…`, `password=…`."""
        kind = type(what).__name__.lower()
        self.request("PATCH", f"/{kind}s/{what.id}", {kind: changes})

    def delete(self, what: User | Group | Project | Domain | ApplicationCredential) -> None:
        """Delete it."""
        if isinstance(what, ApplicationCredential):
            self.request("DELETE", f"/users/{what.user_id}/application_credentials/{what.id}")
        else:
            self.request("DELETE", f"/{type(what).__name__.lower()}s/{what.id}")

    # --- tokens and credentials

    def token(self, user: User, scope: Project | Domain | str | None = "unscoped") -> str:
        """Log a user in by password, for a project, a domain, `"system"` or `"unscoped"`."""
        by_id = {"id": user.id, "password": user.password}
        wanted: dict[str, Any] | str | None = "unscoped"
        if isinstance(scope, (Project, Domain)):
            wanted = {type(scope).__name__.lower(): {"id": scope.id}}
        elif scope == "system":
            wanted = {"system": {"all": True}}
        return self._authenticate({"methods": ["password"], "password": {"user": by_id}}, wanted)

    def revoke_token(self, token: str) -> None:
        """Revoke a token."""
        response = self.send("DELETE", "/auth/tokens", token=token, headers={"X-Subject-Token": token})
        if response.status_code != 204:
            raise TestbedError(f"Keystone: no revocation: {response.status_code} {response.text}")

    def application_credential(
        self,
        user: User,
        project: Project,
        name: str | None = None,
        *,
        roles: Sequence[str] | None = None,
        access_rules: Sequence[Mapping[str, str]] | None = None,
        unrestricted: bool = False,
        expires_at: str | None = None,
        secret: str | None = None,
    ) -> ApplicationCredential:
        """Make an application credential of a user in a project, with all the user's roles there unless some are named.

        Args:
            user: whose it is.
            project: where it holds.
            name: its name; a random one otherwise.
            roles: names of roles.
            access_rules: `{service, method, path}` each.
            unrestricted: whether it may make further credentials.
            expires_at: ISO 8601 time.
            secret: its secret; Keystone chooses one otherwise.

        """
        body: dict[str, Any] = {"name": name or f"credential-{uuid.uuid4().hex[:8]}", "unrestricted": unrestricted}
        if roles is not None:
            body["roles"] = [{"name": role} for role in roles]
        if access_rules is not None:
            body["access_rules"] = [dict(rule) for rule in access_rules]
        if expires_at is not None:
            body["expires_at"] = expires_at
        if secret is not None:
            body["secret"] = secret
        path = f"/users/{user.id}/application_credentials"
        response = self.send("POST", path, token=self.token(user, project), json={"application_credential": body})
        if response.status_code != 201:
            raise TestbedError(f"Keystone: no application credential: {response.status_code} {response.text}")
        made = response.json()["application_credential"]
        return ApplicationCredential(made["id"], made["name"], made["secret"], user.id)

    def credential_token(self, credential: ApplicationCredential) -> str:
        """Get a token for an application credential."""
        by_id = {"id": credential.id, "secret": credential.secret}
        identity = {"methods": ["application_credential"], "application_credential": by_id}
        return self._authenticate(identity, None)

    def trust_token(
        self, trustor: User, trustee: User, project: Project, roles: Sequence[str], *, impersonation: bool
    ) -> str:
        """Let a trustor delegate roles in a project to a trustee, and get the trustee's token for that trust."""
        trust = {
            "trustor_user_id": trustor.id,
            "trustee_user_id": trustee.id,
            "project_id": project.id,
            "impersonation": impersonation,
            "roles": [{"name": role} for role in roles],
        }
        response = self.send("POST", "/OS-TRUST/trusts", token=self.token(trustor, project), json={"trust": trust})
        if response.status_code != 201:
            raise TestbedError(f"Keystone: no trust: {response.status_code} {response.text}")
        by_id = {"id": trustee.id, "password": trustee.password}
        scope = {"OS-TRUST:trust": {"id": response.json()["trust"]["id"]}}
        return self._authenticate({"methods": ["password"], "password": {"user": by_id}}, scope)


class Keystone(Api):
    """A Keystone of one's own.

    Args:
        addresses: where it listens, the first is in its URL. All are in its certificate, with `localhost`.
        caching: Keystone's own cache. On, a validation takes milliseconds; off, a revocation shows at once, and a
            validation takes the better part of a second.
        port: 0 takes a free one.
        settings: what its configuration says besides.

    """

    def __init__(self, *addresses: str, caching: bool = True, port: int = 0, settings: str = "") -> None:
        self.addresses = addresses or ("127.0.0.1",)
        self.port = port or _free_port(self.addresses)
        # The CA is made when it starts.
        super().__init__(f"https://{self.addresses[0]}:{self.port}/v3", Path(), "")
        self._caching = caching
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    # --- its life

    def __enter__(self) -> Keystone:
        """Make it and start it."""
        template, self._venv = setup.keystone_template(), setup.keystone()
        self._run = Run("keystone")
        self.folder = self._run.folder
        try:
            shutil.copytree(template, self.folder, dirs_exist_ok=True)
            self._prepare()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it and remove everything of it."""
        try:
            self.stop()
        finally:
            self._session.close()
            self._run.remove()

    def _prepare(self) -> None:
        configuration = (setup.BUILDS / "keystone" / "keystone.conf").read_text()
        caching = str(self._caching).lower()
        filled = configuration.format(folder=self.folder, caching=caching)
        (self.folder / "keystone.conf").write_text(filled + self._settings)
        with sqlite3.connect(self.folder / "keystone.sqlite") as database:
            database.execute("UPDATE endpoint SET url = ?", (self.url,))
            database.execute("PRAGMA journal_mode = WAL")  # so that readers and a writer do not wait for each other
        database.close()
        self._certify()
        self._record = self.folder / "requests"
        self._record.touch()

    def _certify(self) -> None:
        authority = Authority("Keystone of the test bed")
        server = authority.sign("keystone", hosts=[*self.addresses, "127.0.0.1", "localhost"])
        self.ca = self.folder / "ca.pem"
        self.ca.write_bytes(authority.certificate)
        (self.folder / "server.pem").write_bytes(server.certificate)
        (self.folder / "server.key").write_bytes(server.key)

    def change_authority(self) -> None:
        """Start it anew with a certificate of another CA, which is in `ca` from now on."""
        self.stop()
        self._certify()
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers. What it knew before is still there."""
        if self._process is not None:
            return
        gunicorn = [self._venv / "bin" / "gunicorn", "--workers=1", "--worker-class=gthread", "--threads=8"]
        places = [f"--bind={address}:{self.port}" for address in self.addresses]
        tls = [f"--certfile={self.folder}/server.pem", f"--keyfile={self.folder}/server.key"]
        rest = ["--timeout=0", "--graceful-timeout=1", "--keep-alive=60", "--log-level=warning", "keystone_app"]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            # With this it dies with whoever started it, also when that is killed.
            ["setpriv", "--pdeathsig=TERM", "--", *map(str, [*gunicorn, *places, *tls, *rest])],
            cwd=setup.HERE / "wsgi",
            env={
                "PATH": os.environ.get("PATH", ""),
                "OS_KEYSTONE_CONFIG_DIR": str(self.folder),
                "TESTBED_KEYSTONE": str(self.folder),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONWARNINGS": "ignore",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        end = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise TestbedError(f"Keystone does not start at {self.url}:\n{self.log()[-3000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return self._session.get(self.url, verify=str(self.ca), timeout=START_TIMEOUT).ok
        except requests.RequestException:
            return False

    def stop(self) -> None:
        """Stop it: connections are refused from now on. `start` brings it back."""
        process, self._process = self._process, None
        if process is None:
            return
        self._session.close()  # an open connection would make it wait for its graceful time
        if self._paused:
            self._signal(process, signal.SIGCONT)
            self._paused = False
        self._signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        self._signal(process, signal.SIGKILL)
        process.wait()

    def pause(self) -> None:
        """Make it deaf (SIGSTOP): connections are accepted by the kernel, and nothing is ever answered."""
        if self._process is not None:
            self._signal(self._process, signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        """Let it go on after `pause`."""
        if self._process is not None:
            self._signal(self._process, signal.SIGCONT)
            self._paused = False

    def delay(self, seconds: float) -> None:
        """Let every answer wait that long; 0 ends it."""
        (self.folder / "delay").write_text(str(seconds))

    @staticmethod
    def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def log(self) -> str:
        """Give what Keystone wrote."""
        return (self.folder / "log").read_text(errors="replace")

    # --- what it was asked

    def calls(self, method: str | None = None, path: str | None = None) -> list[Call]:
        """Give the requests since the start or the last `forget_calls`, if asked only those of a method and a path."""
        lines = self._record.read_text().splitlines()
        found = [Call(**json.loads(line)) for line in lines]
        return [call for call in found if method in (None, call.method) and path in (None, call.path)]

    def forget_calls(self) -> None:
        """Begin the record of requests anew."""
        os.truncate(self._record, 0)

    @staticmethod
    def digest(token: str) -> str:
        """Give a token as the record names it."""
        return hashlib.sha256(token.encode("latin-1")).hexdigest()

    # --- its administrator

    @property
    def admin_password(self) -> str:
        """The password of `admin` in the default domain (project `admin`)."""
        return (self.folder / "admin-password").read_text()

    @property
    def admin(self) -> User:
        """The administrator, as a user."""
        if not hasattr(self, "_admin"):
            body = self.request("GET", f"/users?name=admin&domain_id={DEFAULT_DOMAIN}")
            self._admin = User(body["users"][0]["id"], "admin", DEFAULT_DOMAIN, self.admin_password)
        return self._admin


def _id(domain: Domain | str) -> str:
    return domain if isinstance(domain, str) else domain.id


def _free_port(addresses: Sequence[str]) -> int:
    """Find a port that is free on all the addresses."""
    for _ in range(50):
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port = first.getsockname()[1]
            try:
                for address in addresses[1:]:
                    with socket.socket() as other:
                        other.bind((address, port))
            except OSError:
                continue
            return port
    raise TestbedError(f"no port is free on {', '.join(addresses)}")
