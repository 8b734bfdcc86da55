"""The words of the wiring: flags, what is desired, where things lie, what can go wrong. Touches nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

import yaml


class WiringError(Exception):
    """Something about the API server's flags is in the way. The text is for the operator: what, where, what to do."""


class NotFound(WiringError):
    """No API server of a known kind is on this machine (yet): wait."""


class Ambiguous(WiringError):
    """More than one kind of API server is here: the operator has to say which one is meant."""


class Unknown(WiringError):
    """`api-server` names a layout that there is none of."""


class Conflict(WiringError):
    """What is set already would be displaced by our flags, or would keep them from being asked. Nothing was changed."""


class NotReady(WiringError):
    """The API server was not in order before we touched anything, so nothing was added. Wait, and try again."""


class NotOurTurn(WiringError):
    """Another unit restarts its API server, so ours was left as it is. Wait, and try again."""


class ApplyFailed(WiringError):
    """The API server did not work with our flags; what was in force before has been put back.

    `reason` is one line, `log` are the last lines of the API server's log, without anything that looks like a secret.
    """

    def __init__(self, reason: str, log: tuple[str, ...] = ()):
        super().__init__(reason)
        self.reason = reason
        self.log = log


MANAGED = "00-snap-managed"
"""The file that says that a layout's `args_folder` is in use."""


class Flag(NamedTuple):
    """One flag of the API server: `Flag("authorization-mode", "Webhook")` is `--authorization-mode="Webhook"`."""

    name: str
    value: str


class Asked(NamedTuple):
    """What an endpoint is asked about already, by settings that are not ours."""

    authentication: bool = False
    """by the cluster's own token webhook, about tokens that it does not know"""
    authorization: bool = False
    """by the API server, about access"""


class Knows(NamedTuple):
    """What an API server that asks us knows; `Knows()` where that cannot be told."""

    authorities: bytes = b""
    """the CAs by which it knows our endpoint, PEM"""
    client: bytes | None = None
    """the certificate that it shows there, PEM; empty where it shows none"""

    @classmethod
    def of(cls, kubeconfig: bytes) -> Knows:
        """Read it from a kubeconfig of ours, which has one cluster, one user, and everything inline."""
        try:
            config = yaml.safe_load(kubeconfig)
            cluster, user = config["clusters"][0]["cluster"], config["users"][0].get("user") or {}
            authorities = base64.b64decode(cluster["certificate-authority-data"])
            return cls(authorities, base64.b64decode(user.get("client-certificate-data") or ""))
        except (yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError, ValueError):
            return cls()


@dataclass(frozen=True)
class Authorizer:
    """Our authorization webhook as an entry of the file that `--authorization-config` names (`structured.py`).

    Args:
        kubeconfig: of the webhook, certificates and keys inline.
        conditions: CEL expressions over an access review, all of which a request must meet to be sent to us at all.
        url: of the webhook, as the API server names it in an error.
        sample: the `spec` of an access review that meets the conditions, to see that it comes through.
        authorized_ttl: how long the API server keeps a yes.
        unauthorized_ttl: how long it keeps that there was none.
        timeout: how long it waits for an answer; what fails is no opinion.

    """

    kubeconfig: bytes
    conditions: tuple[str, ...]
    url: str
    sample: Mapping[str, object]
    authorized_ttl: str = "5s"
    unauthorized_ttl: str = "5s"
    timeout: str = "10s"


@dataclass(frozen=True)
class Desired:
    """What the API server shall be told.

    Args:
        flags: in order, without the leading dashes. At least one is a `…-webhook-config-file` that names a file in
            the layout's `config_folder`: by these our lines are recognised again. None where nothing but the
            authorizer is missing.
        files: the webhook kubeconfigs in `config_folder`, with certificates and keys inline; written root-only (0600).
            Same content, same bytes: a changed byte means a restart of the API server, which reads them at its start.
        authorizer: what its authorization configuration shall have of ours, if that is a file.

    """

    flags: tuple[Flag, ...]
    files: Mapping[Path, bytes]
    authorizer: Authorizer | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over flags and files; the same wiring has the same digest. Not over what needs no restart."""
        hasher = hashlib.sha256()
        for flag in self.flags:
            hasher.update(f"--{flag.name}={flag.value}\0".encode())
        for path, content in sorted(self.files.items()):
            hasher.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\0".encode())
        return hasher.hexdigest()


@dataclass(frozen=True)
class Hand:
    """What somebody needs who sets the flags by hand.

    Args:
        principal: the application whose charm keeps the API server.
        url: our endpoint's.
        open: the kubeconfig's text without the API server's client certificate, for what passes through other hands.
        kubeconfig: the file on this machine that has it, root's alone.
        copy: where the API server can read a copy of that; the operator's own, for our files go with the charm.
        flags: that the API server needs, with whole values; those for kubeconfigs name the copy.
        entry: what stands in for those for authorization where the API server's is in a file; empty where it is not.

    """

    principal: str
    url: str
    open: str
    kubeconfig: Path
    copy: Path
    flags: tuple[Flag, ...]
    entry: str = ""

    def value(self, name: str) -> str:
        """Give the value of one of the flags, empty where it is not needed."""
        return next((flag.value for flag in self.flags if flag.name == name), "")

    @property
    def install(self) -> str:
        """The command that makes the copy."""
        return f"sudo install -D -m 0600 {self.kubeconfig} {self.copy}"

    @property
    def lines(self) -> list[str]:
        """The flags as they stand on a command line."""
        return [f"--{flag.name}={flag.value}" for flag in self.flags]


@dataclass(frozen=True)
class Place:
    """Our own paths, all below `root` so that tests can run everything on a temporary tree.

    `reader` is the group that may read the chain file: the authenticator's. `unit` is who we are to other units.
    """

    root: Path = Path("/")
    reader: str = "kubernetes-keystone"
    unit: str = ""

    @property
    def state_folder(self) -> Path:
        """`wanted`, the lock beside it, and what was refused."""
        return self.root / "var/lib/kubernetes-keystone"

    @property
    def wanted(self) -> Path:
        """What the script before each start obeys (`wanted.py`)."""
        return self.state_folder / "wanted"

    @property
    def lock(self) -> Path:
        """Held while `wanted` or the args file is changed, by the script as well."""
        return self.state_folder / "wanted.lock"

    @property
    def lease(self) -> Path:
        """What one hook leaves the next about the turns of the units (`lease.py`)."""
        return self.state_folder / "lease"

    @property
    def refused(self) -> Path:
        """The wiring that failed its trial, so that it is not tried again at every hook."""
        return self.state_folder / "refused"

    @property
    def refused_authorizer(self) -> Path:
        """The same for what was to be in the API server's authorization configuration."""
        return self.state_folder / "refused-authorizer"

    @property
    def chain_file(self) -> Path:
        """Which token webhook our flag displaces; the authenticator reads it."""
        return self.root / "etc/kubernetes-keystone/chained"

    @property
    def script(self) -> Path:
        """The script before each start; outside the charm's folder, which Juju replaces and deletes."""
        return self.root / "opt/kubernetes-keystone/apiserver-flags"

    @property
    def pod_script(self) -> Path:
        """The script that watches over a static pod; there is nothing of its own start that could be waited on."""
        return self.root / "opt/kubernetes-keystone/apiserver-pod"

    @property
    def hook(self) -> Path:
        """The systemd unit that has Juju run a hook of the charm's now (`again.py`); perhaps it is not there."""
        return self.unit_folder / "kubernetes-keystone-hook.service"

    @property
    def alone(self) -> int:
        """For how many seconds this machine lets others go first where no Lease is held: another time for each unit."""
        number = self.unit.rpartition("/")[2]
        return int(number) % 8 * 120 if number.isdecimal() else 0

    @property
    def authorizer_script(self) -> Path:
        """The script that both of them run to take our entry out of the API server's authorization configuration."""
        return self.root / "opt/kubernetes-keystone/apiserver-authorizer"

    @property
    def unit_folder(self) -> Path:
        """Where an administrator's systemd units and drop-ins go; snapd writes its units here as well."""
        return self.root / "etc/systemd/system"


class Layout(Protocol):
    """One kind of cluster: where things lie in it. What is done there is its `Way`'s (`ways.py`)."""

    @property
    def name(self) -> str:
        """The value of the charm option `api-server` that means this layout."""
        ...

    @property
    def place(self) -> Place:
        """Where our own files lie."""
        ...

    @property
    def config_folder(self) -> Path:
        """A folder of our own, made and removed by this package, that the API server can read, however confined."""
        ...

    @property
    def admin_kubeconfig(self) -> Path:
        """The machine's own administrator, whose token must be as good afterwards as it was before."""
        ...

    @property
    def present(self) -> bool:
        """Whether such an API server is installed here."""
        ...

    def asks(self, url: str) -> bool:
        """Whether the cluster's own token webhook has been told to ask this URL about tokens that it does not know."""
        ...

    def by_hand(self, hand: Hand) -> list[str]:
        """Give the commands by which an operator has the API server ask us (`api-server=manual`)."""
        ...

    def to_structured(self, text: str, excluded: Sequence[str]) -> tuple[str, ...]:
        """Give the commands by which its owner has the API server read this authorization configuration.

        Args:
            text: of the file.
            excluded: the flags that have to go.

        """
        ...


class UnitLayout(Layout, Protocol):
    """A layout whose API server is a systemd unit that reads its flags from a file."""

    @property
    def service(self) -> str:
        """The systemd unit, with its suffix."""
        ...

    @property
    def args_file(self) -> Path:
        """The file with the flags."""
        ...

    @property
    def args_folder(self) -> Path | None:
        """A folder that takes the file's place where its owner has put `MANAGED` into it; of a flag the last counts."""
        ...

    @property
    def whole_values(self) -> bool:
        """Whether somebody makes one flag of several of a name, so that each of ours has to be whole.

        Ours then take the place of others' lines, and are in the file no longer than they have to.
        """
        ...

    @property
    def flags_shown(self) -> bool:
        """Whether the command line of the service's process shows the flags that it was given."""
        ...

    @property
    def working_folder(self) -> Path:
        """What a relative path in a flag is relative to."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds."""

    already: float = 10
    """for a server that should be in order before anything is added"""
    ready: float = 120
    """for `/readyz` after a restart"""
    token: float = 30
    """for the cluster's token after that: Charmed Kubernetes' own webhook says "no" until its secrets are loaded"""
    restart: float = 150
    """for `systemctl restart`, or the kubelet: a draining API server takes its unit's whole stop time-out, 90 s"""
    removal: float = 60
    """for the server after our flags were taken out for good; being late fails nothing"""
    turn: float = 120
    """for another unit's restart that makes no progress; it costs this machine's other hooks as much"""
    turns: float = 600
    """for those of several units, one after the other"""
    lease: float = 420
    """a unit that died with its turn holds the others up for so long: `restart`, `ready`, `token`, and some"""
    settled: float = 5
    """after a restart in our turn, until a balancer in front of the API servers has noticed that this one is back"""
    reload: float = 90
    """for the API server to read its authorization configuration again: it looks once a minute, if nothing tells it"""
    between: float = 1
    """from one attempt to the next"""


class Kind(str, Enum):
    """What may be the case with our flags."""

    ABSENT = "absent"
    """we have set nothing"""
    TRIAL = "trial"
    """set, not verified yet; a charm that was interrupted leaves this behind until its next hook"""
    IN_FORCE = "in-force"
    """verified, and the running server has them"""
    PENDING = "pending"
    """verified, and to come back with the server's next start: it is down, or was started without them"""
    BYPASSED = "bypassed"
    """taken out by systemd because the authenticator could not be kept running; comes back with it"""
    FAILED = "failed"
    """refused in a trial, or the server kept crashing with them; out until what is desired changes"""


@dataclass(frozen=True)
class State:
    """What is in force, for the status.

    Args:
        kind: see `Kind`.
        reason: one line for the operator; empty where all is well.
        digest: of the `Desired` that this is about; None where there is none.
        log: the API server's last lines where a trial failed.

    """

    kind: Kind
    reason: str = ""
    digest: str | None = None
    log: tuple[str, ...] = field(default=())
