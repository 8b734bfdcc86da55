"""Canonical Kubernetes: the `k8s` snap, whose flags its daemon and its charm each read, change and write back.

Both read a flag's line into a map (of two the last one stays), sort and write (`snaputil.UpdateServiceArguments` in
canonical/k8s-snap, `config/arg_files.py` in canonical/k8s-operator); the charm restarts the server when that changes
a byte. So what is in the file for good may come back as its owner's own, and what has two lines as one.

Newer snaps keep the flags in a folder instead, `00-snap-managed` the snap's, `01-charm-managed` the charm's. A file
there is its writer's alone. The charm takes the folder for being in use where the first of the two is there; so do we.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apiserver import shell
from apiserver.model import MANAGED, Hand, Place


@dataclass(frozen=True)
class Canonical:
    """The layout `canonical`; see `model.Layout` for what the properties mean."""

    place: Place
    name: str = "canonical"
    service: str = "snap.k8s.kube-apiserver.service"
    whole_values: bool = True
    flags_shown: bool = True

    @property
    def args_file(self) -> Path:
        """A flag a line, read by a shell; the daemon writes values bare, the charm double-quoted."""
        return self._common / "args/kube-apiserver"

    @property
    def args_folder(self) -> Path:
        """What newer snaps have beside it."""
        return self._common / "args/kube-apiserver.args.d"

    @property
    def working_folder(self) -> Path:
        """`$SNAP_DATA`, where snapd starts a service."""
        return self.place.root / "var/snap/k8s/current"

    @property
    def config_folder(self) -> Path:
        """In `$SNAP_COMMON`, which the snap can read whether it is installed confined or classic."""
        return self._common / "kubernetes-keystone"

    @property
    def admin_kubeconfig(self) -> Path:
        """Written by the snap's daemon, with a client certificate; a confined snap's `/etc/kubernetes` is elsewhere."""
        confined = self._common / "etc/kubernetes/admin.conf"
        classic = self.place.root / "etc/kubernetes/admin.conf"
        return confined if confined.exists() and not classic.exists() else classic

    @property
    def present(self) -> bool:
        """Whether the flags are there: snapd writes the unit on workers, too."""
        here = self.args_file.is_file() or (self.args_folder / MANAGED).is_file()
        return (self.place.unit_folder / self.service).exists() and here

    def asks(self, url: str) -> bool:  # noqa: ARG002
        """Its webhook asks nobody."""
        return False

    def by_hand(self, hand: Hand) -> list[str]:
        """Use its charm's own option, whose flags it merges into the file; what is in the option already stays."""
        option = f"{hand.principal} kube-apiserver-extra-args"
        words = " ".join(f"{flag.name}={flag.value}" for flag in hand.flags)
        return [
            "# on each control-plane machine:",
            hand.install,
            "# then once:",
            f'juju config {option}="$(juju config {option}) {words}"',
        ]

    def to_structured(self, text: str, excluded: Sequence[str]) -> tuple[str, ...]:
        """Write into the one file, which is the snap's; where it has a folder, a flag can be taken away by it alone."""
        file = self.args_file.parent / "conf.d/authorization.yaml"
        if (self.args_folder / MANAGED).is_file():
            return (
                "# This snap keeps its flags in a folder, and gives them up only to who bootstraps or joins a node:",
                "# with these in its configuration, and the file's text under extra-node-config-files.",
                "extra-node-kube-apiserver-args:",
                *(f"  --{name}: null" for name in excluded),
                f"  --authorization-config: {file}",
            )
        return (
            "# On each control-plane machine, one after the other. Where the charm's option kube-apiserver-extra-args",
            "# names one of these flags, it has to go there first, or the charm would bring it back:",
            *shell.put(file, text),
            *shell.exchange_flags(self.args_file, excluded, f"--authorization-config={file}"),
            "sudo snap restart k8s.kube-apiserver",
        )

    @property
    def _common(self) -> Path:
        return self.place.root / "var/snap/k8s/common"
