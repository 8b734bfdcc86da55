"""Starts what is measured: ours, upstream's and the empty handler; processes of this user, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import HERE, SOURCE
from testbed import setup
from testbed.apiserver import ApiServer
from testbed.cache import TestbedError
from testbed.certificates import Authority
from testbed.keystone import Keystone
from testbed.processes import free_port, process

START_TIMEOUT = 30.0
ENVIRONMENT = {"PYTHONPATH": str(SOURCE)}


@dataclass(frozen=True)
class Files:
    """Certificates and a place for files."""

    folder: Path

    def __post_init__(self) -> None:
        """Make the certificates: one server certificate for all, and the client's."""
        authority = Authority("benchmarks")
        (self.folder / "ca.pem").write_bytes(authority.certificate)
        for name, pair in (
            ("server", authority.sign("server", hosts=["127.0.0.1"])),
            ("client", authority.sign("api")),
        ):
            (self.folder / f"{name}.pem").write_bytes(pair.certificate)
            (self.folder / f"{name}.key").write_bytes(pair.key)

    def path(self, name: str) -> str:
        """Give a file's path."""
        return str(self.folder / name)


@dataclass(frozen=True)
class Server:
    """A server that runs; `mutual`: it wants the client's certificate."""

    pid: int
    port: int
    mutual: bool
    seconds_to_ready: float

    def memory(self, what: str = "VmRSS") -> float:
        """Give its resident memory in MB (or `VmHWM`, its peak)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
        raise TestbedError(f"the server {self.pid} is gone")

    def processor(self) -> float:
        """Give the seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(files: Files, name: str, command: Sequence[str | Path], port: int, mutual: bool) -> Iterator[Server]:
    """Run a server until the context ends; it is ready when it has answered a request."""
    context = ssl.create_default_context(cafile=files.path("ca.pem"))
    context.load_cert_chain(files.path("client.pem"), files.path("client.key"))
    began = time.monotonic()
    with process(files.folder / f"{name}.log", command, environment=ENVIRONMENT) as started:
        while not _answers(port, context):
            if started.poll() is not None or time.monotonic() - began > START_TIMEOUT:
                raise TestbedError(f"{name} does not start: {(files.folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.005)
        yield Server(started.pid, port, mutual, time.monotonic() - began)


def _answers(port: int, context: ssl.SSLContext) -> bool:
    """Whether a request is answered, with whatever."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(b"GET /webhook HTTP/1.1\r\nHost: ready\r\nConnection: close\r\n\r\n")
            return connection.recv(12).startswith(b"HTTP/1.1")
    except OSError:
        return False


def settings(files: Files, keystone: Keystone, policy: Path | None, port: int, ttl: float = 60) -> Path:
    """Write our settings: the charm's defaults, unless tokens are to be trusted for longer."""
    content = {
        "listen": f"127.0.0.1:{port}",
        "private_listen": f"127.0.0.1:{free_port()}",
        "tls": {
            "certificate": files.path("server.pem"),
            "key": files.path("server.key"),
            "client_ca": files.path("ca.pem"),
            "require_client_certificate": True,
        },
        "keystone": {"url": keystone.url, "ca": str(keystone.ca)},
        "default_domain": "default",
        "upstream_compatible": False,
        "token_cache_ttl": ttl,
        "outage_grace": 300,
        "policy": str(policy) if policy else None,
        "chained": None,
        "flags": None,
        "authentication_backend": None,
        "authorization_backend": None,
        "kubeconfig": None,
        "sync": None,
        "policy_configmap": None,
        "log_level": "info",
    }
    path = files.folder / f"settings-{port}.json"
    path.write_text(json.dumps(content))
    return path


def ours_command(path: Path) -> list[str]:
    """Give the command that serves with these settings."""
    return [sys.executable, "-m", "keystone_authenticator", "serve", "--config", str(path)]


@contextlib.contextmanager
def ours(files: Files, keystone: Keystone, policy: Path | None, ttl: float = 60) -> Iterator[Server]:
    """Run our authenticator, as the charm sets it up (mTLS required)."""
    port = free_port()
    command = ours_command(settings(files, keystone, policy, port, ttl))
    with running(files, "ours", command, port, True) as server:
        yield server


def reviews_of(files: Files, server: Server) -> int:
    """Say how many token reviews our authenticator has answered."""
    private = json.loads((files.folder / f"settings-{server.port}.json").read_text())["private_listen"]
    with urllib.request.urlopen(f"http://{private}/metrics", timeout=10) as answer:  # its own, on 127.0.0.1
        lines = answer.read().decode().splitlines()
    return sum(
        int(line.split()[-1])
        for line in lines
        if line.startswith('kubernetes_keystone_reviews_total{kind="TokenReview')
    )


@contextlib.contextmanager
def upstream(files: Files, keystone: Keystone, policy: Path, port: int | None = None) -> Iterator[Server]:
    """Run k8s-keystone-auth (it knows no client certificates), on a free port unless one is given."""
    port = port or free_port()
    command = [
        setup.upstream() / "k8s-keystone-auth",
        f"--listen=127.0.0.1:{port}",
        f"--tls-cert-file={files.path('server.pem')}",
        f"--tls-private-key-file={files.path('server.key')}",
        f"--keystone-url={keystone.url}",
        f"--keystone-ca-file={keystone.ca}",
        f"--keystone-policy-file={policy}",
    ]
    with running(files, "upstream", command, port, False) as server:
        yield server


@contextlib.contextmanager
def empty(files: Files, answer: bytes) -> Iterator[Server]:
    """Run the empty handler on our server class (mTLS)."""
    port = free_port()
    reply = files.folder / f"answer-{port}"
    reply.write_bytes(answer)
    names = (files.path(name) for name in ("server.pem", "server.key", "ca.pem"))
    with running(files, "empty", [sys.executable, HERE / "empty.py", str(port), *names, reply], port, True) as server:
        yield server


@contextlib.contextmanager
def empty_in_go(files: Files, answer: bytes) -> Iterator[Server]:
    """Run a webhook of Go's own HTTP server that looks at nothing (mTLS)."""
    port = free_port()
    reply = files.folder / f"answer-{port}"
    reply.write_bytes(answer)
    command = [
        setup.benchmark_program("webhook"),
        f"-address=127.0.0.1:{port}",
        f"-certificate={files.path('server.pem')}",
        f"-key={files.path('server.key')}",
        f"-ca={files.path('ca.pem')}",
        f"-reply={reply}",
    ]
    with running(files, "empty-in-go", command, port, True) as server:
        yield server


@contextlib.contextmanager
def api_server(files: Files, webhook: Server, version: str) -> Iterator[ApiServer]:
    """Run a kube-apiserver that asks this webhook about every token, each time."""
    user = {}
    if webhook.mutual:
        user = {"client-certificate": files.path("client.pem"), "client-key": files.path("client.key")}
    cluster = {"server": f"https://127.0.0.1:{webhook.port}/webhook", "certificate-authority": files.path("ca.pem")}
    kubeconfig = files.folder / f"kubeconfig-{webhook.port}"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "webhook", "cluster": cluster}],
                "users": [{"name": "api-server", "user": user}],
                "contexts": [{"name": "webhook", "context": {"cluster": "webhook", "user": "api-server"}}],
                "current-context": "webhook",
            }
        )
    )
    flags = (
        f"authentication-token-webhook-config-file={kubeconfig}",
        f"authentication-token-webhook-version={version}",
        "authentication-token-webhook-cache-ttl=0s",
        "enable-priority-and-fairness=false",  # it would queue what is to be measured
    )
    with ApiServer(*flags) as server:
        yield server
