"""A registry of images: the real one of the CNCF's distribution, over TLS, open or with accounts, and images for it.

What stands beside it for the accounts of the third kind is a token server of this file's own: docker's protocol for
tokens has no reference program. The registry itself judges the tokens.

Not here: images that run.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import secrets
import socket
import ssl
import tarfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import bcrypt
import requests
import yaml
from backports import zstd
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from testbed import setup
from testbed.cache import Run, TestbedError
from testbed.certificates import Authority
from testbed.processes import free_port, process

Kind = Literal["open", "basic", "token"]
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
START_SECONDS = 30.0


class Account:
    """Who may pull."""

    def __init__(self) -> None:
        self.username = "puller"
        self.password = secrets.token_urlsafe(12)

    @property
    def basic(self) -> str:
        """As it stands in a header, or in docker's files."""
        return base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Registry:
    """The registry, while the context lasts.

    Args:
        authority: signs its certificate.
        kind: open; basic, with one account (htpasswd); token, with tokens from a server beside it.
        address: of this machine, to listen on.
        anonymous: whether the token server gives tokens to those without an account.
    """

    def __init__(
        self, authority: Authority, kind: Kind = "open", address: str = "127.0.0.1", *, anonymous: bool = False
    ):
        self._authority, self._kind, self._address, self._anonymous = authority, kind, address, anonymous
        self.account = Account()
        self.token_requests: list[tuple[str, str]] = []
        """Scope and Authorization of each."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Registry:
        """Start it."""
        with contextlib.ExitStack() as stack:
            run = Run("registry")
            stack.callback(run.remove)
            folder = run.folder
            pair = self._authority.sign("registry", hosts=[self._address])
            for name, content in (("crt", pair.certificate), ("key", pair.key), ("ca", self._authority.certificate)):
                (folder / f"registry.{name}").write_bytes(content)
            self._ca = folder / "registry.ca"
            self.host = f"{self._address}:{free_port()}"
            configuration: dict[str, Any] = {
                "version": "0.1",
                "log": {"level": "info"},
                "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
                "http": {
                    "addr": self.host,
                    "tls": {"certificate": str(folder / "registry.crt"), "key": str(folder / "registry.key")},
                },
            }
            if self._kind == "basic":
                hashed = bcrypt.hashpw(self.account.password.encode(), bcrypt.gensalt(4)).decode()
                (folder / "htpasswd").write_text(f"{self.account.username}:{hashed}\n")
                configuration["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
            elif self._kind == "token":
                self._signer = self._authority.sign("tokens")
                configuration["auth"] = {
                    "token": {
                        "realm": self._serve_tokens(stack, folder),
                        "service": "the registry",
                        "issuer": "the test bed",
                        "rootcertbundle": str(self._ca),
                    }
                }
            (folder / "config.yml").write_text(yaml.safe_dump(configuration))
            self.log = folder / "log"
            started = stack.enter_context(process(self.log, [setup.registry(), "serve", folder / "config.yml"]))
            deadline = time.monotonic() + START_SECONDS
            while not self._answers():
                if started.poll() is not None or time.monotonic() > deadline:
                    raise TestbedError(f"the registry does not start: {self.log.read_text()[-2000:]}")
                time.sleep(0.05)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._stack.close()

    @property
    def requests(self) -> list[str]:
        """What it was asked for, as its log says: `GET /v2/…`."""
        found = [line for line in self.log.read_text().splitlines() if '"GET /v2/' in line]
        return [line.partition('"')[2].partition(" HTTP")[0] for line in found]

    def blob(self, name: str, content: bytes) -> dict[str, Any]:
        """Put a blob into a repository, and give its descriptor."""
        digest = digest_of(content)
        place = self._ask("POST", f"/v2/{name}/blobs/uploads/", name).headers["Location"]
        self._ask("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", name, data=content)
        return {"digest": digest, "size": len(content)}

    def manifest(self, name: str, tag: str, content: Mapping[str, Any]) -> str:
        """Put a manifest or an index into a repository, and give its digest."""
        body = json.dumps(content).encode()
        headers = {"Content-Type": content["mediaType"]}
        self._ask("PUT", f"/v2/{name}/manifests/{tag}", name, data=body, headers=headers)
        return digest_of(body)

    def image(self, name: str, tag: str, *layers: bytes, docker: bool = False) -> str:
        """Put an image into a repository, and give its digest."""
        config = self.blob(name, b"{}")
        kinds = {
            b"\x1f\x8b": "application/vnd.oci.image.layer.v1.tar+gzip",
            b"\x28\xb5": "application/vnd.oci.image.layer.v1.tar+zstd",
        }
        plain = "application/vnd.oci.image.layer.v1.tar"
        described = [{**self.blob(name, one), "mediaType": kinds.get(one[:2], plain)} for one in layers]
        kind, config_kind = MANIFEST, "application/vnd.oci.image.config.v1+json"
        if docker:
            kind = "application/vnd.docker.distribution.manifest.v2+json"
            config_kind = "application/vnd.docker.container.image.v1+json"
            for one in described:
                one["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": {**config, "mediaType": config_kind}}
        return self.manifest(name, tag, {**manifest, "layers": described})

    def index(self, name: str, tag: str, images: Mapping[str, str], kind: str = INDEX) -> str:
        """Put an index into a repository: images' digests by `os/architecture`; give its digest."""
        entries = []
        for made_for, digest in images.items():
            answer = self._ask("GET", f"/v2/{name}/manifests/{digest}", name, headers={"Accept": "*/*, " + MANIFEST})
            os_name, _, architecture = made_for.partition("/")
            entries.append(
                {
                    "mediaType": answer.headers["Content-Type"],
                    "digest": digest,
                    "size": len(answer.content),
                    "platform": {"os": os_name, "architecture": architecture},
                }
            )
        return self.manifest(name, tag, {"schemaVersion": 2, "mediaType": kind, "manifests": entries})

    def stored(self, digest: str) -> Path:
        """Give the file in which the registry keeps a blob: whoever changes it makes a registry that lies."""
        value = digest.partition(":")[2]
        return self._ca.parent / "storage/docker/registry/v2/blobs/sha256" / value[:2] / value / "data"

    def _ask(self, method: str, path: str, name: str, **what: Any) -> requests.Response:
        url = path if path.startswith("https:") else f"https://{self.host}{path}"
        headers = {**what.pop("headers", {})}
        if self._kind == "basic":
            headers["Authorization"] = f"Basic {self.account.basic}"
        elif self._kind == "token":
            headers["Authorization"] = f"Bearer {self._token(name, ['pull', 'push'])}"
        with requests.Session() as session:
            session.trust_env = False
            answer = session.request(method, url, headers=headers, verify=str(self._ca), timeout=60, **what)
        if not answer.ok:
            raise TestbedError(f"the registry answers {method} {url} with {answer.status_code}: {answer.text}")
        return answer

    def _answers(self) -> bool:
        host, _, port = self.host.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return True
        return False

    def _serve_tokens(self, stack: contextlib.ExitStack, folder: Path) -> str:
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                scope, who = query.get("scope", [""])[0], self.headers.get("Authorization", "")
                registry.token_requests.append((scope, who))
                known = who == f"Basic {registry.account.basic}" or (registry._anonymous and not who)
                _, _, rest = scope.partition("repository:")
                name, _, actions = rest.rpartition(":")
                body = json.dumps({"token": registry._token(name, actions.split(","))}).encode() if known else b"{}"
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        server = http.server.ThreadingHTTPServer((self._address, 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "registry.crt", folder / "registry.key")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        return f"https://{self._address}:{server.server_address[1]}/token"

    def _token(self, name: str, actions: Sequence[str]) -> str:
        """Give a token of the form that the registry takes: a JWT with the signer's certificate (RFC 7519, 7515)."""
        certificate = x509.load_pem_x509_certificate(self._signer.certificate)
        key = serialization.load_pem_private_key(self._signer.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        now = int(time.time())
        header = {
            "typ": "JWT",
            "alg": "ES256",
            "x5c": [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()],
        }
        claims = {
            "iss": "the test bed",
            "sub": self.account.username,
            "aud": "the registry",
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": [{"type": "repository", "name": name, "actions": list(actions)}],
        }
        signed = f"{_base64(json.dumps(header).encode())}.{_base64(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def digest_of(content: bytes) -> str:
    """Give what registries call a content by."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def file(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    """Give a regular file for a layer."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o755
    return info, content


def gone(name: str) -> tuple[tarfile.TarInfo, bytes]:
    """Give what takes a file or folder of the layers below away; a name with a slash at its end: all in that folder."""
    folder, slash, last = name.rpartition("/")
    return file(f"{folder}{slash}.wh.{last or '.wh..opq'}", b"")


def link(name: str, to: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    """Give a link for a layer."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.LNKTYPE if hard else tarfile.SYMTYPE, to
    return info, b""


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    """Give a folder for a layer."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info, b""


def layer(*entries: tuple[tarfile.TarInfo, bytes], packed: Literal["gzip", "zstd", ""] = "gzip") -> bytes:
    """Pack a layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    content = buffer.getvalue()
    if packed == "gzip":
        return gzip.compress(content, 1, mtime=0)
    return zstd.compress(content, 1) if packed == "zstd" else content


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
