"""Keystone, as an account of its own may see it: all projects, users and effective role assignments, in a few calls.

Names are looked up in lists, not asked for with each assignment: Keystone would look each of them up on its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from keystone_authenticator import document
from keystone_authenticator.metrics import Calls
from keystone_authenticator.outbound import Answer, CannotTell, Client, remote_context
from keystone_authenticator.policy import PolicyError, read
from keystone_authenticator.settings import Remote
from keystone_authenticator.sync.plan import Directory, Project, User

# Keystone puts a list together before it begins to send it.
DEADLINE = 180.0
# Half a million assignments; one takes some 400 bytes.
MOST_BYTES = 200 * 1024 * 1024
_MOST_PAGES = 10_000
# Users whom the lists do not have, of a directory that tells one at a time only.
_MOST_ASKED = 500
# Asked for on purpose: Keystone 29 cuts a list at 1,000 (its option max_db_limit) and, without this, does not say so.
_PAGE = "limit=1000"

_SECRETS = ("application-credential-secret", "password")
_KEYS = (
    *("application-credential-id", *_SECRETS, "username", "user-id", "user-domain-id"),
    *("project-id", "project-name", "project-domain-id", "domain-id", "system-scope"),
)


class CredentialsError(Exception):
    """The account cannot be used; the message names the key that is missing or wrong, and no value."""


def login(text: bytes) -> dict[str, Any]:
    """Read an account, YAML or JSON, into the body of a login at Keystone.

    Either `application-credential-id` and `application-credential-secret`, or `password` with `user-id` or `username`
    (and `user-domain-id`, `default` if it is not there) and one scope: `system-scope: all`, `domain-id`, `project-id`,
    or `project-name` (and `project-domain-id`).

    Raises:
        CredentialsError: it cannot be used.

    """
    try:
        data, _ = read(text)
    except PolicyError as error:
        raise CredentialsError(f"neither YAML nor JSON, {error.problems[0].line or 1}. line") from None
    if not isinstance(data, dict):
        raise CredentialsError(f"must be a mapping with some of {', '.join(_KEYS)}")
    found = {key: value for key, value in data.items() if value is not None}
    for key, value in found.items():
        if key not in _KEYS:
            raise CredentialsError(f"unknown key {key!r}, expected some of {', '.join(_KEYS)}")
        if not isinstance(value, str) or not value:
            raise CredentialsError(f"{key}: must be a text")
    if "application-credential-id" in found:
        if set(found) != {"application-credential-id", "application-credential-secret"}:
            raise CredentialsError("application-credential-id needs application-credential-secret, and nothing else")
        credential = {"id": found["application-credential-id"], "secret": found["application-credential-secret"]}
        return {"auth": {"identity": {"methods": ["application_credential"], "application_credential": credential}}}
    if "password" not in found:
        raise CredentialsError("there is neither application-credential-id nor password")
    user: dict[str, Any] = {"password": found["password"]}
    if "user-id" in found:
        user["id"] = found["user-id"]
    elif "username" in found:
        user |= {"name": found["username"], "domain": {"id": found.get("user-domain-id", "default")}}
    else:
        raise CredentialsError("password needs username or user-id")
    identity = {"methods": ["password"], "password": {"user": user}}
    return {"auth": {"identity": identity, "scope": _scope(found)}}


def _scope(found: Mapping[str, str]) -> dict[str, Any]:
    scopes: list[dict[str, Any]] = []
    if "system-scope" in found:
        if found["system-scope"] != "all":
            raise CredentialsError("system-scope: must be all")
        scopes.append({"system": {"all": True}})
    if "domain-id" in found:
        scopes.append({"domain": {"id": found["domain-id"]}})
    if "project-id" in found:
        scopes.append({"project": {"id": found["project-id"]}})
    elif "project-name" in found:
        domain = {"id": found.get("project-domain-id", "default")}
        scopes.append({"project": {"name": found["project-name"], "domain": domain}})
    if len(scopes) != 1:
        raise CredentialsError("one of system-scope, domain-id, project-id and project-name is needed, and only one")
    return scopes[0]


class _Named(msgspec.Struct, frozen=True, gc=False):
    id: str
    name: str = ""
    domain_id: str | None = None
    enabled: bool = True


class _Reference(msgspec.Struct, frozen=True, gc=False):
    id: str


class _Role(msgspec.Struct, frozen=True, gc=False):
    id: str
    name: str = ""


class _User(msgspec.Struct, frozen=True, gc=False):
    id: str
    name: str = ""
    domain: _Reference | None = None


class _Scope(msgspec.Struct, frozen=True):
    project: _Reference | None = None


class _Assignment(msgspec.Struct, frozen=True):
    """Names are there where they were asked for."""

    role: _Role
    scope: _Scope
    user: _User | None = None


class _Links(msgspec.Struct):
    next: str | None = None


class _List(msgspec.Struct):
    """Any of the lists; each has one of these keys."""

    projects: list[_Named] = []
    users: list[_Named] = []
    roles: list[_Named] = []
    domains: list[_Named] = []
    role_assignments: list[_Assignment] = []
    links: _Links | None = None
    truncated: bool = False


class _OneUser(msgspec.Struct):
    user: _Named


_list = document.decoder(_List)
_one_user = document.decoder(_OneUser)


class Account:
    """The account, logged in once for a pass."""

    def __init__(self, keystone: Remote, credentials: Path, calls: Calls | None = None) -> None:
        """Read the account.

        Raises:
            CredentialsError: it cannot be used.
            TlsMaterialError, OSError: Keystone's CA cannot be read or used.

        """
        try:
            self._login = login(credentials.read_bytes())
        except OSError as error:
            raise CredentialsError(f"{credentials}: {error.strerror}") from None
        self._url = keystone.url
        self._token = ""
        self.calls = 0
        self._client = Client(
            "Keystone", remote_context(keystone.url, keystone.ca), DEADLINE, calls=calls, most=MOST_BYTES
        )

    async def _send(self, method: str, path: str, body: bytes | None = None) -> Answer:
        self.calls += 1
        headers = {"Content-Type": "application/json", **({"X-Auth-Token": self._token} if self._token else {})}
        return await self._client.call(method, self._url + path, headers, body, attempts=2)

    async def log_in(self) -> None:
        """Get a token.

        Raises:
            CannotTell: there is none.

        """
        answer = await self._send("POST", "/auth/tokens?nocatalog", document.encode(self._login))
        if answer.status != 201 or not answer.subject_token:
            raise CannotTell(f"Keystone answered {answer.status} to the login with sync-credentials")
        self._token = answer.subject_token

    async def directory(self) -> Directory:
        """Everything.

        Raises:
            CannotTell: it was not all told.

        """
        projects = {
            found.id: Project(found.id, found.name, found.domain_id or "", found.enabled)
            async for page in self._pages(f"/projects?{_PAGE}")
            for found in page.projects
        }
        if not projects:
            raise CannotTell("Keystone lists no projects to the account of sync-credentials")
        roles = {found.id: found.name async for page in self._pages("/roles", refusals=True) for found in page.roles}
        # Who may not list roles, as the reader of a domain, has each assignment told with all names.
        query = "effective" if roles else "effective&include_names"
        holders: dict[str, set[tuple[str, str]]] = {}
        # One object for each ID: it stands in many assignments.
        ids = {project: project for project in projects}
        people: dict[str, str] = {}
        told: dict[str, User] = {}
        async for page in self._pages(f"/role_assignments?{query}"):
            for found in page.role_assignments:
                project, user = found.scope.project, found.user
                # Roles of a domain alone are in no token; what they imply is in this list of its own accord.
                role = roles.get(found.role.id) if roles else found.role.name
                if project is None or project.id not in ids or user is None or not role:
                    continue
                user_id = people.setdefault(user.id, user.id)
                holders.setdefault(ids[project.id], set()).add((user_id, role))
                if user.name and user.domain is not None:
                    told[user_id] = User(user.name, user.domain.id)
        users = await self._users(people.keys() - told.keys())
        return Directory(projects, {**told, **users}, holders)

    async def _users(self, wanted: Set[str]) -> dict[str, User]:
        """The users among these of whom something can be found out."""
        if not wanted:
            return {}
        users = dict(_chosen([page async for page in self._pages(f"/users?{_PAGE}", refusals=True)], wanted))
        if wanted - users.keys():
            # With a directory of its own for some domain, Keystone lists users by domain.
            for page in [page async for page in self._pages(f"/domains?{_PAGE}", refusals=True)]:
                for domain in page.domains:
                    path = f"/users?domain_id={quote(domain.id, safe='')}&{_PAGE}"
                    users.update(_chosen([page async for page in self._pages(path, refusals=True)], wanted))
        for user_id in sorted(wanted - users.keys())[:_MOST_ASKED]:
            answer = await self._send("GET", f"/users/{quote(user_id, safe='')}")
            if answer.status == 200:
                users.update(_chosen([_List(users=[_understood(_one_user, answer).user])], wanted))
        return users

    async def is_gone(self, project_id: str) -> bool:
        """Whether Keystone says that a project does not exist."""
        answer = await self._send("GET", f"/projects/{quote(project_id, safe='')}")
        if answer.status != 404:
            return False
        try:
            # Keystone's own 404, not that of something in between.
            return document.decode(answer.body)["error"]["code"] == 404
        except (ValueError, KeyError, TypeError):
            return False

    async def _pages(self, path: str, refusals: bool = False) -> AsyncIterator[_List]:
        """The pages of a list; with `refusals`, a list that is not for this account is empty.

        Raises:
            CannotTell: it is not told, or not all of it.

        """
        start, _, query = path.partition("?")
        for _ in range(_MOST_PAGES):
            answer = await self._send("GET", f"{start}?{query}" if query else start)
            if answer.status == 400 and query.endswith(_PAGE):
                # One that knows no pages of these, and gives everything.
                query = query.removesuffix(_PAGE).removesuffix("&")
                continue
            if answer.status != 200:
                if refusals and answer.status in (400, 401, 403, 404):
                    return
                raise CannotTell(f"Keystone answered {answer.status} when asked for {path}")
            page = _understood(_list, answer)
            following = page.links.next if page.links is not None else None
            if page.truncated and following is None:
                raise CannotTell(f"Keystone cut its answer to {path} short (its option list_limit)")
            yield page
            if following is None:
                return
            # Only the query is taken from the link: the token goes to no address but the configured one.
            query = urlsplit(following).query
        raise CannotTell(f"Keystone's answer to {path} does not end")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _chosen(pages: Iterable[_List], wanted: Set[str]) -> Iterator[tuple[str, User]]:
    for page in pages:
        for found in page.users:
            # Without a name or a domain nobody can be named.
            if found.id in wanted and found.name and found.domain_id:
                yield found.id, User(found.name, found.domain_id, found.enabled)


def _understood(decode: Any, answer: Answer) -> Any:
    try:
        return decode(answer.body)
    except (document.NotJson, document.NotOfType) as error:
        raise CannotTell(f"Keystone's answer was not understood: {error}") from None
