"""Which bindings of the cluster reach Keystone's users by bare names: what `upstream-compatible` hands out.

With that option a user or group of any of Keystone's domains has these, if it goes by the name; before it is set, and
before it is unset again, they are what to look at. Not here: changing any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests

from apiserver import Layout
from apiserver.verify import Unverified, as_admin
from printable import printable

_KINDS = ("clusterrolebindings", "rolebindings")
_PAGE = 500
_SECONDS = 10  # for one request
_NOT_BARE = ("system:", "kubeadm:", "keystone:")
"""Of names that no bare one is: the authenticator gives out none that begins like this (`Naming`)."""


def of_bare_names(layout: Layout) -> list[str]:
    """List them, a line each: `user alice: ClusterRoleBinding admins gives ClusterRole cluster-admin`.

    Raises:
        Unverified: the API server does not tell.
    """
    with as_admin(layout) as (session, url):
        return sorted({line for kind in _KINDS for binding in _all(session, url, kind) for line in _told(binding)})


def _told(binding: dict[str, Any]) -> Iterator[str]:
    metadata, role = binding["metadata"], binding["roleRef"]
    where = f"RoleBinding {metadata['namespace']}/" if metadata.get("namespace") else "ClusterRoleBinding "
    for subject in binding.get("subjects") or ():
        name = subject["name"]
        if subject["kind"] in {"User", "Group"} and not name.startswith(_NOT_BARE):
            who = f"{subject['kind'].lower()} {printable(name)}"
            # Names of bindings and roles may have any characters but / and %.
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
