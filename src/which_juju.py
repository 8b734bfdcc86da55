"""Which Juju runs this charm, and all that differs by it: 2.9 and 3.x.

Juju 3 gave commands new names, an operator's (`integrate`) and the machine's (`juju-exec`), and brought secrets.
Statuses and errors print what the operator's own Juju knows, so that a command can be copied as it stands. What both
know by one name (`juju config`, `juju refresh`, `juju remove-application`) is written where it is said.

Not named `juju`: that is Juju's own Python library, which the integration tests import.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import ops

MACHINES_TOOLS = ("juju-exec", "juju-run")
"""What has Juju's agent run a command in a hook's environment, from outside any hook: Juju 3's name and 2.9's.

In this order: a machine that came from 2.9 may have a left-over of the old name, which no longer does that.
"""
_OPERATORS_SECRETS = (3, 3)
"""Secrets of charms came with 3.0; `juju add-secret` and `juju grant-secret`, which an operator needs, with 3.3."""


class Juju(NamedTuple):
    """A version of Juju, as far as it matters."""

    major: int
    minor: int

    @property
    def has_operators_secrets(self) -> bool:
        """Whether an operator can make a secret and grant it."""
        return self >= _OPERATORS_SECRETS

    def integrate(self, one: str, other: str) -> str:
        """Give the command that relates two applications, or endpoints of theirs."""
        return f"juju {'integrate' if self.major >= 3 else 'add-relation'} {one} {other}"


def current() -> Juju:
    """Tell which Juju runs this hook; without any, as where a module is used by itself, a recent one is meant."""
    version = ops.JujuVersion(os.environ.get("JUJU_VERSION") or "3.6.0")
    return Juju(version.major, version.minor)
