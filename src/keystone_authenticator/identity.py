"""Who a Keystone user is to Kubernetes: user name, groups and extra, in both modes, and back for access reviews.

Native names cannot be forged: every part that somebody can choose is percent-encoded, so that the separators `:` and
`@` are ours alone, and a name of another domain than the default one ends in its domain's ID (not its name, which can
be used again). In upstream-compatible mode the names are Keystone's, bare; there the names that Kubernetes keeps for
itself are all that is held back. This module asks nobody anything; it only spells names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote

import msgspec

PREFIX = "keystone:"
_CREDENTIAL = PREFIX + "app-cred:"

# The keys of k8s-keystone-auth, which existing policies, audit rules and bindings of other software read.
EXTRA_PREFIX = "alpha.kubernetes.io/identity/"
ROLES = EXTRA_PREFIX + "roles"
PROJECT_ID = EXTRA_PREFIX + "project/id"
PROJECT_NAME = EXTRA_PREFIX + "project/name"
PROJECT_DOMAIN_ID = EXTRA_PREFIX + "project/domain/id"
USER_DOMAIN_ID = EXTRA_PREFIX + "user/domain/id"
USER_DOMAIN_NAME = EXTRA_PREFIX + "user/domain/name"
APPLICATION_CREDENTIAL_ID = EXTRA_PREFIX + "application-credential/id"
# Only of a credential with access rules: its user, whom the policy is asked about, and the rules.
USER_ID = EXTRA_PREFIX + "user/id"
USER_NAME = EXTRA_PREFIX + "user/name"
ACCESS_RULES = EXTRA_PREFIX + "access-rules"

_RESERVED = ("system:", "kubeadm:")


class UnusableIdentityError(Exception):
    """Keystone knows this user, but Kubernetes must not see it under its name; the message says why."""


@dataclass(frozen=True)
class Group:
    """A Keystone group as its members see it."""

    name: str
    domain_id: str


@dataclass(frozen=True)
class Account:
    """What Keystone says about the holder of a project-scoped token."""

    user_id: str
    user_name: str
    user_domain_id: str
    user_domain_name: str
    project_id: str
    project_name: str
    project_domain_id: str
    roles: tuple[str, ...]
    application_credential_id: str | None = None
    # As texts in one spelling (`access_rules`); None: its token may do all that its user may.
    access_rules: tuple[str, ...] | None = None
    # Whether its token may have fewer roles than its user has there: credentials and trusts delegate some of them.
    partial: bool = False


@dataclass(frozen=True, eq=True)
class Identity:
    """A Kubernetes user; `answers` keeps the serialised reviews that say so, by API version.

    `partial`: its user may have more roles in the project than `extra` names.
    """

    username: str
    uid: str
    groups: tuple[str, ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...]
    answers: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    partial: bool = True


class Marks(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={
        "roles": ROLES,
        "project_id": PROJECT_ID,
        "project_name": PROJECT_NAME,
        "project_domain_id": PROJECT_DOMAIN_ID,
        "user_domain_id": USER_DOMAIN_ID,
        "credential_id": APPLICATION_CREDENTIAL_ID,
        "user_id": USER_ID,
        "user_name": USER_NAME,
        "access_rules": ACCESS_RULES,
    },
):
    """What is read of a user's `extra` in an access review; Go writes null for an empty list."""

    roles: tuple[str, ...] | None = None
    project_id: tuple[str, ...] | None = None
    project_name: tuple[str, ...] | None = None
    project_domain_id: tuple[str, ...] | None = None
    user_domain_id: tuple[str, ...] | None = None
    credential_id: tuple[str, ...] | None = None
    user_id: tuple[str, ...] | None = None
    user_name: tuple[str, ...] | None = None
    access_rules: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET


class Subject(NamedTuple):
    """Who an access review is about, as a policy compares it: each collection holds every spelling that may match.

    With `access_rules` the policy's yes is not enough: they must allow the request too.
    """

    users: Collection[str]
    groups: Collection[str]
    projects: Collection[str]
    roles: frozenset[str]
    access_rules: tuple[str, ...] | None = None


def encode(name: str) -> str:
    """Percent-encode a name (UTF-8) but for `A-Za-z0-9._-`; injective, and free of `:`, `@` and `/`."""
    return quote(name, safe="").replace("~", "%7E")


def is_reserved(name: str) -> bool:
    """Whether Kubernetes or this project keeps the name for itself, other case and white space around it included."""
    return name.strip().casefold().startswith((*_RESERVED, PREFIX))


@dataclass(frozen=True)
class RoleMapping:
    """What whoever holds a role in a token's project gets: further groups, another user name (empty: none)."""

    role: str
    username: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Naming:
    """How names are spelled: the domain whose names go bare, the mode, and the operator's role mappings.

    What the mappings name is the operator's word and taken as it stands; that it is no name of Kubernetes' own, and
    that user names are changed in upstream-compatible mode only, is checked where they are read (`sync.config`).
    """

    default_domain: str
    upstream_compatible: bool
    mappings: tuple[RoleMapping, ...] = ()

    def _qualified(self, name: str, domain_id: str) -> str:
        return encode(name) if domain_id == self.default_domain else f"{encode(name)}@{encode(domain_id)}"

    def user(self, name: str, domain_id: str) -> str:
        """The native user name."""
        return PREFIX + self._qualified(name, domain_id)

    def group(self, name: str, domain_id: str) -> str:
        """The native name of a Keystone group."""
        return f"{PREFIX}group:{self._qualified(name, domain_id)}"

    def username(self, name: str, domain_id: str, roles: Collection[str]) -> str:
        """The user name that reviews give: the mode's, or that of the last mapping of one of the roles that names one.

        Raises:
            UnusableIdentityError: in upstream-compatible mode, the bare name is one that Kubernetes keeps for itself.

        """
        if self.upstream_compatible and is_reserved(name):
            raise UnusableIdentityError(f"the user name {name!r} is reserved")
        mapped = [mapping.username for mapping in self._mappings_of(roles) if mapping.username]
        if mapped:
            return mapped[-1]
        return name if self.upstream_compatible else self.user(name, domain_id)

    @staticmethod
    def project(project_id: str) -> str:
        """The native group of everybody with a role in the project."""
        return f"{PREFIX}project:{encode(project_id)}"

    @classmethod
    def role(cls, project_id: str, role: str) -> str:
        """The native group of everybody with this role in the project."""
        return f"{cls.project(project_id)}:role:{encode(role)}"

    @staticmethod
    def credential(credential_id: str) -> str:
        """The native user name of an application credential with access rules."""
        return _CREDENTIAL + encode(credential_id)

    def identity(self, account: Account, groups: Sequence[Group]) -> Identity:
        """The Kubernetes user for a Keystone account.

        Raises:
            UnusableIdentityError: in upstream-compatible mode, the user's bare name is one that Kubernetes keeps for
            itself, or there are access rules, which nothing there would honour.

        """
        uid = account.user_id
        if account.access_rules is not None and account.application_credential_id is not None:
            if self.upstream_compatible:
                raise UnusableIdentityError(
                    f"the application credential {account.application_credential_id} of the user {account.user_id} "
                    "has access rules, which are not honoured in upstream-compatible mode"
                )
            # An identity of its own, which no binding of its user's reaches.
            username, members = self.credential(account.application_credential_id), ()
            uid = account.application_credential_id
        elif self.upstream_compatible:
            username = self.username(account.user_name, account.user_domain_id, account.roles)
            bare = [group.name for group in groups if not is_reserved(group.name)]
            members = (*dict.fromkeys((*sorted(bare), account.project_id)),)
        else:
            username = self.username(account.user_name, account.user_domain_id, account.roles)
            members = (
                *sorted({self.group(group.name, group.domain_id) for group in groups}),
                self.project(account.project_id),
                *(self.role(account.project_id, role) for role in account.roles),
            )
        if account.access_rules is None:
            members = (*dict.fromkeys((*members, *self.mapped_groups(account.roles))),)
        extra = [
            (ROLES, account.roles),
            (PROJECT_ID, (account.project_id,)),
            (PROJECT_NAME, (account.project_name,)),
            (PROJECT_DOMAIN_ID, (account.project_domain_id,)),
            (USER_DOMAIN_ID, (account.user_domain_id,)),
            (USER_DOMAIN_NAME, (account.user_domain_name,)),
        ]
        if account.application_credential_id is not None:
            extra.append((APPLICATION_CREDENTIAL_ID, (account.application_credential_id,)))
        if account.access_rules is not None:
            extra += [
                (USER_ID, (account.user_id,)),
                (USER_NAME, (account.user_name,)),
                (ACCESS_RULES, account.access_rules),
            ]
        return Identity(username, uid, members, tuple(extra), partial=account.partial)

    def mapped_groups(self, roles: Collection[str]) -> list[str]:
        """The groups that the mappings of these roles add, as they are written."""
        return [group for mapping in self._mappings_of(roles) for group in mapping.groups]

    def _mappings_of(self, roles: Collection[str]) -> list[RoleMapping]:
        return [mapping for mapping in self.mappings if mapping.role in roles]

    def subject(self, username: str, uid: str, groups: Sequence[str], marks: Marks) -> Subject | None:
        """Read a user in an access review; None if it did not come from here, so that there is nothing to say about it.

        "Has extra" proves nothing, ordinary service accounts have some too: name, UID, project and domain must all be
        there and fit.
        """
        if not username or not uid:
            return None
        project_id, user_domain = _single(marks.project_id), _single(marks.user_domain_id)
        if not project_id or not user_domain:
            return None
        if marks.access_rules is not msgspec.UNSET or username.startswith(_CREDENTIAL):
            return self._credential_subject(username, uid, marks)
        project_name, roles = _single(marks.project_name), frozenset(marks.roles or ())
        if self.upstream_compatible:
            if is_reserved(username):
                return None
            projects = (project_id, project_name) if project_name else (project_id,)
            return Subject((username, uid), groups, projects, roles)
        project_domain = _single(marks.project_domain_id)
        if not project_domain or not username.startswith(PREFIX):
            return None
        name, at, domain = username[len(PREFIX) :].partition("@")
        expected = "" if user_domain == self.default_domain else encode(user_domain)
        if not name or ":" in name or domain != expected or bool(at) != bool(expected):
            return None
        projects = (by_id(project_id), by_name(project_name, project_domain)) if project_name else (by_id(project_id),)
        return Subject((username, by_id(uid)), groups, projects, roles)

    def _credential_subject(self, username: str, uid: str, marks: Marks) -> Subject | None:
        """A credential with access rules: its user to the policy, without the groups, which it is not told."""
        user_id, user_name = _single(marks.user_id), _single(marks.user_name)
        project_id, project_name = _single(marks.project_id), _single(marks.project_name)
        user_domain, project_domain = _single(marks.user_domain_id), _single(marks.project_domain_id)
        rules = marks.access_rules or ()
        # Whoever may impersonate the name alone, or take the rules away, gets nothing.
        if self.upstream_compatible or not all((rules, user_id, user_name, project_id, user_domain, project_domain)):
            return None
        if uid != _single(marks.credential_id) or username != self.credential(uid):
            return None
        roles = marks.roles or ()
        return Subject(
            (self.user(user_name, user_domain), by_id(user_id)),
            (self.project(project_id), *(self.role(project_id, role) for role in roles)),
            (by_id(project_id), *([by_name(project_name, project_domain)] if project_name else ())),
            frozenset(roles),
            rules,
        )


def by_id(identifier: str) -> str:
    """The spelling under which native policies compare IDs; no name is ever spelled so."""
    return f"\0{identifier}"


def by_name(name: str, domain_id: str) -> str:
    """The spelling under which native policies compare names of projects."""
    return f"{name}\0{domain_id}"


def _single(values: Sequence[str] | None) -> str:
    return values[0] if values is not None and len(values) == 1 else ""
