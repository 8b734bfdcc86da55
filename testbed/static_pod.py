"""A control-plane machine as kubeadm lays it out: the real kube-apiserver as a static pod, etcd beside it.

The kubelet is a small one (`control_plane/kubelet.py`). Somebody has given the API server a token webhook, by kubeadm's
`extraArgs` and `extraVolumes`: its files have other names in the pod than on the machine. The administrator has a
certificate.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from testbed import setup
from testbed.certificates import pem
from testbed.cluster import ETCD, HERE, NODE, Cluster, ClusterToken
from testbed.owners import kubeadm

MANIFEST = "/etc/kubernetes/manifests/kube-apiserver.yaml"
KUBELET = "kubelet.service"
WEBHOOK = "token-webhook.service"
PKI = "/etc/kubernetes/pki"


class StaticPod(Cluster):
    """A machine that `kubeadm init` has been run on, up and ready inside the context.

    Args:
        name: the machine's host name.

    """

    layout = "static-pod"
    service = "kube-apiserver.service"
    webhook = WEBHOOK
    args_path = MANIFEST

    def __init__(self, name: str = "control-plane-0") -> None:
        libraries = {"/opt/kubelet/yaml": Path(yaml.__file__).parent}
        super().__init__("kubeadm", name, {"/snap/kubernetes/x1": setup.kubernetes(), **libraries})
        self.version = setup.KUBERNETES_VERSION
        self.mounts = {
            "ca-certs": ("/etc/ssl/certs", "/etc/ssl/certs"),
            "k8s-certs": (PKI, PKI),
            "token-webhook": ("/srv/webhook/api-server", "/etc/token-webhook"),
        }
        """The pod's volumes, by name: the machine's path and the pod's."""
        self.tokens = {
            "admin": ClusterToken.of("operator", "system:masters"),
            "kubelet": ClusterToken.of(f"system:node:{NODE}", "system:nodes"),
        }

    def _install(self) -> None:
        machine = self.machine
        names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", machine.name]
        server = self._authority.sign("kube-apiserver", hosts=[*names, "127.0.0.1", "10.96.0.1", machine.address])
        kubelet = self._authority.sign("kube-apiserver-kubelet-client", organization="kubeadm:cluster-admins")
        admin = self._authority.sign("kubernetes-admin", organization="system:masters")
        webhook = self._authority.sign("webhook", hosts=["127.0.0.1"])
        signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = signer.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        user = {"client-certificate-data": admin.certificate, "client-key-data": admin.key}
        tokens = {
            known.token: {"username": known.username, "uid": known.username, "groups": known.groups}
            for known in self.tokens.values()
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "webhook",
                    "cluster": {
                        "certificate-authority": "ca.crt",
                        "server": "https://127.0.0.1:6400/1.0/kubernetes/auth/webhook",
                    },
                }
            ],
            "contexts": [{"name": "webhook", "context": {"cluster": "webhook", "user": "api-server"}}],
            "current-context": "webhook",
            "users": [{"name": "api-server", "user": {}}],
        }
        files: dict[str, bytes] = {
            f"{PKI}/ca.crt": self.ca,
            f"{PKI}/front-proxy-ca.crt": self.ca,
            f"{PKI}/apiserver.crt": server.certificate,
            f"{PKI}/apiserver.key": server.key,
            f"{PKI}/apiserver-kubelet-client.crt": kubelet.certificate,
            f"{PKI}/apiserver-kubelet-client.key": kubelet.key,
            f"{PKI}/sa.key": pem(signer),
            f"{PKI}/sa.pub": public,
            "/etc/kubernetes/admin.conf": self._config(
                {name: base64.b64encode(data).decode() for name, data in user.items()}
            ).encode(),
            "/srv/webhook/api-server/config.yaml": yaml.safe_dump(config).encode(),
            "/srv/webhook/api-server/ca.crt": self.ca,
            "/srv/webhook/state/cluster.crt": webhook.certificate + self.ca,
            "/srv/webhook/state/cluster.key": webhook.key,
            "/srv/webhook/state/tokens.json": json.dumps(tokens).encode(),
            "/opt/kubelet/kubelet.py": (HERE / "kubelet.py").read_bytes(),
            "/opt/kubelet/token-webhook.py": (HERE / "k8sd.py").read_bytes(),
        }
        for path, content in files.items():
            machine.write(path, content, 0o600)
        for unit in (KUBELET, WEBHOOK, ETCD):
            machine.write(f"/etc/systemd/system/{unit}", (HERE / unit).read_bytes())
        self.upgrade()
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", ETCD, WEBHOOK, KUBELET)

    def _flags(self) -> dict[str, str]:
        """Give the flags that kubeadm sets, but for etcd's certificates, and the webhook's."""
        return {
            "advertise-address": self.machine.address,
            "allow-privileged": "true",
            "authentication-token-webhook-config-file": "/etc/token-webhook/config.yaml",
            "authorization-mode": "Node,RBAC",
            "client-ca-file": f"{PKI}/ca.crt",
            "enable-admission-plugins": "NodeRestriction",
            "enable-bootstrap-token-auth": "true",
            "etcd-servers": "http://127.0.0.1:2379",
            "kubelet-client-certificate": f"{PKI}/apiserver-kubelet-client.crt",
            "kubelet-client-key": f"{PKI}/apiserver-kubelet-client.key",
            "kubelet-preferred-address-types": "InternalIP,ExternalIP,Hostname",
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-client-ca-file": f"{PKI}/front-proxy-ca.crt",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "secure-port": str(self.port),
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-key-file": f"{PKI}/sa.pub",
            "service-account-signing-key-file": f"{PKI}/sa.key",
            "service-cluster-ip-range": "10.96.0.0/12",
            "tls-cert-file": f"{PKI}/apiserver.crt",
            "tls-private-key-file": f"{PKI}/apiserver.key",
        }

    def manifest(self) -> str:
        """Give the manifest as kubeadm writes it, from what it knows."""
        return kubeadm(self.version, self.machine.address, self.flags, self.mounts, self.port)

    def upgrade(self) -> None:
        """Play kubeadm: write the manifest whole, and bring it over by a rename."""
        written = "/etc/kubernetes/tmp/kube-apiserver.yaml"
        self.machine.write(written, self.manifest(), 0o600)
        self.machine.shell(f"mkdir -p {MANIFEST.rpartition('/')[0]}; mv {written} {MANIFEST}")

    def owner_sets(self, **flags: str) -> bool:
        """Play `kubeadm upgrade` with other flags; see `Cluster`."""
        self.flags.update({name.replace("_", "-"): value for name, value in flags.items()})
        before = self.args()
        lived = self.invocation()
        self.upgrade()
        if self.args() == before:
            return False
        self.machine.wait(lambda: self.invocation() not in ("", lived), "the kubelet to start the new pod", 120)
        self.wait_ready()
        return True
