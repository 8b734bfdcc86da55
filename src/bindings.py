"""Which bindings of the cluster reach Keystone's users by bare names: what `upstream-compatible` hands out.

With that option a user or group of any of Keystone's domains has these, if it goes by the name; before it is set, and
before it is unset again, they are what to look at. And how those who should keep what they have get it by their native
names, beside the bare ones: commands, for a person to choose from. Not here: changing any of them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import requests

from apiserver import Layout
from apiserver.verify import Unverified, as_admin
from printable import printable

_KINDS = ("clusterrolebindings", "rolebindings")
_PAGE = 500
_SECONDS = 10  # for one request
_NOT_BARE = ("system:", "kubeadm:", "keystone:")
"""Of names that no bare one is: the authenticator gives out none that begins like this (`Naming`)."""


class Reached(NamedTuple):
    """What bare names reach.

    Args:
        told: a line each: `user alice: ClusterRoleBinding admins gives ClusterRole cluster-admin`.
        commands: a line for each binding that the native names do not reach yet.

    """

    told: list[str]
    commands: list[str]


def of_bare_names(layout: Layout) -> Reached:
    """Look at all bindings.

    Raises:
        Unverified: the API server does not tell.
    """
    told: set[str] = set()
    commands: list[str] = []
    with as_admin(layout) as (session, url):
        for kind in _KINDS:
            for binding in _all(session, url, kind):
                told.update(_told(binding))
                commands += _commands(kind.removesuffix("s"), binding)
    return Reached(sorted(told), sorted(commands))


def native(kind: str, name: str) -> str:
    """Give the native name of a user or group that goes by a bare one: in the default domain, as no binding says which.

    A group of a project is called by the project's ID; Keystone makes 32 hexadecimal digits for one.
    """
    if kind == "User":
        return f"keystone:{_encoded(name)}"
    if re.fullmatch("[0-9a-f]{32}", name):
        return f"keystone:project:{name}"
    return f"keystone:group:{_encoded(name)}"


def _encoded(name: str) -> str:
    """Spell a name as the authenticator does (`identity.encode`; a test compares)."""
    return quote(name, safe="").replace("~", "%7E")


def _bare(binding: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Give the users and groups of a binding that go by bare names."""
    for subject in binding.get("subjects") or ():
        if subject["kind"] in {"User", "Group"} and not subject["name"].startswith(_NOT_BARE):
            yield subject["kind"], subject["name"]


def _commands(kind: str, binding: dict[str, Any]) -> Iterator[str]:
    """Give the command that adds native names to a binding; none if they are all there."""
    there = {(subject["kind"], subject["name"]) for subject in binding.get("subjects") or ()}
    lacking = [(one, native(one, name)) for one, name in _bare(binding)]
    lacking = [one for one in dict.fromkeys(lacking) if one not in there]
    if lacking:
        metadata = binding["metadata"]
        namespace = [f"--namespace={metadata['namespace']}"] if metadata.get("namespace") else []
        subjects = [f"--{one.lower()}={name}" for one, name in lacking]
        yield shlex.join(["kubectl", *namespace, "set", "subject", kind, metadata["name"], *subjects])


def _told(binding: dict[str, Any]) -> Iterator[str]:
    metadata, role = binding["metadata"], binding["roleRef"]
    where = f"RoleBinding {metadata['namespace']}/" if metadata.get("namespace") else "ClusterRoleBinding "
    for kind, name in _bare(binding):
        # Names of bindings and roles may have any characters but / and %.
        who = f"{kind.lower()} {printable(name)}"
        yield f"{who}: {where}{printable(metadata['name'])} gives {role['kind']} {printable(role['name'])}"


def _all(session: requests.Session, url: str, kind: str) -> Iterator[dict[str, Any]]:
    token = ""
    while True:
        page = {"limit": str(_PAGE), "continue": token}
        answer = session.get(f"{url}/apis/rbac.authorization.k8s.io/v1/{kind}", params=page, timeout=_SECONDS)
        if answer.status_code != 200:
            raise Unverified(f"the API server answers {answer.status_code} when asked for {kind}")
        found = answer.json()
        yield from found["items"]
        token = found["metadata"].get("continue", "")
        if not token:
            return
