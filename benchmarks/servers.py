"""Starts what is measured: ours, upstream's and the empty handler; processes of this user, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import HERE, SOURCE
from testbed import setup
from testbed.cache import TestbedError
from testbed.certificates import Authority
from testbed.keystone import Keystone

START_TIMEOUT = 30.0


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


def free_port() -> int:
    """Find a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def process(
    files: Files, name: str, command: Sequence[str | Path], descriptors: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the context ends, or this process does; what it says is in the file `<name>.log`."""
    with (files.folder / f"{name}.log").open("ab") as output:
        started = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", *map(str, command)],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=descriptors,
        )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(5)
        started.kill()
        started.wait()


@contextlib.contextmanager
def running(files: Files, name: str, command: Sequence[str | Path], port: int, mutual: bool) -> Iterator[Server]:
    """Run a server until the context ends; it is ready when it has answered a request."""
    context = ssl.create_default_context(cafile=files.path("ca.pem"))
    context.load_cert_chain(files.path("client.pem"), files.path("client.key"))
    began = time.monotonic()
    with process(files, name, command) as started:
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


def settings(files: Files, keystone: Keystone, policy: Path | None, port: int) -> Path:
    """Write our settings: the charm's defaults."""
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
        "token_cache_ttl": 60,
        "outage_grace": 300,
        "policy": str(policy) if policy else None,
        "chained": None,
        "authentication_backend": None,
        "authorization_backend": None,
        "log_level": "info",
    }
    path = files.folder / f"settings-{port}.json"
    path.write_text(json.dumps(content))
    return path


def ours_command(path: Path) -> list[str]:
    """Give the command that serves with these settings."""
    return [sys.executable, "-m", "keystone_authenticator", "serve", "--config", str(path)]


@contextlib.contextmanager
def ours(files: Files, keystone: Keystone, policy: Path | None) -> Iterator[Server]:
    """Run our authenticator, as the charm sets it up (mTLS required)."""
    port = free_port()
    with running(files, "ours", ours_command(settings(files, keystone, policy, port)), port, True) as server:
        yield server


@contextlib.contextmanager
def upstream(files: Files, keystone: Keystone, policy: Path) -> Iterator[Server]:
    """Run k8s-keystone-auth (it knows no client certificates)."""
    port = free_port()
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
