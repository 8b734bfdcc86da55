"""A control-plane machine as Charmed Kubernetes lays it out: real kube-apiserver and etcd, the cluster's token webhook.

Files, names, flags and habits are those of the kubernetes-control-plane charm and its snaps; `control_plane/` holds
what stands in for them on the machine.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, Protocol

import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from testbed import setup
from testbed.certificates import Authority, pem
from testbed.cluster import CIPHERS, ETCD, HERE, NODE, Cluster, ClusterToken
from testbed.machine import Machine
from testbed.owners import extra_arguments, known_alone

API_SERVER = "snap.kube-apiserver.daemon.service"
AUTH_WEBHOOK = "cdk.master.auth-webhook.service"
ARGS = "/var/snap/kube-apiserver/current/args"

ADMISSION = "PersistentVolumeClaimResize,PodSecurity,NodeRestriction"
AUDIT_POLICY = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "None"}]}


def _cluster_token(uid: str, username: str, *groups: str) -> ClusterToken:
    return ClusterToken(username, groups, f"{uid}::{secrets.token_urlsafe(24)}")


def cluster_tokens() -> dict[str, ClusterToken]:
    """Make the tokens that the control-plane charm hands out."""
    return {
        "admin": _cluster_token("admin", "admin", "system:masters"),
        "kubelet": _cluster_token("kubelet-0", f"system:node:{NODE}", "system:nodes"),
        "kube-controller-manager": _cluster_token("kube-controller-manager", "system:kube-controller-manager"),
        "kube-scheduler": _cluster_token("kube-scheduler", "system:kube-scheduler"),
        "kube-proxy": _cluster_token("kube-proxy", "system:kube-proxy"),
    }


def _signer() -> bytes:
    return pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))


class Family(Protocol):
    """What several machines of one control plane have in common."""

    authority: Authority
    service_accounts: bytes
    tokens: dict[str, ClusterToken]
    address: str
    """Of this system, where the balancer listens."""

    def join(self, machine: Machine) -> str:
        """Let a machine reach what is shared; gives the etcd's URL."""
        ...


class Charmed(Cluster):
    """A machine with a Charmed Kubernetes control plane, up and ready inside the context.

    Args:
        name: the machine's host name.
        family: the others, where it is one of several.

    """

    layout = "charmed"
    service = API_SERVER
    webhook = AUTH_WEBHOOK
    args_path = ARGS

    def __init__(self, name: str = "control-plane-0", family: Family | None = None) -> None:
        binds = {"/snap/kube-apiserver/x1": setup.kubernetes(), "/snap/kubectl/x1": setup.kubernetes()}
        super().__init__("Charmed Kubernetes", name, binds)
        self.tokens = family.tokens if family else cluster_tokens()
        self._family = family
        if family:
            self._authority = family.authority
            self.ca = family.authority.certificate
        self.authn_endpoint = ""
        self._extra: dict[str, str] = {}

    def _install(self) -> None:
        machine, address = self.machine, self.machine.address
        names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", machine.name]
        if self._family:
            names.append(self._family.address)
        server = self._authority.sign("kube-apiserver", hosts=[*names, "127.0.0.1", "10.152.183.1", address])
        client = self._authority.sign("system:kube-apiserver")
        webhook = self._authority.sign("auth-webhook", organization="system:masters")
        files: dict[str, bytes] = {
            "ca.crt": self.ca,
            "server.crt": server.certificate,
            "server.key": server.key,
            "client.crt": client.certificate,
            "client.key": client.key,
            "serviceaccount.key": self._family.service_accounts if self._family else _signer(),
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
            "auth-webhook/auth-webhook.py": self._webhook_program(),
            "auth-webhook/client.crt": webhook.certificate,
            "auth-webhook/client.key": webhook.key,
        }
        for name, content in files.items():
            machine.write(f"/root/cdk/{name}", content, 0o600)
        machine.write("/root/.kube/config", self._config({"token": self.tokens["admin"].token}), 0o600)
        machine.write("/usr/bin/snap", (HERE / "snap").read_bytes(), 0o755)
        units = (API_SERVER, AUTH_WEBHOOK) if self._family else (ETCD, API_SERVER, AUTH_WEBHOOK)
        for unit in units:
            machine.write(f"/etc/systemd/system/{unit}", (HERE / unit).read_bytes())
        machine.shell(
            "mkdir -p /var/snap/kube-apiserver/x1 /var/snap/kube-apiserver/common /snap/bin\n"
            "ln -s x1 /var/snap/kube-apiserver/current; ln -s x1 /snap/kube-apiserver/current\n"
            "ln -s /snap/kubectl/x1/kubectl /snap/bin/kubectl"
        )
        self._write_args()
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", *units)

    def _objects(self) -> list[dict[str, Any]]:
        return [
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
            "etcd-servers": self._family.join(self.machine) if self._family else "http://127.0.0.1:2379",
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

    def _webhook_program(self) -> bytes:
        """Render the control plane's own token webhook, as its charm does."""
        program = (HERE / "auth-webhook.py").read_text()
        endpoint = f"CUSTOM_AUTHN_ENDPOINT = '{self.authn_endpoint}'"
        return program.replace('CUSTOM_AUTHN_ENDPOINT = ""', endpoint).encode()

    def control_plane_reconcile(self, *, wait: bool = True, hurried: bool = False) -> None:
        """Play the control-plane charm's reconcile: write all its flags (`self.flags`) anew, restart both services.

        Its option `authn-webhook-endpoint` is `self.authn_endpoint`.

        Args:
            wait: whether to return only when the cluster's own tokens are good again.
            hurried: do not give the webhook the moment that it takes to load its tokens before the API server goes. It
                then tells everybody "no" for a while, which the API server remembers for a minute.

        """
        self._write_args()
        self.machine.write("/root/cdk/auth-webhook/auth-webhook.py", self._webhook_program(), 0o600)
        self.machine.run("systemctl", "restart", AUTH_WEBHOOK)
        if not hurried:
            self.machine.wait(self._webhook_knows_its_tokens, "the cluster's token webhook", 60)
        self.machine.run("systemctl", "restart", API_SERVER)
        if wait:
            self.wait_ready()

    def owner_sets(self, **flags: str) -> bool:
        """Play the control-plane charm with other options; see `control_plane_reconcile`."""
        self.flags |= {name.replace("_", "-"): value for name, value in flags.items()}
        self.control_plane_reconcile()
        return True

    def configure(self, options: Mapping[str, str]) -> None:
        """Play the control-plane charm as its options are set; a kubeconfig's text becomes a file beside its own.

        Related to Keystone (`own_keystone`), it is one of until 1.28, which sets more by itself.
        """
        known_alone(
            options,
            "api-extra-args",
            "authn-webhook-endpoint",
            "authorization-mode",
            "authorization-webhook-config-file",
            "enable-keystone-authorization",
        )
        if theirs := self.own_keystone:
            options = {**options, "authn-webhook-endpoint": theirs.url}
            if options.get("enable-keystone-authorization") == "true":
                modes, file = "authorization-mode", "authorization-webhook-config-file"
                options |= {modes: "Node,RBAC,Webhook", file: theirs.kubeconfig()}
        for name in self._extra:
            self.flags.pop(name, None)
        self._extra = extra_arguments(options.get("api-extra-args", ""))
        self.flags = self._flags() | self.flags | self._extra
        self.authn_endpoint = options.get("authn-webhook-endpoint", "")
        self.flags["authorization-mode"] = options.get("authorization-mode", "Node,RBAC")
        path = "/root/cdk/authorization-webhook-config.yaml"
        self.flags.pop("authorization-webhook-config-file", None)
        if text := options.get("authorization-webhook-config-file"):
            self.machine.write(path, text, 0o600)
            self.flags["authorization-webhook-config-file"] = path
        self.control_plane_reconcile()

    def wait_ready(self, timeout: float = 120) -> None:
        """Wait until the API server is ready and takes the admin's cluster token.

        It asks with that token only when the webhook knows it: a "no" would be remembered for a minute.

        Raises:
            TestbedError: if it does not come to that, with the end of its log.

        """
        self._wait(
            (self._answers, "the API server"),
            (self._webhook_knows_its_tokens, "the cluster's token webhook"),
            (self._takes_the_admin, "the API server to take cluster tokens"),
            timeout=timeout,
        )

    def _webhook_knows_its_tokens(self) -> bool:
        return all(self._webhook_knows(known.token) for known in self.tokens.values())

    def _webhook_knows(self, token: str) -> bool:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        curl = ["curl", "-q", "-sS", "--cacert", "/root/cdk/ca.crt", "--data-binary", "@-", "https://127.0.0.1:5000/v1"]
        done = self.machine.run(*curl, input=json.dumps(review), check=False)
        return done.returncode == 0 and json.loads(done.stdout)["status"]["authenticated"]
