"""Names that nobody can forge: injective, disjoint, and away from what Kubernetes keeps for itself."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone_authenticator.identity import (
    PREFIX,
    Account,
    Group,
    Naming,
    UnusableIdentityError,
    encode,
    is_reserved,
)
from tests.unit.authenticator.support import marks

NATIVE = Naming("default", False)
UPSTREAM = Naming("default", True)

# What somebody who wants another's name would try.
SPICE = st.sampled_from(
    ["@", ":", "%", "/", "default", "group:", "project:", "role:", "system:", "%40", "~", "app-cred:", "ä", "\0", " "]
)
NAMES = st.one_of(
    st.text(min_size=1, max_size=12),
    st.lists(st.one_of(SPICE, st.text(alphabet="ab@:%", max_size=3)), min_size=1, max_size=5).map("".join),
).filter(bool)
DOMAINS = st.one_of(st.just("default"), st.just("Default"), NAMES)


def account(name: str = "alice", domain: str = "default", project: str = "p1", roles: tuple[str, ...] = ()) -> Account:
    return Account("u1", name, domain, domain.title(), project, "demo", "default", roles)


@given(NAMES, DOMAINS, NAMES, DOMAINS)
def test_two_users_never_share_a_name(name: str, domain: str, other: str, other_domain: str) -> None:
    same = (name, domain) == (other, other_domain)
    assert (NATIVE.user(name, domain) == NATIVE.user(other, other_domain)) == same


@given(NAMES, DOMAINS, NAMES, DOMAINS)
def test_two_groups_never_share_a_name(name: str, domain: str, other: str, other_domain: str) -> None:
    same = (name, domain) == (other, other_domain)
    assert (NATIVE.group(name, domain) == NATIVE.group(other, other_domain)) == same


@given(NAMES, NAMES, NAMES, NAMES)
def test_two_roles_in_projects_never_share_a_name(project: str, role: str, other: str, other_role: str) -> None:
    same = (project, role) == (other, other_role)
    assert (NATIVE.role(project, role) == NATIVE.role(other, other_role)) == same


@given(NAMES, DOMAINS, NAMES)
def test_users_groups_projects_and_roles_are_disjoint(name: str, domain: str, other: str) -> None:
    kinds = [
        {NATIVE.user(name, domain), NATIVE.user(other, domain)},
        {NATIVE.group(name, domain), NATIVE.group(other, domain)},
        {NATIVE.project(name), NATIVE.project(other)},
        {NATIVE.role(name, other), NATIVE.role(other, name)},
    ]
    for one, another in itertools.combinations(kinds, 2):
        assert one.isdisjoint(another)


@given(NAMES, DOMAINS, NAMES, st.lists(NAMES, max_size=3))
def test_native_names_are_all_ours_and_plain(name: str, domain: str, project: str, roles: list[str]) -> None:
    identity = NATIVE.identity(account(name, domain, project, tuple(roles)), [Group(name, domain)])
    for spelled in (identity.username, *identity.groups):
        assert spelled.startswith(PREFIX)
        assert spelled.isascii()
        assert not any(character.isspace() for character in spelled)


@given(NAMES, DOMAINS)
def test_an_access_review_gives_the_user_back(name: str, domain: str) -> None:
    identity = NATIVE.identity(account(name, domain), [])
    subject = NATIVE.subject(identity.username, identity.uid, identity.groups, marks(dict(identity.extra)))
    assert subject is not None
    assert identity.username in subject.users


def test_names_are_spelled_as_the_design_says() -> None:
    assert NATIVE.user("alice", "default") == "keystone:alice"
    assert NATIVE.user("alice", "d1") == "keystone:alice@d1"
    assert NATIVE.user("Ä b@c:~", "default") == "keystone:%C3%84%20b%40c%3A%7E"
    assert NATIVE.group("ops", "default") == "keystone:group:ops"
    assert NATIVE.group("ops", "d1") == "keystone:group:ops@d1"
    assert NATIVE.role("p1", "member") == "keystone:project:p1:role:member"
    assert encode("A-Za-z0-9._-") == "A-Za-z0-9._-"


def test_a_native_user_has_groups_projects_roles_and_extra() -> None:
    who = Account("u1", "alice", "default", "Default", "p1", "demo", "d1", ("member", "reader"), "credential")
    identity = NATIVE.identity(who, [Group("ops", "default"), Group("ops", "d1")])
    assert identity.username == "keystone:alice"
    assert identity.groups == (
        "keystone:group:ops",
        "keystone:group:ops@d1",
        "keystone:project:p1",
        "keystone:project:p1:role:member",
        "keystone:project:p1:role:reader",
    )
    assert dict(identity.extra) == {
        "alpha.kubernetes.io/identity/roles": ("member", "reader"),
        "alpha.kubernetes.io/identity/project/id": ("p1",),
        "alpha.kubernetes.io/identity/project/name": ("demo",),
        "alpha.kubernetes.io/identity/project/domain/id": ("d1",),
        "alpha.kubernetes.io/identity/user/domain/id": ("default",),
        "alpha.kubernetes.io/identity/user/domain/name": ("Default",),
        "alpha.kubernetes.io/identity/application-credential/id": ("credential",),
    }


def test_an_upstream_user_is_bare_with_groups_and_the_project() -> None:
    identity = UPSTREAM.identity(account("alice", "d1"), [Group("ops", "d1"), Group("ops", "default")])
    assert identity.username == "alice"
    assert identity.groups == ("ops", "p1")


@pytest.mark.parametrize(
    "name", ["system:admin", "System:masters", " system:x", "kubeadm:cluster-admins", "keystone:a"]
)
def test_no_spelling_reaches_reserved_names_in_upstream_mode(name: str) -> None:
    assert is_reserved(name)
    with pytest.raises(UnusableIdentityError):
        UPSTREAM.identity(account(name), [])
    identity = UPSTREAM.identity(account("alice"), [Group(name, "default"), Group("ops", "default")])
    assert identity.groups == ("ops", "p1")


@given(NAMES)
def test_upstream_groups_never_begin_with_a_reserved_prefix(name: str) -> None:
    identity = UPSTREAM.identity(account("alice"), [Group(name, "default")])
    assert not any(group.startswith(("system:", "kubeadm:", "keystone:")) for group in identity.groups)


GOOD = {
    "alpha.kubernetes.io/identity/roles": ["member"],
    "alpha.kubernetes.io/identity/project/id": ["p1"],
    "alpha.kubernetes.io/identity/project/name": ["demo"],
    "alpha.kubernetes.io/identity/project/domain/id": ["default"],
    "alpha.kubernetes.io/identity/user/domain/id": ["default"],
}


@pytest.mark.parametrize(
    ("username", "uid", "changes"),
    [
        ("alice", "u1", {}),
        ("system:serviceaccount:a:b", "u1", {}),
        ("keystone:alice", "", {}),
        ("keystone:", "u1", {}),
        ("keystone:group:ops", "u1", {}),
        ("keystone:alice@d1", "u1", {}),
        ("keystone:alice", "u1", {"alpha.kubernetes.io/identity/user/domain/id": ["d1"]}),
        ("keystone:alice@", "u1", {}),
        ("keystone:alice", "u1", {"alpha.kubernetes.io/identity/project/id": []}),
        ("keystone:alice", "u1", {"alpha.kubernetes.io/identity/project/id": ["p1", "p2"]}),
        ("keystone:alice", "u1", {"alpha.kubernetes.io/identity/project/domain/id": [""]}),
        ("keystone:alice", "u1", {"alpha.kubernetes.io/identity/user/domain/id": []}),
    ],
)
def test_there_is_no_opinion_on_users_who_did_not_come_from_here(username: str, uid: str, changes: dict) -> None:
    assert NATIVE.subject("keystone:alice", "u1", [], marks(GOOD)) is not None
    assert NATIVE.subject(username, uid, [], marks({**GOOD, **changes})) is None


def test_upstream_mode_has_an_opinion_on_bare_names_with_our_extra_only() -> None:
    assert UPSTREAM.subject("alice", "u1", [], marks(GOOD)) is not None
    assert UPSTREAM.subject("alice", "u1", [], marks({"authentication.kubernetes.io/credential-id": ["x"]})) is None
    assert UPSTREAM.subject("system:serviceaccount:kube-system:x", "u1", [], marks(GOOD)) is None
    assert UPSTREAM.subject("alice", "", [], marks(GOOD)) is None
