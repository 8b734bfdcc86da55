"""The settings file: read, checked key by key, and turned into frozen dataclasses.

The charm writes the file, this module only reads it. It checks shapes and types; whether a named file holds what it
should is the business of whoever reads that file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from keystone_authenticator import document

LOG_LEVELS = ("debug", "info", "warning", "error")
PRUNE = ("off", "empty", "all")


class SettingsError(Exception):
    """The settings cannot be used; the message names the file, the key and what is expected there."""


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str
    port: int


@dataclass(frozen=True)
class Tls:
    """The webhook endpoint's own certificate, and whose client certificates it accepts."""

    certificate: Path
    key: Path
    client_ca: Path | None
    require_client_certificate: bool


@dataclass(frozen=True)
class Remote:
    """A service that is called: its URL without a trailing slash, and its CA where the system's own are not meant."""

    url: str
    ca: Path | None


@dataclass(frozen=True)
class Sync:
    """Files of the sync configuration and of Keystone's account for passes, if any; what is pruned; seconds between."""

    config: Path
    credentials: Path | None
    prune: str
    interval: float


@dataclass(frozen=True)
class Settings:
    """All settings; times in seconds. Without `policy` there is no opinion on access, without `chained` no chaining.

    `kubeconfig` is how the cluster is reached for `sync` and for `policy_configmap` (namespace and name).
    """

    listen: Address
    private_listen: Address
    tls: Tls
    keystone: Remote
    default_domain: str
    upstream_compatible: bool
    token_cache_ttl: float
    outage_grace: float
    policy: Path | None
    chained: Path | None
    flags: Path | None
    authentication_backend: Remote | None
    authorization_backend: Remote | None
    kubeconfig: Path | None
    sync: Sync | None
    policy_configmap: tuple[str, str] | None
    log_level: str


class _Section:
    """One JSON object of the file; every key must be taken, and taken once."""

    def __init__(self, data: object, name: str) -> None:
        if not isinstance(data, dict):
            raise SettingsError(f"{name or 'the settings'}: expected an object, found {_kind(data)}")
        self._data: dict[str, Any] = dict(data)
        self._prefix = f"{name}." if name else ""

    def take(self, key: str, kinds: tuple[type, ...], expected: str) -> Any:
        if key not in self._data:
            raise SettingsError(f"{self._prefix}{key}: missing, expected {expected}")
        value = self._data.pop(key)
        # bool is an int to Python, not to whoever wrote the file
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise SettingsError(f"{self._prefix}{key}: expected {expected}, found {_kind(value)}")
        return value

    def text(self, key: str) -> str:
        value = self.take(key, (str,), "a text")
        if not value:
            raise SettingsError(f"{self._prefix}{key}: is empty")
        return value

    def flag(self, key: str) -> bool:
        return self.take(key, (bool,), "true or false")

    def seconds(self, key: str) -> float:
        value = self.take(key, (int, float), "a number of seconds")
        if not 0 <= value <= 86400:
            raise SettingsError(f"{self._prefix}{key}: expected 0 to 86400 seconds, found {value}")
        return float(value)

    def path(self, key: str) -> Path:
        value = Path(self.text(key))
        if not value.is_absolute():
            raise SettingsError(f"{self._prefix}{key}: expected an absolute path, found {str(value)!r}")
        return value

    def path_or_none(self, key: str) -> Path | None:
        return None if self.is_null(key) else self.path(key)

    def address(self, key: str) -> Address:
        value = self.text(key)
        host, colon, port = value.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise SettingsError(f"{self._prefix}{key}: expected host:port, found {value!r}")
        return Address(host, int(port))

    def url(self, key: str, schemes: tuple[str, ...]) -> str:
        value = self.text(key)
        expected = f"an URL that begins with {' or '.join(scheme + '://' for scheme in schemes)}"
        try:
            parts = urlsplit(value)
            usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or any(character.isspace() for character in value):
            raise SettingsError(f"{self._prefix}{key}: expected {expected}, found {value!r}")
        return value.rstrip("/")

    def section(self, key: str) -> _Section:
        return _Section(self.take(key, (dict,), "an object"), self._prefix + key)

    def remote(self, key: str, schemes: tuple[str, ...]) -> Remote:
        section = self.section(key)
        remote = Remote(url=section.url("url", schemes), ca=section.path_or_none("ca"))
        section.done()
        return remote

    def remote_or_none(self, key: str) -> Remote | None:
        return None if self.is_null(key) else self.remote(key, ("https",))

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in allowed:
            raise SettingsError(f"{self._prefix}{key}: expected one of {', '.join(allowed)}, found {value!r}")
        return value

    def is_null(self, key: str) -> bool:
        """Whether the key is there and null, which is taken then."""
        if self._data.get(key, "") is not None:
            return False
        del self._data[key]
        return True

    def sync_or_none(self, key: str) -> Sync | None:
        if self.is_null(key):
            return None
        section = self.section(key)
        sync = Sync(
            config=section.path("config"),
            credentials=section.path_or_none("credentials"),
            prune=section.choice("prune", PRUNE),
            interval=section.seconds("interval"),
        )
        section.done()
        return sync

    def name_or_none(self, key: str) -> tuple[str, str] | None:
        if self.is_null(key):
            return None
        value = self.text(key)
        namespace, _, name = value.partition("/")
        if not namespace or not name or "/" in name:
            raise SettingsError(f"{self._prefix}{key}: expected namespace/name, found {value!r}")
        return namespace, name

    def done(self) -> None:
        if self._data:
            raise SettingsError(f"{self._prefix}{next(iter(self._data))}: unknown key")


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def parse(content: bytes) -> Settings:
    """Check the settings file's bytes.

    Raises:
        SettingsError: a key is unknown, missing or of the wrong type; the message names it.

    """
    try:
        data = document.decode(content)
    except document.NotJson as error:
        raise SettingsError(f"not JSON: {error}") from None
    top = _Section(data, "")
    tls = top.section("tls")
    settings = Settings(
        listen=top.address("listen"),
        private_listen=top.address("private_listen"),
        tls=Tls(
            certificate=tls.path("certificate"),
            key=tls.path("key"),
            client_ca=tls.path_or_none("client_ca"),
            require_client_certificate=tls.flag("require_client_certificate"),
        ),
        # http:// is the charm's to judge (keystone-insecure): what it wrote here is meant.
        keystone=top.remote("keystone", ("https", "http")),
        default_domain=top.text("default_domain"),
        upstream_compatible=top.flag("upstream_compatible"),
        token_cache_ttl=top.seconds("token_cache_ttl"),
        outage_grace=top.seconds("outage_grace"),
        policy=top.path_or_none("policy"),
        chained=top.path_or_none("chained"),
        flags=top.path_or_none("flags"),
        authentication_backend=top.remote_or_none("authentication_backend"),
        authorization_backend=top.remote_or_none("authorization_backend"),
        kubeconfig=top.path_or_none("kubeconfig"),
        sync=top.sync_or_none("sync"),
        policy_configmap=top.name_or_none("policy_configmap"),
        log_level=top.choice("log_level", LOG_LEVELS),
    )
    tls.done()
    top.done()
    if settings.kubeconfig is None and (settings.sync is not None or settings.policy_configmap is not None):
        raise SettingsError("kubeconfig: is null, but sync or policy_configmap needs it")
    if settings.tls.require_client_certificate and settings.tls.client_ca is None:
        raise SettingsError("tls.client_ca: missing, but tls.require_client_certificate is true")
    return settings


def load(path: Path) -> tuple[Settings, str]:
    """Read the settings file; returns the settings and the SHA-256 of its bytes in hex.

    Raises:
        SettingsError: it cannot be read or used; the message names the file.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from None
    try:
        return parse(content), hashlib.sha256(content).hexdigest()
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
