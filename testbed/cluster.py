"""What every control plane of the test bed has: a machine with a real kube-apiserver, tokens of its own, kubectl.

There is no kubelet and no controller: pods can be made and listed, and stay pending. How a distribution lays its
control plane out is its own module's (`testbed.charmed`, `testbed.canonical`).
"""

from __future__ import annotations

import abc
import base64
import contextlib
import json
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
import yaml

from testbed import setup
from testbed.cache import Run, TestbedError
from testbed.certificates import Authority
from testbed.k8s_keystone_auth import KeystoneAuth
from testbed.machine import CommandFailed, Machine

HERE = setup.HERE / "control_plane"
ETCD = "snap.etcd.etcd.service"
PORT = 6443
NODE = "worker-0"
CIPHERS = (
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,"
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"
)

_C = TypeVar("_C", bound="Cluster")


@dataclass(frozen=True)
class ClusterToken:
    """A token of the cluster's own, that only its token webhook knows."""

    username: str
    groups: tuple[str, ...]
    token: str

    @classmethod
    def of(cls, username: str, *groups: str) -> ClusterToken:
        """Make one of the shape that k8sd's have."""
        return cls(username, groups, f"token::{secrets.token_hex(20)}")


class Cluster(abc.ABC):
    """A machine with a control plane, up and ready inside the context.

    Args:
        title: whose control plane, for its CA's name.
        name: the machine's host name.
        binds: what it sees of this system beside etcd: path there to path here.

    """

    layout: str
    """The value of the charm's `api-server` that means it."""
    service: str
    """The API server's unit."""
    webhook: str
    """The unit of the cluster's own token webhook; empty where there is none."""
    args_path: str
    port = PORT
    tokens: Mapping[str, ClusterToken]
    """At least `admin` and `kubelet`."""
    flags: dict[str, str]
    """What the control plane's owner sets."""
    own_keystone: KeystoneAuth | None = None
    """What its charm's own support for Keystone has asked, where there is one that is related to Keystone."""

    def __init__(self, title: str, name: str, binds: Mapping[str, Path]) -> None:
        self.machine = Machine(name, {**binds, "/snap/etcd/x1": setup.etcd()})
        self.kubectl_path = setup.kubernetes() / "kubectl"
        self._authority = Authority(f"{title} of the test bed")
        self.ca = self._authority.certificate
        self._stack = contextlib.ExitStack()

    # --- its life

    def __enter__(self: _C) -> _C:
        """Boot the machine, install the control plane and wait until cluster tokens are good."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.machine)
            run = Run(self.layout)
            stack.callback(run.remove)
            self.folder = run.folder
            self.server = f"https://{self.machine.address}:{self.port}"
            self.flags = self._flags()
            self._install()
            self._hand_out_rescue()
            self._populate()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the machine."""
        self._stack.close()

    @abc.abstractmethod
    def _flags(self) -> dict[str, str]:
        """Give the flags that the owner sets, in its order."""

    @abc.abstractmethod
    def _install(self) -> None:
        """Put everything in place and start it."""

    def wait_ready(self, timeout: float = 180) -> None:
        """Wait until the API server is ready and takes a token of the cluster's own.

        Raises:
            TestbedError: if it does not come to that, with the end of its log.

        """
        self._wait(
            (self._answers, "the API server"),
            (self._takes_the_admin, "the API server to take cluster tokens"),
            timeout=timeout,
        )

    @abc.abstractmethod
    def owner_sets(self, **flags: str) -> bool:
        """Have the control plane's owner set flags (`_` for `-`) in its own way, and restart as it does.

        Returns:
            Whether it restarted the API server.

        """

    def configure(self, options: Mapping[str, str]) -> None:
        """Play the control plane's charm as its options are set; those that its module knows, and no others."""
        raise TestbedError(f"nothing plays the options of the charm of {self.layout} here: {', '.join(options)}")

    def _hand_out_rescue(self) -> None:
        rescue = self._authority.sign("rescue", organization="system:masters")
        keys = {"client-certificate-data": rescue.certificate, "client-key-data": rescue.key}
        user = {name: base64.b64encode(data).decode() for name, data in keys.items()}
        self._rescue = self.folder / "rescue.kubeconfig"
        self._rescue.write_text(self._config(user))
        self._rescue.chmod(0o600)
        (self.folder / "ca.crt").write_bytes(self.ca)

    def _populate(self) -> None:
        """Make what a cluster has, a node among it; then wait until all is ready."""
        self._wait(
            (self._answers, "the API server"),
            (lambda: self.kubectl("get", "namespace", "kube-system", check=False).returncode == 0, "kube-system"),
            timeout=120,
        )
        self.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}, *self._objects())
        self.namespace("default")
        self.wait_ready()

    def _objects(self) -> list[dict[str, Any]]:
        """Give what else there is in such a cluster."""
        return []

    def args(self) -> bytes:
        """Give the API server's args file as it is."""
        return self.machine.read(self.args_path)

    def invocation(self) -> str:
        """Give the API server's InvocationID: another one after each start."""
        return self.machine.show(self.service, "InvocationID")["InvocationID"]

    def _answers(self) -> bool:
        return self.kubectl("get", "--raw=/readyz", check=False).returncode == 0

    def _takes_the_admin(self) -> bool:
        return self.status("/readyz", self.tokens["admin"].token) == 200

    def _wait(self, *steps: tuple[Any, str], timeout: float) -> None:
        """Wait for one condition after the other; what fails is told with the end of the API server's log."""
        try:
            for condition, what in steps:
                self.machine.wait(condition, what, timeout)
        except TestbedError as error:
            raise TestbedError(f"{error}\n{self.machine.journal(self.service, 40)}") from error

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

    def _config(self, user: dict[str, Any], server: str | None = None) -> str:
        cluster = {"server": server or self.server, "certificate-authority-data": base64.b64encode(self.ca).decode()}
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

    def kubeconfig(self, token: str, server: str | None = None) -> Path:
        """Give a kubeconfig (a file here) for a bearer token, and another server where one is named."""
        path = self.folder / f"{base64.b16encode(secrets.token_bytes(6)).decode()}.kubeconfig"
        path.touch(0o600)
        path.write_text(self._config({"token": token}, server))
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
        lines = self.machine.journal(self.webhook, 100000).splitlines() if self.webhook else []
        return [(line.split()[1], line.split(" ", 2)[2]) for line in lines if line.startswith("review ")]
