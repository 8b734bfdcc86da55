"""The reviews that are sent, and what each answer must say; made from a real Keystone's users, or varied at random.

Both sides get the same tokens and the same questions, each spelled as it knows them: upstream `v1beta1` and bare names,
ours `v1` and its own names. An item is a line of JSON for the client (`client/main.go`).
"""

from __future__ import annotations

import base64
import json
import random
import secrets
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keystone_authenticator import reviews
from keystone_authenticator.identity import Account, Group, Identity, Naming
from testbed import cache, setup
from testbed.keystone import DEFAULT_DOMAIN, Keystone

HERE = Path(__file__).parent
USERS = 26
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")
READ = ("get", "list", "watch")
RESOURCES = (("", "pods"), ("", "configmaps"), ("", "secrets"), ("apps", "deployments"), ("batch", "jobs"))
AUDIENCES = ["https://kubernetes.default.svc.cluster.local"]


@dataclass(frozen=True)
class Side:
    """How a server wants to be asked, and what it calls people."""

    name: str
    version: str
    group_key: str
    naming: Naming


OURS = Side("ours", "v1", "groups", Naming(DEFAULT_DOMAIN, False))
UPSTREAM = Side("upstream", "v1beta1", "group", Naming(DEFAULT_DOMAIN, True))
EMPTY = Side("empty", "v1", "groups", OURS.naming)
SIDES = (OURS, EMPTY, UPSTREAM)


def people(keystone: Keystone) -> list[Account]:
    """Make users in Keystone, each with a role in one of three projects and in two groups."""
    projects = [keystone.project(f"demo{number}") for number in (1, 2, 3)]
    groups = [keystone.group(f"team-{number}") for number in range(4)]
    made = []
    for number in range(USERS):
        project = projects[number % len(projects)]
        user = keystone.member(f"user-{number:02}", project)
        for offset in (0, 1):
            keystone.join(groups[(number + offset) % len(groups)], user)
        made.append(account(user.id, user.name, project.id, project.name))
    return made


def account(user_id: str, user: str, project_id: str, project: str) -> Account:
    """Give a user of the default domain with the role `member` in a project of it."""
    domain = DEFAULT_DOMAIN
    return Account(user_id, user, domain, "Default", project_id, project, domain, ("member", "reader"), None)


def mint(keystone: Keystone, accounts: Sequence[Account], count: int) -> list[str]:
    """Make tokens that this Keystone accepts, the accounts taking turns."""
    holders = [[account.user_id, account.project_id] for account in accounts]
    wanted = {"configuration": str(keystone.folder), "holders": holders, "count": count}
    python = setup.keystone() / "bin" / "python"
    return cache.call([python, HERE / "mint.py"], "see what Keystone says", input=json.dumps(wanted)).split()


def service_account_tokens(count: int) -> list[str]:
    """Make tokens as service accounts have them, which no cluster has issued."""
    header = _segment(b'{"alg":"RS256","kid":"dQwFZv0f1UN1s0Vx0Y0yB2cTJr1i2x3y"}')
    payload = (
        b'{"iss":"https://kubernetes.default.svc.cluster.local","sub":"system:serviceaccount:kube-system:x","n":%d}'
    )
    return [f"{header}.{_segment(payload % number)}.{_segment(secrets.token_bytes(256))}" for number in range(count)]


def _segment(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def token_items(side: Side, tokens: Iterable[str], accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """Ask about tokens whose holders take turns; the empty handler says always the first. No accounts: all refused."""
    return [
        token_item(side, token, _holder(side, accounts, number) if accounts else {})
        for number, token in enumerate(tokens)
    ]


def token_item(side: Side, token: str, holder: dict[str, str]) -> dict[str, Any]:
    """Ask about a token; without a holder it must be refused."""
    body = {
        "kind": "TokenReview",
        "apiVersion": f"authentication.k8s.io/{side.version}",
        "metadata": {"creationTimestamp": None},
        "spec": {"token": token, "audiences": AUDIENCES},
        "status": {"user": {}},
    }
    return {"body": body, **holder}


def _holder(side: Side, accounts: Sequence[Account], number: int) -> dict[str, str]:
    """Say who must be named as the holder of the token with that number: the empty handler names always the first."""
    found = accounts[0 if side is EMPTY else number % len(accounts)]
    return {"user": side.naming.identity(found, ()).username, "uid": found.user_id}


def whoami(token: str, holder: dict[str, str]) -> dict[str, Any]:
    """Have an API server say who the holder of a token is."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    return {"path": path, "token": token, "body": body, **holder}


def whoami_items(side: Side, tokens: Iterable[str], accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """Have an API server say who the holders of tokens are, who take turns."""
    return [whoami(token, _holder(side, accounts, number)) for number, token in enumerate(tokens)]


def empty_answer(account: Account) -> bytes:
    """Give what the empty handler answers to every token review: as long as ours."""
    return reviews.authenticated("v1", OURS.naming.identity(account, _groups()))


def _groups() -> list[Group]:
    return [Group("team-0", DEFAULT_DOMAIN), Group("team-1", DEFAULT_DOMAIN)]


def policy(items: int) -> list[dict[str, Any]]:
    """Make a policy: the example of upstream's documentation if `items` is 1; else both formats by turns."""
    if items == 1:
        users = {"projects": ["demo1"], "roles": ["member"]}
        return [{"users": users, "resource_permissions": {"*/pods": list(READ)}}]
    made: list[dict[str, Any]] = []
    for number in range(items):
        project, namespace = f"project-{number}", f"team-{number}"
        if number % 2:
            resource = {
                "verbs": list(READ),
                "resources": ["pods", "configmaps"],
                "version": "*",
                "namespace": namespace,
            }
            match = [{"type": "role", "values": ["member"]}, {"type": "project", "values": [project]}]
            made.append({"resource": resource, "match": match})
        else:
            permissions = {f"{namespace}/{resource}": list(READ) for resource in ("pods", "configmaps")}
            made.append({"users": {"projects": [project], "roles": ["member"]}, "resource_permissions": permissions})
    return made


def one_role_policy(items: int) -> list[dict[str, Any]]:
    """Make a policy whose items all stand on one role, each for a namespace of its own."""
    return [
        {
            "resource": {"verbs": list(READ), "resources": ["pods"], "version": "*", "namespace": f"team-{number}"},
            "match": [{"type": "role", "values": ["member"]}],
        }
        for number in range(items)
    ]


@dataclass(frozen=True)
class Question:
    """An access review before it is spelled, and its verdict."""

    account: Account
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    allowed: bool


def questions(items: int, count: int) -> list[Question]:
    """Ask at random about the policy of that size: two in three read pods or configmaps of a project that has items."""
    chance = random.Random(items)
    made = []
    for number in range(count):
        place = chance.randrange(max(items, 4))
        may = number % 3 != 0
        project = f"project-{place}" if items > 1 else "demo1" if may else "demo2"
        namespace = f"team-{place}"
        group, resource = chance.choice(RESOURCES[:2] if may else RESOURCES)
        verb = chance.choice(READ if may else VERBS)
        if items == 1:
            allowed = project == "demo1" and resource == "pods" and verb in READ
        else:
            allowed = resource in ("pods", "configmaps") and verb in READ
        ids = (uuid.UUID(int=chance.getrandbits(128)).hex for _ in range(2))
        who = account(next(ids), f"user-{chance.randrange(10_000)}", next(ids), project)
        name = "" if verb in ("list", "watch", "create") else f"web-{chance.getrandbits(40):x}"
        made.append(Question(who, verb, group, resource, namespace, name, allowed))
    return made


def access_items(side: Side, asked: Sequence[Question]) -> list[dict[str, Any]]:
    """Ask as the API server does: about the user that the side's own token review gave it."""
    return [
        {
            "body": {
                "kind": "SubjectAccessReview",
                "apiVersion": f"authorization.k8s.io/{side.version}",
                "metadata": {"creationTimestamp": None},
                "spec": {"resourceAttributes": _attributes(question), **_user(side, question.account)},
                "status": {"allowed": False},
            },
            "allowed": question.allowed and side is not EMPTY,
        }
        for question in asked
    ]


def _attributes(question: Question) -> dict[str, str]:
    attributes = {
        "namespace": question.namespace,
        "verb": question.verb,
        "group": question.group,
        "version": "v1",
        "resource": question.resource,
        "name": question.name,
    }
    return {key: value for key, value in attributes.items() if value}


def _user(side: Side, account: Account) -> dict[str, Any]:
    identity: Identity = side.naming.identity(account, _groups())
    extra = {key: list(values) for key, values in identity.extra}
    groups = [*identity.groups, "system:authenticated"]
    return {"user": identity.username, "uid": identity.uid, side.group_key: groups, "extra": extra}


def save(path: Path, items: Iterable[dict[str, Any]]) -> Path:
    """Write items for the client."""
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path
