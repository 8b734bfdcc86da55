"""The sync configuration in k8s-keystone-auth's format, parsed and checked: each finding with its line and reason.

What k8s-keystone-auth passes over (unknown keys, a mapping without a role) is an error here, as it was surely not
meant. This module asks nobody anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keystone_authenticator.identity import RoleMapping, is_reserved
from keystone_authenticator.policy import Lines, PolicyError, Problem, read

PROJECTS, ASSIGNMENTS = "projects", "role_assignments"

_KEYS = ("data-types-to-sync", "namespace-format", "projects-blacklist", "projects-name-blacklist", "role-mappings")
_MAPPING_KEYS = ("keystone-role", "username", "groups")
_Path = tuple[int | str, ...]


@dataclass(frozen=True)
class SyncConfig:
    """What is to be kept in step, and which projects are left out (by ID, or by name in any domain)."""

    projects: bool = False
    assignments: bool = False
    namespace_format: str = "%i"
    excluded_ids: frozenset[str] = frozenset()
    excluded_names: frozenset[str] = frozenset()
    mappings: tuple[RoleMapping, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether anything is to be written into the cluster; role mappings alone write nothing."""
        return self.projects or self.assignments

    def excludes(self, project_id: str, project_name: str) -> bool:
        """Whether a project is left out."""
        return project_id in self.excluded_ids or project_name in self.excluded_names


class SyncConfigError(Exception):
    """The sync configuration cannot be used; the message has line, key and reason of the first error."""


@dataclass(frozen=True)
class Checked:
    """The outcome of a check: the configuration is there if there are no errors."""

    config: SyncConfig | None
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def check(text: bytes, upstream_compatible: bool = False) -> Checked:
    """Check a sync configuration, for the mode that it is to be used in."""
    try:
        data, lines = read(text)
    except PolicyError as error:
        return Checked(None, error.problems, ())
    checker = _Checker(lines, upstream_compatible)
    config = checker.config(data)
    return Checked(None if checker.errors else config, tuple(checker.errors), tuple(checker.warnings))


def load(text: bytes, upstream_compatible: bool = False) -> SyncConfig:
    """Check a sync configuration and give it.

    Raises:
        SyncConfigError: it has errors.

    """
    checked = check(text, upstream_compatible)
    if checked.config is None:
        first, *others = checked.errors
        raise SyncConfigError(f"{first}{f' (and {len(others)} more)' if others else ''}")
    return checked.config


class _Checker:
    def __init__(self, lines: Lines, upstream_compatible: bool) -> None:
        self._lines = lines
        self._upstream_compatible = upstream_compatible
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def _problem(self, path: _Path, reason: str) -> Problem:
        line: int | None = None
        for length in range(len(path) + 1):
            line = self._lines.get(path[:length], line)
        key = ""
        for part in path:
            key += f"[{part + 1}]" if isinstance(part, int) else f"{'.' if key else ''}{part}"
        return Problem(None, line, key or None, reason)

    def _error(self, path: _Path, reason: str) -> None:
        self.errors.append(self._problem(path, reason))

    def _warn(self, path: _Path, reason: str) -> None:
        self.warnings.append(self._problem(path, reason))

    # -- shapes

    def _mapping(self, value: object, path: _Path, keys: Sequence[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._error(path, f"must be a mapping with {', '.join(keys)}; found {_kind(value)}")
            return {}
        for key in value:
            if key not in keys:
                self._error((*path, key), f"unknown key {key!r}, expected one of {', '.join(keys)}")
        return {key: found for key, found in value.items() if found is not None}

    def _texts(self, found: dict[str, Any], key: str, path: _Path) -> list[str]:
        value = found.get(key, [])
        if not isinstance(value, list):
            self._error((*path, key), f"must be a list, found {_kind(value)}")
            return []
        for index, entry in enumerate(value):
            if not isinstance(entry, str) or not entry:
                self._error((*path, key, index), f"must be a text, found {_kind(entry)}")
        return [entry for entry in value if isinstance(entry, str)]

    def _text(self, found: dict[str, Any], key: str, path: _Path, default: str = "") -> str:
        value = found.get(key, default)
        if not isinstance(value, str):
            self._error((*path, key), f"must be a text, found {_kind(value)}")
            return default
        return value

    # -- the whole

    def config(self, data: object) -> SyncConfig:
        if isinstance(data, dict) and data.get("kind") == "ConfigMap":
            self._error((), "found a ConfigMap: what stands under its key `syncConfig` is meant")
            return SyncConfig()
        found = self._mapping(data, (), _KEYS)
        kinds = self._texts(found, "data-types-to-sync", ())
        for index, kind in enumerate(kinds):
            if kind not in (PROJECTS, ASSIGNMENTS):
                self._error(("data-types-to-sync", index), f"is {kind!r}, expected {PROJECTS} or {ASSIGNMENTS}")
        config = SyncConfig(
            projects=PROJECTS in kinds,
            assignments=ASSIGNMENTS in kinds,
            namespace_format=self._format(found),
            excluded_ids=frozenset(self._texts(found, "projects-blacklist", ())),
            excluded_names=frozenset(self._texts(found, "projects-name-blacklist", ())),
            mappings=self._mappings(found.get("role-mappings", [])),
        )
        if isinstance(data, dict) and not config.writes and not config.mappings:
            self._warn((), "nothing is kept in step: data-types-to-sync is empty, and there are no role-mappings")
        if config.assignments and not config.projects:
            where = ("data-types-to-sync",)
            self._warn(where, f"without {PROJECTS} RoleBindings are made only in namespaces that somebody else makes")
        return config

    def _format(self, found: dict[str, Any]) -> str:
        value = self._text(found, "namespace-format", (), "%i")
        where = ("namespace-format",)
        if "%i" not in value:
            self._error(where, "must have %i, the project's ID, in it: names alone are not unique")
            return "%i"
        bare = value.replace("%i", "aa").replace("%n", "aa").replace("%d", "aa")
        # What k8s-keystone-auth accepts; Kubernetes is stricter.
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*[a-zA-Z0-9]", bare):
            reason = "may have letters, digits, `-`, %i (the project's ID), %n (its name) and %d (its domain's ID)"
            self._error(where, f"{reason}, and must begin and end with a letter, a digit or one of these")
        elif re.search(r"[A-Z_.]", bare):
            reason = "has what no namespace can have (capital letters, `_` or `.`)"
            self._warn(where, f"{reason}: each project's ID alone becomes its namespace")
        elif len(value.replace("%i", "i" * 32).replace("%n", "").replace("%d", "")) > 63:
            self._warn(where, "is always longer than 63 characters: each project's ID alone becomes its namespace")
        return value

    def _mappings(self, value: object) -> tuple[RoleMapping, ...]:
        if not isinstance(value, list):
            self._error(("role-mappings",), f"must be a list, found {_kind(value)}")
            return ()
        return tuple(self._role_mapping(entry, ("role-mappings", index)) for index, entry in enumerate(value))

    def _role_mapping(self, value: object, path: _Path) -> RoleMapping:
        found = self._mapping(value, path, _MAPPING_KEYS)
        mapping = RoleMapping(
            self._text(found, "keystone-role", path),
            self._text(found, "username", path),
            tuple(self._texts(found, "groups", path)),
        )
        if isinstance(value, dict):
            if not mapping.role:
                self._error(path, "names no keystone-role")
            if not mapping.username and not mapping.groups:
                self._warn(path, "changes nothing: it has neither username nor groups")
        if mapping.username and not self._upstream_compatible:
            reason = (
                "is for upstream-compatible=true only: here a user keeps the name that nobody can forge; use groups"
            )
            self._error((*path, "username"), reason)
        elif is_reserved(mapping.username):
            self._error((*path, "username"), _reserved(mapping.username))
        for index, group in enumerate(mapping.groups):
            if is_reserved(group):
                self._error((*path, "groups", index), _reserved(group))
        return mapping


def _reserved(name: str) -> str:
    return f"{name!r} is a name that nobody gets by a Keystone role: bind what it may do to another name"


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "an empty text" if value == "" else "a text"}
    return "nothing" if value is None else names.get(type(value), "something else")
