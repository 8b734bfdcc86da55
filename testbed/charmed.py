"""A control-plane machine as Charmed Kubernetes lays it out: real kube-apiserver and etcd, the cluster's token webhook.

Files, names, flags and habits are those of the kubernetes-control-plane charm and its snaps; `control_plane/` holds
what stands in for them on the machine. There is no kubelet and no controller: pods can be made and listed, and stay
pending.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from testbed import setup
from testbed.cache import Run, TestbedError
from testbed.certificates import Authority, pem
from testbed.machine import CommandFailed, Machine

HERE = setup.HERE / "control_plane"
API_SERVER = "snap.kube-apiserver.daemon.service"
AUTH_WEBHOOK = "cdk.master.auth-webhook.service"
ETCD = "snap.etcd.etcd.service"
ARGS = "/var/snap/kube-apiserver/current/args"
PORT = 6443
NODE = "worker-0"

CIPHERS = (
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,"
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"
)
ADMISSION = "PersistentVolumeClaimResize,PodSecurity,NodeRestriction"
AUDIT_POLICY = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "None"}]}


@dataclass(frozen=True)
class ClusterToken:
    """A token of the cluster's own, `uid::…`, that only its token webhook knows."""

    username: str
    groups: tuple[str, ...]
    token: str


def _cluster_token(uid: str, username: str, *groups: str) -> ClusterToken:
    return ClusterToken(username, groups, f"{uid}::{secrets.token_urlsafe(24)}")


class Charmed:
    """A machine with a Charmed Kubernetes control plane, up and ready inside the context.

    Args:
        name: the machine's host name.

    """

    def __init__(self, name: str = "control-plane-0") -> None:
        binds = {
            "/snap/kube-apiserver/x1": setup.kubernetes(),
            "/snap/kubectl/x1": setup.kubernetes(),
            "/snap/etcd/x1": setup.etcd(),
        }
        self.machine = Machine(name, binds)
        self.kubectl_path = setup.kubernetes() / "kubectl"
        self.tokens = {
            "admin": _cluster_token("admin", "admin", "system:masters"),
            "kubelet": _cluster_token("kubelet-0", f"system:node:{NODE}", "system:nodes"),
            "kube-controller-manager": _cluster_token("kube-controller-manager", "system:kube-controller-manager"),
            "kube-scheduler": _cluster_token("kube-scheduler", "system:kube-scheduler"),
            "kube-proxy": _cluster_token("kube-proxy", "system:kube-proxy"),
        }
        self._authority = Authority("Charmed Kubernetes of the test bed")
        self.ca = self._authority.certificate
        self._stack = contextlib.ExitStack()

    # --- its life

    def __enter__(self) -> Charmed:
        """Boot the machine, install the control plane and wait until cluster tokens are good."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.machine)
            run = Run("charmed")
            stack.callback(run.remove)
            self.folder = run.folder
            self.server = f"https://{self.machine.address}:{PORT}"
            self.flags = self._flags()
            self._install()
            self._populate()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the machine."""
        self._stack.close()

    def _install(self) -> None:
        machine, address = self.machine, self.machine.address
        names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", machine.name]
        server = self._authority.sign("kube-apiserver", hosts=[*names, "127.0.0.1", "10.152.183.1", address])
        client = self._authority.sign("system:kube-apiserver")
        webhook = self._authority.sign("auth-webhook", organization="system:masters")
        rescue = self._authority.sign("rescue", organization="system:masters")
        signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        files: dict[str, bytes] = {
            "ca.crt": self.ca,
            "server.crt": server.certificate,
            "server.key": server.key,
            "client.crt": client.certificate,
            "client.key": client.key,
            "serviceaccount.key": pem(signer),
            "audit/audit-policy.yaml": yaml.safe_dump(AUDIT_POLICY).encode(),
            "auth-webhook/auth-webhook-conf.yaml": yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "auth-webhook",
                            "cluster": {
                                "certificate-authority": "/root/cdk/ca.crt",
                                "server": "https://127.0.0.1:5000/v1",
                            },
                        }
                    ],
                    "contexts": [{"name": "webhook", "context": {"cluster": "auth-webhook", "user": "kube-apiserver"}}],
                    "current-context": "webhook",
                    "users": [{"name": "kube-apiserver", "user": {}}],
                }
            ).encode(),
            "auth-webhook/auth-webhook.py": (HERE / "auth-webhook.py").read_bytes(),
            "auth-webhook/client.crt": webhook.certificate,
            "auth-webhook/client.key": webhook.key,
        }
        for name, content in files.items():
            machine.write(f"/root/cdk/{name}", content, 0o600)
        machine.write("/root/.kube/config", self._config({"token": self.tokens["admin"].token}), 0o600)
        machine.write("/usr/bin/snap", (HERE / "snap").read_bytes(), 0o755)
        for unit in (API_SERVER, AUTH_WEBHOOK, ETCD):
            machine.write(f"/etc/systemd/system/{unit}", (HERE / unit).read_bytes())
        machine.shell(
            "mkdir -p /var/snap/kube-apiserver/x1 /var/snap/kube-apiserver/common /snap/bin\n"
            "ln -s x1 /var/snap/kube-apiserver/current; ln -s x1 /snap/kube-apiserver/current\n"
            "ln -s /snap/kubectl/x1/kubectl /snap/bin/kubectl"
        )
        self._write_args()
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", ETCD, API_SERVER, AUTH_WEBHOOK)

        keys = {"client-certificate-data": rescue.certificate, "client-key-data": rescue.key}
        user = {name: base64.b64encode(data).decode() for name, data in keys.items()}
        self._rescue = self.folder / "rescue.kubeconfig"
        self._rescue.write_text(self._config(user))
        self._rescue.chmod(0o600)
        (self.folder / "ca.crt").write_bytes(self.ca)

    def _populate(self) -> None:
        self.machine.wait(self._answers, "the API server", 120)
        self.machine.wait(
            lambda: self.kubectl("get", "namespace", "kube-system", check=False).returncode == 0, "kube-system", 60
        )
        tokens = [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "juju.is/token-auth",
                "metadata": {"name": f"{name}-token-auth", "namespace": "kube-system"},
                "stringData": {
                    "uid": token.token.split("::")[0],
                    "username": token.username,
                    "password": token.token,
                    "groups": ",".join(token.groups),
                },
            }
            for name, token in self.tokens.items()
        ]
        self.apply(*tokens, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        self.namespace("default")
        self.wait_ready()

    # --- the API server's flags, and the charm that keeps them

    def _flags(self) -> dict[str, str]:
        """Give the flags that the control-plane charm sets, in its order."""
        cdk = "/root/cdk"
        return {
            "allow-privileged": "true",
            "service-cluster-ip-range": "10.152.183.0/24",
            "min-request-timeout": "300",
            "v": "4",
            "tls-cert-file": f"{cdk}/server.crt",
            "tls-private-key-file": f"{cdk}/server.key",
            "tls-cipher-suites": CIPHERS,
            "kubelet-certificate-authority": f"{cdk}/ca.crt",
            "kubelet-client-certificate": f"{cdk}/client.crt",
            "kubelet-client-key": f"{cdk}/client.key",
            "storage-backend": "etcd3",
            "profiling": "false",
            "anonymous-auth": "false",
            "authentication-token-webhook-cache-ttl": "1m0s",
            "authentication-token-webhook-config-file": f"{cdk}/auth-webhook/auth-webhook-conf.yaml",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-signing-key-file": f"{cdk}/serviceaccount.key",
            "service-account-key-file": f"{cdk}/serviceaccount.key",
            "kubelet-preferred-address-types": "InternalIP,Hostname,InternalDNS,ExternalDNS,ExternalIP",
            "advertise-address": self.machine.address,
            "etcd-servers": "http://127.0.0.1:2379",
            "authorization-mode": "Node,RBAC",
            "feature-gates": "",
            "enable-admission-plugins": ADMISSION,
            "requestheader-client-ca-file": f"{cdk}/ca.crt",
            "requestheader-allowed-names": "system:kube-apiserver,client",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-username-headers": "X-Remote-User",
            "proxy-client-cert-file": f"{cdk}/client.crt",
            "proxy-client-key-file": f"{cdk}/client.key",
            "enable-aggregator-routing": "true",
            "client-ca-file": f"{cdk}/ca.crt",
            "audit-log-path": f"{cdk}/audit/audit.log",
            "audit-log-maxage": "30",
            "audit-log-maxsize": "100",
            "audit-log-maxbackup": "10",
            "audit-policy-file": f"{cdk}/audit/audit-policy.yaml",
        }

    def _write_args(self) -> None:
        lines = [f'--{name}="{value}"\n' for name, value in self.flags.items()]
        self.machine.write(ARGS, "".join(lines))

    def control_plane_reconcile(self, *, wait: bool = True, hurried: bool = False) -> None:
        """Play the control-plane charm's reconcile: write all its flags (`self.flags`) anew, restart both services.

        Args:
            wait: whether to return only when the cluster's own tokens are good again.
            hurried: do not give the webhook the moment that it takes to load its tokens before the API server goes. It
                then tells everybody "no" for a while, which the API server remembers for a minute.

        """
        self._write_args()
        self.machine.run("systemctl", "restart", AUTH_WEBHOOK)
        if not hurried:
            self.machine.wait(self._webhook_knows_its_tokens, "the cluster's token webhook", 60)
        self.machine.run("systemctl", "restart", API_SERVER)
        if wait:
            self.wait_ready()

    def args(self) -> bytes:
        """Give the API server's args file as it is."""
        return self.machine.read(ARGS)

    def invocation(self) -> str:
        """Give the API server's InvocationID: another one after each start."""
        return self.machine.show(API_SERVER, "InvocationID")["InvocationID"]

    def wait_ready(self, timeout: float = 120) -> None:
        """Wait until the API server is ready and takes the admin's cluster token.

        It asks with that token only when the webhook knows it: a "no" would be remembered for a minute.

        Raises:
            TestbedError: if it does not come to that, with the end of its log.

        """
        try:
            self.machine.wait(self._answers, "the API server", timeout)
            self.machine.wait(self._webhook_knows_its_tokens, "the cluster's token webhook", timeout)
            self.machine.wait(self._takes_the_admin, "the API server to take cluster tokens", timeout)
        except TestbedError as error:
            raise TestbedError(f"{error}\n{self.machine.journal(API_SERVER, 40)}") from error

    def _answers(self) -> bool:
        return self.kubectl("get", "--raw=/readyz", check=False).returncode == 0

    def _takes_the_admin(self) -> bool:
        return self.status("/readyz", self.tokens["admin"].token) == 200

    def _webhook_knows_its_tokens(self) -> bool:
        return all(self._webhook_knows(known.token) for known in self.tokens.values())

    def _webhook_knows(self, token: str) -> bool:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        curl = ["curl", "-q", "-sS", "--cacert", "/root/cdk/ca.crt", "--data-binary", "@-", "https://127.0.0.1:5000/v1"]
        done = self.machine.run(*curl, input=json.dumps(review), check=False)
        return done.returncode == 0 and json.loads(done.stdout)["status"]["authenticated"]

    # --- talking to it

    def status(self, path: str, token: str, timeout: float = 10) -> int:
        """GET a path with a bearer token, on a connection of its own; give the HTTP status, 0 if there was none."""
        headers = {"Authorization": f"Bearer {token}"}
        try:
            with requests.Session() as session:
                session.trust_env = False
                ca = str(self.folder / "ca.crt")
                return session.get(self.server + path, headers=headers, verify=ca, timeout=timeout).status_code
        except requests.RequestException:
            return 0

    def _config(self, user: dict[str, Any]) -> str:
        cluster = {"server": self.server, "certificate-authority-data": base64.b64encode(self.ca).decode()}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "juju-cluster", "cluster": cluster}],
                "users": [{"name": "user", "user": user}],
                "contexts": [{"name": "juju-context", "context": {"cluster": "juju-cluster", "user": "user"}}],
                "current-context": "juju-context",
            },
            sort_keys=False,
        )

    def kubeconfig(self, token: str) -> Path:
        """Give a kubeconfig (a file here) for a bearer token."""
        path = self.folder / f"{base64.b16encode(secrets.token_bytes(6)).decode()}.kubeconfig"
        path.touch(0o600)
        path.write_text(self._config({"token": token}))
        return path

    def kubectl(
        self,
        *arguments: str,
        kubeconfig: Path | None = None,
        check: bool = True,
        input: str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl from here.

        Args:
            arguments: kubectl's.
            kubeconfig: whose; otherwise a client certificate's of `system:masters`, which needs no webhook.
            check: whether failure is an error.
            input: for its standard input.
            timeout: seconds.

        """
        command = [str(self.kubectl_path), f"--kubeconfig={kubeconfig or self._rescue}", *arguments]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
        done = subprocess.run(
            command, input=input or "", capture_output=True, text=True, env=environment, timeout=timeout
        )
        if check and done.returncode:
            raise CommandFailed(f"kubectl {' '.join(arguments)}", done)
        return done

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects, as the certificate's administrator."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", input=json.dumps(items))

    def namespace(self, name: str) -> None:
        """Make a namespace in which pods can be made (its service account comes from no controller here)."""
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, account)

    def pod(self, namespace: str, name: str) -> None:
        """Make a pod, which nothing will ever run."""
        spec = {
            "containers": [{"name": "main", "image": "registry.example/app:1"}],
            "automountServiceAccountToken": False,
        }
        self.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
        )

    def webhook_reviews(self) -> list[tuple[str, str]]:
        """Give the reviews that the cluster's own webhook got: SHA-256 of the token, and the user or `-`."""
        lines = self.machine.journal(AUTH_WEBHOOK, 100000).splitlines()
        return [(line.split()[1], line.split(" ", 2)[2]) for line in lines if line.startswith("review ")]
