"""Keystone: whose token is this, and in which groups is its holder. Tells a refusal from no answer.

A token is validated with itself, so that no service account is needed. Only Keystone's own 401, 403 or 404, with its
JSON error body, is a refusal; whatever else comes is no verdict. Nothing is cached here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from keystone_authenticator import access_rules, clock, document
from keystone_authenticator.identity import Account, Group
from keystone_authenticator.outbound import Answer, CannotTell, Client

# Keystone's own time limit is longer; an API server's request waits for this.
DEADLINE = 4.0
_MOST_PAGES = 20
_REFUSALS = (401, 403, 404)
_LOOKS_SECRET = re.compile(r"[A-Za-z0-9_=.-]{40,}")


class Refused(Exception):
    """Keystone's no, or ours to a token that Keystone knows; the message is the reason, for our log."""


@dataclass(frozen=True)
class ValidToken:
    """A project-scoped token, its holder, and when it expires (seconds of the epoch)."""

    account: Account
    expires_at: float


@dataclass(frozen=True)
class Memberships:
    """All groups of a user; `until` is when the first membership ends (seconds of the epoch), None if none does."""

    groups: tuple[Group, ...]
    until: float | None


class LastAnswer(NamedTuple):
    """Keystone's last answer, or why there was none."""

    at: float
    status: int | None
    error: str | None


class Keystone:
    """One Keystone, by the URL of its v3 API."""

    def __init__(self, url: str, client: Client) -> None:
        """`client` brings the TLS context and the deadline."""
        self._url = url
        self._client = client
        self.last_answer: LastAnswer | None = None

    async def validate(self, token: str) -> ValidToken:
        """Ask Keystone about a token.

        Raises:
            Refused: it is not good, or not one that counts here (project scope only; of access rules, if any, one for
            Kubernetes).
            CannotTell: no verdict.

        """
        # Without the header Keystone hides credentials with access rules behind a 404.
        headers = {"X-Auth-Token": token, "X-Subject-Token": token, "OpenStack-Identity-Access-Rules": "1.0"}
        answer = await self._call("/auth/tokens?nocatalog", headers)
        if answer.status in _REFUSALS:
            raise Refused(f"Keystone answered {answer.status}{_by_id(answer)}: {_error_message(answer)}")
        if answer.status != 200:
            raise CannotTell(f"Keystone answered with status {answer.status}{_by_id(answer)}")
        # An odd answer of Keystone's own is this token's alone: counted as an outage, its holder could cause one.
        odd = False
        try:
            token_body = _object(document.decode(answer.body), "token")
            odd = True
            return _valid_token(token_body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"Keystone's answer about a token was not understood ({type(error).__name__})"
            raise CannotTell(reason, single=odd) from None

    async def memberships(self, token: str, user_id: str) -> Memberships:
        """Ask Keystone for the groups of the token's holder.

        Raises:
            CannotTell: it did not list them, whatever the reason: that is never "no groups".

        """
        groups: list[Group] = []
        until: float | None = None
        path = f"/users/{quote(user_id, safe='')}/groups"
        query = ""
        for _ in range(_MOST_PAGES):
            answer = await self._call(path + query, {"X-Auth-Token": token})
            if answer.status != 200:
                single = answer.status in _REFUSALS
                about = f"{answer.status}{_by_id(answer)}"
                reason = f"Keystone answered {about} when asked for the groups of the user {user_id}"
                raise CannotTell(reason, single=single)
            try:
                body = document.decode(answer.body)
                for entry in body["groups"]:
                    expiry = entry.get("membership_expires_at")
                    if expiry is not None:
                        ends = _time(expiry)
                        if ends <= clock.now():
                            continue
                        until = ends if until is None else min(until, ends)
                    groups.append(Group(_text(entry, "name"), _text(entry, "domain_id")))
                following = (body.get("links") or {}).get("next")
                truncated = body.get("truncated")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CannotTell(f"Keystone's list of groups was not understood ({type(error).__name__})") from None
            if following is None:
                if truncated:
                    reason = f"Keystone cut its list of the groups of the user {user_id} short (its option list_limit)"
                    raise CannotTell(reason, single=True)
                return Memberships(tuple(groups), until)
            # Only the query is taken from the link: the token goes to no address but the configured one.
            query = f"?{urlsplit(str(following)).query}"
        raise CannotTell(f"Keystone's list of the groups of the user {user_id} does not end", single=True)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _call(self, path: str, headers: Mapping[str, str]) -> Answer:
        try:
            answer = await self._client.call("GET", self._url + path, headers)
            if answer.status in _REFUSALS:
                _error_message(answer)
        except CannotTell as error:
            self.last_answer = LastAnswer(time.time(), None, str(error))
            raise
        self.last_answer = LastAnswer(time.time(), answer.status, None)
        return answer


def _by_id(answer: Answer) -> str:
    """By which name the request stands in Keystone's own log."""
    return f" ({answer.request_id})" if answer.request_id else ""


def _error_message(answer: Answer) -> str:
    """What Keystone says in its error body.

    Raises:
        CannotTell: it is not Keystone's (a proxy's page, another service).

    """
    try:
        error = _object(document.decode(answer.body), "error")
        if error["code"] == answer.status and isinstance(error["message"], str):
            # "This is not a recognized Fernet token …": some of Keystone's messages have the token in them.
            return _LOOKS_SECRET.sub("…", error["message"])
    except (ValueError, KeyError, TypeError):
        pass
    raise CannotTell(f"a {answer.status} came that is not Keystone's own (no error body in JSON)")


def _object(data: Any, key: str) -> dict[str, Any]:
    value = data[key]
    if not isinstance(value, dict):
        raise TypeError(key)
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str) or not value:
        raise ValueError(key)
    return value


def _time(text: str) -> float:
    # Keystone writes 2026-01-31T12:00:00.000000Z; Python 3.10 reads no Z.
    moment = datetime.fromisoformat(text.removesuffix("Z"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _valid_token(token: dict[str, Any]) -> ValidToken:
    user = _object(token, "user")
    user_id = _text(user, "id")
    credential = token.get("application_credential")
    if "project" not in token or token["project"] is None:
        scope = next((name for name in ("domain", "system") if token.get(name)), None)
        kind = f"scoped to a {scope}" if scope else "unscoped"
        raise Refused(f"the token of the user {user_id} is {kind}, only project scope counts")
    if token.get("is_domain"):
        raise Refused(f"the token of the user {user_id} is scoped to a domain as if it were a project")
    rules: tuple[str, ...] | None = None
    # An empty list is a list: such a credential is good for nothing.
    if credential is not None and credential.get("access_rules") is not None:
        try:
            rules = access_rules.about_kubernetes(credential["access_rules"])
        except access_rules.UnusableRulesError as error:
            raise Refused(f"the application credential {credential.get('id')} of the user {user_id} {error}") from None
    project = _object(token, "project")
    account = Account(
        user_id=user_id,
        user_name=_text(user, "name"),
        user_domain_id=_text(_object(user, "domain"), "id"),
        user_domain_name=_text(_object(user, "domain"), "name"),
        project_id=_text(project, "id"),
        project_name=_text(project, "name"),
        project_domain_id=_text(_object(project, "domain"), "id"),
        # Sorted, as Keystone's order means nothing and the same user should look the same.
        roles=tuple(sorted({_text(role, "name") for role in token["roles"]})),
        application_credential_id=_text(credential, "id") if credential is not None else None,
        access_rules=rules,
        partial=credential is not None or any(token.get(key) for key in ("OS-TRUST:trust", "OS-OAUTH1")),
    )
    # Keystone gives nobody a token without a role, but validates one whose roles were all taken away since, where it
    # kept no revocation of it: members of a federated group, say.
    if not account.roles:
        raise Refused(f"the user {user_id} has no role in the project {account.project_id} any more")
    expires = token["expires_at"]
    return ValidToken(account, _time(_text(token, "expires_at")) if expires is not None else float("inf"))
