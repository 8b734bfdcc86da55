"""Which flags the API server is to have, and the same told to a person who sets them by hand.

Not here: putting them in and taking them out (apiserver), and the endpoint that they name (webhook.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import apiserver
from apiserver import Asked, Authorizer, Desired, Flag, Hand, Layout
from config import CharmConfig, Listen

AUTHENTICATION = "authentication.kubeconfig"
AUTHORIZATION = "authorization.kubeconfig"

# The marks of whom we have an opinion on at all (`Naming.subject` of the authenticator, which looks more closely). They
# stand in the `extra` of all users that come from here, and in nobody else's: certificates and service accounts have
# other keys there, and an OIDC issuer may give none of kubernetes.io's.
_EXTRA = ("alpha.kubernetes.io/identity/project/id", "alpha.kubernetes.io/identity/user/domain/id")
_NATIVE = "keystone:"
_RESERVED = ("system:", "kubeadm:")


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


def conditions(*, names_upstream_way: bool) -> tuple[str, ...]:
    """Give what an access review must meet to be sent to us, in CEL: that its user has come from here.

    Versions of Kubernetes differ in whether what is empty is there, so each is asked for with `has`.
    """
    if names_upstream_way:  # bare names: any but those that Kubernetes keeps for itself
        names = " && ".join(f"!request.user.startsWith('{prefix}')" for prefix in _RESERVED)
    else:
        names = f"request.user.startsWith('{_NATIVE}')"
    extra = " && ".join(f"'{key}' in request.extra" for key in _EXTRA)
    return (
        f"has(request.user) && {names}",
        "has(request.uid) && request.uid != ''",
        f"has(request.extra) && {extra}",
    )


def authorizer(listen: Listen, kubeconfig: bytes, *, names_upstream_way: bool) -> Authorizer:
    """Give what the flags for authorization would say, as an entry of a file of --authorization-config."""
    nobody = "kubernetes-keystone-nobody"
    return Authorizer(
        kubeconfig,
        conditions(names_upstream_way=names_upstream_way),
        listen.url,
        {
            "user": nobody if names_upstream_way else f"{_NATIVE}{nobody}",
            "uid": nobody,
            "extra": {key: [nobody] for key in _EXTRA},
            "nonResourceAttributes": {"path": f"/{nobody}", "verb": "get"},
        },
    )


def wanted(folder: Path, kubeconfig: bytes, missing: Missing, authorizer: Authorizer | None = None) -> Desired:
    """Give the flags that we own, and no others, with the files that they name.

    Args:
        folder: where the API server can read our files.
        kubeconfig: of the webhook; one endpoint takes both kinds of review.
        missing: which are needed.
        authorizer: what takes the place of the flags for authorization, which exclude a file for it.
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
    if missing.authorization and authorizer is None:
        flags += [
            # Given once more, it is added to the modes that are there; ours comes last, so RBAC is asked before us.
            Flag("authorization-mode", "Webhook"),
            Flag("authorization-webhook-config-file", str(folder / AUTHORIZATION)),
            Flag("authorization-webhook-version", "v1"),
            Flag("authorization-webhook-cache-authorized-ttl", "5s"),
            Flag("authorization-webhook-cache-unauthorized-ttl", "5s"),
        ]
        files[folder / AUTHORIZATION] = kubeconfig
    return Desired(tuple(flags), files, authorizer if missing.authorization else None)


def desired(layout: Layout, config: CharmConfig, kubeconfig: bytes, missing: Missing) -> Desired:
    """Give what this API server is to be told: by flags, and in its authorization configuration if that is a file."""
    entry = None
    if missing.authorization and apiserver.authorization_config(layout):
        entry = authorizer(config.listen, kubeconfig, names_upstream_way=config.names_upstream_way)
    return wanted(layout.config_folder, kubeconfig, missing, entry)


def as_text(desired: Desired) -> str:
    """Give the flags as they stand on a command line, one a line."""
    return "\n".join(f"--{flag.name}={flag.value}" for flag in desired.flags)


def by_hand(
    config: CharmConfig, principal: str, kubeconfig: Path, open: str
) -> Callable[[Path, tuple[str, ...], bool], Hand]:
    """Give what makes a `Hand` of where the API server reads its copy of `kubeconfig`, and of its authorization now.

    Args:
        config: the options.
        principal: the application whose charm keeps the API server.
        kubeconfig: the file with the API server's client certificate.
        open: the kubeconfig's text without it.
    """

    def make(copy: Path, modes: tuple[str, ...], structured: bool) -> Hand:
        missing = Missing(authorization=config.authorization and not structured)
        values = {
            flag.name: str(copy) if flag.name.endswith("-webhook-config-file") else flag.value
            for flag in wanted(copy.parent, b"", missing).flags
        }
        if "authorization-mode" in values:
            # Behind AlwaysAllow we would never be asked; behind RBAC, the cluster's own traffic never waits for us.
            kept = [mode for mode in modes if mode not in ("AlwaysAllow", "Webhook")]
            values["authorization-mode"] = ",".join([*(kept or ["Node", "RBAC"]), "Webhook"])
        flags = tuple(Flag(name, value) for name, value in values.items())
        entry = ""
        if config.authorization and structured:
            ours = authorizer(config.listen, b"", names_upstream_way=config.names_upstream_way)
            entry = apiserver.entry_of(ours, PurePosixPath(copy))
        return Hand(principal, config.listen.url, open, kubeconfig, copy, flags, entry)

    return make
