"""What Horizon needs so that its button "Download kubeconfig file" gives users of this cluster a file that works.

That is one file of settings: Horizon's own three, and a template in the place of Horizon's. How a flavour logs in is
`kubeconfigs`' to know, and where users reach the API server as well.
"""

from __future__ import annotations

import base64
from typing import Literal

import pydantic

import apiserver
import files
import kubeconfigs
from config import CharmConfig
from files import Places

FILE = "_80_kubernetes_keystone.py"
"""Its name in Horizon's folder of settings, which are read in the order of their names."""
TEMPLATES = ("kubeconfig.template", "quoted.template")
"""Of Django's, not ours to render: they go in as they are."""


class Wanted(pydantic.BaseModel, frozen=True):
    """The parameters of get-horizon-settings."""

    flavour: Literal["plugin", "curl", "powershell"] = "plugin"


def make(places: Places, layout: apiserver.Layout | None, config: CharmConfig, wanted: Wanted) -> dict[str, str]:
    """Give the settings, and where they go.

    Args:
        places: where templates and scripts are.
        layout: the API server of this machine; None where there is none that is known.
        config: the options.
        wanted: the action's parameters.

    Raises:
        Blocked: where users reach the API server cannot be found; or the result would be too long for Juju.
    """
    server = kubeconfigs.find_server(layout, config)
    text = settings(
        places,
        server.url,
        server.ca,
        keystone_ca=config.keystone_ca,
        insecure=config.keystone_in_clear,
        flavour=wanted.flavour,
    )
    return kubeconfigs.bounded(
        {"settings": text, "file": FILE, **server.told()},
        "settings",
        "set kubernetes-ca and keystone-ca to the one CA certificate that is needed",
    )


def settings(
    places: Places, server: str, ca: str, *, keystone_ca: str = "", insecure: bool = False, flavour: str = "plugin"
) -> str:
    """Write the file of settings.

    Args:
        places: where templates and scripts are.
        server: the API server's URL for users.
        ca: PEM of what signs its certificate; empty for what users' systems trust.
        keystone_ca: the same of Keystone's.
        insecure: whether the plug-in is to talk to Keystone unencrypted.
        flavour: how the users' file is to log in.
    """
    login = kubeconfigs.Login.load(places, flavour)
    chosen = {"flavour": flavour, "login": login, "keystone_ca": keystone_ca, "insecure": insecure}
    # A shell's ${#…} and Django's comments begin alike.
    section = f"{{% verbatim %}}{files.render(places.templates, 'horizon/login.yaml', chosen)}{{% endverbatim %}}"
    ours = {name: (places.templates / "horizon" / name).read_text(encoding="utf-8") for name in TEMPLATES}
    values = {"file": FILE, "server": server, "ca": base64.b64encode(ca.encode()).decode(), "login": section}
    return files.render(
        places.templates,
        "horizon/settings",
        {**values, "kubeconfig": ours["kubeconfig.template"], "quoted": ours["quoted.template"].rstrip("\n")},
    )
