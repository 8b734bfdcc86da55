"""The policy: parsed, checked, compiled, decided. Both of upstream's formats, upstream's verdicts or safer ones.

A policy is a list; a request is allowed by the first item that allows it, and nothing here ever forbids: what no item
allows, RBAC decides.

| | native | upstream-compatible |
| --- | --- | --- |
| 32 or 64 hex digits | are compared with IDs only | with IDs and names |
| any other value | with names of the default domain, `name@<domain ID>` | with names and IDs of any domain |
| version 1 `pods` | does not cover `pods/exec`, which is named: `*/pods/exec` | covers all sub-resources |
| version 1 `*/*` | covers sub-resources with the verb `*` only, else `*/*/*` does | covers all sub-resources |

In a review there are no IDs of groups: a group given by hex digits is the group that holds everybody of the project
with that ID, as upstream has it. This module knows nothing of HTTP or reviews' JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from keystone_authenticator import document
from keystone_authenticator.identity import PREFIX, Naming, Subject, by_id, by_name

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32
MAX_VALUES = 300_000

_ITEM_KEYS = ("users", "resource_permissions", "nonresource_permissions", "resource", "nonresource", "match")
_PERMISSION_KEYS = ("resource_permissions", "nonresource_permissions", "resource", "nonresource")
_MATCH_TYPES = ("user", "group", "project", "role")
# The last line is how upstream's documentation and older API servers call requests to proxied services and containers.
_RESOURCE_VERBS = frozenset(
    (
        *("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"),
        *("bind", "escalate", "impersonate", "approve", "sign", "attest", "use"),
        *("proxy", "post", "put", "head", "options", "connect"),
    )
)
_PATH_VERBS = frozenset(["get", "head", "post", "put", "patch", "delete", "options", "connect"])
# Most values: what nothing can be wrong with.
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,31}\Z")
_DASHED_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_HEX_ID = re.compile(r"(?:[0-9a-fA-F]{32}|[0-9a-fA-F]{64})\Z")

_T = TypeVar("_T")
# (path from the top of the policy) -> 1-based line
Lines = dict[tuple[int | str, ...], int]


def is_id(value: str) -> bool:
    """Whether a policy's value is taken for an ID: 32 or 64 hex digits."""
    return _HEX_ID.match(value) is not None


def in_domain(value: str, default_domain: str) -> tuple[str, str]:
    """A policy's `name` or `name@<domain ID>`, as the name and the domain's ID."""
    left, at, right = value.rpartition("@")
    # Domain IDs are hex digits but for `default`: an e-mail address is a user's name, not somebody in a domain
    # example.com.
    if at and left and (is_id(right) or right in ("default", default_domain)):
        return left, right
    return value, default_domain


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a policy: `item` and `line` count from 1, `key` is the path inside the item."""

    item: int | None
    line: int | None
    key: str | None
    reason: str

    def __str__(self) -> str:
        where = [f"item {self.item}"] if self.item is not None else []
        where += [f"line {self.line}"] if self.line is not None else []
        where += [self.key] if self.key else []
        return f"{', '.join(where)}: {self.reason}" if where else self.reason


class PolicyError(Exception):
    """The policy cannot be used; the message names item, line, key and reason of the first error."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Checked:
    """The outcome of a validation: the items are usable if there are no errors."""

    items: list[dict[str, Any]] | None
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


class Request(NamedTuple):
    """What an access review asks for: a resource, or a path if `resource_request` is false."""

    resource_request: bool
    verb: str
    namespace: str = ""
    api_group: str = ""
    resource: str = ""
    subresource: str = ""
    path: str = ""
    name: str = ""
    version: str = ""

    @property
    def target(self) -> str:
        """What is asked for, for people."""
        if not self.resource_request:
            return f"the path {self.path}"
        sub = f"/{self.subresource}" if self.subresource else ""
        group = f" of {self.api_group}" if self.api_group else ""
        where = f"namespace {self.namespace}" if self.namespace else "no namespace, or all of them"
        return f"{self.resource}{sub}{group} in {where}"


@dataclass(frozen=True)
class Explanation:
    """Which item (counted from 1) allows a request, or why each item that came near does not."""

    allowed: bool
    item: int | None
    reason: str
    misses: tuple[tuple[int, str], ...]


# ----------------------------------------------------------------------------------------------------------------
# parsing


def read(text: bytes) -> tuple[Any, Lines]:
    """Parse JSON or YAML; in YAML every scalar but null is a text (`no` is a name, so is `1234`).

    Raises:
        PolicyError: neither; the message has the line.

    """
    if len(text) > MAX_BYTES:
        raise PolicyError([Problem(None, None, None, f"longer than {MAX_BYTES} bytes")])
    try:
        data = document.decode(text)
    except document.NotJson:
        return _read_yaml(text)
    _refuse_doubled_keys(text)
    return data, {}


class _Doubled(dict[str, Any]):
    """An object of JSON in which a key stands twice."""

    key = ""


def _refuse_doubled_keys(text: bytes) -> None:
    """Parsers disagree about a key that stands twice: upstream merges both, most take the last.

    Raises:
        PolicyError: there is one.

    """
    found: list[_Doubled] = []

    def seen(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        doubled = _Doubled(made)
        doubled.key = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        found.append(doubled)
        return doubled

    try:
        data = json.loads(text, object_pairs_hook=seen)
    except RecursionError:
        raise PolicyError([Problem(None, None, None, "nested too deeply")]) from None
    for item, entry in enumerate(data if isinstance(data, list) and found else (), 1):
        problems = [Problem(item, None, path, _twice(key)) for path, key in _doubled_keys(entry, "")]
        if problems:
            raise PolicyError(problems)
    if found:
        raise PolicyError([Problem(None, None, found[0].key, _twice(found[0].key))])


def _twice(key: str) -> str:
    return f"the key {key!r} stands here twice"


def _doubled_keys(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The keys that stand twice in a value, each with its path."""
    if isinstance(value, _Doubled):
        yield f"{path}{value.key}", value.key
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _doubled_keys(inner, f"{path}{key}.")
    elif isinstance(value, list):
        for number, inner in enumerate(value, 1):
            yield from _doubled_keys(inner, f"{path.removesuffix('.')}[{number}].")


def _read_yaml(text: bytes) -> tuple[Any, Lines]:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # libyaml's composer recurses on the C stack: look at the nesting first, from the events.
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                depth += 1
                if depth > MAX_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else None
                    raise PolicyError([Problem(None, line, None, "nested too deeply")])
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                depth -= 1
        root = yaml.compose(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        # What libyaml says of an alias without a name, which is what a bare `*` is to it.
        bare = "alias" in reason or "alphabetic or numeric" in reason
        hint = " (what begins with `*` needs quotes)" if bare else ""
        hint = " (YAML is indented by spaces, not by tabs)" if "cannot start any token" in reason else hint
        raise PolicyError([Problem(None, mark.line + 1 if mark else None, None, f"not YAML: {reason}{hint}")]) from None
    except ValueError as error:
        raise PolicyError([Problem(None, None, None, f"not a text in UTF-8: {error}")]) from None
    if root is None:
        return None, {}
    lines: Lines = {}
    budget = [MAX_VALUES]
    return _plain(root, (), lines, budget), lines


def _plain(node: Any, path: tuple[int | str, ...], lines: Lines, budget: list[int]) -> Any:
    import yaml

    line = node.start_mark.line + 1
    lines[path] = line
    budget[0] -= 1
    # Aliases can make a short text an endless value.
    if budget[0] < 0 or len(path) > MAX_DEPTH:
        raise PolicyError([Problem(None, line, None, "too large once its aliases are resolved")])
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*path, index), lines, budget) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            key_line = key_node.start_mark.line + 1
            if key is None or key in mapping:
                reason = "a key must be a text" if key is None else _twice(key)
                item = path[0] + 1 if path and isinstance(path[0], int) else None
                raise PolicyError([Problem(item, key_line, key, reason)])
            mapping[key] = _plain(value_node, (*path, key), lines, budget)
            lines[(*path, key)] = key_line
        return mapping
    return None if node.tag == "tag:yaml.org,2002:null" and not node.style else node.value


# ---------------------------------------------------------------------------------------------------------------
# checking


class _Checker:
    def __init__(self, lines: Lines, upstream_compatible: bool) -> None:
        self.lines = lines
        self.upstream_compatible = upstream_compatible
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        # Items of which something means nobody or allows nothing, and where each role is named.
        self.suspects: set[int] = set()
        self.roles: dict[str, list[tuple[int | str, ...]]] = {}

    def _problem(self, path: tuple[int | str, ...], reason: str) -> Problem:
        line = None
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                line = self.lines[path[:length]]
                break
        item = path[0] + 1 if path and isinstance(path[0], int) else None
        key = None
        for part in path[1:]:
            part = f"[{part + 1}]" if isinstance(part, int) else part
            key = part if key is None else f"{key}{'' if part.startswith('[') else '.'}{part}"
        return Problem(item, line, key, reason)

    def error(self, path: tuple[int | str, ...], reason: str) -> None:
        self.errors.append(self._problem(path, reason))

    def warn(self, path: tuple[int | str, ...], reason: str) -> None:
        self.warnings.append(self._problem(path, reason))

    def void(self, path: tuple[int | str, ...], reason: str) -> None:
        """Warn of what means nobody or allows nothing."""
        self.warn(path, reason)
        self.suspects.add(int(path[0]))

    def texts(self, value: object, path: tuple[int | str, ...], what: str) -> list[str]:
        if not isinstance(value, list):
            self.error(path, f"must be a list of {what}, found {_kind(value)}")
            return []
        for index, entry in enumerate(value):
            if not isinstance(entry, str):
                self.error((*path, index), f"must be a text, found {_kind(entry)}")
                return []
        return value

    def mapping(self, value: object, path: tuple[int | str, ...], keys: Sequence[str] | None) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.error(path, f"must be a mapping, found {_kind(value)}")
            return {}
        for key in value:
            if keys is not None and key not in keys:
                self.error((*path, key), f"unknown key {key!r}, expected one of {', '.join(keys)}")
        return value

    # -- an item

    def item(self, item: object, path: tuple[int | str, ...]) -> None:
        entry = self.mapping(item, path, _ITEM_KEYS)
        if not isinstance(item, dict):
            return
        present = {key for key, value in entry.items() if value is not None}
        if not present.intersection(_PERMISSION_KEYS):
            self.error(path, f"grants nothing: none of {', '.join(_PERMISSION_KEYS)} is there")
        if "users" in present:
            self.users(entry["users"], (*path, "users"))
        if "resource_permissions" in present:
            self.resource_permissions(entry["resource_permissions"], (*path, "resource_permissions"))
        if "nonresource_permissions" in present:
            self.path_permissions(entry["nonresource_permissions"], (*path, "nonresource_permissions"))
        if "resource" in present:
            self.resource(entry["resource"], (*path, "resource"))
        if "nonresource" in present:
            self.nonresource(entry["nonresource"], (*path, "nonresource"))
        for old, new in (("resource", "resource_permissions"), ("nonresource", "nonresource_permissions")):
            if {old, new} <= present:
                self.warn((*path, old), f"is not looked at: {new} stands in the same item and comes first")
        if "match" in present:
            if present.intersection(("resource", "nonresource")):
                self.match(entry["match"], (*path, "match"))
            else:
                self.warn((*path, "match"), "is not looked at: it belongs to resource and nonresource; use users")
                self.match(entry["match"], (*path, "match"))
        elif present.intersection(("resource", "nonresource")) and "users" not in present:
            self.warn(path, "has no match: every Keystone user is meant")
        if "users" not in present and present.intersection(("resource_permissions", "nonresource_permissions")):
            self.warn(path, "has no users: every Keystone user is meant")

    def users(self, value: object, path: tuple[int | str, ...]) -> None:
        users = self.mapping(value, path, ("roles", "projects"))
        if not isinstance(value, dict):
            return
        for key in ("roles", "projects"):
            if users.get(key) is not None:
                for index, entry in enumerate(self.texts(users[key], (*path, key), key)):
                    self.value(entry, "role" if key == "roles" else "project", (*path, key, index))
                    if entry == "*":
                        self.warn(
                            (*path, key, index), f"`*` is no wildcard in users.{key}: it is compared as it stands"
                        )
        if not users.get("projects"):
            self.void(path, "names no projects, so that nobody is meant")

    def value(self, value: str, kind: str, path: tuple[int | str, ...]) -> None:
        if kind == "role":
            self.roles.setdefault(value, []).append(path)
        if value == "*" or _PLAIN.match(value):
            return
        if value.strip() != value or not value:
            self.warn(path, "has white space around it, and is compared as it stands" if value else "is nobody's name")
        elif kind in ("user", "group") and value.startswith(("system:", "kubeadm:")):
            self.warn(path, f"is a name of Kubernetes' own: what Keystone calls a {kind} is meant here")
        elif kind in ("user", "group", "project") and value.startswith(PREFIX) and not self.upstream_compatible:
            self.warn(path, f"is a {kind} as Kubernetes sees it: here stands what Keystone calls it, or its ID")
        elif _DASHED_ID.match(value):
            self.warn(path, "looks like an ID with dashes, and Keystone's have none: it is compared with names")
        elif is_id(value) and not self.upstream_compatible:
            if kind == "group":
                self.warn(path, "is compared with the IDs of projects: a review does not name the IDs of groups")
            elif kind == "role":
                self.void(path, "looks like an ID, and a review names roles by name only: it matches nobody")
            elif value != value.lower():
                self.warn(path, "looks like an ID in capital letters, and Keystone's are in small ones")

    def verbs(self, value: object, path: tuple[int | str, ...], known: frozenset[str], fold: bool = False) -> None:
        entries = self.texts(value, path, "verbs")
        if value == []:
            self.void(path, "names no verb, so that nothing is allowed")
        for index, verb in enumerate(entries):
            if verb != "*" and (verb.lower() if fold else verb) not in known:
                self.warn((*path, index), f"unknown verb {verb!r}")

    def resource_permissions(self, value: object, path: tuple[int | str, ...]) -> None:
        for key, verbs in self.mapping(value, path, None).items():
            here = (*path, key)
            self.verbs(verbs, here, _RESOURCE_VERBS, fold=True)
            halves = [_lowered(half) for half in _split(key)]
            if self.upstream_compatible and key.count("/") != 1:
                self.void(here, f"is ignored: upstream expects <namespace>/<resource>, found {key.count('/')} slashes")
                continue
            if len(halves) not in (2, 3):
                self.void(here, "is ignored: expected <namespace>/<resource> or <namespace>/<resource>/<sub-resource>")
                continue
            try:
                patterns = [_pattern(half) for half in halves]
            except ValueError as error:
                if self.upstream_compatible:
                    self.void(here, f"{error}: upstream takes it for a name")
                else:
                    self.void(here, f"is ignored: {error}")
                continue
            if "" in halves:
                self.void(here, "one side of the slash is empty, which no request is")
            if any("*" in half and half != "*" for half in halves):
                for pattern in patterns:
                    self.names(pattern, here)
            if "." in halves[1]:
                self.warn(here, "names an API group with the resource: version 1 does not look at groups, write `pods`")
            if len(halves) == 2 and not self.upstream_compatible and not self.names_parts(value):
                self.sub_resources(patterns[1], verbs, here)

    def names(self, pattern: _Pattern, path: tuple[int | str, ...]) -> None:
        if any("*" in name.partition("/")[0] or "*" in name.partition("/")[2][1:] for name in pattern.names):
            self.warn(path, "only a `*` that stands alone is a wildcard: the name is compared as it stands")

    @staticmethod
    def names_parts(permissions: object) -> bool:
        """Whether any of an item's keys names sub-resources, so that its author knows about them."""
        keys = permissions if isinstance(permissions, dict) else ()
        return any(key.count("/") > 1 for key in keys)

    def sub_resources(self, pattern: _Pattern, verbs: object, path: tuple[int | str, ...]) -> None:
        asked = {str(verb).lower() for verb in verbs} if isinstance(verbs, list) else set()
        every_verb = "*" in asked
        if pattern.everything:
            if not every_verb:
                self.warn(
                    path,
                    "does not cover sub-resources, as upstream would have: add `…/*/*`, or name them (`…/pods/log`)",
                )
            return
        if not pattern.negated and _PARTS.keys().isdisjoint(pattern.names):
            return
        for resource, (part, needed) in _PARTS.items():
            if pattern.matches(resource) and (every_verb or not needed or asked & needed):
                told = f"does not cover sub-resources such as {resource}/{part}, as upstream would have: name them"
                self.warn(path, f"{told} (`…/{resource}/{part}`)")
                return

    def path_permissions(self, value: object, path: tuple[int | str, ...]) -> None:
        for key, verbs in self.mapping(value, path, None).items():
            self.verbs(verbs, (*path, key), _PATH_VERBS)
            if not key.startswith("/"):
                self.void((*path, key), "no request has such a path: a path begins with /")
            elif key.endswith("*"):
                self.warn(
                    (*path, key), "`*` is no wildcard in nonresource_permissions: the path is compared as it stands"
                )

    def resource(self, value: object, path: tuple[int | str, ...]) -> None:
        spec = self.mapping(value, path, ("verbs", "resources", "version", "namespace"))
        if not isinstance(value, dict):
            return
        for key in ("verbs", "resources", "version", "namespace"):
            if spec.get(key) is None:
                self.error((*path, key) if key in spec else path, f"{key} is missing")
        if spec.get("verbs") is not None:
            self.verbs(spec["verbs"], (*path, "verbs"), _RESOURCE_VERBS)
        if spec.get("resources") is not None:
            for index, name in enumerate(self.texts(spec["resources"], (*path, "resources"), "resources")):
                here = (*path, "resources", index)
                if (name not in ("*", name.partition("/")[0] + "/*") and "*" in name) or name == "*/*":
                    self.warn(here, "is compared as it stands; only `*` and `<resource>/*` are wildcards")
                elif name != name.strip().lower() or "." in name:
                    self.warn(here, "is compared as it stands, and resources are called `pods`, `deployments/scale`")
            if spec["resources"] == []:
                self.void((*path, "resources"), "names no resource, so that nothing is allowed")
        for key in ("version", "namespace"):
            if spec.get(key) is not None and not isinstance(spec[key], str):
                self.error((*path, key), f"must be a text, found {_kind(spec[key])}")
        if spec.get("version") in ("v1", "v1beta1", "v1beta2", "v2"):
            self.void((*path, "version"), "is compared with the API group (`apps`, `` for core), not with a version")
        elif "/" in str(spec.get("version")):
            self.void((*path, "version"), "is compared with the API group alone (`apps`, not `apps/v1`)")
        namespace = str(spec.get("namespace") or "")
        if namespace != "*" and ("*" in namespace or "/" in namespace or namespace != namespace.strip().lower()):
            self.void((*path, "namespace"), "is compared as it stands, and no namespace is called so")

    def nonresource(self, value: object, path: tuple[int | str, ...]) -> None:
        spec = self.mapping(value, path, ("verbs", "path"))
        if not isinstance(value, dict):
            return
        for key in ("verbs", "path"):
            if spec.get(key) is None:
                self.error((*path, key) if key in spec else path, f"{key} is missing")
        if spec.get("verbs") is not None:
            self.verbs(spec["verbs"], (*path, "verbs"), _PATH_VERBS)
            if isinstance(spec["verbs"], list) and "" in spec["verbs"]:
                self.void((*path, "verbs"), "has an empty verb among them, and is ignored, as upstream does")
        where = spec.get("path")
        if where is not None and not isinstance(where, str):
            self.error((*path, "path"), f"must be a text, found {_kind(where)}")
        elif where is not None and not where.startswith("/") and where.strip("*"):
            self.void((*path, "path"), "no request has such a path: a path begins with /")

    def match(self, value: object, path: tuple[int | str, ...]) -> None:
        if not isinstance(value, list):
            self.error(path, f"must be a list, found {_kind(value)}")
            return
        if not value:
            self.warn(path, "is empty: every Keystone user is meant")
        for index, entry in enumerate(value):
            here = (*path, index)
            found = self.mapping(entry, here, ("type", "values"))
            if not isinstance(entry, dict):
                continue
            kind = found.get("type")
            if not isinstance(kind, str):
                self.error(here, "type is missing" if kind is None else f"type must be a text, found {_kind(kind)}")
            elif kind not in _MATCH_TYPES:
                self.void(here, f"unknown type {kind!r}, expected one of {', '.join(_MATCH_TYPES)}: nobody is meant")
            if found.get("values") is None:
                self.error(here, "values is missing")
                continue
            for position, text in enumerate(self.texts(found["values"], (*here, "values"), "values")):
                self.value(text, str(kind), (*here, "values", position))
            if found["values"] == []:
                self.void(here, "names no values, so that nobody is meant")

    def unreachable_roles(self, items: Sequence[dict[str, Any]]) -> None:
        """Warn of roles that are named by items alone that mean nobody or allow nothing."""
        compiled = Policy((), Naming("default", self.upstream_compatible))
        void = {number for number in self.suspects if not compiled.permits(items[number])}
        for places in self.roles.values():
            if all(place[0] in void for place in places):
                self.warn(places[0], "no item can reach this role: what names it means nobody, or allows nothing")


# A resource of which a part is more than reading about it -> that part, and the verbs that it takes (none: any).
_PARTS: dict[str, tuple[str, frozenset[str]]] = {
    "pods": ("exec", frozenset()),
    "services": ("proxy", frozenset()),
    "nodes": ("proxy", frozenset()),
    **dict.fromkeys(
        ("deployments", "replicasets", "statefulsets", "replicationcontrollers"),
        ("scale", frozenset(("update", "patch"))),
    ),
    "serviceaccounts": ("token", frozenset(("create",))),
    "certificatesigningrequests": ("approval", frozenset(("update", "patch"))),
    "namespaces": ("finalize", frozenset(("update",))),
}


def check(text: bytes, upstream_compatible: bool = False) -> Checked:
    """Validate a policy's text; what is warned about depends on the mode that it is for."""
    try:
        data, lines = read(text)
    except PolicyError as error:
        return Checked(None, error.problems, ())
    checker = _Checker(lines, upstream_compatible)
    if not isinstance(data, list):
        hint = "it is empty" if data is None else f"found {_kind(data)}"
        if isinstance(data, dict) and data.get("kind") == "ConfigMap":
            hint = "found a ConfigMap: what stands under its key `policies` is the policy"
        checker.error((), f"must be a list of items, {hint}")
        return Checked(None, tuple(checker.errors), ())
    for index, item in enumerate(data):
        checker.item(item, (index,))
    if not data:
        checker.warn((), "has no items: nothing is allowed by it")
    if not checker.errors:
        checker.unreachable_roles(data)
    return Checked(None if checker.errors else data, tuple(checker.errors), tuple(checker.warnings))


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: f"the text {value!r}"[:60], bool: "true or false"}
    return "nothing" if value is None else names.get(type(value), "a number")


# --------------------------------------------------------------------------------------------------------------
# compiling


class _Pattern(NamedTuple):
    """One half of a version 1 key: some names, all of them, or all but some."""

    names: frozenset[str] = frozenset()
    everything: bool = False
    negated: bool = False

    def matches(self, name: str) -> bool:
        return self.everything or (name in self.names) != self.negated

    def matches_namespace(self, namespace: str) -> bool:
        # A request about all namespaces, or about what has none, is met by `*` alone.
        return self.matches(namespace) if namespace else self.everything


_EVERYTHING = _Pattern(everything=True)
_NOTHING = _Pattern()
# `['*']`: any name, but there must be one.
_NAMED = _Pattern(negated=True)
# What upstream trims off a key (Go's unicode.IsSpace); Python's strip() takes four control characters more.
_SPACE = "".join(letter for letter in map(chr, range(0x3001)) if letter.isspace() and letter not in "\x1c\x1d\x1e\x1f")
_LIST = re.compile(r"(!?)\[(.*)\]\Z", re.DOTALL)


def _split(key: str) -> list[str]:
    """Split a version 1 key at its slashes, but not inside `[…]`."""
    if "[" not in key:
        return key.split("/")
    parts, depth, start = [], 0, 0
    for index, character in enumerate(key):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "/" and depth <= 0:
            parts.append(key[start:index])
            start = index + 1
    return [*parts, key[start:]]


@lru_cache(maxsize=4096)
def _pattern(half: str) -> _Pattern:
    """Read one half of a version 1 key: `name`, `*`, `!name`, `['a', 'b']`, `!['a', 'b']`.

    Raises:
        ValueError: a bracket that is not a list of quoted names.

    """
    listed = _LIST.match(half)
    if listed:
        try:
            names = document.decode(f"[{listed[2]}]".replace("'", '"'))
        except document.NotJson:
            raise ValueError(f"{half!r} is not a list of quoted names") from None
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{half!r} is not a list of quoted names")
        negated = bool(listed[1])
        if "*" in names:
            return _NOTHING if negated else _NAMED
        return _Pattern(frozenset(names), negated=negated)
    if "[" in half or "]" in half:
        raise ValueError(f"{half!r} is not a list of quoted names")
    if half == "*":
        return _EVERYTHING
    if half == "!*":
        return _NOTHING
    if half.startswith("!"):
        return _Pattern(frozenset((half[1:],)), negated=True)
    return _Pattern(frozenset((half,)))


@lru_cache(maxsize=4096)
def _upstream_pattern(half: str) -> _Pattern:
    """The same as upstream reads it: what is no list is a name, and `null` in a list is nothing."""
    if half == "*":
        return _EVERYTHING
    literally = _Pattern(frozenset((half,)))
    negated = half.startswith("!")
    names: list[Any] = [half.removeprefix("!")]
    if names[0].startswith("["):
        if names[0].find("]") != len(names[0]) - 1:
            return literally
        try:
            names = [name for name in document.decode(names[0].replace("'", '"')) if name is not None]
        except document.NotJson:
            return literally
        if not all(isinstance(name, str) for name in names):
            return literally
    elif not negated:
        return literally
    if "*" in names:
        return _NOTHING if negated else _NAMED
    return _Pattern(frozenset(names), negated=negated)


def _lowered(half: str) -> str:
    """A half of a version 1 key as it is compared: trimmed and lowered, letter by letter as Go does it."""
    half = half.strip(_SPACE)
    return half.lower() if half.isascii() else half.replace("\u0130", "i").replace("\u03a3", "\u03c3").lower()


class _Subjects(NamedTuple):
    """Whom an item means: whoever has all of `roles` and one of each set in `any_of` (pairs of kind and values)."""

    roles: frozenset[str]
    any_of: tuple[tuple[str, frozenset[str]], ...]

    def miss(self, subject: Subject, item: Mapping[str, Any]) -> str | None:
        """Why the subject is not meant, in the words of the item, or None if it is."""
        missing = self.roles - subject.roles
        if missing:
            return f"the user lacks the role {', '.join(sorted(missing))}"
        for kind, values in self.any_of:
            if values.isdisjoint(getattr(subject, kind)):
                written = list((item.get("users") or {}).get(kind) or ()) if kind == "projects" else []
                for entry in item.get("match") or ():
                    written += entry["values"] if f"{entry['type']}s" == kind else ()
                return f"none of the item's {kind} ({_quoted(written)}) is the user's"
        return None


class _Cover(NamedTuple):
    """What of the requests about a namespace and a resource is covered: what remains to be compared when these fit.

    `itself` is the resource, `parts` are its sub-resources; None means any.
    """

    itself: bool = True
    parts: _Pattern = _EVERYTHING
    namespaces: _Pattern | None = None
    resources: _Pattern | None = None
    api_group: str | None = None

    def covers(self, request: Request) -> bool:
        itself, parts, namespaces, resources, api_group = self
        part = request.subresource
        return (
            (parts.matches(part) if part else itself)
            and (api_group is None or api_group == request.api_group)
            and (namespaces is None or namespaces.matches_namespace(request.namespace))
            and (resources is None or resources.matches(request.resource))
        )


_ANY = "*"


class _Place(NamedTuple):
    """Where in the index a permission for resources stands, `*` for any, and what it covers there."""

    namespace: str
    resource: str
    cover: _Cover

    def covers(self, request: Request) -> bool:
        return (
            request.resource_request
            and self.namespace in (_ANY, request.namespace)
            and self.resource in (_ANY, request.resource)
            and self.cover.covers(request)
        )


class _Path(NamedTuple):
    """The path that a permission is for, or what its paths begin with."""

    path: str
    begins: bool = False

    def covers(self, request: Request) -> bool:
        if request.resource_request:
            return False
        return request.path.startswith(self.path) if self.begins else request.path == self.path


class _Grant(NamedTuple):
    """Who may use which verbs; `verbs` None is any verb."""

    subjects: _Subjects
    verbs: frozenset[str] | None

    def fits(self, subject: Subject, request: Request) -> bool:
        (roles, any_of), verbs = self
        if verbs is not None and request.verb not in verbs:
            return False
        return roles <= subject.roles and not any(values.isdisjoint(getattr(subject, kind)) for kind, values in any_of)


class _Permission(NamedTuple):
    """One permission of one item."""

    grant: _Grant
    places: tuple[_Place | _Path, ...]

    @property
    def on_resources(self) -> bool:
        return not any(isinstance(place, _Path) for place in self.places)

    def covers(self, request: Request) -> bool:
        return any(place.covers(request) for place in self.places)


class _Shared:
    """Gives the first of equal objects for all of them.

    Ten thousand items do not stay in a processor's caches: a decision is to touch little that is its item's own.
    """

    def __init__(self) -> None:
        self._seen: dict[object, Any] = {}

    def __call__(self, value: _T, key: object = None) -> _T:
        """Give the first value with this key; without a key the value is its own."""
        return self._seen.setdefault(value if key is None else key, value)


# resource, or `*` -> grants, each with what it covers there
_Resources = dict[str, Sequence[tuple[_Grant, _Cover]]]
# So many namespaces are walked through: that touches less memory than a dictionary does.
_FEW = 4


class _Filed:
    """The permissions of all who have one thing in common; complete once `share` was called."""

    __slots__ = ("few", "many", "paths")

    def __init__(self) -> None:
        # by namespace, or `*`
        self.many: dict[str, _Resources] = {}
        self.few: tuple[tuple[str, _Resources], ...] = ()
        self.paths: _Paths | None = None

    def add(self, grant: _Grant, place: _Place | _Path, shared: _Shared) -> None:
        if isinstance(place, _Place):
            grants: Any = self.many.setdefault(place.namespace, {}).setdefault(place.resource, [])
            grants.append((grant, shared(place.cover)))
        else:
            self.paths = self.paths or _Paths()
            self.paths.add(grant, place)

    def share(self, shared: _Shared) -> None:
        """Have what is equal to another's be the same object as the other's."""
        for namespace, found in self.many.items():
            for resource, grants in found.items():
                found[resource] = shared(tuple(dict.fromkeys(grants)))
            # Whether dictionaries are equal, the identity of what is shared already tells.
            self.many[namespace] = shared(found, ("resources", *((key, id(found[key])) for key in sorted(found))))
        if len(self.many) <= _FEW:
            self.few, self.many = tuple(self.many.items()), shared({}, "none")

    def allows(self, subject: Subject, request: Request) -> bool:
        if not request.resource_request:
            return self.paths is not None and self.paths.allow(subject, request)
        asked = request.namespace
        for namespace, resources in self.few:
            if namespace in (asked, _ANY) and _allow(resources, subject, request):
                return True
        if self.many:
            for namespace in (asked, _ANY):
                if namespace in self.many and _allow(self.many[namespace], subject, request):
                    return True
        return False


def _allow(resources: _Resources, subject: Subject, request: Request) -> bool:
    for resource in (request.resource, _ANY):
        for grant, cover in resources.get(resource, ()):
            if cover.covers(request) and grant.fits(subject, request):
                return True
    return False


class _Paths:
    """The same for paths."""

    def __init__(self) -> None:
        self.exact: dict[str, list[_Grant]] = {}
        self.begin: list[tuple[str, _Grant]] = []

    def add(self, grant: _Grant, place: _Path) -> None:
        if place.begins:
            self.begin.append((place.path, grant))
        else:
            self.exact.setdefault(place.path, []).append(grant)

    def allow(self, subject: Subject, request: Request) -> bool:
        return any(grant.fits(subject, request) for grant in self.exact.get(request.path, ())) or any(
            request.path.startswith(start) and grant.fits(subject, request) for start, grant in self.begin
        )


class Policy:
    """A compiled policy; permissions are found by whom and what they are about, not by walking through all items."""

    def __init__(self, items: Sequence[dict[str, Any]], naming: Naming) -> None:
        """Compile items that `check` found usable."""
        self.items = items
        self._naming = naming
        # kind -> what a user has of it -> permissions of whoever has it
        self._index: dict[str, dict[str, _Filed]] = {}
        self._everyone = _Filed()
        shared = _Shared()
        for item in items:
            for permission in self._permissions(item)[0]:
                self._file(permission, shared)
        for filed in (self._everyone, *(filed for of_kind in self._index.values() for filed in of_kind.values())):
            filed.share(shared)

    def _file(self, permission: _Permission, shared: _Shared) -> None:
        (subjects, verbs), places = permission
        kind, values, rest = _anchor(subjects)
        grant = shared(_Grant(rest, verbs))
        if kind is None:
            under = [self._everyone]
        else:
            of_kind = self._index.setdefault(kind, {})
            under = [of_kind.setdefault(value, _Filed()) for value in values]
        for filed in under:
            for place in places:
                filed.add(grant, place, shared)

    def allows(self, subject: Subject, request: Request) -> bool:
        """Whether any item allows this request."""
        for kind, of_kind in self._index.items():
            for value in getattr(subject, kind):
                filed = of_kind.get(value)
                if filed is not None and filed.allows(subject, request):
                    return True
        return self._everyone.allows(subject, request)

    def permits(self, item: dict[str, Any]) -> bool:
        """Whether there is anything that an item allows to anybody."""
        return any(one.places and one.grant.verbs != frozenset() for one in self._permissions(item)[0])

    def explain(self, subject: Subject, request: Request, limit: int = 50) -> Explanation:
        """Walk through all items and say which one allows the request, or why each near one does not.

        An item is near if it means this user, or if it is about this request, whatever the verb.
        """
        misses: list[tuple[int, str]] = []
        for number, item in enumerate(self.items, 1):
            permissions, dead = self._permissions(item)
            if any(one.grant.fits(subject, request) and one.covers(request) for one in permissions):
                return Explanation(True, number, f"item {number} allows it", tuple(misses[:limit]))
            reason = dead.get(request.resource_request) or _near_miss(permissions, item, subject, request)
            if reason:
                misses.append((number, reason))
        near = f" ({len(misses)} came near)" if misses else ""
        return Explanation(False, None, f"no item allows it{near}; RBAC decides", tuple(misses[:limit]))

    # -- whom an item means

    def _spell(self, kind: str, value: str) -> str | None:
        """The spelling of a policy's value that `Naming.subject` gives, or None if there is none."""
        if self._naming.upstream_compatible:
            return value
        if is_id(value):
            if kind == "groups":
                return self._naming.project(value)
            return None if kind == "roles" else by_id(value)
        if kind == "roles":
            return value
        name, domain = in_domain(value, self._naming.default_domain)
        if kind == "users":
            return self._naming.user(name, domain)
        return self._naming.group(name, domain) if kind == "groups" else by_name(name, domain)

    def _spellings(self, kind: str, values: Iterable[str]) -> frozenset[str]:
        return _names(tuple(spelled for value in values if (spelled := self._spell(kind, value)) is not None))

    def _subjects(self, item: dict[str, Any], matches: Iterable[dict[str, Any]]) -> _Subjects:
        """Whom the item means.

        Raises:
            ValueError: that is nobody; the message says why.

        """
        roles: frozenset[str] = frozenset()
        any_of: list[tuple[str, frozenset[str]]] = []
        users = item.get("users")
        if users is not None:
            wanted = users.get("roles") or ()
            roles = self._spellings("roles", wanted)
            if len(roles) < len(set(wanted)):
                raise ValueError("it wants a role that looks like an ID, and a review names roles by name only")
            any_of.append(("projects", self._spellings("projects", users.get("projects") or ())))
        for entry in matches:
            kind = entry["type"]
            if kind not in _MATCH_TYPES:
                raise ValueError(f"its match has the unknown type {kind!r}")
            if "*" not in entry["values"]:
                any_of.append((f"{kind}s", self._spellings(f"{kind}s", entry["values"])))
        for kind, values in any_of:
            if not values:
                raise ValueError(f"it names no {kind}")
        return _Subjects(roles, tuple(any_of))

    # -- what an item is about

    def _permissions(self, item: dict[str, Any]) -> tuple[list[_Permission], dict[bool, str]]:
        """What an item permits, and why its half about resources (True) or paths (False) is for nobody, if it is."""
        found: list[_Permission] = []
        dead: dict[bool, str] = {}
        for on_resources, half in ((True, self._on_resources), (False, self._on_paths)):
            try:
                found += half(item)
            except ValueError as error:  # noqa: PERF203  there are two
                dead[on_resources] = str(error)
        return found, dead

    # The `_permissions` keys take precedence, each over its own half of version 2, and are not bound by `match`.

    def _on_resources(self, item: dict[str, Any]) -> Iterator[_Permission]:
        if item.get("resource_permissions") is not None:
            subjects = self._subjects(item, ())
            for key, verbs in item["resource_permissions"].items():
                allowed = _verbs([verb.lower() for verb in verbs])
                places = self._places(key, whole=allowed is None)
                if places is not None:
                    yield _Permission(_Grant(subjects, allowed), places)
        elif item.get("resource") is not None:
            subjects = self._subjects(item, item.get("match") or ())
            spec = item["resource"]
            yield _Permission(_Grant(subjects, _verbs(spec["verbs"])), tuple(_resource(spec)))

    def _on_paths(self, item: dict[str, Any]) -> Iterator[_Permission]:
        if item.get("nonresource_permissions") is not None:
            subjects = self._subjects(item, ())
            for path, verbs in item["nonresource_permissions"].items():
                yield _Permission(_Grant(subjects, _verbs(verbs)), (_Path(path),))
        elif item.get("nonresource") is not None:
            yield _nonresource(self._subjects(item, item.get("match") or ()), item["nonresource"])

    def _places(self, key: str, *, whole: bool) -> tuple[_Place, ...] | None:
        """Where a key of version 1's resource_permissions is filed; None if it is no key: upstream skips such, too.

        `whole`: it is about all verbs.
        """
        upstream = self._naming.upstream_compatible
        halves = [_lowered(half) for half in (key.split("/") if upstream else _split(key))]
        if len(halves) != 2 and (upstream or len(halves) != 3):
            return None
        try:
            patterns = [_upstream_pattern(half) if upstream else _pattern(half) for half in halves]
        except ValueError:
            return None
        places = _covered(patterns[1], patterns[2:], whole=whole) if not upstream else _upstream_covered(patterns[1])
        return tuple(
            _Place(namespace, resource, cover._replace(namespaces=rest))
            for namespace, rest in _filed_under(patterns[0])
            for resource, cover in places
            if namespace  # an empty one is no request's: `matches_namespace`
        )


def _filed_under(pattern: _Pattern) -> list[tuple[str, _Pattern | None]]:
    """The keys of an index for a pattern, and what has to be compared besides."""
    if pattern.everything:
        return [(_ANY, None)]
    return [(_ANY, pattern)] if pattern.negated else [(name, None) for name in sorted(pattern.names)]


def _upstream_covered(resources: _Pattern) -> list[tuple[str, _Cover]]:
    """Upstream's version 1: sub-resources are not looked at."""
    return [(resource, _Cover(resources=rest)) for resource, rest in _filed_under(resources)]


def _covered(resources: _Pattern, parts: Sequence[_Pattern], *, whole: bool) -> list[tuple[str, _Cover]]:
    """The native `<namespace>/<resource>`, and with `parts` `…/<sub-resource>`, which is about sub-resources alone.

    `whole`: with any verb, `*` is all there is, sub-resources included.
    """
    if resources.negated:
        # The question "all resources?" (kubectl auth can-i get '*') is not answered by a rule for all but some.
        resources = _Pattern(resources.names | {_ANY}, negated=True)
    if parts:
        cover = _Cover(itself=False, parts=parts[0])
        return [
            (name, cover._replace(resources=rest))
            for name, rest in _filed_under(resources)
            if name == _ANY or "/" not in name
        ]
    if resources.everything:
        return [(_ANY, _Cover(parts=_EVERYTHING if whole else _NOTHING))]
    if resources.negated:
        return [(_ANY, _Cover(parts=_NOTHING, resources=resources))]
    return [(name, cover) for name, cover in _named(resources.names) if name != _ANY]


def _named(names: Iterable[str]) -> Iterator[tuple[str, _Cover]]:
    """Where names of resources and sub-resources are filed: `pods`, `pods/log`, `pods/*`."""
    parts: dict[str, set[str]] = {}
    for name in names:
        resource, slash, part = name.partition("/")
        if part or not slash:
            parts.setdefault(resource, set()).add(part)
    for resource, found in sorted(parts.items()):
        named = _names(tuple(sorted(found - {"", _ANY})))
        covered = _EVERYTHING if _ANY in found else _Pattern(named)
        yield resource, _Cover(itself="" in found, parts=covered)


def _resource(spec: dict[str, Any]) -> Iterator[_Place]:
    """Version 2's resource; `version` is in truth the API group."""
    group = None if spec["version"] == _ANY else spec["version"]
    if _ANY in spec["resources"]:
        yield _Place(spec["namespace"], _ANY, _Cover(api_group=group))
        return
    for resource, cover in _named(spec["resources"]):
        # `*/log` is compared as it stands, and not about any resource.
        rest = _Pattern(frozenset((_ANY,))) if resource == _ANY else None
        yield _Place(spec["namespace"], resource, cover._replace(api_group=group, resources=rest))
    # Who asks by hand may name a sub-resource inside the resource.
    for resource in spec["resources"]:
        if "/" in resource:
            yield _Place(spec["namespace"], resource, _Cover(parts=_NOTHING, api_group=group))


def _nonresource(subjects: _Subjects, spec: dict[str, Any]) -> _Permission:
    """Version 2's nonresource; a trailing `*` in the path stands for any end."""
    path = spec["path"]
    place = _Path(path.rstrip(_ANY), begins=True) if path.endswith(_ANY) else _Path(path)
    return _Permission(_Grant(subjects, _verbs(() if "" in spec["verbs"] else spec["verbs"])), (place,))


def _verbs(verbs: Iterable[str]) -> frozenset[str] | None:
    found = _names(tuple(verbs))
    return None if _ANY in found else found


@lru_cache(maxsize=4096)
def _names(names: tuple[str, ...]) -> frozenset[str]:
    """One object for the same names in many items."""
    return frozenset(names)


def _anchor(subjects: _Subjects) -> tuple[str | None, Iterable[str], _Subjects]:
    """Where a permission is filed: under each value of its narrowest condition, as whoever is meant has one of those.

    Gives the condition's kind (None: there is none), its values, and the conditions that remain.
    """
    roles, any_of = subjects
    kinds = [kind for kind, _ in any_of]
    for wanted in ("users", "projects", "groups"):
        if wanted in kinds:
            place = kinds.index(wanted)
            return wanted, any_of[place][1], _Subjects(roles, any_of[:place] + any_of[place + 1 :])
    if roles:
        narrowest = min(roles)
        return "roles", (narrowest,), _Subjects(_names(tuple(sorted(roles - {narrowest}))), any_of)
    if any_of:
        return "roles", any_of[0][1], _Subjects(roles, any_of[1:])
    return None, (), subjects


def _near_miss(
    permissions: Sequence[_Permission], item: Mapping[str, Any], subject: Subject, request: Request
) -> str | None:
    """Why none of an item's permissions allows the request; None if none of them came near."""
    means_the_user: str | None = None
    for permission in permissions:
        subjects, verbs = permission.grant
        who = subjects.miss(subject, item)
        if permission.covers(request):
            verb = (
                None if verbs is None or request.verb in verbs else f"the verb {request.verb!r} is not among its verbs"
            )
            return " and ".join(reason for reason in (who, verb) if reason)
        if who is None and permission.on_resources is request.resource_request:
            # Of several keys the one that lacks the sub-resource alone says most.
            bare = permission.covers(request._replace(subresource="")) if request.subresource else False
            hint = "; it covers the resource itself, and sub-resources are to be named" if bare else ""
            if bare or means_the_user is None:
                means_the_user = f"it means this user, but does not cover {request.target}{hint}"
    return means_the_user


def _quoted(values: Sequence[str], most: int = 3) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(repr, values[:most])) + more
