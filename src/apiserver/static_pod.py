"""Static pods: kubeadm's control plane, and those of others that keep theirs in the same place.

The kubelet runs what is in its folder of manifests and restarts a pod when its file changes. kubeadm writes the file
whole when it upgrades; in between only people and their tools do. Files whose names begin with a dot are passed over,
all others are run (`pkg/kubelet/config/file.go` in kubernetes/kubernetes), a copy with another name, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apiserver import shell
from apiserver.model import Place


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
