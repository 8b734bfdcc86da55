"""An API server whose flags somebody sets by hand (`api-server=manual`): is our endpoint asked, and if not, why not?

Judged by the running process: the flags that it was given, and the files that these name, as it sees them. A file that
is newer than the process counts from its next start. Nothing is changed here; how the flags are set is each layout's
own (`Layout.by_hand`).

The token webhook that a flag of ours displaces is written down as long as it is there: once somebody has put ours in
its place, nothing on the machine says any more who knows the cluster's own tokens.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from apiserver import args, files, layouts, process, structured, ways
from apiserver.args import Args
from apiserver.model import Hand, Knows, Layout, Place, WiringError
from apiserver.process import Process
from apiserver.wiring import chain

_TOKENS = "authentication-token-webhook-config-file"
_ACCESS = "authorization-webhook-config-file"
_VERSIONS = ("v1", "v1beta1")
_NOT_UNDERSTOOD = (
    ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, StopIteration, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Endpoint:
    """What an API server should ask.

    Args:
        url: ours.
        ca: the certificate (PEM) by which it is known.
        client: the certificate (PEM) that an API server shows, so that we pass the cluster's own tokens on.

    """

    url: str
    ca: bytes
    client: bytes


@dataclass(frozen=True)
class Server:
    """An API server of this machine.

    Args:
        layout: of a known kind; None for any other program called kube-apiserver.
        runs: whether it does.
        missing: what keeps it from asking us, one line each; empty if nothing does.
        behind: whether it is the cluster's own token webhook that asks us about tokens.

    """

    layout: Layout | None
    runs: bool
    missing: tuple[str, ...]
    behind: bool = False

    @property
    def name(self) -> str:
        """For a message."""
        return self.layout.name if self.layout else "an API server of another kind"


def look(place: Place, endpoint: Endpoint, authorization: bool) -> tuple[Server, ...]:
    """See which API servers are here, and what they lack.

    Args:
        place: where to look.
        endpoint: ours.
        authorization: whether we are to be asked about access as well.

    """
    found = layouts.present(place)
    if found:
        return tuple(_look(layout, endpoint, authorization) for layout in found)
    running = list(process.servers())
    return tuple(
        Server(None, True, tuple(_Look(one, one.flags, endpoint, authorization, False, False).missing()))
        for one in running
    )


def keep_displaced(place: Place, endpoint: Endpoint) -> bool:
    """Write the chain file for the token webhook that a flag of ours would displace, unless one has already.

    Returns:
        Whether it is to be followed: not where that webhook asks us, which would lead round in a circle.

    Raises:
        WiringError: what the webhook needs cannot be read.

    """
    found = layouts.present(place)
    if any(layout.asks(endpoint.url) for layout in found):
        return False
    if len(found) == 1:
        way = ways.of(found[0])
        running, coming = way.running(), _coming(way)
        path = coming.last(_TOKENS) if coming else ""
        webhook = _Webhook.read(running, path) if running and path else None
        if running and coming and not (webhook and webhook.server == endpoint.url):
            chain(found[0])
    return place.chain_file.exists()


def knows(place: Place, url: str) -> tuple[Knows, ...]:
    """Tell what the API servers of this machine know of the endpoint at `url`, an item for each kubeconfig.

    One that has been changed since its server read it does not say any more what that server knows.
    """
    here, found = layouts.present(place), list[Knows]()
    try:
        running = [ways.of(layout).running() for layout in here] if here else process.servers()
        for one in filter(None, running):
            once = [path for name in (_TOKENS, _ACCESS) if (path := one.flags.last(name))]
            config = one.flags.last(structured.FLAG)
            again = _webhooks(one, config) if config else []  # these are read while it runs
            for path in dict.fromkeys([*once, *again]):
                webhook = _Webhook.read(one, path)
                if webhook is not None and webhook.server == url:
                    stale = path in once and one.older_than(one.path(path))
                    found.append(Knows() if stale else Knows(webhook.ca, webhook.client))
    except (OSError, WiringError):  # its flags cannot be read, or it has just ended
        found.append(Knows())
    return tuple(found)


def hands(place: Place, make: Callable[[Path, tuple[str, ...], bool], Hand]) -> tuple[tuple[Layout | None, Hand], ...]:
    """Give what each API server of this machine needs; where none is known, what any would.

    Args:
        place: where to look.
        make: is given where the API server could read a copy of the kubeconfig, the modes that are set, and whether
            its authorization is in a file (`structured.py`).

    """
    found = layouts.present(place)
    if found:
        return tuple((layout, make(_copy(layout.config_folder), *_authorization(layout))) for layout in found)
    running = list(process.servers())
    set_now = running[0].flags if len(running) == 1 else Args(())
    copy = _copy(place.root / "etc/kubernetes/kubernetes-keystone")
    return ((None, make(copy, set_now.items(args.MODE), bool(set_now.last(structured.FLAG)))),)


def commands(of: tuple[tuple[Layout | None, Hand], ...]) -> str:
    """Give the commands by which an operator has the API server ask us."""
    lines: list[str] = []
    for layout, hand in of:
        if layout is None:
            lines += [
                "# No API server of a known kind is on this machine. Copy the kubeconfig to where the one that is",
                "# meant can read it (a container needs a volume for that), such as:",
                hand.install,
                "# Then give it these flags, and restart it. If it has a token webhook already, do not: the tokens",
                "# that only that one knows would be refused.",
                *(f"#   {line}" for line in hand.lines),
                *_to_the_file(hand),
            ]
            continue
        if len(of) > 1:
            lines.append(f"# if {layout.name} is meant ({layouts.evidence(layout)}):")
        lines += [*layout.by_hand(hand), *_to_the_file(hand)]
    return "\n".join(lines)


def _copy(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-manual") / "webhook.kubeconfig"


def _to_the_file(hand: Hand) -> list[str]:
    if not hand.entry:
        return []
    return [
        f"# Its authorization is in the file of --{structured.FLAG}, which is read again without a restart.",
        "# Add this to the end of the list authorizers there:",
        *(f"#   {line}" for line in hand.entry.splitlines()),
    ]


def _authorization(layout: Layout) -> tuple[tuple[str, ...], bool]:
    way = ways.of(layout)
    coming = _coming(way)
    return (way.modes(coming), bool(coming.last(structured.FLAG))) if coming else ((), False)


def _look(layout: Layout, endpoint: Endpoint, authorization: bool) -> Server:
    way = ways.of(layout)
    behind, displaces = layout.asks(endpoint.url), _displaces(layout.place)
    try:
        running = way.running()
        if running is None:
            return Server(layout, False, ("it does not run",), behind)
        missing = tuple(_Look(running, running.flags, endpoint, authorization, behind, displaces).missing())
        coming = _coming(way)
        if missing and coming and not any(_Look(running, coming, endpoint, authorization, behind, displaces).missing()):
            missing = ("its flags are set, but it has not been restarted since",)
    except (OSError, WiringError) as error:
        return Server(layout, True, (f"its flags cannot be read: {error}",), behind)
    if not missing and way.unread(running):
        missing = ("its flags were changed after its start: restart it",)
    return Server(layout, True, missing, behind)


def _coming(way: ways.Way) -> Args | None:
    """Give the flags of the next start; None where they cannot be told."""
    try:
        return way.read()
    except (OSError, WiringError):
        return None


def _displaces(place: Place) -> bool:
    """Whether a token webhook is known that knows the cluster's own tokens."""
    return b"\nkubeconfig " in (files.read(place.chain_file) or b"")


@dataclass(frozen=True)
class _Look:
    """One look at one API server with these flags."""

    running: Process
    flags: Args
    endpoint: Endpoint
    authorization: bool
    behind: bool
    displaces: bool

    def missing(self) -> Iterator[str]:
        """Say what keeps it from asking us."""
        if not self.behind:
            yield from self._webhook(_TOKENS, "authentication-token-webhook-version", self.displaces)
        if not self.authorization:
            return
        if config := self.flags.last(structured.FLAG):
            yield from self._configuration(config)
            return
        yield from self._webhook(_ACCESS, "authorization-webhook-version", False)
        modes = self.flags.items(args.MODE)
        told = f"--{args.MODE}={','.join(modes)}" if modes else f"--{args.MODE}"
        if "Webhook" not in modes:
            yield f"{told} has no Webhook" if modes else f"{told} is not set, so everything is allowed"
        if "AlwaysAllow" in modes:
            yield f"{told}: AlwaysAllow allows everything before we are asked"

    def _webhook(self, name: str, version: str, needs_client: bool) -> Iterator[str]:
        path = self.flags.last(name)
        if not path:
            yield f"--{name} is not set"
            return
        yield from self._kubeconfig(name, path, needs_client)
        if (told := self.flags.last(version)) not in ("", *_VERSIONS):
            yield f"--{version}={told} is neither {' nor '.join(_VERSIONS)}"

    def _configuration(self, config: str) -> Iterator[str]:
        """Say what keeps us from being asked by the file that the authorization is in."""
        paths = _webhooks(self.running, config)
        ours = [
            path for path in paths if (found := _Webhook.read(self.running, path)) and found.server == self.endpoint.url
        ]
        if not ours:
            yield f"--{structured.FLAG}={config} has no webhook that asks us"
        for path in ours:
            yield from self._kubeconfig(structured.FLAG, path, False)

    def _kubeconfig(self, name: str, path: str, needs_client: bool) -> Iterator[str]:
        found = _Webhook.read(self.running, path)
        if found is None:
            yield f"--{name}={path} cannot be read, or is no kubeconfig"
            return
        if found.server != self.endpoint.url:
            server = re.sub("//[^/]*@", "//", found.server) or "nobody"  # without a password
            yield f"--{name}={path} leads to {server}, which does not ask us"
            return
        if not _among(self.endpoint.ca, found.ca):
            yield f"{path} does not name the CA by which our endpoint is known (certificate-authority-data)"
        if found.client and not _among(self.endpoint.client, found.client):
            yield f"{path} shows a client certificate that is not the present one: copy the kubeconfig once more"
        elif needs_client and not found.client:
            yield f"{path} shows no client certificate, without which the cluster's own tokens would be refused"
        if self.running.older_than(self.running.path(path)):
            yield f"{path} was changed after the API server's start: restart it"


@dataclass(frozen=True)
class _Webhook:
    """What a webhook kubeconfig says: whom to ask, how it is known (PEM), what is shown to it (PEM)."""

    server: str
    ca: bytes
    client: bytes

    @classmethod
    def read(cls, running: Process, path: str) -> _Webhook | None:
        """Read it as the API server does; None where that cannot be done."""
        try:
            config: Any = yaml.safe_load(running.content(path))
            contexts = {one["name"]: one["context"] for one in config.get("contexts") or ()}
            context = contexts.get(config.get("current-context")) or {}
            clusters = {one["name"]: one["cluster"] for one in config["clusters"]}
            users = {one["name"]: one.get("user") or {} for one in config.get("users") or ()}
            cluster = clusters.get(context.get("cluster")) or next(iter(clusters.values()))

            def content(section: dict[str, Any], key: str) -> bytes:
                if section.get(f"{key}-data"):
                    return base64.b64decode(section[f"{key}-data"])
                beside = str(PurePosixPath(path).parent / str(section[key])) if section.get(key) else ""
                return running.content(beside) if beside else b""

            return cls(
                str(cluster.get("server", "")).replace("//localhost:", "//127.0.0.1:"),
                content(cluster, "certificate-authority"),
                content(users.get(context.get("user")) or {}, "client-certificate"),
            )
        except (OSError, *_NOT_UNDERSTOOD):
            return None


def _webhooks(running: Process, config: str) -> list[str]:
    """Give the kubeconfigs that an authorization configuration names; none where it cannot be read."""
    try:
        entries: Any = yaml.safe_load(running.content(config))["authorizers"]
        webhooks = [one["webhook"]["connectionInfo"] for one in entries if one.get("type") == "Webhook"]
        return [str(one["kubeConfigFile"]) for one in webhooks if one.get("kubeConfigFile")]
    except (OSError, *_NOT_UNDERSTOOD):
        return []


def _among(certificate: bytes, bundle: bytes) -> bool:
    """Whether a certificate is one of several, however their lines end."""
    return b"".join(certificate.split()) in b"".join(bundle.split())
