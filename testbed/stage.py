"""Everything at once: a control plane, a Keystone that it can reach, the packed charm and its unit, not deployed yet.

The demo and the machine tests both begin here. Not here: what is done on that stage.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from testbed import pack
from testbed.agent import Unit
from testbed.charmed import Charmed
from testbed.keystone import Keystone


class Stage:
    """A Charmed Kubernetes control plane on one machine, and a Keystone beside it.

    Args:
        charm: the packed charm; otherwise it is packed now.
        caching: Keystone's own cache; see `Keystone`.

    """

    def __init__(self, charm: Path | None = None, *, caching: bool = True) -> None:
        self.charm = charm or pack.pack()
        self._caching = caching
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        """Start everything."""
        with contextlib.ExitStack() as stack:
            self.cluster = stack.enter_context(Charmed())
            self.machine = self.cluster.machine
            self.keystone = stack.enter_context(Keystone(self.machine.host_address, caching=self._caching))
            self.unit = Unit(self.machine)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._stack.close()

    @property
    def keystone_options(self) -> dict[str, str]:
        """What `juju deploy --config` needs for the charm to find this Keystone."""
        return {"keystone-url": self.keystone.url, "keystone-ca": self.keystone.ca.read_text()}
