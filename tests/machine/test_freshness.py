"""What Keystone or the operator takes back ends access at the API server, within the sums of docs/freshness.md."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from testbed.keystone import Keystone, Project
from testbed.stage import Stage
from tests.documents import table

BOUNDS = {row[0]: float(row[1].removesuffix(" s")) for row in table("freshness.md", "| What changes")}
LAYERS = {row[0]: float(row[1].removesuffix(" s")) for row in table("freshness.md", "| Layer")}
VERDICT = LAYERS["a verdict of Keystone's is kept by the authenticator"]
CACHED = 10.0  # the API server's

PODS = "/api/v1/namespaces/default/pods"
EVERY = 0.2
POLICY = json.dumps([{"users": {"projects": ["policed"]}, "resource_permissions": {"default/pods": ["list"]}}])
NO_POLICY = json.dumps([{"users": {"projects": ["nobody"]}, "resource_permissions": {"default/pods": ["list"]}}])


@dataclass
class Withdrawal:
    """Somebody who may list pods because of a group that RBAC binds, and how that is taken back."""

    name: str
    token: str
    group: str
    take_back: Callable[[], None]
    ended: float = float("inf")
    status: int = 0


def withdrawals(keystone: Keystone) -> list[Withdrawal]:
    made: list[Withdrawal] = []

    def one(name: str, token: str, group: str, take_back: Callable[[], None]) -> None:
        made.append(Withdrawal(name, token, group, take_back))

    def somebody(name: str, *roles: str) -> tuple[Project, str, Callable[[], str]]:
        project = keystone.project(name)
        user = users[name] = keystone.member(name, project, *roles)
        return project, f"keystone:project:{project.id}", lambda: keystone.token(user, project)

    users = {}
    _, group, token = somebody("revoked")
    revoked = token()
    one("a token, revoked", revoked, group, lambda: keystone.revoke_token(revoked))

    project, group, _ = somebody("credential")
    credential = keystone.application_credential(users["credential"], project)
    name = "its application credential, deleted"
    one(name, keystone.credential_token(credential), group, lambda: keystone.delete(credential))

    _, group, token = somebody("disabled")
    one("the user, disabled", token(), group, lambda: keystone.update(users["disabled"], enabled=False))

    closed, group, token = somebody("closed")
    one("the project, disabled", token(), group, lambda: keystone.update(closed, enabled=False))

    only, group, token = somebody("only-role")
    one("the only role in the project", token(), group, lambda: keystone.revoke("member", users["only-role"], only))

    two, group, token = somebody("two-roles", "member", "manager")
    name = "one of two roles, to which RBAC binds"
    one(name, token(), f"{group}:role:manager", lambda: keystone.revoke("manager", users["two-roles"], two))

    _, _, token = somebody("leaver")
    left = keystone.group("left", users["leaver"])
    name = "membership in a group, to which RBAC binds"
    one(name, token(), "keystone:group:left", lambda: keystone.leave(left, users["leaver"]))

    _, _, token = somebody("groupless")
    gone = keystone.group("gone", users["groupless"])
    one("the group itself, deleted", token(), "keystone:group:gone", lambda: keystone.delete(gone))
    return made


def bind(stage: Stage, groups: list[str]) -> None:
    api = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "list-pods"}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group} for group in groups]
    stage.cluster.apply(
        {**api, "kind": "ClusterRole", "metadata": {"name": "list-pods"}, "rules": rules},
        {**api, "kind": "ClusterRoleBinding", "metadata": {"name": "list-pods"}, "roleRef": role, "subjects": subjects},
    )


def until_refused(stage: Stage, token: str, end: float) -> tuple[float, int]:
    """Ask again and again; when it was first refused, and how."""
    while True:
        status = stage.cluster.status(PODS, token)
        if status != 200 or time.monotonic() > end:
            return time.monotonic(), status
        time.sleep(EVERY)


def test_what_keystone_takes_back_ends_access_within_the_sum_of_all_caches(wired: Stage) -> None:
    bound = BOUNDS["a token, or whose it is"]
    made = withdrawals(wired.keystone)
    bind(wired, [one.group for one in made])
    time.sleep(1.1)  # Keystone counts revocations in seconds
    # What RBAC sees of a new binding is a moment old, and a new user's "no" is not cached.
    for one in made:
        wired.machine.wait(lambda one=one: wired.cluster.status(PODS, one.token) == 200, one.name, 30)

    # Everybody's verdict is asked for anew, so that all caches are as young as can be when it is taken back.
    wired.machine.run("systemctl", "restart", "kubernetes-keystone.service")
    time.sleep(2 * CACHED + 1)

    def tell(one: Withdrawal) -> None:
        known = time.monotonic()
        assert wired.cluster.status(PODS, one.token) == 200
        one.take_back()
        taken = time.monotonic()
        # The worst moment: ours is asked just before it would ask Keystone, and the API server remembers from then on.
        time.sleep(max(0.0, known + VERDICT - 2 - time.monotonic()))
        one.status = wired.cluster.status(PODS, one.token)
        if one.status == 200:
            ended, one.status = until_refused(wired, one.token, taken + 2 * bound)
            one.ended = ended - taken
        else:
            one.ended = time.monotonic() - taken

    threads = [threading.Thread(target=tell, args=(one,)) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in made:
        print(f"{one.name}: {one.status} after {one.ended:.1f} s")
    documented = {row[0]: row for row in table("freshness.md", "| Taken back")}
    for one in made:
        assert one.ended <= bound, one
        assert one.status in (401, 403), one
        assert str(one.status) in documented[one.name][3], one
        # They were really remembered, or the test would tell nothing of the layers.
        assert one.ended > VERDICT - 5, one


def test_a_policy_that_changes_is_in_force_within_the_sum_of_its_caches(wired: Stage) -> None:
    project = wired.keystone.project("policed")
    token = wired.keystone.token(wired.keystone.member("policed", project), project)
    wired.machine.wait(lambda: wired.cluster.status(PODS, token) == 200, "the policy to allow", 30)
    measured = []
    for policy, before in ((NO_POLICY, 200), (POLICY, 403)):
        seen: list[tuple[float, int]] = []
        stop = threading.Event()

        def watch(seen: list[tuple[float, int]] = seen, stop: threading.Event = stop) -> None:
            while not stop.wait(EVERY):
                seen.append((time.time(), wired.cluster.status(PODS, token)))

        watching = threading.Thread(target=watch)
        watching.start()
        wired.machine.wait(lambda seen=seen: seen, "the first answer")
        wired.unit.configure(policy=policy)
        wired.machine.wait(lambda seen=seen, before=before: seen[-1][1] != before, "the policy's effect", 60)
        stop.set()
        watching.join()
        written = float(wired.machine.shell("stat -c %.9Y /etc/kubernetes-keystone/policy.json"))
        measured.append(next(at for at, status in seen if status != before) - written)
    print(f"a policy: denied after {measured[0]:.1f} s, allowed after {measured[1]:.1f} s")
    assert max(measured) <= BOUNDS["the policy"]


def test_grace_ends_when_it_says_while_keystone_is_away(wired: Stage) -> None:
    ttl, grace = 15, 15
    wired.unit.configure(token_cache_ttl=ttl, outage_grace=grace)
    assert wired.unit.status.name == "active"
    # The sum of the page, with these two in the place of the defaults.
    bound = (
        BOUNDS["a known token, Keystone being away"]
        - VERDICT
        - LAYERS["while Keystone gives no verdict: a known token"]
        + ttl
        + grace
    )
    project = wired.keystone.project("stranded")
    token = wired.keystone.token(wired.keystone.member("stranded", project), project)
    bind(wired, [f"keystone:project:{project.id}"])
    wired.machine.wait(lambda: wired.cluster.status(PODS, token) == 200, "the binding", 30)
    known = time.monotonic()
    wired.keystone.stop()
    try:
        time.sleep(ttl + CACHED + 1)
        assert wired.cluster.status(PODS, token) == 200, "there is no grace"
        ended, status = until_refused(wired, token, known + 2 * bound)
        print(f"grace: {status} after {ended - known:.1f} s, with {ttl} s and {grace} s of grace")
        assert status == 401
        assert ended - known <= bound
    finally:
        wired.keystone.start()
    wired.machine.wait(lambda: wired.cluster.status(PODS, token) == 200, "the token to be good again", 10)
