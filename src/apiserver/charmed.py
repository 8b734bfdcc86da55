"""Charmed Kubernetes: the `kube-apiserver` snap, whose flags its control-plane charm writes whole at each reconcile.

The snap is taken for strictly confined: apart from `/root/cdk` it can read its own data folders only, so what it shall
read of ours lies in one of those. It needs no `--classic`, and its charm passes nothing from anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apiserver import files
from apiserver.args import MODE
from apiserver.model import Hand, Place


@dataclass(frozen=True)
class Charmed:
    """The layout `charmed`; see `model.Layout` for what the properties mean."""

    place: Place
    name: str = "charmed"
    service: str = "snap.kube-apiserver.daemon.service"
    args_folder: None = None
    whole_values: bool = False
    flags_shown: bool = True

    @property
    def args_file(self) -> Path:
        """A flag a line, values double-quoted; `current` is a link to the snap revision's folder."""
        return self.working_folder / "args"

    @property
    def working_folder(self) -> Path:
        """`$SNAP_DATA`, where snapd starts a service."""
        return self.place.root / "var/snap/kube-apiserver/current"

    @property
    def config_folder(self) -> Path:
        """Beside what the control-plane charm keeps in `$SNAP_COMMON`, which lives through a refresh of the snap."""
        return self.place.root / "var/snap/kube-apiserver/common/kubernetes-keystone"

    @property
    def admin_kubeconfig(self) -> Path:
        """Written by the control-plane charm, with a token of the cluster's own webhook (`uid::token`)."""
        return self.place.root / "root/.kube/config"

    @property
    def present(self) -> bool:
        """The unit that snapd wrote, and the flags that the control-plane charm did."""
        return (self.place.unit_folder / self.service).exists() and self.args_file.is_file()

    def asks(self, url: str) -> bool:
        """Read it from the webhook's program, into which its charm renders the option `authn-webhook-endpoint`."""
        program = files.read(self.place.root / "root/cdk/auth-webhook/auth-webhook.py") or b""
        strings = re.findall(r"""(?m)= ['"]([^'"]*)['"]\s*$""", program.decode(errors="replace"))
        return url in {string.replace("//localhost:", "//127.0.0.1:") for string in strings}

    def by_hand(self, hand: Hand) -> list[str]:
        """Use its charm's own options: one URL, and a kubeconfig's text, both without a client certificate."""
        lines = [f"juju config {hand.principal} authn-webhook-endpoint={hand.url}"]
        if modes := hand.value(MODE):
            lines += [
                f"juju config {hand.principal} authorization-mode={modes} \\",
                "  authorization-webhook-config-file=\"$(cat <<'EOF'",
                hand.open.rstrip("\n"),
                "EOF",
                ')"',
            ]
        return lines

    def to_structured(self, text: str, excluded: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """Tell why there are none: its charm sets the modes each time (`configure_apiserver` of its library)."""
        return (
            "# The kubernetes-control-plane charm always sets --authorization-mode, with which no API server takes a",
            "# file for authorization. Here the two webhooks have no room beside each other: unset this charm's option",
            "# policy and bind Keystone's groups by RBAC, or take the other webhook out:",
            "juju config kubernetes-control-plane authorization-mode=Node,RBAC authorization-webhook-config-file=",
        )
