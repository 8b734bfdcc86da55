"""Where others reach the API server, as far as this machine knows: its administrator's kubeconfig, and its own flags.

Whether that is of use to anybody, and whether it answers there, is the caller's to judge.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from apiserver import ways
from apiserver.model import Layout, WiringError
from apiserver.verify import Admin, Unverified, local_address


@dataclass(frozen=True)
class Address:
    """What is known: URLs with where each was found, the likelier first, and the PEM of the server's CA."""

    candidates: tuple[tuple[str, str], ...]
    ca: bytes


def address(layout: Layout) -> Address:
    """Find it.

    Raises:
        WiringError: the administrator's kubeconfig, or the flags, cannot be read.

    """
    try:
        admin = Admin.load(layout.admin_kubeconfig)
        flags = ways.of(layout).read()
        _, port = local_address(flags)
    except Unverified as error:
        raise WiringError(str(error)) from None
    except OSError as error:
        raise WiringError(f"cannot read {error.filename}: {error.strerror}") from None
    found = []
    # With several machines this is the balancer's, or whatever else the cluster was told to be known by.
    if re.fullmatch(r"https://[A-Za-z0-9._~:/\[\]-]+", admin.server):
        found.append((admin.server.rstrip("/"), f"the administrator's kubeconfig {layout.admin_kubeconfig}"))
    try:
        advertised = ipaddress.ip_address(flags.last("advertise-address"))
    except ValueError:
        pass  # the server takes the address of its default route, which need not be one that users reach
    else:
        host = f"[{advertised}]" if advertised.version == 6 else str(advertised)
        found.append((f"https://{host}:{port}", "the API server's --advertise-address"))
    return Address(tuple(found), admin.ca)
