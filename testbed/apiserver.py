"""A real kube-apiserver with an etcd, both on loopback: for what only an API server can show, without a machine.

It knows one token of its own, the administrator's, and whatever its token webhook vouches for.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from testbed import setup
from testbed.cache import Run, TestbedError
from testbed.certificates import Authority, pem
from testbed.processes import Standing, free_port, process

START_TIMEOUT = 60.0  # seconds; 4 are usual
AUDIENCE = "https://kubernetes.default.svc"


class ApiServer(Standing):
    """A kube-apiserver of one's own.

    Args:
        flags: beside those that it needs, without the leading dashes, such as
            `authentication-token-webhook-config-file=…`.

    """

    def __init__(self, *flags: str) -> None:
        super().__init__()
        self._flags = flags
        self.admin_token = secrets.token_urlsafe(24)

    def _begin(self) -> None:
        etcd, kubernetes = setup.etcd() / "etcd", setup.kubernetes() / "kube-apiserver"
        run = Run("apiserver")
        self._stack.callback(run.remove)
        self.folder = run.folder
        self._write()
        self._start(etcd, kubernetes)

    def _write(self) -> None:
        authority = Authority("API server of the test bed")
        server = authority.sign("kube-apiserver", hosts=["127.0.0.1", "localhost"])
        self.ca = self.folder / "ca.pem"
        self.ca.write_bytes(authority.certificate)
        (self.folder / "server.pem").write_bytes(server.certificate)
        (self.folder / "server.key").write_bytes(server.key)
        (self.folder / "signer.key").write_bytes(pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
        (self.folder / "tokens.csv").write_text(f'{self.admin_token},admin,admin,"system:masters"\n')

    def _start(self, etcd: Path, kubernetes: Path) -> None:
        client, peer, self.port = (free_port() for _ in range(3))
        at = self.folder
        self._stack.enter_context(
            process(
                at / "etcd.log",
                [
                    etcd,
                    f"--data-dir={at}/etcd",
                    "--unsafe-no-fsync",
                    f"--listen-client-urls=http://127.0.0.1:{client}",
                    f"--advertise-client-urls=http://127.0.0.1:{client}",
                    f"--listen-peer-urls=http://127.0.0.1:{peer}",
                ],
            )
        )
        own = not any(flag.startswith("authorization-") for flag in self._flags)
        command = [
            kubernetes,
            f"--etcd-servers=http://127.0.0.1:{client}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={at}/server.pem",
            f"--tls-private-key-file={at}/server.key",
            f"--token-auth-file={at}/tokens.csv",
            f"--service-account-issuer={AUDIENCE}",
            f"--service-account-signing-key-file={at}/signer.key",
            f"--service-account-key-file={at}/signer.key",
            "--service-cluster-ip-range=10.152.183.0/24",
            "--endpoint-reconciler-type=none",
            *(["--authorization-mode=RBAC"] if own else []),
            *(f"--{flag}" for flag in self._flags),
        ]
        self.process = self._stack.enter_context(process(at / "kube-apiserver.log", command))
        end = time.monotonic() + START_TIMEOUT
        while self._ready() != 200:
            if self.process.poll() is not None or time.monotonic() > end:
                raise TestbedError(f"the API server does not start:\n{self.log()[-3000:]}")
            time.sleep(0.1)

    def _ready(self) -> int:
        with contextlib.suppress(OSError):
            return self.send("GET", "/readyz", self.admin_token)[0]
        return 0

    def log(self) -> str:
        """Give what the API server wrote."""
        return (self.folder / "kube-apiserver.log").read_text(errors="replace")

    @contextlib.contextmanager
    def connection(self) -> Iterator[http.client.HTTPSConnection]:
        """A connection to it."""
        context = ssl.create_default_context(cafile=str(self.ca))
        made = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        try:
            yield made
        finally:
            made.close()

    def send(
        self, method: str, path: str, token: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send a request on a connection of its own; give the status and the answer's JSON (or text)."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **(headers or {})}
        with self.connection() as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read().decode()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(content) if is_json else content
