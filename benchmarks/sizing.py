"""`python3 -m benchmarks.sizing`: what clusters of three sizes need of one authenticator; the table of docs/sizing.md.

What a cluster asks in a minute is sent as fast as it goes, and the processor time that it took is set against that
minute. One machine gets all of it, as if there was one API server. Kubelets have tokens of the cluster's own, as with
Charmed Kubernetes, and their webhook's verdicts are kept for two minutes; users have a token each. Both ask all the
time, so that the API server asks about each token every 10 s, and about access whatever it has not kept for 5 s.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks import program, servers, soak, work
from benchmarks.measure import client_command
from benchmarks.report import number
from benchmarks.servers import Files, Server
from benchmarks.work import OURS
from keystone_authenticator import reviews
from testbed import setup
from testbed.cache import Run, TestbedError, call, say
from testbed.keystone import Keystone

CONNECTIONS = 25  # as many as Go's client of the API server keeps
EVERY = 10  # seconds: the API server's cache of good tokens
TTL = 60  # seconds: ours
DISPLACED_TTL = 120  # seconds: the API server's for the cluster's own webhook, where no flag says otherwise
QUESTIONS = 1.0  # a second and user, that RBAC did not allow and that are not in the API server's cache


class Cluster(NamedTuple):
    """How large it is: nodes, and users who are at work at the same time."""

    nodes: int
    users: int


class Needs(NamedTuple):
    """What it asks, and what that takes: a second, of one processor, MB."""

    token_reviews: float
    access_reviews: float
    webhook_calls: float
    keystone_calls: float
    processor: float
    memory: float


CLUSTERS = (Cluster(10, 5), Cluster(1_000, 100), Cluster(5_000, 500))


def measure(cluster: Cluster, files: Files, client: Path, keystone: Keystone, accounts: list[work.Account]) -> Needs:
    """Send what the cluster asks in a minute."""
    kubelets = work.token_items(OURS, work.service_account_tokens(cluster.nodes), ())
    cluster_tokens = [{**item, "user": soak.ADMIN.username, "uid": soak.ADMIN.uid} for item in kubelets]
    users = work.token_items(OURS, work.mint(keystone, accounts[: cluster.users], cluster.users), accounts)
    tokens = work.save(files.folder / "tokens", [*cluster_tokens, *users])
    asked = max(1, int(cluster.users * QUESTIONS * 60))
    access = work.save(files.folder / "access", work.access_items(OURS, work.questions(soak.ITEMS, asked)))
    with ExitStack() as stack:
        webhook = stack.enter_context(servers.empty(files, reviews.authenticated("v1", soak.ADMIN)))
        path, port = soak.settings(files, keystone, webhook, speed=1)
        server = stack.enter_context(servers.running(files, "ours", servers.ours_command(path), port, True))
        before = server.processor()
        keystone.forget_calls()
        count = cluster.nodes + cluster.users
        for _ in range(60 // EVERY):
            send(client, files, server, tokens, count)
        calls = len(keystone.calls())
        send(client, files, server, access, asked)
        took = server.processor() - before
        return Needs(count / EVERY, asked / 60, cluster.nodes / DISPLACED_TTL, calls / TTL, took / 60, server.memory())


def send(client: Path, files: Files, server: Server, items: Path, count: int) -> None:
    """Send each of the items once."""
    connections = min(CONNECTIONS, count)
    command = [*client_command(client, files, server, items, connections), f"-count={count - connections}"]
    told = json.loads(call(command, "see what the client says"))
    if told["refused"] or told["wrong"] or told["failed"]:
        raise TestbedError(f"not all answers were right: {told}")


def main() -> int:
    """Measure, and print the table."""
    client = setup.benchmark_program("client")
    kept = Run("sizing")
    head = ("nodes", "users at work", "token reviews/s", "access reviews/s", "calls/s to the cluster's own webhook",
            "calls/s to Keystone", "of one processor", "resident MB")  # fmt: skip
    lines = [head, ["---"] * len(head)]
    try:
        with Keystone() as keystone:
            say("users, some minutes")
            accounts = people(keystone, max(cluster.users for cluster in CLUSTERS))
            for cluster in CLUSTERS:
                say(f"{cluster.nodes} nodes, {cluster.users} users")
                needs = measure(cluster, Files(kept.folder), client, keystone, accounts)
                share = f"{needs.processor:.1%}"
                lines.append(
                    [f"{cluster.nodes:,}", f"{cluster.users:,}", *map(number, needs[:4]), share, number(needs.memory)]
                )
    finally:
        kept.remove()
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return 0


def people(keystone: Keystone, count: int) -> list[work.Account]:
    """Make users with a role in one of twenty projects."""
    projects = [keystone.project(f"sizing-{which}") for which in range(20)]
    made = []
    for which in range(count):
        project = projects[which % len(projects)]
        user = keystone.member(f"person-{which:04}", project)
        made.append(work.account(user.id, user.name, project.id, project.name))
    return made


if __name__ == "__main__":
    program(main)
