"""The authenticator's own user in the cluster: what it may do there, its token, and the kubeconfig that holds it.

Where the charm knows the machine's administrator, it has the API server make a service account for this unit alone,
with the rights that the options need and no others, and a token of a bounded life, which hooks renew. An operator may
give a kubeconfig instead. With neither sync nor a policy in the cluster there is nothing of this.

Not here: what the authenticator reads and writes (its package `sync`), and whose API server it is (apiserver).
"""

from __future__ import annotations

import base64
import datetime
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

import files
import secret
from apiserver import Layout
from apiserver.verify import Admin, Unverified, as_admin
from config import CharmConfig
from errors import ConfigError
from files import NAME, Places

logger = logging.getLogger(__name__)

NAMESPACE = "kube-system"
TOKEN_SECONDS = 7 * 86400
"""How long a token is asked for; it is renewed when half of its life is over."""
_SECONDS = 10  # for one request
_RBAC = "rbac.authorization.k8s.io"


class NotAvailable(Exception):
    """The user cannot be made or renewed now; what was made before is still there. A later hook tries again."""


@dataclass(frozen=True)
class _Object:
    path: str
    body: dict[str, Any]


def ensure(places: Places, config: CharmConfig, layout: Layout | None, unit: str, group: int) -> None:
    """Bring user, rights, token and kubeconfig to what the options need.

    Args:
        places: where.
        config: the options.
        layout: whose administrator makes the user; None where the operator's kubeconfig is used.
        unit: this unit's name.
        group: who reads the kubeconfig.

    Raises:
        ConfigError: the operator's kubeconfig cannot be used.
        NotAvailable: the API server does not do it now.
    """
    if config.sync_kubeconfig and config.in_cluster:
        files.write(places.kubeconfig, _inlined(Path(config.sync_kubeconfig)), 0o640, group)
    if layout is None:
        return
    record = _Record(places.cluster_user)
    wanted = list(_objects(config, _name(unit))) if config.in_cluster and not config.sync_kubeconfig else []
    if not wanted and not record.paths:
        return
    try:
        with as_admin(layout) as (session, url):
            for path in [path for path in record.paths if path not in {item.path for item in wanted}]:
                _delete(session, url, path)
                record.forget(path)
            account = ""
            for item in wanted:
                record.add(item.path)
                made = _apply(session, url, item)
                account = account or str(made["metadata"]["uid"])
            if wanted and not (places.kubeconfig.exists() and record.fresh(account, url)):
                token = _token(session, url, wanted[0].path)
                admin = Admin.load(layout.admin_kubeconfig)
                files.write(places.kubeconfig, _kubeconfig(url, admin, token["token"]), 0o640, group)
                record.renewed(account, url, str(token["expirationTimestamp"]))
    except Unverified as error:
        raise NotAvailable(str(error)) from None


def remove(places: Places, layout: Layout | None) -> None:
    """Take back what was made in the cluster; where that is not possible, say in the log what is left."""
    record = _Record(places.cluster_user)
    if not record.paths:
        return
    try:
        if layout is None:
            raise Unverified("there is no API server here")
        with as_admin(layout) as (session, url):
            for path in record.paths:
                _delete(session, url, path)
                record.forget(path)
    except (Unverified, NotAvailable) as error:
        logger.warning("left in the cluster, as it could not be asked (%s): %s", error, ", ".join(record.paths))


def _name(unit: str) -> str:
    own = unit.replace("/", "-")
    return own if own.startswith(NAME) else f"{NAME}-{own}"


def _objects(config: CharmConfig, name: str) -> Iterator[_Object]:
    """The service account first, then its rights: `bind` and not `escalate`, no Secret, nothing that is not needed."""
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}"
    yield _Object(account, {"apiVersion": "v1", "kind": "ServiceAccount"})
    if config.sync_config.strip():
        namespaces = ["get", "list", "create", "patch", *(["delete"] if config.sync_prune != "off" else [])]
        rules = [
            _rule("", "namespaces", namespaces),
            _rule(_RBAC, "rolebindings", ["get", "list", "create", "update", "patch", "delete"]),
            # Whom a role is bound to is Keystone's to say, to which role is its name's.
            _rule(_RBAC, "clusterroles", ["bind"]),
        ]
        if config.sync_prune == "empty":
            # To tell that a namespace is empty, all that it can hold has to be looked at.
            rules.append(_rule("*", "*", ["list"]))
        yield from _rights(f"/apis/{_RBAC}/v1", "Cluster", name, rules)
        leases = [_rule("coordination.k8s.io", "leases", ["get", "create", "update", "delete"])]
        yield from _rights(f"/apis/{_RBAC}/v1/namespaces/{NAMESPACE}", "", f"{name}-sync", leases, name)
    if config.policy_configmap:
        where, _, which = config.policy_configmap.partition("/")
        rules = [{**_rule("", "configmaps", ["get", "list", "watch"]), "resourceNames": [which]}]
        yield from _rights(f"/apis/{_RBAC}/v1/namespaces/{where}", "", f"{name}-policy", rules, name)


def _rule(group: str, resource: str, verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "verbs": verbs}


def _rights(folder: str, kind: str, name: str, rules: list[dict[str, Any]], account: str = "") -> Iterator[_Object]:
    """A role and its binding to the service account; `kind` is `Cluster`, or empty for a namespace's."""
    version = f"{_RBAC}/v1"
    yield _Object(
        f"{folder}/{kind.lower()}roles/{name}", {"apiVersion": version, "kind": f"{kind}Role", "rules": rules}
    )
    yield _Object(
        f"{folder}/{kind.lower()}rolebindings/{name}",
        {
            "apiVersion": version,
            "kind": f"{kind}RoleBinding",
            "roleRef": {"apiGroup": _RBAC, "kind": f"{kind}Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": NAMESPACE, "name": account or name}],
        },
    )


def _apply(session: requests.Session, url: str, item: _Object) -> dict[str, Any]:
    """Make an object what it should be, in one call (server-side apply)."""
    labels = {"app.kubernetes.io/managed-by": NAME, "app.kubernetes.io/part-of": NAME}
    body = {**item.body, "metadata": {"name": item.path.rpartition("/")[2], "labels": labels}}
    answer = session.patch(
        f"{url}{item.path}?fieldManager={NAME}&force=true",
        data=json.dumps(body),
        headers={"Content-Type": "application/apply-patch+yaml"},
        timeout=_SECONDS,
    )
    return _answer(answer, f"making {item.path}", 200, 201)


def _token(session: requests.Session, url: str, account: str) -> dict[str, Any]:
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": TOKEN_SECONDS},
    }
    answer = session.post(f"{url}{account}/token", json=body, timeout=_SECONDS)
    return _answer(answer, f"a token for {account}", 201)["status"]


def _delete(session: requests.Session, url: str, path: str) -> None:
    answer = session.delete(f"{url}{path}", timeout=_SECONDS)
    if answer.status_code != 404:
        _answer(answer, f"removing {path}", 200, 202)


def _answer(answer: requests.Response, about: str, *good: int) -> dict[str, Any]:
    try:
        content = answer.json()
        if answer.status_code in good:
            return content
        message = str(content["message"])[:300]
    except (ValueError, KeyError, TypeError):
        message = "no reason is given"
    raise NotAvailable(f"the API server answers {answer.status_code} to {about}: {message}")


def _kubeconfig(url: str, admin: Admin, token: str) -> bytes:
    cluster = {"server": url, "certificate-authority-data": _encoded(admin.ca), "tls-server-name": admin.host}
    return _dump(cluster, {"token": token})


def _inlined(path: Path) -> bytes:
    """Give an operator's kubeconfig with all that it names by file put into it.

    Raises:
        ConfigError: it cannot be used.
    """
    option = "sync-kubeconfig"
    try:
        admin = Admin.parse(secret.of_file(option, str(path)), path)
    except Unverified as error:
        raise ConfigError(option, str(error)) from None
    user: dict[str, Any] = {"token": admin.token} if admin.token else {}
    if admin.certificate:
        user |= {"client-certificate-data": _encoded(admin.certificate), "client-key-data": _encoded(admin.key)}
    cluster = {"server": admin.server, "certificate-authority-data": _encoded(admin.ca), "tls-server-name": admin.host}
    return _dump(cluster, user)


def _dump(cluster: dict[str, Any], user: dict[str, Any]) -> bytes:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": NAME, "cluster": cluster}],
            "users": [{"name": NAME, "user": user}],
            "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME}}],
            "current-context": NAME,
        }
    ).encode()


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


class _Record:
    """What was made in the cluster, written down before it is, and for how long the token is good."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._content: dict[str, Any] = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            self._content = {}

    @property
    def paths(self) -> list[str]:
        """The objects, as the API server knows them."""
        return list(self._content.get("objects", []))

    def add(self, path: str) -> None:
        if path not in self.paths:
            self._write(objects=[*self.paths, path])

    def forget(self, path: str) -> None:
        self._write(objects=[other for other in self.paths if other != path])

    def fresh(self, account: str, url: str) -> bool:
        """Whether the token is this very account's, and half of its life is not over yet."""
        same = (self._content.get("account"), self._content.get("url")) == (account, url)
        return same and time.time() < self._content.get("renew", 0)

    def renewed(self, account: str, url: str, expires: str) -> None:
        ends = _epoch(expires)
        self._write(account=account, url=url, renew=(time.time() + ends) / 2)

    def _write(self, **changes: Any) -> None:
        self._content |= changes
        if self.paths:
            files.write(self._path, json.dumps(self._content, indent=1).encode() + b"\n", 0o600)
        else:
            files.remove(self._path)


def _epoch(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
