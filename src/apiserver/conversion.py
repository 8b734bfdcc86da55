"""The way over from flags for authorization to a file of it, told to a person: the file's text, and the commands.

Flags can name one authorization webhook. Where that is somebody's already, ours has room only beside it in a file of
`--authorization-config`, which says otherwise just what the flags say. Nobody's setting is changed here: the owner of
those flags does that, and ours joins them at the next hook (`structured.py`).

What the flags mean is `buildAuthorizationConfiguration` of kubernetes/kubernetes (`pkg/kubeapiserver/options`): the
webhook is called `default`, has 30 s, and says nothing where it fails.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from apiserver import structured, verify, ways
from apiserver.args import MODE, Args
from apiserver.model import Layout
from apiserver.verify import Unverified

WEBHOOK = "authorization-webhook-config-file"
_VERSION = "authorization-webhook-version"
_ALLOWED_TTL = "authorization-webhook-cache-authorized-ttl"
_REFUSED_TTL = "authorization-webhook-cache-unauthorized-ttl"
EXCLUDED = (MODE, WEBHOOK, _VERSION, _ALLOWED_TTL, _REFUSED_TTL)
"""The flags that an API server does not start with beside `--authorization-config`."""
_SINCE = {"v1alpha1": 29, "v1beta1": 30, "v1": 32}  # of Kubernetes 1.x


@dataclass(frozen=True)
class Conversion:
    """What to do.

    Args:
        text: of the file, without ours.
        commands: by which its owner has the API server read it, a line each.

    """

    text: str
    commands: tuple[str, ...]


def way_over(layout: Layout) -> Conversion | None:
    """Tell how somebody's authorization webhook and ours go together; None where none but ours is set by flags.

    Raises:
        WiringError: the API server's flags cannot be read.

    """
    way = ways.of(layout)
    flags = way.others()
    if not flags.last(WEBHOOK):
        return None
    seen = str(way.seen(flags.last(WEBHOOK)))
    document = {
        "apiVersion": f"apiserver.config.k8s.io/{_version(layout)}",
        "kind": "AuthorizationConfiguration",
        "authorizers": [_authorizer(mode, flags, seen) for mode in way.modes(flags)],
    }
    text = yaml.safe_dump(document, sort_keys=False, width=100_000)
    return Conversion(text, layout.to_structured(text, EXCLUDED))


def _authorizer(mode: str, flags: Args, kubeconfig: str) -> dict[str, Any]:
    if mode != "Webhook":
        return {"type": mode, "name": mode.lower()}
    webhook: dict[str, Any] = {}
    for flag, name, default in (
        (_ALLOWED_TTL, "authorized", "5m0s"),
        (_REFUSED_TTL, "unauthorized", "30s"),
    ):
        value = flags.last(flag) or default
        if re.fullmatch(r"(0+(\.0*)?[a-zµ]*)+", value):  # nothing is kept: there no time may stand
            webhook[f"cache{name.capitalize()}Requests"] = False
        else:
            webhook[f"{name}TTL"] = value
    webhook |= {
        "timeout": "30s",
        "subjectAccessReviewVersion": flags.last(_VERSION) or "v1beta1",
        "matchConditionSubjectAccessReviewVersion": "v1",
        "failurePolicy": "NoOpinion",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig},
    }
    return {"type": mode, "name": "default", "webhook": webhook}


def _version(layout: Layout) -> str:
    """Give the newest version of the format that the API server knows; the oldest that lasts if it does not say."""
    try:
        with verify.as_admin(layout) as (session, url):
            minor = int(re.sub(r"\D.*", "", str(session.get(f"{url}/version", timeout=10).json()["minor"])))
    except (Unverified, ValueError, KeyError, TypeError):
        return structured.VERSIONS[0]
    return next((version for version in structured.VERSIONS if minor >= _SINCE[version]), structured.VERSIONS[-1])
