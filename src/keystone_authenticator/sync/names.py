"""What namespaces, RoleBindings and labels are called: k8s-keystone-auth's names wherever they name one thing alone.

A name here depends on nothing but the project, or the user and the role, that it is for, so that a login and a pass
over everything agree; and no two get one name. What cannot be called as upstream calls it:

- A project whose formatted name is no name of a namespace (capital letters, blanks, more than 63 characters) or in
  which another 32 hex digits than its ID can be read goes by its ID alone, which is upstream's own way with long ones.
- A project whose ID is not 32 hex digits goes by `keystone-` and a hash of it, in groups of eight.
- A RoleBinding is `<user ID>_<role>`; where the user's ID is not 32 or 64 hex digits, `keystone_` and a hash of both.
- A role is bound to the ClusterRole of its name. What can be none (`/`, `%`, `.`, `..`), and names that Kubernetes
  keeps for itself, are not bound.
"""

from __future__ import annotations

import hashlib
import re

from keystone_authenticator.identity import is_reserved

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "kubernetes-keystone"
PROJECT = "kubernetes-keystone/project"
USER = "kubernetes-keystone/user"
PROJECT_NAME = "kubernetes-keystone/project-name"
"""An annotation, for people."""
SELECTOR = f"{MANAGED_BY}={MANAGER}"

_HASH = "sha256-"
_ID = re.compile(r"[0-9a-f]{32}")
_USER_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def namespace(form: str, project_id: str, project_name: str, domain_id: str) -> str:
    """Name a project's namespace.

    Args:
        form: the `namespace-format`.
        project_id: its ID.
        project_name: its name, which may be any text.
        domain_id: of the project's domain.

    """
    if not _ID.fullmatch(project_id):
        return _hashed(_digest(project_id))
    # One after the other, as upstream does it: what looks like %d in a project's name is replaced, too.
    name = form.replace("%i", project_id).replace("%n", project_name).replace("%d", domain_id)
    return name if _NAMESPACE.fullmatch(name) and _read_ids(name) == {project_id} else project_id


def belongs(namespace: str, project: str) -> bool:
    """Whether a namespace may be the one of the project with this label: its name tells, whatever the format was.

    So a label alone, which more people may write than may delete namespaces or bind roles in them, makes none ours.
    """
    if _ID.fullmatch(project):
        return _read_ids(namespace) == {project}
    return namespace == _hashed(project.removeprefix(_HASH) if project.startswith(_HASH) else _digest(project))


def _hashed(digest: str) -> str:
    return "keystone-" + "-".join(digest[start : start + 8] for start in range(0, 40, 8))


def _read_ids(name: str) -> set[str]:
    """All IDs that can be read in a name: where it is this project's alone, the name can be no other's."""
    windows = (name[start : start + 32] for start in range(len(name) - 31))
    return {window for window in windows if _ID.fullmatch(window)}


def role_binding(user_id: str, role: str) -> str:
    """Name the RoleBinding of a user's role."""
    if _USER_ID.fullmatch(user_id):
        return f"{user_id}_{role}"
    return f"keystone_{_digest(f'{len(user_id)}:{user_id}{role}')}"


def unbindable(role: str) -> str | None:
    """Why there can be no RoleBinding to the ClusterRole of a role's name; None if there can."""
    if not role or role in (".", "..") or "/" in role or "%" in role:
        return "no ClusterRole can have its name"
    if is_reserved(role):
        return "its name is one that Kubernetes keeps for itself"
    return None


def label(identifier: str) -> str:
    """An ID as the value of a label, which is bounded in length and letters."""
    if _LABEL.fullmatch(identifier) and not identifier.startswith(_HASH):
        return identifier
    return f"{_HASH}{_digest(identifier)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
