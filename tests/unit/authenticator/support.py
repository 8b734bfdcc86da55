"""What the authenticator's tests share: certificates, likely tokens, stand-ins that fail on demand, a service."""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keystone_authenticator.identity import Marks
from testbed.processes import free_port

SOURCE = Path(__file__).parents[3] / "src"
DEFAULT = "default"
OTHER = "0d3a1f0c5b7e4e6f9a8b7c6d5e4f3a2b"


def fernet_token(issued: float | None = None, blocks: int = 8) -> str:
    """A token with the outside of a Fernet token, as Keystone writes it: without padding."""
    moment = int(time.time() if issued is None else issued)
    raw = b"\x80" + moment.to_bytes(8, "big") + secrets.token_bytes(16 + 16 * blocks + 32)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def jws(header: dict[str, Any], payload: dict[str, Any], signature: int = 64) -> str:
    """A JWS with these parts and a signature of so many bytes."""
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), secrets.token_bytes(signature)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


class Authority:
    """A CA that writes what it signs into a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key, x509.BasicConstraints(True, None), None)
        self.ca = folder / f"{name}.crt"
        self.ca.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject: x509.Name, key: Any, basic: x509.BasicConstraints, usage: Any) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(basic, critical=True)
        )
        if usage is not None:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, name: str, client: bool = False) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 and its key, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, x509.BasicConstraints(False, None), usage)
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        replace(paths[0], certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        replace(paths[1], private)
        return paths

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(f"server-{secrets.token_hex(4)}"))
        return context

    def client_context(self, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context


def replace(path: Path, content: bytes | str) -> None:
    """Write a file as the charm does: under another name, then one rename."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.rename(path)


def eventually(holds: Callable[[], Any], seconds: float = 2.0) -> Any:
    """Wait until something holds; returns what it gave."""
    end = time.monotonic() + seconds
    while True:
        result = holds()
        if result:
            return result
        assert time.monotonic() < end, "it did not come to hold in time"
        time.sleep(0.02)


class StandIn:
    """An HTTP service of whose requests `behaviour` decides; `requests` are kept as (method, path, headers, body)."""

    def __init__(self, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.behaviour: Callable[[str, str, dict[str, str], bytes], tuple[int, Any]] = lambda *_: (200, {})
        self.headers: dict[str, str] = {}
        self.drip = 0.0
        self.released = threading.Event()
        self.released.set()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                stand_in.requests.append((self.command, self.path, headers, body))
                stand_in.released.wait(20)
                status, answer = stand_in.behaviour(self.command, self.path, headers, body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in stand_in.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    if not stand_in.drip:
                        self.wfile.write(content)
                    for byte in content if stand_in.drip else b"":
                        self.wfile.write(bytes([byte]))
                        time.sleep(stand_in.drip)

            do_GET = do_POST = _serve  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 100

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def hang(self) -> None:
        """Accept and read, but never answer, until `release`."""
        self.released.clear()

    def release(self) -> None:
        self.released.set()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class KeystoneStandIn(StandIn):
    """Speaks as Keystone does about the tokens in `tokens`; everything else is refused as Keystone refuses."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(context)
        self.tokens: dict[str, dict[str, Any]] = {}
        self.groups: list[dict[str, Any]] = []
        self.behaviour = self.keystone
        self.url += "/v3"

    def keystone(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        token = self.tokens.get(headers.get("x-auth-token", ""))
        if token is None:
            return 401, keystone_error(401)
        if path.startswith("/v3/auth/tokens"):
            return 200, {"token": token}
        return 200, {"groups": self.groups, "links": {"next": None}}

    def issue(self, **changes: Any) -> str:
        """A token that is good here."""
        token = fernet_token()
        self.tokens[token] = token_body(**changes)
        return token

    def calls(self, part: str = "") -> int:
        return sum(part in path for _, path, _, _ in self.requests)


def keystone_error(code: int, message: str = "The request you have made requires authentication.") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "title": "Unauthorized"}}


def token_body(
    name: str = "alice", domain: str = DEFAULT, project: str | None = "demo", expires: float = 3600, **more: Any
) -> dict[str, Any]:
    """What Keystone says about a token."""
    ends = datetime.datetime.fromtimestamp(time.time() + expires, datetime.timezone.utc)
    body: dict[str, Any] = {
        "methods": ["application_credential"],
        "user": {"id": f"id-of-{name}-{domain}", "name": name, "domain": {"id": domain, "name": domain.title()}},
        "expires_at": ends.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "issued_at": "2026-01-01T00:00:00.000000Z",
    }
    if project is not None:
        body["project"] = {"id": f"id-of-{project}", "name": project, "domain": {"id": domain, "name": domain.title()}}
        body["roles"] = [{"id": "r1", "name": "member"}, {"id": "r2", "name": "reader"}]
    return {**body, **more}


def token_review(token: Any, version: str = "v1", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": f"authentication.k8s.io/{version}",
        "kind": "TokenReview",
        "metadata": {"creationTimestamp": None},
        "spec": {"token": token, **spec},
        "status": {"user": {}},
    }


EXTRA = "alpha.kubernetes.io/identity/"


def marks(extra: Mapping[str, Sequence[str]]) -> Marks:
    """A user's `extra` as it is read from an access review."""
    return msgspec.convert(extra, Marks)


def access_review(
    user: str = "keystone:alice",
    verb: str = "get",
    resource: str = "pods",
    version: str = "v1",
    roles: tuple[str, ...] = ("member",),
    project: str = "id-of-demo",
    project_name: str = "demo",
    domain: str = DEFAULT,
    path: str | None = None,
    groups: tuple[str, ...] = (),
    **attributes: str,
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "user": user,
        "uid": "id-of-alice",
        "groups" if version == "v1" else "group": [*groups, "system:authenticated"],
        "extra": {
            f"{EXTRA}roles": list(roles),
            f"{EXTRA}project/id": [project],
            f"{EXTRA}project/name": [project_name],
            f"{EXTRA}project/domain/id": [domain],
            f"{EXTRA}user/domain/id": [domain],
            f"{EXTRA}user/domain/name": [domain.title()],
        },
    }
    if path is not None:
        spec["nonResourceAttributes"] = {"path": path, "verb": verb}
    else:
        about = {"resource": resource, "namespace": "default", "version": "v1", **attributes}
        spec["resourceAttributes"] = {"verb": verb, **about}
    return {"apiVersion": f"authorization.k8s.io/{version}", "kind": "SubjectAccessReview", "spec": spec}


class Service:
    """The program, running, with its files in a folder."""

    def __init__(self, folder: Path, authority: Authority, **changes: Any) -> None:
        self.folder = folder
        self.authority = authority
        self.certificate = authority.issue("endpoint")
        self.client = authority.issue("apiserver", client=True)
        self.port, self.private = free_port(), free_port()
        self.config = folder / "settings.json"
        self.settings: dict[str, Any] = {
            "listen": f"127.0.0.1:{self.port}",
            "private_listen": f"127.0.0.1:{self.private}",
            "tls": {
                "certificate": str(self.certificate[0]),
                "key": str(self.certificate[1]),
                "client_ca": str(authority.ca),
                "require_client_certificate": True,
            },
            "keystone": {"url": "http://127.0.0.1:1/v3", "ca": None},
            "default_domain": DEFAULT,
            "upstream_compatible": False,
            "token_cache_ttl": 60,
            "outage_grace": 300,
            "policy": None,
            "chained": None,
            "flags": None,
            "authentication_backend": None,
            "authorization_backend": None,
            "kubeconfig": None,
            "sync": None,
            "policy_configmap": None,
            "log_level": "info",
        }
        self.configure(**changes)
        self.look_every = 0.1
        self.inside: list[str] = []  # the beginning of a command that runs the rest somewhere
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = folder / "log"

    def configure(self, **changes: Any) -> None:
        self.settings.update(changes)
        replace(self.config, json.dumps(self.settings))

    def start(self, *inherited: socket.socket) -> Service:
        environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
        # It looks at its files more often than it would, so that the tests wait less; the promise is tested as it is.
        hurried = "from keystone_authenticator import __main__, service; service.LOOK_EVERY = {}; exit(__main__.main())"
        command = [sys.executable, "-c", hurried.format(self.look_every), "serve", "--config", str(self.config)]
        descriptors = tuple(sock.fileno() for sock in inherited)
        if inherited:
            # As systemd does: the sockets are descriptors 3 and up, and LISTEN_PID the process that serves.
            wrapper = (
                "import fcntl, os, sys; high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in {fds}]; "
                "[os.dup2(fd, 3 + i) for i, fd in enumerate(high)]; "
                "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high))); "
                "os.execv(sys.argv[1], sys.argv[1:])"
            )
            command = [sys.executable, "-c", wrapper.format(fds=descriptors), *command]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen([*self.inside, *command], env=environ, stderr=log, pass_fds=descriptors)
        eventually(lambda: (self.process and self.process.poll() is not None) or self.is_up(), 40)
        assert self.process.poll() is None, self.log
        return self

    def is_up(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/healthz")[0] == 200
        return False

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.private, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    @property
    def status(self) -> dict[str, Any]:
        return json.loads(self.get("/status")[1])

    def connect(self, certified: bool = True) -> http.client.HTTPSConnection:
        context = self.authority.client_context(self.client if certified else None)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=15, context=context)

    def post(self, review: Any, certified: bool = True, connection: Any = None) -> tuple[int, bytes]:
        own = connection or self.connect(certified)
        try:
            own.request("POST", "/webhook?timeout=30s", json.dumps(review), {"Content-Type": "application/json"})
            response = own.getresponse()
            return response.status, response.read()
        finally:
            if connection is None:
                own.close()

    def review(self, review: Any, certified: bool = True) -> dict[str, Any]:
        """The status of the answer."""
        code, body = self.post(review, certified)
        assert code == 200, body
        answer = json.loads(body)
        assert answer["apiVersion"] == review["apiVersion"]
        assert answer["kind"] == review["kind"]
        return answer["status"]

    def stop(self, seconds: float = 10) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(seconds)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Answer(NamedTuple):
    """How long an answer to a review took, its HTTP status, and the review's status if there was one."""

    seconds: float
    code: int
    status: dict[str, Any]


def ask(service: Service, token: str) -> Answer:
    """Have a token reviewed."""
    began = time.monotonic()
    code, body = service.post(token_review(token))
    return Answer(time.monotonic() - began, code, json.loads(body)["status"] if code == 200 else {})


def together(service: Service, tokens: Sequence[str]) -> list[Answer]:
    """Have all of them reviewed at once, each over a connection of its own."""
    answers: dict[int, Answer] = {}

    def one(number: int, token: str) -> None:
        answers[number] = ask(service, token)

    threads = [threading.Thread(target=one, args=item) for item in enumerate(tokens)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[number] for number in range(len(tokens))]


@contextlib.contextmanager
def serving(folder: Path, authority: Authority, look_every: float = 0.1, **changes: Any) -> Iterator[Service]:
    """A running service, ended afterwards."""
    service = Service(folder, authority, **changes)
    service.look_every = look_every
    try:
        yield service.start()
        # Whatever a test did to it: no fault, and nothing of the loop's own, stands in the log.
        for word in ("Traceback", "a fault of ours", "Task ", "Fatal error"):
            assert word not in service.log
    finally:
        service.kill()
