"""Steady load on a machine's webhook endpoint, with the API server's own certificate; says what became of each review.

`traffic` looks at requests to the API server, which has caches and tries some things again; here nothing is between.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from testbed import setup
from testbed.cache import TestbedError
from testbed.machine import Machine

SCRIPT = setup.HERE / "control_plane" / "reviewers.py"
KUBECONFIG = "/var/snap/kube-apiserver/common/kubernetes-keystone/authentication.kubeconfig"
CLIENTS = 8
PAUSE = 0.01  # seconds between two reviews of one client


class Review(NamedTuple):
    """A review, and what has to stand in the answer."""

    body: dict[str, Any]
    right: str


@dataclass(frozen=True)
class Seen:
    """What the clients saw: answers that were right, what failed (`refused`, `lost`, `late`, `wrong`), seconds."""

    answered: int
    slowest: float
    failures: list[dict[str, Any]]

    @property
    def kinds(self) -> dict[str, int]:
        """How many failures of each kind there were."""
        return dict(Counter(failure["kind"] for failure in self.failures))


def token_review(token: str, user: str) -> Review:
    """Ask whose a token is."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    return Review(body, f'"username":"{user}"')


class Reviewers:
    """Clients that are busy inside the context.

    Args:
        machine: on which they and the endpoint are.
        reviews: which they send by turns.
        fresh: whether each review has a connection of its own, so that certificates count each time.

    """

    def __init__(self, machine: Machine, *reviews: Review, fresh: bool = False) -> None:
        self._machine = machine
        self._fresh = fresh
        self._reviews = reviews
        self._seen: Seen | None = None

    def __enter__(self) -> Reviewers:
        """Begin."""
        config = yaml.safe_load(self._machine.read(KUBECONFIG))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        server = urlsplit(cluster["server"])
        wanted = {
            "address": [server.hostname, server.port],
            "ca": _decoded(cluster["certificate-authority-data"]),
            "certificate": _decoded(user["client-certificate-data"]),
            "key": _decoded(user["client-key-data"]),
            "reviews": [{"body": json.dumps(review.body), "right": review.right} for review in self._reviews],
            "clients": CLIENTS,
            "pause": PAUSE,
            "fresh": self._fresh,
        }
        command = self._machine.command("python3", "-c", SCRIPT.read_text())
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        if self._seen is None:
            self._process.kill()
            self._process.wait()

    def end(self) -> Seen:
        """End them, every review under way being waited for, and tell what they saw."""
        told, problem = self._process.communicate(timeout=60)
        if self._process.returncode:
            raise TestbedError(f"the clients on {self._machine.name} failed: {problem[-2000:]}")
        self._seen = Seen(**json.loads(told))
        return self._seen


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()
