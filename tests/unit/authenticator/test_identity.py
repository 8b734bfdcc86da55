"""Names that nobody can forge: injective, disjoint, and away from what Kubernetes keeps for itself."""

from __future__ import annotations

import itertools
from dataclasses import replace
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone_authenticator.identity import (
    PREFIX,
    Account,
    Group,
    Naming,
    RoleMapping,
    UnusableIdentityError,
    encode,
    is_reserved,
)
from keystone_authenticator.policy import Policy, Request, in_domain, is_id
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


MAPPINGS = (
    RoleMapping("member", "", ("team", "all")),
    RoleMapping("operator", "first", ("on-call", "team")),
    RoleMapping("reader", "last", ()),
)


def test_a_role_mapping_adds_groups_in_both_modes_and_changes_names_in_one() -> None:
    who = account(roles=("member", "operator", "reader"))
    for naming, username in ((NATIVE, "keystone:alice"), (UPSTREAM, "last")):
        mapped = replace(naming, mappings=MAPPINGS if naming is UPSTREAM else MAPPINGS[:1]).identity(who, ())
        plain = naming.identity(who, ())
        assert mapped.username == username
        assert mapped.groups[: len(plain.groups)] == plain.groups
        assert mapped.groups[len(plain.groups) :][:2] == ("team", "all")
        assert (mapped.uid, mapped.extra) == (plain.uid, plain.extra)
        assert (
            replace(naming, mappings=MAPPINGS).identity(account(roles=("other",)), ()).groups
            == naming.identity(account(roles=("other",)), ()).groups
        )
    assert replace(UPSTREAM, mappings=MAPPINGS).identity(who, ()).groups.count("team") == 1


def test_a_role_mapping_makes_nobody_whose_own_name_is_reserved() -> None:
    with pytest.raises(UnusableIdentityError):
        replace(UPSTREAM, mappings=MAPPINGS).identity(account("system:admin", roles=("operator",)), ())


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


Entity = tuple[str, ...]


def spelled(entity: Entity) -> str:
    """A user, group, project, role in a project or credential as Kubernetes sees it."""
    kind, *parts = entity
    return {
        "user": NATIVE.user,
        "group": NATIVE.group,
        "project": NATIVE.project,
        "role": NATIVE.role,
        "credential": NATIVE.credential,
    }[kind](*parts)


ENTITIES: st.SearchStrategy[Entity] = st.one_of(
    st.tuples(st.sampled_from(["user", "group"]), NAMES, DOMAINS),
    st.tuples(st.sampled_from(["project", "credential"]), NAMES),
    st.tuples(st.just("role"), NAMES, NAMES),
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Entity, Entity]:
    """Two of them, the second often named after how the first is spelled, or a piece of that."""
    one, other = draw(ENTITIES), draw(ENTITIES)
    if draw(st.booleans()):
        text = spelled(one)
        for change in draw(st.lists(st.sampled_from(["prefix", "tail", "head", "decode", "case"]), max_size=3)):
            text = {
                "prefix": text.removeprefix(PREFIX),
                "tail": text.rpartition(draw(st.sampled_from([":", "@", "%"])))[2],
                "head": text.partition("@")[0],
                "decode": unquote(text),
                "case": text.swapcase(),
            }[change]
        kind, _, *rest = other
        other = (kind, text or "x", *rest)
    return one, other


@settings(max_examples=400)
@given(pairs())
def test_no_two_of_users_groups_projects_roles_and_credentials_share_a_name(both: tuple[Entity, Entity]) -> None:
    one, other = both
    assert (spelled(one) == spelled(other)) is (one == other)


IDS = st.sampled_from(["default", "0" * 32, "5f3e1d9c7b8a46d2a1c0e9f8d7b6a594"])


@settings(max_examples=400)
@given(st.data(), NAMES, NAMES, NAMES, IDS, st.sampled_from(["user", "group", "project"]))
def test_no_name_of_one_domain_is_let_in_by_a_policy_for_another(
    data: st.DataObject, name: str, group: str, project: str, domain: str, kind: str
) -> None:
    """The policy names something of a domain; somebody of another one calls everything as it is called there."""
    other = data.draw(IDS.filter(lambda found: found != domain))
    value = {"user": name, "group": group, "project": project}[kind]
    # As a policy writes it: what looks like an ID is one, and so is a domain; a `*` in a match is anybody.
    if value == "*" or is_id(value) or in_domain(value, "default") != (value, "default"):
        value = "plain"
        name, group, project = "plain", "plain", "plain"
    written = value if domain == "default" else f"{value}@{domain}"
    spec = {"verbs": ["*"], "resources": ["*"], "version": "*", "namespace": "*"}
    items = [{"resource": spec, "match": [{"type": kind, "values": [written]}]}]
    if kind == "project":
        items.append({"users": {"projects": [written]}, "resource_permissions": {"*/*": ["*"]}})
    request = Request(True, "get", "default", resource="pods")

    def allowed(of: str, **names: str) -> bool:
        named = {"name": name, "group": group, "project": project, **names}
        who = Account("u" + of, named["name"], of, of, "p" + of, named["project"], of, ("member",))
        identity = NATIVE.identity(who, [Group(named["group"], of)])
        subject = NATIVE.subject(identity.username, identity.uid, identity.groups, marks(dict(identity.extra)))
        assert subject is not None
        return Policy(items, NATIVE).allows(subject, request)

    tricks = st.sampled_from(
        [
            *(written, value, f"{value}@{domain}", f"{value}%40{domain}", encode(value), f"{value}\0{domain}"),
            *(f"{PREFIX}{value}", NATIVE.user(value, domain), NATIVE.group(value, domain), f"\0{value}"),
        ]
    )
    assert allowed(domain)
    assert not allowed(other)
    assert not allowed(other, name=data.draw(tricks), group=data.draw(tricks), project=data.draw(tricks))


LOOKS = [
    "\u0455ystem:masters",
    "\uff53ystem:masters",
    "system\uff1amasters",
    "s\u200bystem:masters",
    "\ufeffsystem:masters",
    "systém:x",
]
SPACES = st.text(st.sampled_from(" \t\n\r\v\f\x1c\x85\xa0\u1680\u2003\u2028\u3000"), max_size=3)


def varied(text: str) -> st.SearchStrategy[str]:
    """The text in any case, with white space around it and some of it percent-encoded or with something in it."""
    letters = st.tuples(*(st.sampled_from([letter, letter.upper(), f"%{ord(letter):02x}"]) for letter in text))
    cased = st.tuples(*(st.sampled_from([letter, letter.upper()]) for letter in text)).map("".join)
    inside = st.tuples(st.integers(0, len(text)), st.sampled_from("\0\u200b\u2060\u00ad\ufeff :%")).map(
        lambda found: text[: found[0]] + found[1] + text[found[0] :]
    )
    return st.one_of(cased, letters.map("".join), inside)


@settings(max_examples=400)
@given(
    st.tuples(
        SPACES,
        st.one_of(
            *map(varied, ("system:masters", "kubeadm:cluster-admins", "keystone:alice")),
            st.sampled_from(LOOKS),
        ),
        SPACES,
    ).map("".join),
    DOMAINS,
)
def test_no_spelling_reaches_what_kubernetes_keeps_for_itself(name: str, domain: str) -> None:
    """Nor after what is done to names on the way: headers lose white space, and others may not care about case."""
    native = NATIVE.identity(account(name, domain, project="p1", roles=(name,)), [Group(name, domain)])
    names = [native.username, *native.groups]
    assert all(found.startswith(PREFIX) for found in names)
    try:
        names.append(UPSTREAM.identity(account(name, domain), []).username)
    except UnusableIdentityError:
        assert is_reserved(name)
    names += (group for group in UPSTREAM.identity(account("bob"), [Group(name, domain)]).groups if group != "p1")
    for found in names:
        for seen in (found, found.strip(), found.casefold(), found.strip().lower()):
            assert not seen.startswith(("system:", "kubeadm:"))
    assert not any(found.strip().casefold().startswith(PREFIX) for found in names[len(native.groups) + 1 :])


def test_unicode_look_alikes_are_other_names() -> None:
    for name in LOOKS:
        assert UPSTREAM.identity(account(name), []).username == name != "system:masters"
        assert NATIVE.identity(account(name), []).username != NATIVE.user("system:masters", "default")


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
