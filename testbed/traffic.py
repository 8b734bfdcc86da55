"""What a live cluster does all the time: requests with the cluster's own tokens, each with its outcome and time.

It says which requests were lost beyond what the restarts of the API server account for, whoever made them: for each
client, whatever fails after a restart began and before that client's first success on the new server is the restart's;
any other failure is a lost request.
"""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from testbed.cluster import NODE, Cluster

PAUSE = 0.1  # seconds between two requests of one client
TOLD = 0.3  # seconds; systemd says "Stopping" after it has sent the signal, on a busy machine a while after it


class Request(NamedTuple):
    """One request; times are Unix times, `status` is 0 where there was no answer."""

    client: str
    began: float
    ended: float
    status: int


class Life(NamedTuple):
    """A life of the API server's service, in Unix times; one that has not begun to end ends at infinity."""

    invocation: str
    began: float
    ending: float


@dataclass(frozen=True)
class Outcome:
    """What the traffic saw."""

    requests: int
    by_restarts: int
    lost: list[Request]
    restarts: int


class Traffic:
    """Clients of the cluster, busy inside the context: an administrator and a kubelet, each in a loop of its own.

    Args:
        cluster: with what they talk.
        others: more of them: by name the path that it asks for, and its token.
        reviews: whether one more has the API server ask its webhook each time, about a token that nobody has. What
            the other two ask with is remembered there for ten seconds.

    """

    def __init__(
        self, cluster: Cluster, others: Mapping[str, tuple[str, str]] | None = None, *, reviews: bool = False
    ) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._requests: list[Request] = []
        paths = {"admin": "/api/v1/namespaces", "kubelet": f"/api/v1/nodes/{NODE}"}
        clients = [(name, path, cluster.tokens[name].token) for name, path in paths.items()]
        clients += [(name, path, token) for name, (path, token) in (others or {}).items()]
        self._threads = [threading.Thread(target=self._loop, args=client, daemon=True) for client in clients]
        if reviews:
            self._threads.append(threading.Thread(target=self._review, daemon=True))

    def __enter__(self) -> Traffic:
        """Begin."""
        self._began = time.time()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; every request under way is waited for."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _loop(self, client: str, path: str, token: str) -> None:
        while not self._stop.wait(PAUSE):
            began = time.time()
            status = self._cluster.status(path, token)
            self._requests.append(Request(client, began, time.time(), status))

    def _review(self) -> None:
        path = "--raw=/apis/authentication.k8s.io/v1/tokenreviews"
        while not self._stop.wait(PAUSE):
            spec = {"token": secrets.token_urlsafe(24)}
            review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
            began = time.time()
            done = self._cluster.kubectl("create", path, "-f", "-", input=json.dumps(review), check=False)
            # Of a webhook that was not reached the error names the call; that nobody has the token is an error, too.
            told = json.loads(done.stdout)["status"].get("error", "") if done.returncode == 0 else 'Post "http'
            answered = 'Post "http' not in told
            self._requests.append(Request("reviews", began, time.time(), 200 if answered else 0))

    def requests(self, client: str) -> list[Request]:
        """Give one client's requests until now."""
        return [request for request in list(self._requests) if request.client == client]

    def gap(self, client: str) -> float:
        """Give the longest time, in seconds, from one good answer to the next that a client has had until now."""
        good = [request.ended for request in self.requests(client) if request.status == 200]
        return max((after - before for before, after in itertools.pairwise(good)), default=float("inf"))

    def outcome(self) -> Outcome:
        """Count what was seen until now."""
        requests = list(self._requests)
        lives = [life for life in lives_of(self._cluster) if life.ending > self._began]
        failed = [request for request in requests if request.status != 200]
        lost = [request for request in failed if not _excused(request, requests, lives)]
        return Outcome(len(requests), len(failed) - len(lost), lost, len(lives) - 1)


def _excused(request: Request, requests: list[Request], lives: list[Life]) -> bool:
    """Tell whether a restart accounts for a failure."""
    for before, after in itertools.pairwise(lives):
        if request.ended < before.ending - TOLD:
            continue
        good = [one.ended for one in requests if one.client == request.client and one.status == 200]
        recovered = min((end for end in good if end > after.began), default=float("inf"))
        if request.began < recovered:
            return True
    return False


def lives_of(cluster: Cluster) -> list[Life]:
    """Give the lives of the API server since the machine started, from systemd's own messages in the journal."""
    command = ["journalctl", "-q", "-o", "json", "--no-pager", f"UNIT={cluster.service}", "_PID=1"]
    lives: list[Life] = []
    for line in cluster.machine.run(*command).stdout.splitlines():
        entry = json.loads(line)
        # When it was sent, where that is told: a busy journal takes it later.
        at = int(entry.get("_SOURCE_REALTIME_TIMESTAMP") or entry["__REALTIME_TIMESTAMP"]) / 1e6
        invocation = entry.get("INVOCATION_ID", "")
        message = str(entry["MESSAGE"])
        if message.startswith("Started "):
            lives.append(Life(invocation, at, float("inf")))
        elif lives and lives[-1].ending == float("inf"):  # Stopping, or its main process exited
            lives[-1] = lives[-1]._replace(ending=at)
    return lives
