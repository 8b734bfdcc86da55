"""A control-plane machine as Canonical Kubernetes lays it out: real kube-apiserver and etcd, its daemon's webhook.

Files, names, flags and habits are those of the `k8s` snap and its charm; `control_plane/` holds what stands in for
them on the machine. The administrator has a certificate; the tokens are those that the charm hands out to others.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from testbed import setup
from testbed.certificates import pem
from testbed.cluster import CIPHERS, ETCD, HERE, NODE, PORT, Cluster, ClusterToken
from testbed.owners import canonical_charm, extra_arguments, known_alone

API_SERVER = "snap.k8s.kube-apiserver.service"
DAEMON = "snap.k8s.k8sd.service"
COMMON = "/var/snap/k8s/common"
ARGS = f"{COMMON}/args/kube-apiserver"
FOLDER = f"{COMMON}/args/kube-apiserver.args.d"
STATE = f"{COMMON}/var/lib/k8sd/state"
WEBHOOK = f"{COMMON}/args/conf.d/auth-token-webhook.conf"
PKI = "/etc/kubernetes/pki"


class Canonical(Cluster):
    """A machine with a Canonical Kubernetes control plane, up and ready inside the context.

    Args:
        name: the machine's host name.
        folder: whether it is a newer snap, which keeps its flags in a folder.

    """

    layout = "canonical"
    service = API_SERVER
    webhook = DAEMON

    def __init__(self, name: str = "control-plane-0", *, folder: bool = False) -> None:
        super().__init__("Canonical Kubernetes", name, {"/snap/k8s/x1": setup.kubernetes()})
        self.in_folder = folder
        self.args_path = f"{FOLDER}/00-snap-managed" if folder else ARGS
        self._charms_path = f"{FOLDER}/01-charm-managed" if folder else ARGS
        self.tokens = {
            "admin": ClusterToken.of("operator", "system:masters"),
            "kubelet": ClusterToken.of(f"system:node:{NODE}", "system:nodes"),
        }

    def _install(self) -> None:
        machine = self.machine
        names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", machine.name]
        server = self._authority.sign("kube-apiserver", hosts=[*names, "127.0.0.1", "10.152.183.1", machine.address])
        client = self._authority.sign("kube-apiserver-kubelet-client", organization="system:masters")
        admin = self._authority.sign("kubernetes-admin", organization="system:masters")
        daemon = self._authority.sign("k8sd", hosts=["127.0.0.1"])
        files: dict[str, bytes] = {
            f"{PKI}/ca.crt": self.ca,
            f"{PKI}/client-ca.crt": self.ca,
            f"{PKI}/front-proxy-ca.crt": self.ca,
            f"{PKI}/apiserver.crt": server.certificate,
            f"{PKI}/apiserver.key": server.key,
            f"{PKI}/apiserver-kubelet-client.crt": client.certificate,
            f"{PKI}/apiserver-kubelet-client.key": client.key,
            f"{PKI}/serviceaccount.key": pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
            f"{STATE}/cluster.crt": daemon.certificate + self.ca,
            f"{STATE}/cluster.key": daemon.key,
            f"{STATE}/tokens.json": json.dumps(
                {
                    known.token: {"username": known.username, "uid": known.username, "groups": known.groups}
                    for known in self.tokens.values()
                }
            ).encode(),
            WEBHOOK: yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "k8s-token-auth-service",
                            "cluster": {
                                "certificate-authority": f"{STATE}/cluster.crt",
                                "tls-server-name": "127.0.0.1",
                                "server": f"https://{machine.address}:6400/1.0/kubernetes/auth/webhook",
                            },
                        }
                    ],
                    "current-context": "webhook",
                    "contexts": [
                        {"name": "webhook", "context": {"cluster": "k8s-token-auth-service", "user": "k8s-apiserver"}}
                    ],
                    "users": [{"name": "k8s-apiserver", "user": {}}],
                }
            ).encode(),
            "/etc/kubernetes/admin.conf": self._config(
                {
                    "client-certificate-data": base64.b64encode(admin.certificate).decode(),
                    "client-key-data": base64.b64encode(admin.key).decode(),
                }
            )
            .replace(machine.address, "127.0.0.1")
            .encode(),
        }
        for path, content in files.items():
            machine.write(path, content, 0o600)
        machine.write("/usr/bin/snap", (HERE / "snap").read_bytes(), 0o755)
        machine.write("/snap/k8s/k8sd.py", (HERE / "k8sd.py").read_bytes())
        for unit in (API_SERVER, DAEMON, ETCD):
            machine.write(f"/etc/systemd/system/{unit}", (HERE / unit).read_bytes())
        machine.shell(
            "mkdir -p /var/snap/k8s/x1 /snap/bin; ln -s x1 /var/snap/k8s/current; ln -s x1 /snap/k8s/current\n"
            "ln -s /snap/k8s/x1/kubectl /snap/bin/kubectl"
        )
        self.write_flags()
        if self.in_folder:
            machine.write(self._charms_path, "", 0o600)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", ETCD, DAEMON, API_SERVER)

    # --- the API server's flags, and those who keep them

    def _flags(self) -> dict[str, str]:
        """Give the flags that the daemon sets."""
        return {
            "advertise-address": self.machine.address,
            "allow-privileged": "true",
            "anonymous-auth": "false",
            "authentication-token-webhook-config-file": WEBHOOK,
            "authorization-mode": "Node,RBAC",
            "client-ca-file": f"{PKI}/client-ca.crt",
            "enable-admission-plugins": "NodeRestriction",
            "etcd-servers": "http://127.0.0.1:2379",
            "kubelet-certificate-authority": f"{PKI}/ca.crt",
            "kubelet-client-certificate": f"{PKI}/apiserver-kubelet-client.crt",
            "kubelet-client-key": f"{PKI}/apiserver-kubelet-client.key",
            "kubelet-preferred-address-types": "InternalIP,Hostname,InternalDNS,ExternalDNS,ExternalIP",
            "profiling": "false",
            "request-timeout": "300s",
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-client-ca-file": f"{PKI}/front-proxy-ca.crt",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "secure-port": str(PORT),
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": f"{PKI}/serviceaccount.key",
            "service-account-signing-key-file": f"{PKI}/serviceaccount.key",
            "service-cluster-ip-range": "10.152.183.0/24",
            "tls-cert-file": f"{PKI}/apiserver.crt",
            "tls-cipher-suites": CIPHERS,
            "tls-min-version": "VersionTLS12",
            "tls-private-key-file": f"{PKI}/apiserver.key",
        }

    def write_flags(self) -> None:
        """Play the daemon's first write: its flags, sorted, values bare."""
        text = "".join(f"--{name}={value}\n" for name, value in sorted(self.flags.items()))
        self.machine.write(self.args_path, text, 0o600)

    def owner_sets(self, **extra: str) -> bool:
        """Play the charm's reconcile: merge its operator's flags into its file; restart if that changes a byte of it.

        Args:
            extra: the flags, `_` for `-`.

        Returns:
            Whether it restarted the API server.

        """
        before = self.machine.read(self._charms_path).decode()
        after = canonical_charm(before, {name.replace("_", "-"): value for name, value in extra.items()})
        if after == before:
            return False
        self.machine.write(self._charms_path, after, 0o600)
        self.machine.run("systemctl", "restart", API_SERVER)
        self.wait_ready()
        return True

    def configure(self, options: Mapping[str, str]) -> None:
        """Play the charm with its option `kube-apiserver-extra-args`; what is unset stays in its file, as there."""
        known_alone(options, "kube-apiserver-extra-args")
        self.owner_sets(**extra_arguments(options.get("kube-apiserver-extra-args", "")))
