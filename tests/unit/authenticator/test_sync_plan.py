"""Names that are one thing's alone, and plans that reach what is wanted and touch nothing of anybody else's."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone_authenticator.identity import Account, Naming, RoleMapping
from keystone_authenticator.sync import names
from keystone_authenticator.sync.config import SyncConfig
from keystone_authenticator.sync.plan import (
    ADOPT,
    CREATE,
    DELETE,
    DELETE_EMPTY,
    NAMESPACE,
    REPLACE,
    ROLE_BINDING,
    Change,
    Cluster,
    Directory,
    FoundBinding,
    FoundNamespace,
    Plan,
    Project,
    User,
    plan,
    unaccounted,
)

NATIVE, UPSTREAM = Naming("default", False), Naming("default", True)
BOTH = SyncConfig(projects=True, assignments=True)
P1, P2, U1, U2 = "1" * 32, "2" * 32, "a" * 32, "b" * 64

# IDs as Keystone makes them, some of them near to each other, and IDs as nobody should make them.
HEX = st.text(alphabet="ab01", min_size=32, max_size=32)
IDS = st.one_of(HEX, st.sampled_from([P1, "default", "a" * 64, "A" * 32, "a_b"]), st.text(min_size=1, max_size=40))
# Names that try to be another project's.
TEXTS = st.one_of(
    st.text(max_size=8), st.text(alphabet="ab01-", max_size=31), st.sampled_from(["%d", "-", "Ä", P1, f"x-{P1}", "%i"])
)
FORMS = st.sampled_from(["%i", "%n-%i", "%i-%n", "%n%i", "%i%n", "%d-%i", "%n-%d-%i", "a%ib", "%i%i", "A-%i", "0%i1"])
USERS = st.one_of(HEX, st.sampled_from([U1, U2, "keystone", "a_b", "a"]), st.text(min_size=1, max_size=8))
ROLES = st.one_of(st.sampled_from(["member", "b_member", "_", "Ä b"]), st.text(min_size=1, max_size=8))


# ---------------------------------------------------------------------------------------------------------------- names


@given(FORMS, IDS, TEXTS, st.sampled_from(["default", P2]), IDS, TEXTS, st.sampled_from(["default", P2]))
def test_two_projects_never_get_one_namespace(
    form: str, one: str, name: str, domain: str, other: str, other_name: str, other_domain: str
) -> None:
    if one != other:
        first, second = names.namespace(form, one, name, domain), names.namespace(form, other, other_name, other_domain)
        assert first != second


@given(FORMS, IDS, TEXTS, st.sampled_from(["default", P2]))
def test_a_namespaces_name_is_one_that_kubernetes_can_hold(form: str, project: str, name: str, domain: str) -> None:
    found = names.namespace(form, project, name, domain)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", found)
    assert not found.startswith("kube-")


@given(FORMS, IDS, TEXTS, st.sampled_from(["default", P2]), IDS)
def test_a_namespaces_name_tells_whose_it_is(form: str, project: str, name: str, domain: str, other: str) -> None:
    found = names.namespace(form, project, name, domain)
    assert names.belongs(found, names.label(project))
    assert names.belongs(found, names.label(other)) == (project == other)
    for label in (project, "", "sha256-"):
        assert not names.belongs("kube-system", label)


@pytest.mark.parametrize(
    ("form", "name", "expected"),
    [
        ("%i", "Demo", P1),
        ("prefix-%d-%n-%i", "demo", f"prefix-default-demo-{P1}"),
        ("%n-%i", "a" * 30, f"{'a' * 30}-{P1}"),
        ("%n-%i", "a" * 31, P1),  # upstream's own way with more than 63 characters
        ("%n-%i", "Demo", P1),
        ("%n-%i", "demo project", P1),
        ("%n-%i", "größe", P1),
        ("%n-%i", "-demo", P1),
        ("%i%n", "0", P1),  # 33 digits, in which two IDs can be read
    ],
)
def test_names_are_upstreams_wherever_they_can_be(form: str, name: str, expected: str) -> None:
    assert names.namespace(form, P1, name, "default") == expected


@given(USERS, ROLES, USERS, ROLES)
def test_two_assignments_never_get_one_role_binding(user: str, role: str, other: str, other_role: str) -> None:
    same = (user, role) == (other, other_role)
    assert (names.role_binding(user, role) == names.role_binding(other, other_role)) == same


def test_a_role_binding_is_called_as_upstream_calls_it() -> None:
    assert names.role_binding(U1, "load-balancer_member") == f"{U1}_load-balancer_member"
    assert names.role_binding(U2, "member") == f"{U2}_member"


@given(st.one_of(IDS, USERS), st.one_of(IDS, USERS))
def test_labels_are_one_ids_alone_and_such_as_kubernetes_can_hold(one: str, other: str) -> None:
    assert (names.label(one) == names.label(other)) == (one == other)
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", names.label(one))


@pytest.mark.parametrize("role", ["a/b", "50%", ".", "..", "", "system:node", "Kubeadm:x", "keystone:a"])
def test_a_role_that_no_cluster_role_may_stand_for_is_not_bound(role: str) -> None:
    assert names.unbindable(role) is not None
    made = plan(directory({P1: [(U1, role)]}), EMPTY, BOTH, NATIVE)
    assert [change.kind for change in made.changes] == [NAMESPACE]
    assert "not bound" in made.problems[0].why


# ---------------------------------------------------------------------------------------------------------------- plans

EMPTY = Cluster((), ())


def directory(holders: dict[str, list[tuple[str, str]]], **changes: Project) -> Directory:
    projects = {key: Project(key, f"name-{key[0]}", "default") for key in holders}
    projects.update({project.id: project for project in changes.values()})
    users = {U1: User("alice", "default"), U2: User("bob", P2)}
    return Directory(projects, users, holders)


def done(made: Plan, cluster: Cluster, empty: bool = True) -> Cluster:
    """The cluster after a plan, as its API server would have it."""
    namespaces, bindings = dict(cluster.namespaces), dict(cluster.bindings)
    for change in made.changes:
        key = (change.namespace, change.name)
        if change.kind == NAMESPACE:
            if change.verb == CREATE:
                assert change.name not in namespaces
                namespaces[change.name] = FoundNamespace(change.name, "u", "", change.project, True)
            elif change.verb == ADOPT:
                namespaces[change.name] = namespaces[change.name]._replace(ours=True, project=change.project)
            elif change.verb == DELETE or empty:
                del namespaces[change.name]
                bindings = {key: found for key, found in bindings.items() if key[0] != change.name}
        elif change.verb == DELETE:
            del bindings[key]
        else:
            assert (change.verb == CREATE) == (key not in bindings)
            assert change.namespace in namespaces
            bindings[key] = FoundBinding(*key, "u", change.project, change.user, change.role, change.subject, ours=True)
    return Cluster(namespaces.values(), bindings.values())


def test_a_project_gets_its_namespace_and_each_role_its_binding() -> None:
    made = plan(directory({P1: [(U1, "member"), (U2, "reader")]}), EMPTY, BOTH, NATIVE)
    assert [(change.verb, change.kind, change.name, change.role, change.subject) for change in made.changes] == [
        (CREATE, NAMESPACE, P1, "", ""),
        (CREATE, ROLE_BINDING, f"{U1}_member", "member", "keystone:alice"),
        (CREATE, ROLE_BINDING, f"{U2}_reader", "reader", f"keystone:bob@{P2}"),
    ]
    assert made.problems == []


@pytest.mark.parametrize("naming", [NATIVE, UPSTREAM, replace(UPSTREAM, mappings=(RoleMapping("member", "m", ()),))])
def test_a_binding_is_for_the_very_name_that_a_review_gives(naming: Naming) -> None:
    made = plan(directory({P1: [(U2, "member"), (U2, "reader")]}), EMPTY, BOTH, naming)
    account = Account(U2, "bob", P2, "other", P1, "name-1", "default", ("member", "reader"))
    assert {change.subject for change in made.changes[1:]} == {naming.identity(account, ()).username}


def test_a_reserved_name_is_bound_to_nothing() -> None:
    who = replace(directory({P1: [(U1, "member")]}), users={U1: User("system:admin", "default")})
    made = plan(who, EMPTY, BOTH, UPSTREAM)
    assert [change.kind for change in made.changes] == [NAMESPACE]
    assert "reserved" in made.problems[0].why
    assert plan(who, EMPTY, BOTH, NATIVE).changes[1].subject == "keystone:system%3Aadmin"


def test_a_role_that_is_gone_loses_its_binding_and_the_others_keep_theirs() -> None:
    before = done(plan(directory({P1: [(U1, "member"), (U1, "reader"), (U2, "member")]}), EMPTY, BOTH, NATIVE), EMPTY)
    made = plan(directory({P1: [(U1, "reader"), (U2, "member")]}), before, BOTH, NATIVE)
    assert [(change.verb, change.name) for change in made.changes] == [(DELETE, f"{U1}_member")]


def test_a_disabled_user_or_project_loses_the_bindings_and_the_namespace_stays() -> None:
    before = done(plan(directory({P1: [(U1, "member")]}), EMPTY, BOTH, NATIVE), EMPTY)
    disabled = directory({P1: [(U1, "member")]}, p=Project(P1, "name-1", "default", enabled=False))
    also = replace(directory({P1: [(U1, "member")]}), users={U1: User("alice", "default", enabled=False)})
    for now in (disabled, also):
        assert [change.verb for change in plan(now, before, BOTH, NATIVE).changes] == [DELETE]


def test_a_project_that_is_renamed_keeps_its_namespace() -> None:
    config = replace(BOTH, namespace_format="%n-%i")
    before = done(plan(directory({P1: [(U1, "member")]}), EMPTY, config, NATIVE), EMPTY)
    renamed = directory({P1: [(U1, "member")]}, p=Project(P1, "renamed", "default"))
    assert plan(renamed, before, config, NATIVE).changes == []


def test_what_upstream_made_is_adopted_where_it_matches() -> None:
    theirs = Cluster([FoundNamespace(P1)], [FoundBinding(P1, f"{U1}_member", role="member", subject="alice")])
    made = plan(directory({P1: [(U1, "member")]}), theirs, BOTH, UPSTREAM)
    assert [(change.verb, change.kind) for change in made.changes] == [(ADOPT, NAMESPACE), (ADOPT, ROLE_BINDING)]
    assert made.problems == []


@pytest.mark.parametrize(
    "found",
    [
        FoundBinding(P1, f"{U1}_member", role="member", subject="alice"),
        FoundBinding(P1, f"{U1}_member", role="cluster-admin", subject="keystone:alice"),
        FoundBinding(P1, f"{U1}_member"),  # several subjects, or none, or a Role
    ],
)
def test_what_is_somebody_elses_is_told_and_left_alone(found: FoundBinding) -> None:
    theirs = Cluster([FoundNamespace(P1, project=P1, ours=True)], [found])
    for who in (directory({P1: [(U1, "member")]}), directory({P1: []})):
        made = plan(who, theirs, BOTH, NATIVE)
        assert made.changes == []
        assert [problem.name for problem in made.problems] == [found.name] * len(who.holders[P1])


def test_a_namespace_that_another_project_is_written_on_is_left_alone() -> None:
    for ours in (True, False):
        theirs = Cluster([FoundNamespace(P1, project=P2, ours=ours)], [])
        made = plan(directory({P1: [(U1, "member")], P2: []}), theirs, BOTH, NATIVE)
        assert all(change.name != P1 for change in made.changes)
        assert "another project's" in made.problems[0].why


def test_a_binding_of_ours_that_was_bent_is_put_right() -> None:
    before = done(plan(directory({P1: [(U1, "member")]}), EMPTY, BOTH, NATIVE), EMPTY)
    bent = [found._replace(role="cluster-admin") for found in before.bindings.values()]
    made = plan(directory({P1: [(U1, "member")]}), Cluster(before.namespaces.values(), bent), BOTH, NATIVE)
    assert [(change.verb, change.role) for change in made.changes] == [(REPLACE, "member")]


def test_from_one_mode_to_the_other_the_bindings_follow() -> None:
    before = done(plan(directory({P1: [(U1, "member")]}), EMPTY, BOTH, UPSTREAM), EMPTY)
    made = plan(directory({P1: [(U1, "member")]}), before, BOTH, NATIVE)
    assert [(change.verb, change.subject) for change in made.changes] == [(REPLACE, "keystone:alice")]


def test_nothing_goes_of_a_user_whose_name_is_not_told() -> None:
    before = done(plan(directory({P1: [(U1, "member")]}), EMPTY, BOTH, NATIVE), EMPTY)
    unknown = replace(directory({P1: [(U1, "reader")]}), users={})
    made = plan(unknown, before, BOTH, NATIVE)
    assert made.changes == []
    assert "not told" in made.problems[0].why


def test_nothing_goes_of_a_project_that_keystone_does_not_say_is_gone() -> None:
    before = done(plan(directory({P1: [(U1, "member")], P2: []}), EMPTY, BOTH, NATIVE), EMPTY)
    assert unaccounted(directory({P2: []}), before, BOTH) == [P1]
    made = plan(directory({P2: []}), before, BOTH, NATIVE, gone=(), prune="all")
    assert made.changes == []
    assert "does not list" in made.problems[0].why


@pytest.mark.parametrize(
    ("prune", "expected"),
    [
        ("off", [(DELETE, ROLE_BINDING)]),
        ("empty", [(DELETE, ROLE_BINDING), (DELETE_EMPTY, NAMESPACE)]),
        ("all", [(DELETE, NAMESPACE)]),
    ],
)
def test_a_deleted_projects_namespace_goes_as_sync_prune_says(prune: str, expected: list[tuple[str, str]]) -> None:
    before = done(plan(directory({P1: [(U1, "member")], P2: []}), EMPTY, BOTH, NATIVE), EMPTY)
    made = plan(directory({P2: []}), before, BOTH, NATIVE, gone=(P1,), prune=prune)
    assert [(change.verb, change.kind) for change in made.changes] == expected
    assert bool(made.problems) == (prune == "off")


def test_a_namespace_without_our_label_never_goes() -> None:
    theirs = Cluster([FoundNamespace(P1), FoundNamespace("kube-system", project=P1)], [])
    assert plan(directory({P2: []}), theirs, BOTH, NATIVE, gone=(P1,), prune="all").changes == [
        Change(CREATE, NAMESPACE, "", P2, P2, "the project is in Keystone", project_name="name-2")
    ]


def test_a_project_that_is_left_out_is_left_alone() -> None:
    config = replace(BOTH, excluded_ids=frozenset([P1]), excluded_names=frozenset(["name-2"]))
    assert plan(directory({P1: [(U1, "member")], P2: []}), EMPTY, config, NATIVE).changes == []
    before = done(plan(directory({P1: [(U1, "member")]}), EMPTY, BOTH, NATIVE), EMPTY)
    made = plan(directory({P2: []}), before, config, NATIVE, gone=(P1,), prune="all")
    assert made.changes == []


def test_without_projects_bindings_are_made_where_there_is_a_namespace() -> None:
    config = SyncConfig(assignments=True)
    who = directory({P1: [(U1, "member")], P2: [(U1, "member")]})
    made = plan(who, Cluster([FoundNamespace(P2)], []), config, NATIVE)
    assert [(change.kind, change.namespace) for change in made.changes] == [(ROLE_BINDING, P2)]


def test_while_a_namespace_is_being_deleted_nothing_is_made_in_it() -> None:
    going = Cluster([FoundNamespace(P1, project=P1, ours=True, terminating=True)], [])
    made = plan(directory({P1: [(U1, "member")]}), going, BOTH, NATIVE)
    assert made.changes == []
    assert made.problems[0].why == "is being deleted"


STATES = st.dictionaries(
    st.sampled_from([P1, P2, "3" * 32, "odd"]),
    st.lists(st.tuples(st.sampled_from([U1, U2, "c" * 32]), st.sampled_from(["member", "reader", "a/b"])), unique=True),
)
FOREIGN = st.lists(
    st.builds(
        FoundBinding,
        st.sampled_from([P1, P2, "default"]),
        st.sampled_from([f"{U1}_member", f"{U1}_reader", "theirs"]),
        role=st.sampled_from(["member", ""]),
        subject=st.sampled_from(["alice", "keystone:alice"]),
        ours=st.just(False),
    ),
    unique_by=lambda found: (found.namespace, found.name),
)


@settings(max_examples=40)
@given(STATES, STATES, FOREIGN, st.sampled_from([NATIVE, UPSTREAM]), st.sampled_from(["off", "empty", "all"]))
def test_a_plan_reaches_what_is_wanted_in_one_go_and_leaves_the_others_things(
    before: dict[str, list[tuple[str, str]]],
    after: dict[str, list[tuple[str, str]]],
    foreign: list[FoundBinding],
    naming: Naming,
    prune: str,
) -> None:
    theirs = Cluster([FoundNamespace(name) for name in ("default", P1, P2)], foreign)
    first = done(plan(directory(before), theirs, BOTH, naming), theirs)
    gone = unaccounted(directory(after), first, BOTH)
    second = done(plan(directory(after), first, BOTH, naming, gone, prune), first)
    again = plan(directory(after), second, BOTH, naming, unaccounted(directory(after), second, BOTH), prune)
    assert again.changes == []
    for found in foreign:
        key = (found.namespace, found.name)
        # What was adopted is ours, and a namespace that was adopted may go with all that is in it.
        if not first.bindings[key].ours and found.namespace in second.namespaces:
            assert second.bindings[key][5:7] == (found.role, found.subject) == first.bindings[key][5:7]
    assert "default" in second.namespaces
