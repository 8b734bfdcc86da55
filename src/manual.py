"""`api-server=manual`: what to have ready for whoever sets the flags, and whether the API server asks us as it should.

Not here: how the flags of a running server are read and what is missing in them (apiserver/byhand.py), and the commands
that the action show-webhook-config prints (actions.py).
"""

from __future__ import annotations

import apiserver
import files
import webhook
from config import CharmConfig
from errors import Blocked, Waiting
from files import Places
from told import PRINTS

BEHIND = "asked by the cluster's own token webhook"


def prepare(places: Places, place: apiserver.Place, config: CharmConfig, tls: webhook.Tls) -> bool:
    """Have ready what an operator needs who sets the flags. Says whether a displaced webhook is to be followed."""
    kubeconfig = webhook.kubeconfig(places, tls, config.listen, with_client=True)
    files.write(places.by_hand, kubeconfig, 0o600)
    return apiserver.byhand.keep_displaced(place, webhook.endpoint(tls, config.listen))


def asked(place: apiserver.Place, config: CharmConfig, tls: webhook.Tls) -> list[str]:
    """See that an API server whose flags are set by hand asks us, and say which it is.

    Raises:
        Waiting: none runs here.
        Blocked: what is missing.
    """
    found = apiserver.byhand.look(place, webhook.endpoint(tls, config.listen), config.authorization)
    for server in found:
        if server.runs and not server.missing:
            return ["manual", server.name, *([BEHIND] if server.behind else [])]
    running = [server for server in found if server.runs]
    if not running:
        names = ", ".join(server.name for server in found)
        raise Waiting(f"manual: no API server runs on this machine{names and f' ({names} is installed)'}; {PRINTS}")
    missing = [f"{server.name}: {'; '.join(server.missing)}" for server in running]
    several = "more than one kind is on this machine, and none asks us: " if len(running) > 1 else ""
    raise Blocked(f"manual, the API server does not ask us yet: {several}{'. '.join(missing)}. {PRINTS}")


def check_others(place: apiserver.Place, config: CharmConfig, layout: apiserver.Layout, tls: webhook.Tls) -> None:
    """See that the authorization webhook which the control plane was given for our endpoint reaches us.

    It may be what an authenticator before us left at this address, by whose CA nobody knows ours: with that the
    API server answers 500 to whatever RBAC does not allow.
    """
    for server in apiserver.byhand.look(place, webhook.endpoint(tls, config.listen), True):
        if server.layout and server.layout.name == layout.name and server.runs and server.missing:
            raise Blocked(
                f"the API server is told to ask us about access, in a way that does not work: "
                f"{'; '.join(server.missing)}. Take that authorization webhook out, and ours is set in its place"
            )
