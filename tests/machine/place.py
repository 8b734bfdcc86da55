"""The stand-in's way to tell the scenarios: its `juju`, the test bed's machines, a Keystone of its own.

What it cannot do is said by the stand-in itself, which refuses the command. The last release is the tree as it is under
another version, until there is a release to take.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed import pack
from testbed.agent import Unit
from testbed.cluster import Cluster
from testbed.juju import Juju
from testbed.keystone import Keystone
from tests import scenarios
from tests.scenarios import Failed, Kind, Said

KINDS = {kind.layout: kind for kind in (scenarios.CHARMED, scenarios.CANONICAL)}


@dataclass
class StandIn:
    """A `scenarios.Place` on the test bed."""

    model: Juju
    units: Sequence[Unit]
    cluster: Cluster
    keystone: Keystone
    charm: Path
    folder: Path
    before: str = field(init=False)

    def __post_init__(self) -> None:
        self.before = str(pack.changed(self.charm, self.folder / "last-release.charm"))
        self.server, self.server_ca = self.cluster.server, self.cluster.ca

    @property
    def kind(self) -> Kind:
        return KINDS[self.cluster.layout]

    @property
    def control_plane(self) -> str:
        return self.model.control_plane

    def juju(self, line: str) -> str:
        answer = self.model.run(shlex.split(line), self.folder)
        if answer.code:
            raise Failed(f"juju {line}: {answer.errors}", answer.output)
        return answer.output

    def kubectl(self, *arguments: str, kubeconfig: Path | None = None, server: str | None = None) -> Said:
        at = [f"--server={server}"] if server else []
        done = self.cluster.kubectl(*at, *arguments, kubeconfig=kubeconfig, check=False)
        return Said(done.returncode, done.stdout + done.stderr)

    def settle(self) -> None:
        for unit in self.units:
            if unit.related:
                unit.update_status()
