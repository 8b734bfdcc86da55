"""Static pods: kubeadm's control plane, and those of others that keep theirs in the same place.

The kubelet runs what is in its folder of manifests and restarts a pod when its file changes. kubeadm writes the file
whole when it upgrades; in between only people and their tools do. Files whose names begin with a dot are passed over,
all others are run (`pkg/kubelet/config/file.go` in kubernetes/kubernetes), a copy with another name, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from apiserver import shell
from apiserver.args import MODE
from apiserver.manifest import CHANGED, MARK, VOLUME, WAS, Manifest
from apiserver.model import Conflict, Flag, Hand, Place


@dataclass(frozen=True)
class StaticPod:
    """The layout `static-pod`; see `model.Layout` for what the properties mean."""

    place: Place
    name: str = "static-pod"

    @property
    def manifest(self) -> Path:
        """The API server's pod."""
        return self.place.root / "etc/kubernetes/manifests/kube-apiserver.yaml"

    @property
    def config_folder(self) -> Path:
        """On the manifests' own file system, so that one rename brings a file over, and not among them."""
        return self.place.root / "etc/kubernetes/kubernetes-keystone"

    @property
    def admin_kubeconfig(self) -> Path:
        """Written by kubeadm, with a client certificate."""
        return self.place.root / "etc/kubernetes/admin.conf"

    @property
    def present(self) -> bool:
        """Whether the manifest is there."""
        return self.manifest.is_file()

    def asks(self, url: str) -> bool:  # noqa: ARG002
        """There is no webhook of kubeadm's own."""
        return False

    def by_hand(self, hand: Hand) -> list[str]:
        """Give the difference to the manifest as it is; a rename brings the new one over, from beside the folder.

        kubeadm's own configuration has to be told as well, or the next `kubeadm upgrade` drops it.
        """
        new = self.manifest.parent.with_name(f"{self.manifest.name}.new")
        owner = ""
        try:
            found = replace(Manifest.parse(self.manifest, self.manifest.read_bytes()), volume=f"{VOLUME}-manual")
            if found.owner != (0, 0):
                owner = " -o {} -g {}".format(*found.owner)
            edited = found.with_flags(self._lacking(found, hand), hand.copy.parent)
        except (OSError, Conflict) as error:
            return [
                f"# {error}",
                hand.install,
                f"# then add these to the command of the API server's container, and {hand.copy.parent} as a volume;",
                "# but not if it has a token webhook already: the tokens that only that one knows would be refused",
                *(f"#   {line}" for line in hand.lines),
            ]
        difference = difflib.unified_diff(found.text.splitlines(), _unmarked(edited), "before", "after", lineterm="")
        return [
            "# on each control-plane machine, one after the other:",
            hand.install.replace(" -m ", f"{owner} -m ", 1),
            f"sudo patch --output={new} {self.manifest} <<'EOF' && sudo chmod --reference={self.manifest} {new} && \\",
            f"  sudo mv {new} {self.manifest}",
            *difference,
            "EOF",
            "# `kubeadm upgrade` writes the manifest anew: have the same in kubeadm's ClusterConfiguration, under",
            "# apiServer.extraArgs and apiServer.extraVolumes (kubectl -n kube-system edit configmap kubeadm-config)",
        ]

    def _lacking(self, found: Manifest, hand: Hand) -> tuple[Flag, ...]:
        """Give the flags that are not there yet; a mode is added to the modes."""
        modes = found.args.items(MODE)
        if hand.value(MODE) and not modes:
            raise Conflict(f"{self.manifest} has no --{MODE}, so everything is allowed: set one first")
        mode = (Flag(MODE, "Webhook"),) if hand.value(MODE) and "Webhook" not in modes else ()
        others = tuple(flag for flag in hand.flags if flag.name != MODE and found.args.last(flag.name) != flag.value)
        return (*mode, *others)

    def to_structured(self, text: str, excluded: Sequence[str]) -> tuple[str, ...]:
        """Have kubeadm (from 1.30 on) do it: it writes the manifest from the settings that the cluster keeps."""
        folder, settings = self.place.root / "etc/kubernetes/authorization", "kubectl -n kube-system"
        return (
            "# On each control-plane machine:",
            *shell.put(folder / "config.yaml", text),
            f"# Once: {settings} edit configmap kubeadm-config",
            f"# Under apiServer, take out of extraArgs: {', '.join(excluded)}",
            "# and add (where extraArgs is a map, as one of its entries):",
            "#   extraArgs:",
            "#   - name: authorization-config",
            f"#     value: {folder}/config.yaml",
            "#   extraVolumes: # of the folder: a file that is mounted alone never changes",
            "#   - name: authorization",
            f"#     hostPath: {folder}",
            f"#     mountPath: {folder}",
            "#     pathType: Directory",
            "#     readOnly: true",
            "# Then on each control-plane machine, one after the other:",
            f"{settings} get configmap kubeadm-config -o jsonpath='{{.data.ClusterConfiguration}}' >kubeadm.yaml",
            "sudo kubeadm init phase control-plane apiserver --config kubeadm.yaml",
        )


def _unmarked(text: str) -> list[str]:
    """Give the lines without what would make them ours."""
    return [
        line.removesuffix(f" {CHANGED}").removesuffix(f" {MARK}")
        for line in text.splitlines()
        if not line.startswith(WAS)
    ]
