"""A bare control plane without a machine: etcd and kube-apiserver as processes, on free ports of 127.0.0.1.

For what concerns the API server alone. How a distribution sets one up, and systemd, is `charmed.py`'s.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import requests
from cryptography.hazmat.primitives.asymmetric import rsa

from testbed import setup
from testbed.cache import Run, TestbedError
from testbed.certificates import Authority, pem
from testbed.processes import free_port, process

START_TIMEOUT = 120.0  # seconds; 5 to 10 are usual


class ControlPlane:
    """An API server of one's own, ready inside the context.

    Args:
        flags: its flags besides those that it cannot do without; what they name must be there.

    `token` is an administrator's, from the API server's own list of tokens: no webhook is asked about it.
    """

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.server = f"https://127.0.0.1:{self.port}"
        self.token = secrets.token_urlsafe(24)
        self.uid = "administrator-1"
        self._flags = flags
        self._stack = contextlib.ExitStack()
        self._session = requests.Session()
        self._session.trust_env = False

    def __enter__(self) -> ControlPlane:
        """Start both and wait until the API server is ready."""
        with contextlib.ExitStack() as stack:
            run = Run("control")
            stack.callback(run.remove)
            folder = run.folder
            authority = Authority("the bare control plane")
            pair = authority.sign("kube-apiserver", hosts=["127.0.0.1", "localhost"])
            files = {
                "ca.pem": authority.certificate,
                "server.pem": pair.certificate,
                "server.key": pair.key,
                "service-accounts.key": pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
                "tokens.csv": f'{self.token},administrator,{self.uid},"system:masters"\n'.encode(),
            }
            for name, content in files.items():
                (folder / name).write_bytes(content)
                (folder / name).chmod(0o600)
            self.ca = folder / "ca.pem"
            self._session.verify = str(self.ca)
            client, peer = free_port(), free_port()
            stack.enter_context(process(folder / "etcd.log", self._etcd(folder, client, peer)))
            self._log = folder / "kube-apiserver.log"
            self._process = stack.enter_context(process(self._log, self._api_server(folder, client)))
            self.pid = self._process.pid
            self._wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End both."""
        self._stack.close()

    @staticmethod
    def _etcd(folder: Path, client: int, peer: int) -> list[str | Path]:
        address = f"http://127.0.0.1:{client}"
        return [
            setup.etcd() / "etcd",
            f"--data-dir={folder}/etcd",
            f"--listen-client-urls={address}",
            f"--advertise-client-urls={address}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
            "--log-level=error",
        ]

    def _api_server(self, folder: Path, etcd: int) -> list[str | Path]:
        return [
            setup.kubernetes() / "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={folder}/server.pem",
            f"--tls-private-key-file={folder}/server.key",
            f"--token-auth-file={folder}/tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={folder}/service-accounts.key",
            f"--service-account-signing-key-file={folder}/service-accounts.key",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--authorization-mode=Node,RBAC",
            *self._flags,
        ]

    def _wait(self) -> None:
        end = time.monotonic() + START_TIMEOUT
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > end:
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
                raise TestbedError(f"the API server does not start:\n{tail}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return self.send("GET", "/readyz").status_code == 200
        except requests.RequestException:
            return False

    def send(self, method: str, path: str, token: str | None = None, body: object = None) -> requests.Response:
        """Send a request, as the administrator unless another token is given."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return self._session.request(method, self.server + path, headers=headers, json=body, timeout=30)
