"""Application credentials that are good for Kubernetes alone: the access rules that say so, and making one.

What the rules mean to a cluster stands in docs/access-rules.md: methods for verbs, paths for resources, and no wildcard
that opens `exec`, `attach` and `portforward`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from kubectl_keystone_auth.errors import BadInput, PluginError, Refused, Unreachable
from kubectl_keystone_auth.keystone import Keystone
from kubectl_keystone_auth.tokens import Token, parse_time

SERVICE = "kubernetes"
MOST = 64
"""A credential with more rules than this is refused by the authenticator."""
READ = ("GET",)
WRITE = ("GET", "POST", "PUT", "PATCH", "DELETE")
METHODS = (*WRITE, "HEAD")
DOORS = ("exec", "attach", "portforward")
SPAN = {"h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, order=True)
class Rule:
    """What a credential may ask of a cluster: a method, and paths with wildcards."""

    method: str
    path: str


@dataclass(frozen=True)
class Made:
    """A credential as Keystone made it, with the secret that it says once."""

    id: str
    name: str
    secret: str
    project_id: str
    expires: str | None


def rules(
    namespaces: Sequence[str], *, read_only: bool, doors: bool = False, more: Sequence[str] = ()
) -> tuple[Rule, ...]:
    """Give the rules for these namespaces, or the whole cluster if there are none.

    Args:
        namespaces: their names.
        read_only: whether for reading alone.
        doors: whether `exec`, `attach` and `portforward` are allowed as well.
        more: rules as `METHOD /path`; with them and no namespace the whole cluster is not meant.

    Raises:
        BadInput: a name that is none, a rule that is none, or too many.

    """
    found: set[Rule] = {_rule(text) for text in more}
    methods = READ if read_only else WRITE
    for namespace in namespaces:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", namespace):
            raise BadInput(f"{namespace!r} is no name of a namespace")
        # A wildcard for the version as well: `kubectl auth can-i` leaves it open.
        inside = (f"/api/*/namespaces/{namespace}/**", f"/apis/*/*/namespaces/{namespace}/**")
        found |= {Rule(method, path) for method in methods for path in inside}
        found.add(Rule("GET", f"/api/*/namespaces/{namespace}"))
    if not namespaces and not more:
        found |= {Rule(method, "/**") for method in (*methods, "HEAD")}
    if doors:
        places = namespaces or ["*"]
        found |= {
            Rule(method, f"/api/*/namespaces/{place}/pods/*/{door}")
            for place in places
            for door in DOORS
            for method in ("GET", "POST")
        }
    if len(found) > MOST:
        raise BadInput(f"that takes {len(found)} rules, and a cluster takes no credential with more than {MOST}")
    return tuple(sorted(found))


def _rule(text: str) -> Rule:
    method, _, path = text.strip().partition(" ")
    path = path.strip()
    if method not in METHODS or not path.startswith("/") or not path.isprintable() or " " in path:
        raise BadInput(f"--rule={text!r} is no rule: a method ({', '.join(METHODS)}), a space, a path from the root")
    return Rule(method, path)


def expiry(text: str) -> str | None:
    """Read `12h`, `30d`, `2w` or a time (`2027-01-31` or with `T…`, UTC) into Keystone's form; None for an empty text.

    Raises:
        BadInput: it is neither, or over already.

    """
    if not text:
        return None
    if match := re.fullmatch(r"(\d{1,5})([hdw])", text):
        end = time.time() + int(match[1]) * SPAN[match[2]]
    else:
        try:
            end = parse_time(text)
        except ValueError:
            raise BadInput(f"--expires={text!r} is neither a span (12h, 30d, 2w) nor a time (2027-01-31)") from None
    if end <= time.time():
        raise BadInput(f"--expires={text!r} is over already")
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000", time.gmtime(end))


def make(
    keystone: Keystone, token: Token, name: str, wanted: Sequence[Rule], roles: Sequence[str], expires: str | None
) -> Made:
    """Make an application credential of the token's user in its project; without rules it is good for all of that.

    Raises:
        PluginError: Keystone does not.

    """
    body: dict[str, object] = {"name": name, "description": "for Kubernetes alone" if wanted else "for kubectl"}
    if wanted:
        body["access_rules"] = [{"service": SERVICE, "method": rule.method, "path": rule.path} for rule in wanted]
    if roles:
        body["roles"] = [{"name": role} for role in roles]
    if expires:
        body["expires_at"] = expires
    path = f"/users/{quote(token.user_id, safe='')}/application_credentials"
    answer = keystone.call("POST", path, {"application_credential": body}, token.value)
    made = answer.json().get("application_credential")
    if answer.status == 201 and isinstance(made, dict) and isinstance(made.get("secret"), str):
        return Made(str(made.get("id")), name, made["secret"], str(made.get("project_id")), made.get("expires_at"))
    raise _refusal(keystone.words(answer), answer.status) or keystone.no_keystone(answer)


def delete(keystone: Keystone, token: Token, user_id: str, identifier: str) -> None:
    """Delete an application credential, by a token of its user's that is none of a credential; it may be gone already.

    Raises:
        PluginError: Keystone does not.

    """
    path = f"/users/{quote(user_id, safe='')}/application_credentials/{quote(identifier, safe='')}"
    answer = keystone.call("DELETE", path, token=token.value)
    words = keystone.words(answer)
    if answer.status == 204 or (answer.status == 404 and words):
        return
    if answer.status in (401, 403) and words:
        raise Refused(
            f"Keystone does not let {token.user!r} delete the application credential {identifier!r} ({words})"
        )
    raise keystone.no_keystone(answer)


def _refusal(words: str, status: int) -> PluginError | None:
    if not words:
        return None
    if status in (401, 403):
        return Refused(
            f"this login may make no application credentials ({words}): take a password, or an unrestricted credential"
        )
    if status == 409:
        return BadInput("an application credential of that name is there already: give another name")
    if status == 400 and "Could not find role assignment" in words:
        # What Keystone says of a role that comes from a group, when the membership ends with the token.
        return Refused(
            "Keystone makes no application credential of roles that do not last: they come from groups of the identity"
            " provider's. The cloud's operator can let these last: openstack identity provider set --authorization-ttl"
            " MINUTES PROVIDER (docs/single-sign-on.md)"
        )
    if status in (400, 404):
        return BadInput(f"Keystone makes no such application credential: {words}")
    return Unreachable(f"Keystone cannot make it now ({status}): {words}")
