"""A control plane that is used: where the short stories begin, on whatever layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from testbed import users
from testbed.cluster import Cluster
from testbed.stage import StageOf
from testbed.traffic import Traffic, lives_of
from tests.machine.test_story import INVENTORY, UNITS

C = TypeVar("C", bound=Cluster)
S = TypeVar("S", bound="InUse")


@dataclass
class InUse(Generic[C]):
    """What the tests of a story know of each other."""

    stage: StageOf[C]
    kubeconfig: Path
    traffic: Traffic
    inventory: str
    units: str

    @property
    def cluster(self) -> C:
        return self.stage.cluster

    def kubectl(self, *arguments: str) -> tuple[int, str]:
        """Run kubectl as alice, who has nothing but an application credential."""
        done = self.cluster.kubectl(*arguments, kubeconfig=self.kubeconfig, check=False)
        return done.returncode, done.stdout + done.stderr

    def lives(self) -> int:
        """How often the API server has been started."""
        return len(lives_of(self.cluster))

    def in_force(self) -> bool:
        """Whether alice may do what the policy says."""
        return self.kubectl("get", "pods")[0] == 0


@contextlib.contextmanager
def in_use(stage: StageOf[C], story: type[S]) -> Iterator[S]:
    """Begin a story: alice has a kubeconfig, the cluster's own traffic runs, what is on the machine is written down."""
    demo = stage.keystone.project("demo")
    alice = stage.keystone.member("alice", demo)
    kubeconfig = users.hand_out(stage.keystone.application_credential(alice, demo), stage.keystone, stage.cluster)
    with Traffic(stage.cluster) as traffic:
        yield story(stage, kubeconfig, traffic, stage.machine.shell(INVENTORY), stage.machine.shell(UNITS))
