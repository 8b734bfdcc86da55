"""What the cluster has, read into a plan's terms, and a plan's changes done there, each on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from keystone_authenticator import document
from keystone_authenticator.kubernetes import Kubernetes, Metadata, Refusal, at
from keystone_authenticator.outbound import CannotTell
from keystone_authenticator.sync import names
from keystone_authenticator.sync.plan import (
    ADOPT,
    CREATE,
    DELETE_EMPTY,
    NAMESPACE,
    REPLACE,
    ROLE_BINDING,
    Change,
    Cluster,
    FoundBinding,
    FoundNamespace,
    Plan,
    Problem,
    Wanted,
    compare_binding,
)

NAMESPACES = "/api/v1/namespaces"
_GROUP = "rbac.authorization.k8s.io"
_RBAC = f"/apis/{_GROUP}/v1"
# What a new namespace has by itself; events tell of what was.
_BY_ITSELF = {("", "configmaps"): "kube-root-ca.crt", ("", "serviceaccounts"): "default"}
_TELLING = frozenset((("", "events"), ("events.k8s.io", "events")))
# Answers to a list that are no objects of anybody's, and groups that make them up from others.
_MADE_UP = frozenset(("metrics.k8s.io", "custom.metrics.k8s.io", "external.metrics.k8s.io"))


class _Namespace(msgspec.Struct, frozen=True):
    metadata: Metadata


class _Reference(msgspec.Struct, frozen=True, rename={"api_group": "apiGroup"}):
    kind: str = ""
    name: str = ""
    api_group: str = ""


class _RoleBinding(msgspec.Struct, frozen=True, rename={"role": "roleRef"}):
    metadata: Metadata
    role: _Reference
    subjects: list[_Reference] | None = None


class _Any(msgspec.Struct, frozen=True):
    metadata: Metadata


class _Resource(msgspec.Struct, frozen=True):
    name: str
    namespaced: bool = False
    verbs: list[str] = []


class _Resources(msgspec.Struct, frozen=True):
    resources: list[_Resource] = []


class _Version(msgspec.Struct, frozen=True, rename={"group_version": "groupVersion"}):
    group_version: str


class _Group(msgspec.Struct, frozen=True, rename={"preferred": "preferredVersion"}):
    name: str
    preferred: _Version


class _Groups(msgspec.Struct, frozen=True):
    groups: list[_Group] = []


_namespace = document.decoder(_Namespace)
_role_binding = document.decoder(_RoleBinding)
_any = document.decoder(_Any)
_resources = document.decoder(_Resources)
_groups = document.decoder(_Groups)


# ---------------------------------------------------------------------------------------------------- reading


def _found_namespace(read: _Namespace) -> FoundNamespace:
    about, labels = read.metadata, read.metadata.labels or {}
    project = labels.get(names.PROJECT, "")
    ours = labels.get(names.MANAGED_BY) == names.MANAGER and bool(project) and names.belongs(about.name, project)
    created, going = about.creation_timestamp or "", about.deletion_timestamp is not None
    return FoundNamespace(about.name, about.uid, created, project, ours, going)


def _found_binding(read: _RoleBinding) -> FoundBinding:
    about, labels = read.metadata, read.metadata.labels or {}
    project, user = labels.get(names.PROJECT, ""), labels.get(names.USER, "")
    ours = labels.get(names.MANAGED_BY) == names.MANAGER and bool(project and user)
    subjects = read.subjects or []
    plain = len(subjects) == 1 and subjects[0].kind == "User" and read.role.kind == "ClusterRole"
    bound = (read.role.name, subjects[0].name) if plain else ("", "")
    return FoundBinding(about.namespace, about.name, about.uid, project, user, *bound, ours)


async def everything(kube: Kubernetes) -> Cluster:
    """All namespaces and RoleBindings, so that what is not ours is known without trying; a page at a time.

    Raises:
        Refusal, CannotTell: not all of it could be read.

    """
    namespaces = [_found_namespace(read) async for page in kube.pages(NAMESPACES, _namespace) for read in page]
    bindings = [
        _found_binding(read) async for page in kube.pages(f"{_RBAC}/rolebindings", _role_binding) for read in page
    ]
    return Cluster(namespaces, bindings)


async def namespace(kube: Kubernetes, name: str) -> FoundNamespace | None:
    """One namespace; None if there is none of this name."""
    body = await kube.send("GET", NAMESPACES + at(name))
    return None if body is None else _found_namespace(_namespace(body))


async def owned(kube: Kubernetes, project: str) -> list[FoundNamespace]:
    """The namespaces that carry our label with this project's."""
    labels = f"{names.SELECTOR},{names.PROJECT}={project}"
    return [_found_namespace(read) async for page in kube.pages(NAMESPACES, _namespace, labels) for read in page]


async def bound(kube: Kubernetes, namespace: str, user: str) -> list[FoundBinding]:
    """The RoleBindings in a namespace that carry our label with this user's."""
    path, labels = f"{_RBAC}/namespaces{at(namespace)}/rolebindings", f"{names.SELECTOR},{names.USER}={user}"
    return [_found_binding(read) async for page in kube.pages(path, _role_binding, labels) for read in page]


# ---------------------------------------------------------------------------------------------------- changing


def _labels(change: Change) -> dict[str, str]:
    labels = {names.MANAGED_BY: names.MANAGER, names.PROJECT: change.project}
    return {**labels, names.USER: change.user} if change.user else labels


def _body(change: Change) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": change.name, "labels": _labels(change)}
    if change.kind == NAMESPACE:
        metadata["annotations"] = {names.PROJECT_NAME: change.project_name}
        return {"apiVersion": "v1", "kind": NAMESPACE, "metadata": metadata}
    return {
        "apiVersion": f"{_GROUP}/v1",
        "kind": ROLE_BINDING,
        "metadata": {**metadata, "namespace": change.namespace},
        "subjects": [{"apiGroup": _GROUP, "kind": "User", "name": change.subject}],
        "roleRef": {"apiGroup": _GROUP, "kind": "ClusterRole", "name": change.role},
    }


def _folder(change: Change) -> str:
    return NAMESPACES if change.kind == NAMESPACE else f"{_RBAC}/namespaces{at(change.namespace)}/rolebindings"


async def do(kube: Kubernetes, change: Change) -> Problem | None:
    """Do one change; gives what is in its way, if anything is. Safe to repeat.

    Raises:
        CannotTell: the API server gives no answer; the same again may go well.

    """
    try:
        if change.verb == CREATE:
            return await _create(kube, change)
        if change.verb == ADOPT:
            metadata = {"labels": _labels(change), **({"uid": change.uid} if change.uid else {})}
            await kube.patch(_folder(change) + at(change.name), {"metadata": metadata})
        elif change.verb == REPLACE:
            await _replace(kube, change)
        elif change.verb == DELETE_EMPTY:
            inside = await first_inside(kube, change.name)
            if inside is not None:
                return Problem(change.kind, change.namespace, change.name, f"stays, as it is not empty: {inside}")
            await _delete(kube, change)
        else:
            await _delete(kube, change)
    except Refusal as error:
        return Problem(change.kind, change.namespace, change.name, str(error))
    return None


async def _create(kube: Kubernetes, change: Change) -> Problem | None:
    try:
        await kube.send("POST", _folder(change), _body(change))
        return None
    except Refusal as error:
        if error.status != 409:
            raise
    # It is there: made a moment ago, by another unit perhaps, or before us by somebody who knew no labels of ours.
    if change.kind == NAMESPACE:
        at_hand = await namespace(kube, change.name)
        if at_hand is None or (at_hand.ours and at_hand.project == change.project):
            return None
        if not at_hand.ours and not at_hand.project:
            return await do(kube, change._replace(verb=ADOPT, uid=at_hand.uid))
        return Problem(change.kind, "", change.name, f"is labelled as another project's ({at_hand.project})")
    body = await kube.send("GET", _folder(change) + at(change.name))
    if body is None:
        return None
    made = Plan()
    wanted = Wanted(change.namespace, change.name, change.user, change.role, change.subject)
    compare_binding(wanted, _found_binding(_role_binding(body)), change.project, made)
    for further in made.changes:
        made.problems += filter(None, [await do(kube, further)])
    return made.problems[0] if made.problems else None


async def _replace(kube: Kubernetes, change: Change) -> None:
    body = _body(change)
    body["metadata"]["uid"] = change.uid
    try:
        await kube.send("PUT", _folder(change) + at(change.name), body)
    except Refusal as error:
        # A RoleBinding's role cannot be changed.
        if error.status != 422:
            raise
        await _delete(kube, change)
        await kube.send("POST", _folder(change), _body(change))


async def _delete(kube: Kubernetes, change: Change) -> None:
    # The very object that was looked at, not one of its name that was made since.
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": change.uid}}
    await kube.send("DELETE", _folder(change) + at(change.name), options, good=(200, 202))


async def do_all(kube: Kubernetes, changes: Iterable[Change], at_once: int = 8) -> tuple[dict[str, int], list[Problem]]:
    """Do changes in order, several of a sort at once; gives how many of each sort went well, and what did not.

    Raises:
        CannotTell: the API server does not answer any more; what was done is done.

    """
    done: dict[str, int] = {}
    problems: list[Problem] = []
    stages: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        stages.setdefault((change.verb, change.kind), []).append(change)
    for (verb, kind), several in stages.items():
        waiting = iter(several)

        async def work(rest: Iterable[Change] = waiting, key: str = f"{verb} {kind}") -> None:
            for change in rest:
                problem = await do(kube, change)
                if problem is None:
                    done[key] = done.get(key, 0) + 1
                else:
                    problems.append(problem)

        workers = [asyncio.ensure_future(work()) for _ in range(min(at_once, len(several)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
    return done, problems


# ------------------------------------------------------------------------------------------------------ empty


async def first_inside(kube: Kubernetes, name: str) -> str | None:
    """What a namespace holds beside what it has by itself, our RoleBindings and events; None if it is empty.

    Whatever of it cannot be looked at may hold something.
    """
    try:
        for group, path, resource in await _namespaced(kube):
            if (group, resource) in _TELLING or group in _MADE_UP:
                continue
            listing = f"{path}/namespaces{at(name)}/{resource}"
            usual = _BY_ITSELF.get((group, resource))
            async for page in kube.pages(listing, _role_binding if resource == "rolebindings" else _any):
                for found in page:
                    if isinstance(found, _RoleBinding) and _found_binding(found).ours:
                        continue
                    if found.metadata.name != usual:
                        return f"{resource}{f'.{group}' if group else ''} {found.metadata.name}"
    except Refusal as error:
        return f"it cannot be told what it holds ({error})"
    return None


async def _namespaced(kube: Kubernetes) -> list[tuple[str, str, str]]:
    """Every kind of object that a namespace can hold: its group, where it is asked about, and what it is called."""
    found: Mapping[str, str] = {"": "/api/v1"}
    listed = await kube.send("GET", "/apis")
    groups = _groups(listed).groups if listed is not None else []
    found = {**found, **{group.name: f"/apis/{group.preferred.group_version}" for group in groups}}
    kinds = []
    for group, path in found.items():
        if group in _MADE_UP:
            continue
        body = await kube.send("GET", path)
        if body is None:
            raise CannotTell(f"the API server does not tell what is in {path}")
        kinds += [
            (group, path, resource.name)
            for resource in _resources(body).resources
            if resource.namespaced and "/" not in resource.name and "list" in resource.verbs
        ]
    return kinds
