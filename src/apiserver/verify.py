"""Is the API server in order? `/readyz`, and a token of the cluster's own, asked at this machine's own address.

The token is the administrator's of this machine (on Charmed Kubernetes one that the cluster's token webhook knows): it
is what our flag puts at risk. `anonymous-auth=false` makes an unauthenticated `/readyz` a 401, so all is asked with it.
An administrator with a certificate proves nothing about tokens; there the API server is asked whether it reaches its
token webhook, by a review of a token that nobody has.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.adapters
import yaml

from apiserver import ways
from apiserver.args import Args
from apiserver.model import Layout, WiringError

_SECONDS = 10  # for one request


class Unverified(Exception):
    """The API server is not in order; the text is one line that says how that showed."""


@dataclass(frozen=True)
class Admin:
    """What a kubeconfig says about the user of its current context. Certificates and keys are PEM."""

    server: str
    host: str
    ca: bytes
    token: str
    certificate: bytes
    key: bytes

    @classmethod
    def load(cls, path: Path) -> Admin:
        """Read a kubeconfig.

        Raises:
            Unverified: it cannot be read, or is not one that can be used here.

        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Unverified(f"cannot read the administrator's kubeconfig {path}: {type(error).__name__}") from None
        return cls.parse(content, path)

    @classmethod
    def parse(cls, kubeconfig: bytes, path: Path) -> Admin:
        """Read a kubeconfig's content; `path` is where it was, for what it names beside itself and for messages.

        Raises:
            Unverified: it is not one that can be used here.

        """
        try:
            config: Any = yaml.safe_load(kubeconfig)
            contexts = {item["name"]: item["context"] for item in config["contexts"]}
            context = (
                contexts[config["current-context"]] if config.get("current-context") else next(iter(contexts.values()))
            )
            cluster: dict[str, Any] = next(i["cluster"] for i in config["clusters"] if i["name"] == context["cluster"])
            user: dict[str, Any] = next(i["user"] for i in config["users"] if i["name"] == context["user"])

            def content(section: dict[str, Any], key: str) -> bytes:
                if section.get(f"{key}-data"):
                    return base64.b64decode(section[f"{key}-data"])
                return (path.parent / section[key]).read_bytes() if section.get(key) else b""

            token = user.get("token") or ""
            if not token and user.get("tokenFile"):
                token = (path.parent / user["tokenFile"]).read_text().strip()
            admin = cls(
                server=cluster["server"],
                host=cluster.get("tls-server-name") or urlsplit(cluster["server"]).hostname or "",
                ca=content(cluster, "certificate-authority"),
                token=token,
                certificate=content(user, "client-certificate"),
                key=content(user, "client-key"),
            )
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise Unverified(f"cannot read the administrator's kubeconfig {path}: {type(error).__name__}") from None
        except (KeyError, TypeError, AttributeError, StopIteration):
            raise Unverified(f"{path} is not a kubeconfig with a current context, its cluster and its user") from None
        if not admin.ca or not (admin.token or admin.certificate):
            raise Unverified(f"{path} names no certificate authority, or neither a token nor a client certificate")
        return admin


def verify(layout: Layout, ready: float, token: float, between: float) -> None:
    """Wait until the API server is ready and the cluster's token is good.

    Args:
        layout: whose server, and whose administrator.
        ready: seconds until `/readyz` must say 200.
        token: seconds after that until the token must be taken.
        between: seconds from one attempt to the next.

    Raises:
        Unverified: one of them was not the case in time.

    """
    wait_until_ready(layout, ready, between)
    wait(layout, _token_good, token, between)


def wait_until_ready(layout: Layout, seconds: float, between: float) -> None:
    """Wait until `/readyz` says 200, or says that it does not tell this machine's administrator.

    Raises:
        Unverified: it did not in time.

    """
    wait(layout, _ready, seconds, between)


def local_address(flags: Args) -> tuple[str, int]:
    """Where the API server with these flags listens, as seen from this machine."""
    try:
        bound = ipaddress.ip_address(flags.last("bind-address") or "::")
        port = int(flags.last("secure-port") or 6443)
    except ValueError as error:
        raise Unverified(f"cannot tell where the API server listens: {error}") from None
    if bound.is_unspecified:
        return "127.0.0.1", port
    return (f"[{bound}]" if bound.version == 6 else str(bound)), port


def wait(layout: Layout, attempt: Callable[[Layout], None], seconds: float, between: float) -> None:
    """Try something again and again until it raises nothing.

    Raises:
        Unverified: it still did after these seconds.

    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            attempt(layout)
            return
        except Unverified as error:
            if time.monotonic() + between > deadline:
                raise Unverified(f"{error} (waited {seconds:.0f} s)") from None
        time.sleep(between)


def _ready(layout: Layout) -> None:
    with as_admin(layout) as (session, url):
        answer = session.get(f"{url}/readyz", timeout=_SECONDS)
    # 401 and 403: it is not the server's readiness that stands in the way; the next step tells about the token.
    if answer.status_code not in (200, 401, 403):
        raise Unverified(f"the API server's /readyz says {answer.status_code}")


def _token_good(layout: Layout) -> None:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    with as_admin(layout) as (session, url):
        answer = session.post(f"{url}/apis/authentication.k8s.io/v1/selfsubjectreviews", json=review, timeout=_SECONDS)
        if answer.status_code == 404:  # before Kubernetes 1.28
            answer = session.get(f"{url}/api", timeout=_SECONDS)
        readyz = session.get(f"{url}/readyz", timeout=_SECONDS)
        unreached = "" if "Authorization" in session.headers else _unreached_webhook(session, url)
    # 403 means known, but not allowed: as good a token as before.
    if answer.status_code not in (200, 201, 403):
        raise Unverified(
            f"the API server answers {answer.status_code} to the cluster token in {layout.admin_kubeconfig}"
        )
    if readyz.status_code not in (200, 403):
        raise Unverified(f"the API server's /readyz says {readyz.status_code}")
    if unreached:
        raise Unverified(f"the API server cannot ask its token webhook: {unreached}")


def _unreached_webhook(session: requests.Session, url: str) -> str:
    """Say why the API server cannot ask its token webhook; empty if it can, has none, or does not say."""
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": f"kubernetes-keystone-{secrets.token_urlsafe(24)}"},
    }
    answer = session.post(f"{url}/apis/authentication.k8s.io/v1/tokenreviews", json=review, timeout=_SECONDS)
    try:
        error = str(answer.json()["status"].get("error", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    # Its HTTP client's errors name the call; a webhook that was asked is reported in its own words, or not at all.
    return error[:300] if 'Post "http' in error else ""


@contextlib.contextmanager
def as_admin(layout: Layout) -> Iterator[tuple[requests.Session, str]]:
    """Give a session that speaks as the administrator, and the URL. What goes wrong in it is `Unverified`."""
    admin = Admin.load(layout.admin_kubeconfig)
    with (
        _session(layout, admin) as (session, url),
        tempfile.TemporaryDirectory(prefix="kubernetes-keystone-") as folder,
    ):
        if admin.token:
            session.headers["Authorization"] = f"Bearer {admin.token}"
        if admin.certificate and admin.key:
            session.cert = (_file(folder, "certificate", admin.certificate), _file(folder, "key", admin.key))
        yield session, url


@contextlib.contextmanager
def as_bearer(layout: Layout, token: str) -> Iterator[tuple[requests.Session, str]]:
    """Give a session that speaks as the holder of a token, and the URL; otherwise as `as_admin`."""
    with _session(layout, Admin.load(layout.admin_kubeconfig)) as (session, url):
        session.headers["Authorization"] = f"Bearer {token}"
        yield session, url


@contextlib.contextmanager
def _session(layout: Layout, admin: Admin) -> Iterator[tuple[requests.Session, str]]:
    """Give a session with nobody's credentials that trusts the administrator's CA, and this machine's own URL."""
    try:
        host, port = local_address(ways.of(layout).read())
    except OSError as error:
        raise Unverified(f"cannot read {error.filename}: {error.strerror}") from None
    except WiringError as error:  # a manifest that is none
        raise Unverified(str(error)) from None
    with requests.Session() as session, tempfile.TemporaryDirectory(prefix="kubernetes-keystone-") as folder:
        session.trust_env = False  # no proxy between this machine and itself
        session.mount("https://", _Adapter(admin.host))
        session.verify = _file(folder, "ca", admin.ca)
        try:
            yield session, f"https://{host}:{port}"
        except requests.RequestException as error:
            kind = (
                "its certificate is not what the kubeconfig says"
                if isinstance(error, requests.exceptions.SSLError)
                else ""
            )
            raise Unverified(
                f"the API server at {host}:{port} does not answer: {kind or type(error).__name__}"
            ) from None


class _Adapter(requests.adapters.HTTPAdapter):
    """The server's certificate is for the address in the kubeconfig, which need not be the one that is asked here."""

    def __init__(self, host: str):
        self._host = host
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, assert_hostname=self._host)


def _file(folder: str, name: str, content: bytes) -> str:
    path = Path(folder) / name
    path.touch(0o600)
    path.write_bytes(content)
    return str(path)
