"""A machine whose Python is another one than the charm was packed for, as after an upgrade of its release.

The charm's compiled libraries do not load there, so that nothing of the charm can run but this, which needs ops alone.
Not here: what the cluster loses, which is nothing (systemd takes the flags out when the authenticator, which has
compiled libraries as well, does not start).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NoReturn

import ops

_LIBRARY = "pydantic_core/_pydantic_core.cpython-*.so"


def problem(paths: list[str]) -> str:
    """Say that the compiled libraries in these folders are another Python's; empty if they are not."""
    found = [file.name for path in paths for file in Path(path).glob(_LIBRARY)]
    tags = {match.groups() for match in (re.search(r"\.cpython-(\d)(\d+)-", name) for name in found) if match}
    packed = ", ".join(sorted(".".join(tag) for tag in tags))
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not tags or tuple(here.split(".")) in tags:
        return ""
    return (
        f"Python {here} is not what the charm was packed for ({packed}): juju refresh kubernetes-keystone "
        "brings the one for this release; until then the API server runs without Keystone"
    )


def end(error: ImportError) -> NoReturn:
    """End this hook with a status instead of a traceback, if that is why something could not be imported."""
    if not problem(sys.path):
        raise error
    ops.main(Unfit)
    sys.exit(0)


class Unfit(ops.CharmBase):
    """Says what is the matter, and does nothing."""

    def __init__(self, framework: ops.Framework):
        super().__init__(framework)
        framework.observe(self.on.collect_unit_status, self._on_collect_status)
        framework.observe(self.on.remove, self._on_remove)
        for action in self.meta.actions:
            framework.observe(self.on[action].action, self._on_action)

    def _on_collect_status(self, event: ops.CollectStatusEvent) -> None:
        event.add_status(ops.BlockedStatus(problem(sys.path)))

    def _on_remove(self, _: ops.RemoveEvent) -> None:
        # The last chance to be heard; after this event the unit, and its status, are gone.
        raise RuntimeError(f"cannot be removed cleanly: {problem(sys.path)}")

    def _on_action(self, event: ops.ActionEvent) -> None:
        event.fail(problem(sys.path))
