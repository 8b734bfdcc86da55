"""The token webhook that our flag displaced: read from the chain file, and asked about the cluster's own tokens.

The chain file is written by the script that sets the API server's flags, before each start (format: `parse`). What
the displaced webhook answers is passed on, but it may not claim to be one of ours: our prefixes and our `extra` keys
are refused.
"""

from __future__ import annotations

import base64
import binascii
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from keystone_authenticator import reviews
from keystone_authenticator.identity import EXTRA_PREFIX, PREFIX
from keystone_authenticator.metrics import Calls
from keystone_authenticator.outbound import CannotTell, Client, TlsMaterialError, client_context
from keystone_authenticator.reviews import NotAReview, TokenReview, Verdict

HEADER = "chained 1"
# The webhook of Charmed Kubernetes gives its own upstream 10 s; the API server gives us 30.
DEADLINE = 12.0
NAME = "the cluster's own token webhook"
SAYS = f"{NAME} says: "
"""How an error begins that is its answer to this one token; the charm tells it from a webhook that cannot be asked."""
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class ChainError(Exception):
    """The chain file cannot be used; the message names the line or the kubeconfig's key."""


@dataclass(frozen=True)
class Displaced:
    """The displaced webhook; `ttl` in seconds is how long the API server kept its verdicts."""

    version: str
    ttl: float
    url: str
    context: ssl.SSLContext | None
    server_name: str | None
    headers: Mapping[str, str]


def parse(content: bytes) -> Displaced | None:
    """Read a chain file; None if our flag displaced nothing.

    A header line `chained 1`, then `none`, or the lines `version …`, `ttl …` (a Go duration), `kubeconfig <base64>
    <path>` and `file <base64> <path>` for each file that the kubeconfig names.

    Raises:
        ChainError: it is broken.

    """
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        raise ChainError("not a text in UTF-8") from None
    if lines[-1]:
        raise ChainError("the last line does not end: the file is not whole")
    if lines[0] != HEADER:
        raise ChainError(f"line 1: expected {HEADER!r}")
    records = lines[1:-1]
    if records == ["none"]:
        return None
    version, ttl = "v1beta1", 120.0
    kubeconfig: tuple[PurePosixPath, bytes] | None = None
    files: dict[PurePosixPath, bytes] = {}
    for number, record in enumerate(records, 2):
        name, _, rest = record.partition(" ")
        if name == "version":
            if rest not in reviews.VERSIONS:
                raise ChainError(f"line {number}: expected version v1 or v1beta1")
            version = rest
        elif name == "ttl":
            ttl = _duration(rest, number)
        elif name in ("kubeconfig", "file"):
            encoded, _, path = rest.partition(" ")
            try:
                decoded = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                raise ChainError(f"line {number}: not base64") from None
            if not path.startswith("/"):
                raise ChainError(f"line {number}: expected an absolute path")
            if name == "file":
                files[PurePosixPath(path)] = decoded
            elif kubeconfig is None:
                kubeconfig = PurePosixPath(path), decoded
            else:
                raise ChainError(f"line {number}: a second kubeconfig")
        else:
            raise ChainError(f"line {number}: unknown record")
    if kubeconfig is None:
        raise ChainError("no kubeconfig in it, and it does not say none")
    return _Kubeconfig(*kubeconfig, files).displaced(version, ttl)


def read_kubeconfig(path: Path) -> Displaced:
    """Read a kubeconfig that the charm wrote: whom it leads to and as whom, certificates and keys inline.

    Raises:
        ChainError: it cannot be used; the message names file and key.
        OSError: it cannot be read.

    """
    return _Kubeconfig(PurePosixPath(path), path.read_bytes(), {}).displaced("v1", 0)


def _duration(text: str, number: int) -> float:
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(amount + unit for amount, unit in parts) != text:
        raise ChainError(f"line {number}: expected a duration such as 1m0s")
    return sum(float(amount) * _UNITS[unit] for amount, unit in parts)


class _Kubeconfig:
    """A webhook kubeconfig as the API server reads it, files included."""

    def __init__(self, path: PurePosixPath, content: bytes, files: Mapping[PurePosixPath, bytes]) -> None:
        self._path = path
        self._files = files
        self._data = self._load(content)

    def _error(self, reason: str) -> ChainError:
        return ChainError(f"kubeconfig {self._path}: {reason}")

    def _load(self, content: bytes) -> dict[str, Any]:
        import yaml

        try:
            data = yaml.safe_load(content)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise self._error("not YAML") from None
        if not isinstance(data, dict):
            raise self._error("not a mapping")
        return data

    def _entry(self, kind: str, name: str | None) -> dict[str, Any]:
        entries = self._data.get(f"{kind}s") or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._error(f"{kind}s is not a list of mappings")
        if name:
            entries = [entry for entry in entries if entry.get("name") == name]
        elif kind == "user" and not entries:
            return {}
        if len(entries) != 1:
            raise self._error(f"{len(entries)} {kind}s{f' named {name!r}' if name else ''}, expected one")
        found = entries[0].get(kind) or {}
        if not isinstance(found, dict):
            raise self._error(f"{kind} is not a mapping")
        return found

    def _text(self, entry: Mapping[str, Any], key: str) -> str | None:
        value = entry.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self._error(f"{key} is not a text")
        return value

    def _material(self, entry: Mapping[str, Any], key: str, inline: str | None) -> bytes | None:
        """The content of a file that the kubeconfig names, or of its `-data` twin, which comes first."""
        encoded = self._text(entry, inline) if inline else None
        if encoded is not None:
            try:
                return base64.b64decode(encoded, validate=False)
            except binascii.Error:
                raise self._error(f"{inline} is not base64") from None
        name = self._text(entry, key)
        if name is None:
            return None
        path = self._path.parent / name
        if path not in self._files:
            raise self._error(f"{key} names {path}, which the chain file does not have")
        return self._files[path]

    def displaced(self, version: str, ttl: float) -> Displaced:
        current = self._text(self._data, "current-context")
        context = self._entry("context", current) if current else {}
        cluster = self._entry("cluster", self._text(context, "cluster"))
        user_name = self._text(context, "user")
        user = self._entry("user", user_name) if user_name or not current else {}
        url = self._text(cluster, "server")
        if url is None or not url.startswith(("https://", "http://")):
            raise self._error("the cluster has no server that is an http(s) URL")
        for entry, key in ((cluster, "proxy-url"), (user, "exec"), (user, "auth-provider")):
            if entry.get(key):
                raise self._error(f"{key} is not supported")
        return Displaced(
            version=version,
            ttl=ttl,
            url=url,
            context=self._context(cluster, user) if url.startswith("https:") else None,
            server_name=self._text(cluster, "tls-server-name"),
            headers=self._headers(user),
        )

    def _context(self, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
        ca = self._material(cluster, "certificate-authority", "certificate-authority-data")
        certificate = self._material(user, "client-certificate", "client-certificate-data")
        key = self._material(user, "client-key", "client-key-data")
        if (certificate is None) != (key is None):
            raise self._error("client certificate and client key must be given together")
        try:
            context = client_context(ca.decode() if ca else None, certificate, key)
        except (TlsMaterialError, UnicodeDecodeError) as error:
            raise self._error(str(error)) from None
        if cluster.get("insecure-skip-tls-verify") is True:
            # Somebody else's choice, for somebody else's webhook: it must keep working as it did.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _headers(self, user: Mapping[str, Any]) -> dict[str, str]:
        token = self._text(user, "token")
        if token is None:
            content = self._material(user, "tokenFile", None)
            token = content.decode("latin-1").strip() if content else None
        if token is not None:
            return {"Authorization": f"Bearer {token}"}
        name, password = self._text(user, "username"), self._text(user, "password")
        if name is not None:
            pair = base64.b64encode(f"{name}:{password or ''}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {}


def claims_to_be_ours(verdict: Verdict) -> str | None:
    """Why the chained webhook's answer may not be passed on, or None."""
    identity = verdict.identity
    if identity is None:
        return None
    if _ours(identity.username):
        return "its user name begins like one of Keystone's"
    if any(map(_ours, identity.groups)):
        return "one of its groups begins like one of Keystone's"
    # The API server lowers the case of extra keys nowhere on this way, but policies of others may.
    if any(key.casefold().startswith(EXTRA_PREFIX) for key, _ in identity.extra):
        return "its extra has a key that only Keystone users have"
    return None


def _ours(name: str) -> bool:
    # White space around a name is lost in the headers by which an API server passes a user on to aggregated ones.
    return name.strip().casefold().startswith(PREFIX)


class ChainedWebhook:
    """The displaced webhook, asked."""

    def __init__(self, displaced: Displaced, calls: Calls | None = None) -> None:
        self.displaced = displaced
        self._client = Client(
            NAME,
            displaced.context,
            DEADLINE,
            limit=256,
            server_name=displaced.server_name,
            calls=calls,
        )

    async def review(self, review: TokenReview) -> Verdict:
        """Pass a review on, in the version that the webhook was asked in before us.

        Raises:
            CannotTell: it did not answer with a review.

        """
        body = reviews.token_review(self.displaced.version, review.token, review.audiences)
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self.displaced.headers}
        answer = await self._client.call("POST", self.displaced.url, headers, body, attempts=3)
        try:
            verdict = reviews.read_verdict(answer.body)
        except NotAReview as error:
            if not 200 <= answer.status < 300:
                raise CannotTell(f"{NAME} answered with status {answer.status}") from None
            raise CannotTell(f"{NAME}'s answer was not understood: {error}") from None
        if not 200 <= answer.status < 300:
            # Canonical Kubernetes' answers 401 and a review with an error where it does not know a token, and where its
            # database does not answer; k8s-keystone-auth 401 and a plain no. The API server takes either for a failure,
            # whatever the review says; so do we.
            told = verdict.error
            if not told and answer.status == 401 and verdict.identity is None:
                told = "no (with status 401)"
            raise CannotTell(f"{SAYS}{told}" if told else f"{NAME} answered with status {answer.status}")
        return verdict

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()
