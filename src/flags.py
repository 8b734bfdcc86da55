"""Which flags the API server is to have, and the same told to a person who sets them by hand.

Not here: putting them in and taking them out (apiserver), and the endpoint that they name (webhook.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import apiserver
from apiserver import Asked, Desired, Flag, Hand, Layout
from config import CharmConfig

AUTHENTICATION = "authentication.kubeconfig"
AUTHORIZATION = "authorization.kubeconfig"


class Missing(NamedTuple):
    """What the API server has to be told so that we are asked."""

    authentication: bool = True
    authorization: bool = False

    @property
    def any(self) -> bool:
        """Whether there is anything to set."""
        return self.authentication or self.authorization


def missing(layout: Layout | None, config: CharmConfig) -> Missing:
    """Say which of our flags are needed; none for what the operator has had the control plane ask us already.

    Asked about tokens by the cluster's own webhook, we leave that flag alone: no cluster token ever passes us then.
    """
    told = Asked() if layout is None else apiserver.asked(layout, config.listen.url)
    return Missing(not told.authentication, config.authorization and not told.authorization)


def wanted(folder: Path, kubeconfig: bytes, missing: Missing) -> Desired:
    """Give the flags that we own, and no others, with the files that they name.

    Args:
        folder: where the API server can read our files.
        kubeconfig: of the webhook; one endpoint takes both kinds of review.
        missing: which are needed.
    """
    flags: list[Flag] = []
    files: dict[Path, bytes] = {}
    if missing.authentication:
        flags += [
            Flag("authentication-token-webhook-config-file", str(folder / AUTHENTICATION)),
            Flag("authentication-token-webhook-version", "v1"),
            Flag("authentication-token-webhook-cache-ttl", "10s"),
        ]
        files[folder / AUTHENTICATION] = kubeconfig
    if missing.authorization:
        flags += [
            # Given once more, it is added to the modes that are there; ours comes last, so RBAC is asked before us.
            Flag("authorization-mode", "Webhook"),
            Flag("authorization-webhook-config-file", str(folder / AUTHORIZATION)),
            Flag("authorization-webhook-version", "v1"),
            Flag("authorization-webhook-cache-authorized-ttl", "5s"),
            Flag("authorization-webhook-cache-unauthorized-ttl", "5s"),
        ]
        files[folder / AUTHORIZATION] = kubeconfig
    return Desired(tuple(flags), files)


def as_text(desired: Desired) -> str:
    """Give the flags as they stand on a command line, one a line."""
    return "\n".join(f"--{flag.name}={flag.value}" for flag in desired.flags)


def by_hand(
    config: CharmConfig, principal: str, kubeconfig: Path, open: str
) -> Callable[[Path, tuple[str, ...]], Hand]:
    """Give what makes a `Hand` of where the API server reads its copy of `kubeconfig`, and the modes that are set.

    Args:
        config: the options.
        principal: the application whose charm keeps the API server.
        kubeconfig: the file with the API server's client certificate.
        open: the kubeconfig's text without it.
    """

    def make(copy: Path, modes: tuple[str, ...]) -> Hand:
        values = {
            flag.name: str(copy) if flag.name.endswith("-webhook-config-file") else flag.value
            for flag in wanted(copy.parent, b"", Missing(authorization=config.authorization)).flags
        }
        if "authorization-mode" in values:
            # Behind AlwaysAllow we would never be asked; behind RBAC, the cluster's own traffic never waits for us.
            kept = [mode for mode in modes if mode not in ("AlwaysAllow", "Webhook")]
            values["authorization-mode"] = ",".join([*(kept or ["Node", "RBAC"]), "Webhook"])
        flags = tuple(Flag(name, value) for name, value in values.items())
        return Hand(principal, config.listen.url, open, kubeconfig, copy, flags)

    return make
