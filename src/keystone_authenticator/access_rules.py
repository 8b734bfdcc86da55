"""Access rules of application credentials: which of them are about Kubernetes, and what they allow there.

A rule is a service type, an HTTP method and a pattern of paths. Those of the service type `kubernetes` travel with the
user, in `extra`, as texts of the form `GET /api/v1/**`, and are compared with the request that an access review
describes. `docs/access-rules.md` has the whole of it, and who could forge what. Nothing is asked of anybody here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from keystone_authenticator.policy import Request

SERVICE = "kubernetes"
MOST_RULES = 64
# Names have at most 253 characters; what is longer than this is no request to a Kubernetes API.
LONGEST_PATH = 2048

_VERBS = {
    "GET": frozenset(("get", "list", "watch")),
    "POST": frozenset(("create",)),
    "PUT": frozenset(("update",)),
    "PATCH": frozenset(("patch",)),
    "DELETE": frozenset(("delete", "deletecollection")),
    # To a resource it is asked about as `get`, and could not be told from a GET.
    "HEAD": frozenset[str](),
}
_WITHOUT_NAME = frozenset(("list", "watch", "deletecollection"))
# A GET of these is a door, not a reading: no wildcard opens it.
_DOORS = {"exec": "/exec", "attach": "/attach", "portforward": "/portforward", "proxy": "/proxy/**"}
_WILDCARD = re.compile(r"\{[^{}]*\}|\*\*?")
# Stands for a version that a review does not name: wildcards match it, and no letter does.
UNKNOWN = "\0"


class UnusableRulesError(Exception):
    """The rules of a credential cannot be honoured; the message says why."""


def about_kubernetes(rules: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The rules of the service type `kubernetes`, as texts in one spelling; `rules` is as Keystone has it.

    Raises:
        UnusableRulesError: there is none, or there are more than can travel.

    """
    texts = {f"{rule['method']} {rule['path']}" for rule in rules if rule["service"] == SERVICE}
    if not texts:
        raise UnusableRulesError(f"has access rules, and none of them names the service type {SERVICE}")
    if len(texts) > MOST_RULES:
        raise UnusableRulesError(f"has more than {MOST_RULES} access rules of the service type {SERVICE}")
    return tuple(sorted(texts))


class _Rule(NamedTuple):
    method: str
    path: str
    # What stands between the `**`s. With one wildcard a segment there is one way to match each, so that neither a long
    # pattern nor a long path makes it slow: Keystone lets users write any pattern.
    pieces: tuple[re.Pattern[str], ...]

    def matches(self, path: str) -> bool:
        first = self.pieces[0].match(path)
        if first is None:
            return False
        if len(self.pieces) == 1:
            return first.end() == len(path)
        position = first.end()
        for piece in self.pieces[1:-1]:
            found = piece.search(path, position)
            if found is None:
                return False
            position = found.end()
        last = self.pieces[-1].search(path, position)
        return last is not None


def _rule(text: str) -> _Rule | None:
    """Read `METHOD /path`; None for what is no rule, or one with several wildcards between two slashes."""
    method, _, path = text.partition(" ")
    if method not in _VERBS or not path.startswith("/"):
        return None
    for segment in path.split("/"):
        if len(_WILDCARD.findall(segment)) > 1 or set("{}*") & set(_WILDCARD.sub("", segment)):
            return None
    parts = path.split("**")
    pieces = []
    for number, part in enumerate(parts):
        pattern, start = "", 0
        for wildcard in _WILDCARD.finditer(part):
            pattern += re.escape(part[start : wildcard.start()]) + "[^/]+"
            start = wildcard.end()
        pattern += re.escape(part[start:])
        if number == len(parts) - 1:
            pattern += r"\Z"
        pieces.append(re.compile(pattern))
    return _Rule(method, path, tuple(pieces))


class AccessRules:
    """The rules of one credential, ready to be compared."""

    def __init__(self, texts: Iterable[str]) -> None:
        """What is no rule allows nothing."""
        self._rules = tuple(rule for text in texts if (rule := _rule(text)) is not None)

    def allow(self, request: Request) -> bool:
        """Whether a rule allows the request."""
        if not request.resource_request:
            return len(request.path) <= LONGEST_PATH and any(
                rule.method.lower() == request.verb and rule.matches(request.path) for rule in self._rules
            )
        path = api_path(request)
        if path is None:
            return False
        door = _DOORS.get(request.subresource)
        return any(
            request.verb in _VERBS[rule.method] and (door is None or rule.path.endswith(door)) and rule.matches(path)
            for rule in self._rules
        )


@lru_cache(maxsize=512)
def read(texts: tuple[str, ...]) -> AccessRules:
    """The rules that came back in a review's `extra`; remembered, as each request of a user brings them."""
    return AccessRules(texts[:MOST_RULES])


def api_path(request: Request) -> str | None:
    """The path of the request that a review describes, without its query; None where no request has such attributes."""
    name = "" if request.verb in _WITHOUT_NAME else request.name
    # An update that creates is asked about as `create` with the name; to create is to post to the collection.
    if request.verb == "create" and not request.subresource:
        name = ""
    attributes = (request.api_group, request.version, request.namespace, request.resource, name, request.subresource)
    # `*` is the question "all of them?", which no single path stands for.
    if not request.resource or any("/" in attribute or attribute == "*" for attribute in attributes[2:]):
        return None
    if "/" in request.api_group or "/" in request.version or request.api_group == "*":
        return None
    version = UNKNOWN if request.version in ("", "*") else request.version
    parts = ["/apis", request.api_group, version] if request.api_group else ["/api", version]
    # Namespaces are asked about with their own name as the namespace, but do not lie in themselves.
    if request.namespace and (request.api_group or request.resource != "namespaces"):
        parts += ["namespaces", request.namespace]
    parts += [part for part in (request.resource, name, request.subresource) if part]
    path = "/".join(parts)
    if request.subresource == "proxy":
        # A review does not say what is asked for behind a proxy, so a rule must be about all of it.
        path += "/"
    return path if len(path) <= LONGEST_PATH else None
