"""Everything at once: a control plane, a Keystone that it can reach, the packed charm and its unit, not deployed yet.

The demo and the machine tests both begin here. Not here: what is done on that stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from testbed import pack
from testbed.agent import Unit
from testbed.charmed import Charmed
from testbed.cluster import Cluster
from testbed.juju import Juju
from testbed.keystone import Keystone

C = TypeVar("C", bound=Cluster)
S = TypeVar("S", bound="StageOf")


class StageOf(Generic[C]):
    """A control plane on one machine, and a Keystone beside it.

    Args:
        make: the control plane.
        charm: the packed charm; otherwise it is packed now.
        caching: Keystone's own cache; see `Keystone`.

    """

    def __init__(self, make: Callable[[], C], charm: Path | None = None, *, caching: bool = True) -> None:
        self._make = make
        self.charm = charm or pack.pack()
        self._caching = caching
        self._stack = contextlib.ExitStack()

    def __enter__(self: S) -> S:
        """Start everything."""
        with contextlib.ExitStack() as stack:
            self.cluster = stack.enter_context(self._make())
            self.machine = self.cluster.machine
            self.keystone = stack.enter_context(Keystone(self.machine.host_address, caching=self._caching))
            # Python keeps quiet about what will change one day, unless it is asked.
            self.unit = Unit(self.machine, environment={"PYTHONWARNINGS": "default"})
            self.juju = Juju([self.unit], self.charm, [self.cluster], self.keystone)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._stack.close()

    def trust_keystone(self) -> None:
        """Have the machine trust Keystone's certificate, as it does one that a CA of everybody's has signed."""
        self.machine.write("/usr/local/share/ca-certificates/keystone.crt", self.keystone.ca.read_bytes())
        self.machine.run("update-ca-certificates")

    @property
    def keystone_options(self) -> dict[str, str]:
        """What `juju deploy --config` needs for the charm to find this Keystone."""
        return {"keystone-url": self.keystone.url, "keystone-ca": self.keystone.ca.read_text()}


class Stage(StageOf[Charmed]):
    """With a Charmed Kubernetes control plane."""

    def __init__(self, charm: Path | None = None, *, caching: bool = True) -> None:
        super().__init__(Charmed, charm, caching=caching)
