"""What sync is made of beside plans: the account, the Lease, the notes of logins, the table of a report."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from keystone_authenticator import document
from keystone_authenticator.identity import Account, Identity, Naming
from keystone_authenticator.kubernetes import Refusal, at
from keystone_authenticator.outbound import CannotTell
from keystone_authenticator.sync import logins
from keystone_authenticator.sync.config import SyncConfig
from keystone_authenticator.sync.directory import CredentialsError, login
from keystone_authenticator.sync.lease import Lease
from keystone_authenticator.sync.logins import Counts, Logins, login_of
from keystone_authenticator.sync.passes import table
from keystone_authenticator.sync.plan import Plan, Problem

SECRET = "s3cret: \"'"


# ---------------------------------------------------------------------------------------------- the account


def test_an_account_is_an_application_credential_or_a_user_with_one_scope() -> None:
    given = {"application-credential-id": "c", "application-credential-secret": SECRET}
    assert login(json.dumps(given).encode())["auth"] == {
        "identity": {"methods": ["application_credential"], "application_credential": {"id": "c", "secret": SECRET}}
    }
    body = login(b"username: sync\npassword: 1234\nsystem-scope: all\n")["auth"]
    user = {"name": "sync", "domain": {"id": "default"}, "password": "1234"}
    assert body["identity"]["password"]["user"] == user
    assert body["scope"] == {"system": {"all": True}}
    assert login(b"{user-id: u, password: p, domain-id: d}")["auth"]["scope"] == {"domain": {"id": "d"}}
    project = login(b"{user-id: u, password: p, project-name: n, project-domain-id: d}")["auth"]["scope"]
    assert project == {"project": {"name": "n", "domain": {"id": "d"}}}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "must be a mapping"),
        ({"pasword": SECRET}, "unknown key 'pasword'"),
        ({"password": [SECRET]}, "password: must be a text"),
        ({"application-credential-id": "c"}, "needs application-credential-secret"),
        ({"application-credential-id": "c", "application-credential-secret": SECRET, "domain-id": "d"}, "nothing else"),
        ({"username": "u"}, "neither application-credential-id nor password"),
        ({"password": SECRET, "domain-id": "d"}, "needs username or user-id"),
        ({"user-id": "u", "password": SECRET}, "one of system-scope"),
        ({"user-id": "u", "password": SECRET, "domain-id": "d", "project-id": "p"}, "only one"),
        ({"user-id": "u", "password": SECRET, "system-scope": "some"}, "system-scope: must be all"),
    ],
)
def test_an_account_that_cannot_be_used_is_told_without_what_is_secret(given: Any, reason: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        login(json.dumps(given).encode())
    assert reason in str(caught.value)
    assert SECRET not in str(caught.value)
    with pytest.raises(CredentialsError, match="neither YAML nor JSON"):
        login(b"password: [" + SECRET.encode())


# ---------------------------------------------------------------------------------------------- a cluster


class Cluster:
    """An API server that keeps objects by path, with versions; it may be away."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.sent: list[tuple[str, str]] = []
        self.away = False
        self.version = 0

    async def send(self, method: str, path: str, body: Any = None, **_: Any) -> bytes | None:
        await asyncio.sleep(0)
        self.sent.append((method, path))
        if self.away:
            raise CannotTell("the API server cannot be reached")
        if method == "POST":
            path += at(body["metadata"]["name"])
            if path in self.objects:
                raise Refusal(409, "is there", path)
        elif path not in self.objects:
            return None
        if method == "DELETE":
            return document.encode(self.objects.pop(path))
        if method != "GET":
            held = self.objects.get(path, {}).get("metadata", {}).get("resourceVersion")
            if body["metadata"].get("resourceVersion", held) != held:
                raise Refusal(409, "was changed", path)
            self.version += 1
            about = {"uid": "u", **body["metadata"], "resourceVersion": str(self.version)}
            self.objects[path] = {**body, "metadata": about}
        return document.encode(self.objects[path])

    async def pages(self, *_: Any, **__: Any) -> Any:
        if self.away:
            raise CannotTell("the API server cannot be reached")
        yield []

    async def close(self) -> None:
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_lease_is_one_units_until_it_has_not_been_written_for_as_long_as_it_says() -> None:
    cluster, clock = Cluster(), Clock()
    one, two = (Lease(cluster, name, clock=clock) for name in ("one", "two"))  # type: ignore[arg-type]
    assert await one.hold()
    for _ in range(10):
        clock.now += 30
        assert await one.hold()
        assert not await two.hold()
        assert two.other == "one"
    clock.now += 59
    assert not await two.hold()
    clock.now += 1
    assert await two.hold()
    assert not await one.hold()
    (lease,) = cluster.objects.values()
    assert lease["spec"]["holderIdentity"] == "two"
    assert lease["spec"]["leaseTransitions"] == 1
    await two.give_back()
    assert await one.hold()
    await two.give_back()  # not its own any more
    assert await one.hold()


# ---------------------------------------------------------------------------------------------- notes


def identity(user: str = "alice", project: str = "p1", roles: tuple[str, ...] = ("member",), **more: Any) -> Identity:
    account = Account(f"id-of-{user}", user, "default", "Default", project, "demo", "default", roles, **more)
    return Naming("default", False).identity(account, ())


def test_a_login_is_what_an_identity_tells() -> None:
    found = login_of(identity(roles=("reader", "member")))
    assert found is not None
    assert (found.user_id, found.subject, found.roles) == ("id-of-alice", "keystone:alice", ("member", "reader"))
    assert (found.project.id, found.project.name, found.project.domain_id) == ("p1", "demo", "default")
    assert not found.partial
    assert (login_of(identity(partial=True)) or found).partial
    # Nobody's own name is bound to what a credential for some paths alone may do.
    rules = ('{"service": "kubernetes"}',)
    assert login_of(identity(application_credential_id="c", access_rules=rules)) is None


async def test_of_several_notes_about_one_user_the_last_counts_and_there_is_an_end_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logins, "MOST_WAITING", 3)
    cluster, counts = Cluster(), Counts()
    cluster.away = True
    config = SyncConfig(projects=True, excluded_ids=frozenset(["left-out"]))
    notes = Logins(cluster, config, counts)  # type: ignore[arg-type]
    for roles in (("member",), ("reader",)):
        notes.note(identity(roles=roles))
    notes.note(identity(project="left-out"))
    assert notes.waiting == 1
    for number in range(5):
        notes.note(identity(user=f"user-{number}"))
    assert (notes.waiting, counts.dropped) == (3, 3)
    for _ in range(10):
        await asyncio.sleep(0)
    assert counts.last_error == "the API server cannot be reached"
    # Whoever takes its place has what was not written.
    cluster.away = False
    after = Logins(cluster, config, counts, notes)  # type: ignore[arg-type]
    await notes.close()
    while counts.done < 3:
        await asyncio.sleep(0.01)
    assert after.waiting == 0
    asked = len(cluster.sent)
    after.note(identity(roles=("reader",)))
    assert after.waiting == 0  # written a moment ago
    assert len(cluster.sent) == asked
    await after.close()


# ---------------------------------------------------------------------------------------------- reports


def test_a_report_is_a_table_whatever_users_choose_for_names() -> None:
    lines = list(table(Plan(problems=[Problem("RoleBinding", "n", "a\tb\nc", "größer")])))
    assert [len(line.split("\t")) for line in lines] == [7, 7]
    assert all(line.count("\n") == 1 for line in lines)
    assert "größer" in lines[1]
