"""MicroK8s: one process, kubelite, is API server, controllers, proxy and kubelet, each with a file of flags of its own.

kubelite reads the API server's when it starts: a line at a time, quotes taken off, `${SNAP_DATA}` and the like put in,
`#` for comments. Users edit it by hand; the snap's own tools set a flag by replacing every line of its name, or by a
new first line (`refresh_opt_in_local_config` in canonical/microk8s). `microk8s enable rbac` sets the mode so: a second
line with a mode would become the same as the first, and kubelite does not start with a mode given twice.

Its command line names the file and shows no flag of it, and what it waits for before it reads the file can take
minutes. So our flags stay in it until its end, and the script writes down what a start has been given.

A restart is the unit's own: containers go on, for they are containerd's. `microk8s stop` would end them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apiserver import shell
from apiserver.model import Hand, Place


@dataclass(frozen=True)
class MicroK8s:
    """The layout `microk8s`; see `model.Layout` for what the properties mean."""

    place: Place
    name: str = "microk8s"
    service: str = "snap.microk8s.daemon-kubelite.service"
    args_folder: None = None
    whole_values: bool = True
    flags_shown: bool = False

    @property
    def args_file(self) -> Path:
        """A flag a line, values bare or quoted; `current` is a link to the snap revision's folder."""
        return self.working_folder / "args/kube-apiserver"

    @property
    def working_folder(self) -> Path:
        """`$SNAP_DATA`, where snapd starts a service."""
        return self.place.root / "var/snap/microk8s/current"

    @property
    def config_folder(self) -> Path:
        """In `$SNAP_COMMON`, which lives through a refresh of the snap and can be read confined as well."""
        return self.place.root / "var/snap/microk8s/common/kubernetes-keystone"

    @property
    def admin_kubeconfig(self) -> Path:
        """The snap's own, with a token of its static list or, in newer ones, a certificate."""
        return self.working_folder / "credentials/client.config"

    @property
    def present(self) -> bool:
        """Whether kubelite is here and is a control plane: on a worker it has a lock, and the same files."""
        worker = self.working_folder / "var/lock/clustered.lock"
        return (self.place.unit_folder / self.service).exists() and self.args_file.is_file() and not worker.exists()

    def asks(self, url: str) -> bool:  # noqa: ARG002
        """It has no webhook of its own."""
        return False

    def by_hand(self, hand: Hand) -> list[str]:
        """Write them into its file: nobody has an option for it. Of a flag, the lines that are there go."""
        names = "|".join(flag.name for flag in hand.flags)
        return [
            "# on each control-plane machine, one after the other:",
            hand.install,
            f"sudo sed -Ei '/^--({names})[= ]/d' {self.args_file}",
            # An empty line first: the last one of the file may have no end.
            f"sudo tee -a {self.args_file} >/dev/null <<'EOF'",
            "",
            *hand.lines,
            "EOF",
            f"sudo systemctl restart {self.service}",
        ]

    def to_structured(self, text: str, excluded: Sequence[str]) -> tuple[str, ...]:
        """Write into its file, as its users do."""
        name = "args/authorization.yaml"
        return (
            "# On each control-plane machine, one after the other:",
            *shell.put(self.working_folder / name, text),
            *shell.exchange_flags(self.args_file, excluded, f"--authorization-config=${{SNAP_DATA}}/{name}"),
            f"sudo systemctl restart {self.service}",
        )
