"""What would have to change: Keystone as it is, the cluster as it is, the configuration; nothing is asked or done here.

What carries our label is ours. What does not, and is exactly what would be made, is adopted: k8s-keystone-auth made it.
What does not and is otherwise is somebody else's: it is told, and left alone. Nothing goes because something could not
be found out: not for a project that this account of Keystone's cannot see, nor for a user whose name it is not told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from keystone_authenticator.identity import Naming, UnusableIdentityError
from keystone_authenticator.sync import names
from keystone_authenticator.sync.config import SyncConfig

CREATE, ADOPT, REPLACE, DELETE, DELETE_EMPTY = "create", "adopt", "replace", "delete", "delete-if-empty"
NAMESPACE, ROLE_BINDING = "Namespace", "RoleBinding"


class Project(NamedTuple):
    """A project of Keystone's."""

    id: str
    name: str
    domain_id: str
    enabled: bool = True


class User(NamedTuple):
    """A user's name and the ID of its domain."""

    name: str
    domain_id: str
    enabled: bool = True


@dataclass(frozen=True)
class Directory:
    """Who may do what in Keystone, as far as an account may see it.

    `holders` has, by project, the ID of each user that has a role there and the role's name. A user who is not in
    `users` is one of whom nothing could be found out.
    """

    projects: Mapping[str, Project]
    users: Mapping[str, User]
    holders: Mapping[str, Collection[tuple[str, str]]]


class FoundNamespace(NamedTuple):
    """A namespace in the cluster; `project` is our label's value, empty without.

    `ours`: it carries both labels, and its name is one that the project may have.
    """

    name: str
    uid: str = ""
    created: str = ""
    project: str = ""
    ours: bool = False
    terminating: bool = False


class FoundBinding(NamedTuple):
    """A RoleBinding in the cluster: its ClusterRole and its user, where it is bound to one of each and nothing else."""

    namespace: str
    name: str
    uid: str = ""
    project: str = ""
    user: str = ""
    role: str = ""
    subject: str = ""
    ours: bool = False


class Change(NamedTuple):
    """One thing to be done, and why. Of a RoleBinding `role`, `subject` and `user` say what it is to be."""

    verb: str
    kind: str
    namespace: str
    name: str
    project: str
    why: str
    uid: str = ""
    role: str = ""
    subject: str = ""
    user: str = ""
    project_name: str = ""


class Problem(NamedTuple):
    """Something that stays as it is, and why."""

    kind: str
    namespace: str
    name: str
    why: str


@dataclass
class Plan:
    """What is to be done, in order, and what stays as it is although it should not."""

    changes: list[Change] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many changes of each sort: `create Namespace`, `delete RoleBinding` and so on."""
        counted: dict[str, int] = {}
        for change in self.changes:
            key = f"{change.verb} {change.kind}"
            counted[key] = counted.get(key, 0) + 1
        return counted


class Wanted(NamedTuple):
    """A RoleBinding that there should be."""

    namespace: str
    name: str
    user: str
    role: str
    subject: str


def wanted_bindings(namespace: str, subject: str, user_id: str, roles: Iterable[str], plan: Plan) -> Iterator[Wanted]:
    """The RoleBindings of a user's roles in a project; what cannot be bound is told."""
    for role in roles:
        why = names.unbindable(role)
        if why is None:
            yield Wanted(namespace, names.role_binding(user_id, role), names.label(user_id), role, subject)
        else:
            plan.problems.append(Problem(ROLE_BINDING, namespace, role, f"the role is not bound: {why}"))


def compare_binding(wanted: Wanted, found: FoundBinding | None, project: str, plan: Plan) -> None:
    """Plan what makes a RoleBinding what it should be; `project` is its label."""
    want = {"role": wanted.role, "subject": wanted.subject, "user": wanted.user}
    what = (ROLE_BINDING, wanted.namespace, wanted.name, project)
    if found is None:
        plan.changes.append(Change(CREATE, *what, "the role is held in Keystone", **want))
        return
    same = (found.role, found.subject) == (wanted.role, wanted.subject)
    if found.ours and found.project == project:
        if not same:
            plan.changes.append(Change(REPLACE, *what, "it binds another name or role", uid=found.uid, **want))
    elif not found.ours and same:
        plan.changes.append(Change(ADOPT, *what, "it is what would be made, without our label", uid=found.uid, **want))
    else:
        why = "is somebody else's, and binds something else" if not found.ours else "is another project's"
        plan.problems.append(Problem(ROLE_BINDING, wanted.namespace, wanted.name, why))


def place(
    project: Project, form: str, by_name: Mapping[str, FoundNamespace], owned: Iterable[FoundNamespace], plan: Plan
) -> str | None:
    """The namespace of a project, planned where it is not there; None if there can be none at present.

    A project keeps the namespace that it has: renamed in Keystone, it would otherwise lose sight of all it has.
    """
    wanted = names.namespace(form, project.id, project.name, project.domain_id)
    key = names.label(project.id)
    what = (NAMESPACE, "", wanted, key)
    at = by_name.get(wanted)
    mine = sorted((found.name != wanted, found.created, found.name, found) for found in owned)
    if mine:
        kept = mine[0][3]
        if kept.terminating:
            plan.problems.append(Problem(NAMESPACE, "", kept.name, "is being deleted"))
            return None
        return kept.name
    if at is None:
        why = "the project is in Keystone"
        plan.changes.append(Change(CREATE, *what, why, project_name=project.name))
        return wanted
    if at.terminating:
        plan.problems.append(Problem(NAMESPACE, "", wanted, "is being deleted"))
        return None
    if at.ours or at.project:
        plan.problems.append(Problem(NAMESPACE, "", wanted, f"is labelled as another project's ({at.project})"))
        return None
    why = "it is the project's, without our label"
    plan.changes.append(Change(ADOPT, *what, why, uid=at.uid, project_name=project.name))
    return wanted


class Cluster:
    """What the cluster has, by name and by project."""

    def __init__(self, namespaces: Iterable[FoundNamespace], bindings: Iterable[FoundBinding]) -> None:
        self.namespaces = {found.name: found for found in namespaces}
        self.bindings = {(found.namespace, found.name): found for found in bindings}
        self.owned: dict[str, list[FoundNamespace]] = {}
        self.bound: dict[str, list[FoundBinding]] = {}
        for namespace in self.namespaces.values():
            if namespace.ours:
                self.owned.setdefault(namespace.project, []).append(namespace)
        for binding in self.bindings.values():
            if binding.ours:
                self.bound.setdefault(binding.project, []).append(binding)

    def projects(self) -> set[str]:
        """The labels of all projects that have something here."""
        return {*self.owned, *self.bound}


def unaccounted(directory: Directory, cluster: Cluster, config: SyncConfig) -> list[str]:
    """The projects (by label) that have something in the cluster and that Keystone's list did not have."""
    known = {names.label(project) for project in (*directory.projects, *config.excluded_ids)}
    return sorted(cluster.projects() - known)


def plan(
    directory: Directory,
    cluster: Cluster,
    config: SyncConfig,
    naming: Naming,
    gone: Collection[str] = (),
    prune: str = "off",
) -> Plan:
    """Compare everything.

    Args:
        directory: Keystone.
        cluster: the cluster.
        config: what is kept in step.
        naming: the names that reviews give.
        gone: labels of those projects of `unaccounted` that Keystone says do not exist.
        prune: `off`, `empty` or `all`: what becomes of the namespaces of these.

    """
    made = Plan()
    for project in sorted(directory.projects.values()):
        if not config.excludes(project.id, project.name):
            _plan_project(project, directory, cluster, config, naming, made)
    for key in unaccounted(directory, cluster, config):
        _plan_missing(key, key in gone, cluster, config, prune, made)
    # Namespaces before what is in them, and nothing goes before all else is there.
    order = {(CREATE, NAMESPACE): 0, (ADOPT, NAMESPACE): 0, (DELETE, ROLE_BINDING): 2}
    last = 3
    made.changes.sort(key=lambda change: order.get((change.verb, change.kind), last if change.kind == NAMESPACE else 1))
    return made


def _plan_project(
    project: Project, directory: Directory, cluster: Cluster, config: SyncConfig, naming: Naming, made: Plan
) -> None:
    key = names.label(project.id)
    owned = cluster.owned.get(key, ())
    namespace: str | None = None
    if config.projects and (project.enabled or owned):
        namespace = place(project, config.namespace_format, cluster.namespaces, owned, made)
    elif not config.projects:
        wanted = names.namespace(config.namespace_format, project.id, project.name, project.domain_id)
        at = cluster.namespaces.get(wanted)
        namespace = wanted if at is not None and not at.terminating else None
    if not config.assignments:
        return
    roles: dict[str, list[str]] = {}
    unknown: set[str] = set()
    for user_id, role in directory.holders.get(project.id, ()) if project.enabled else ():
        user = directory.users.get(user_id)
        if user is None:
            unknown.add(names.label(user_id))
        elif user.enabled:
            roles.setdefault(user_id, []).append(role)
    kept: set[tuple[str, str]] = set()
    for user_id, held in sorted(roles.items()) if namespace is not None else ():
        user = directory.users[user_id]
        try:
            subject = naming.username(user.name, user.domain_id, held)
        except UnusableIdentityError as error:
            made.problems.append(Problem(ROLE_BINDING, namespace or "", user_id, str(error)))
            continue
        for wanted in wanted_bindings(namespace or "", subject, user_id, sorted(held), made):
            kept.add((wanted.namespace, wanted.name))
            compare_binding(wanted, cluster.bindings.get((wanted.namespace, wanted.name)), key, made)
    for user in sorted(unknown):
        made.problems.append(Problem(ROLE_BINDING, namespace or "", user, "the user's name is not told by Keystone"))
    if namespace is None and project.enabled and roles:
        return  # nothing can be said about a place that there is none of at present
    why = "the role is not held in Keystone any more" if project.enabled else "the project is disabled"
    for found in cluster.bound.get(key, ()):
        if (found.namespace, found.name) not in kept and found.user not in unknown:
            made.changes.append(_deletion(found, why))


def _deletion(found: FoundBinding, why: str) -> Change:
    what = (ROLE_BINDING, found.namespace, found.name, found.project)
    return Change(DELETE, *what, why, found.uid, found.role, found.subject, found.user)


def _plan_missing(key: str, gone: bool, cluster: Cluster, config: SyncConfig, prune: str, made: Plan) -> None:
    owned = cluster.owned.get(key, [])
    if not gone:
        for found in owned:
            why = f"Keystone does not list the project {key}, and does not say that it does not exist"
            made.problems.append(Problem(NAMESPACE, "", found.name, why))
        return
    going = {found.name for found in owned} if prune == "all" and config.projects else set[str]()
    for found in cluster.bound.get(key, ()):
        if config.assignments and found.namespace not in going:
            made.changes.append(_deletion(found, "the project does not exist any more"))
    for found in owned:
        if found.terminating or not config.projects:
            continue
        if prune == "off":
            why = "the project does not exist any more; the namespace stays, as sync-prune is off"
            made.problems.append(Problem(NAMESPACE, "", found.name, why))
            continue
        verb = DELETE if prune == "all" else DELETE_EMPTY
        why = "the project does not exist any more"
        made.changes.append(Change(verb, NAMESPACE, "", found.name, key, why, found.uid))
