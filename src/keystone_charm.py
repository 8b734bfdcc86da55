"""What Keystone's own charm tells over the relation `keystone-credentials`: where Keystone is, and who signs for it.

The interface is that of charm-keystone's endpoint `identity-credentials` (hooks/keystone_utils.py there): a unit that
asks for an account by `username` is told host, port, protocol and API version, and nothing without that. The account is
of no use here, so the least is asked for: the role `reader` in the service project; without `requested_grants` it would
be an administrator's. Its password is never read.

Not here: that the options win over it (config.py), and whether anything answers at the URL (reach.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import ops
import pydantic

from errors import Blocked
from files import NAME

RELATION = "keystone-credentials"
REQUEST = {"username": NAME, "requested_roles": "reader", "requested_grants": "reader"}


class Related(pydantic.BaseModel, frozen=True):
    """Where Keystone is, by its charm's word; no URL where it has not said yet."""

    url: str = ""
    ca: str = ""


def related(model: ops.Model, in_force: str) -> Related | None:
    """Ask Keystone's charm, and say what it has told.

    Args:
        model: with the relation, if there is one.
        in_force: the URL in use; of several units with addresses of their own, it stays while one of them tells it.

    Returns:
        None without a relation.

    Raises:
        Blocked: its Keystone has no identity API v3.
    """
    relation = next((one for one in model.relations[RELATION] if one.active), None)
    if relation is None:
        return None
    ours = relation.data[model.unit]
    if any(ours.get(key) != value for key, value in REQUEST.items()):
        ours.update(REQUEST)
    told = [_told(relation.data[unit]) for unit in sorted(relation.units, key=lambda unit: unit.name)]
    usable = [one for one in told if one is not None]
    return next((one for one in usable if one.url == in_force), usable[0] if usable else Related())


def _told(data: Mapping[str, str]) -> Related | None:
    protocol, host, port = (data.get(f"credentials_{key}", "") for key in ("protocol", "host", "port"))
    if not (protocol and host and port):
        return None
    version = data.get("api_version", "3")
    if not version.startswith("3"):
        raise Blocked(
            f"{RELATION}: Keystone speaks the identity API {version[:20]} and version 3 is needed;"
            " juju config keystone preferred-api-version=3"
        )
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    ca = data.get("ca_cert", "")
    return Related(url=f"{protocol}://{host}:{port}/v3", ca="" if ca == "__null__" else ca)
