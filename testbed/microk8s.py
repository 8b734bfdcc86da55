"""A control-plane machine as MicroK8s lays it out: real kube-apiserver and etcd, below what stands in for kubelite.

Files, names, flags and habits are those of the snap, after `microk8s enable rbac`. It has no token webhook of its own;
its tokens stand in a file, as in older versions.
"""

from __future__ import annotations

import base64
import secrets

from cryptography.hazmat.primitives.asymmetric import rsa

from testbed import setup
from testbed.certificates import pem
from testbed.cluster import ETCD, HERE, NODE, Cluster, ClusterToken
from testbed.owners import microk8s_tools

KUBELITE = "snap.microk8s.daemon-kubelite.service"
DATA = "/var/snap/microk8s/current"
ARGS = f"{DATA}/args/kube-apiserver"
COMMENT = "\n# Enable the aggregation layer\n"


class MicroK8s(Cluster):
    """A machine with MicroK8s, up and ready inside the context.

    Args:
        name: the machine's host name.

    """

    layout = "microk8s"
    service = KUBELITE
    webhook = ""
    args_path = ARGS
    port = 16443

    def __init__(self, name: str = "control-plane-0") -> None:
        super().__init__("MicroK8s", name, {"/snap/microk8s/x1": setup.kubernetes()})
        self.tokens = {
            "admin": ClusterToken("admin", ("system:masters",), secrets.token_hex(20)),
            "kubelet": ClusterToken(f"system:node:{NODE}", ("system:nodes",), secrets.token_hex(20)),
        }

    def _install(self) -> None:
        machine = self.machine
        names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", machine.name]
        server = self._authority.sign("127.0.0.1", hosts=[*names, "127.0.0.1", "10.152.183.1", machine.address])
        admin = self._authority.sign("admin", organization="system:masters")
        user = {"client-certificate-data": admin.certificate, "client-key-data": admin.key}
        config = self._config({name: base64.b64encode(data).decode() for name, data in user.items()})
        tokens = "".join(
            f'{known.token},{known.username},{known.username},"{",".join(known.groups)}"\n'
            for known in self.tokens.values()
        )
        machine.shell(
            "mkdir -p /var/snap/microk8s/x1 /var/snap/microk8s/common /snap/bin\n"
            "ln -s x1 /var/snap/microk8s/current; ln -s x1 /snap/microk8s/current\n"
            "ln -s /snap/microk8s/x1/kubectl /snap/bin/kubectl"
        )
        for path, content in {
            "certs/ca.crt": self.ca,
            "certs/front-proxy-ca.crt": self.ca,
            "certs/server.crt": server.certificate,
            "certs/server.key": server.key,
            "certs/serviceaccount.key": pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
            "credentials/known_tokens.csv": tokens.encode(),
            "credentials/client.config": config.replace(machine.address, "127.0.0.1").encode(),
        }.items():
            machine.write(f"{DATA}/{path}", content, 0o660)
        machine.write("/usr/bin/snap", (HERE / "snap").read_bytes(), 0o755)
        machine.write("/snap/microk8s/kubelite.py", (HERE / "kubelite.py").read_bytes())
        for unit in (KUBELITE, ETCD):
            machine.write(f"/etc/systemd/system/{unit}", (HERE / unit).read_bytes())
        own, added = list(self.flags.items())[:-6], list(self.flags.items())[-6:]
        lines = ["".join(f"--{name}={value}\n" for name, value in part) for part in (own, added)]
        machine.write(ARGS, lines[0] + COMMENT + lines[1], 0o660)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", ETCD, KUBELITE)

    def _flags(self) -> dict[str, str]:
        """Give what the snap comes with, and the address: there is no default route here to find it by."""
        certs = "${SNAP_DATA}/certs"
        return {
            "advertise-address": self.machine.address,
            "cert-dir": certs,
            "service-cluster-ip-range": "10.152.183.0/24",
            "authorization-mode": "RBAC,Node",
            "service-account-key-file": f"{certs}/serviceaccount.key",
            "client-ca-file": f"{certs}/ca.crt",
            "tls-cert-file": f"{certs}/server.crt",
            "tls-private-key-file": f"{certs}/server.key",
            "kubelet-client-certificate": f"{certs}/server.crt",
            "kubelet-client-key": f"{certs}/server.key",
            "secure-port": str(self.port),
            "etcd-servers": '"http://127.0.0.1:2379"',
            "allow-privileged": "true",
            "service-account-issuer": "'https://kubernetes.default.svc'",
            "service-account-signing-key-file": f"{certs}/serviceaccount.key",
            "event-ttl": "5m",
            "profiling": "false",
            "token-auth-file": "${SNAP_DATA}/credentials/known_tokens.csv",
            "requestheader-client-ca-file": f"{certs}/front-proxy-ca.crt",
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "kubelet-certificate-authority": f"{certs}/ca.crt",
        }

    def owner_sets(self, **flags: str) -> bool:
        """Play the snap's own tools: set flags (`_` for `-`) in its file and restart.

        Returns:
            True: they restart it whether that changes anything or not.

        """
        text = self.machine.read(ARGS).decode()
        for name, value in flags.items():
            text = microk8s_tools(text, name.replace("_", "-"), value)
        self.machine.write(ARGS, text, 0o660)
        self.machine.run("systemctl", "restart", KUBELITE)
        self.wait_ready()
        return True
