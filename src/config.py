"""The charm's options, typed and checked in one place; every error names the option and the fix.

Not here: whether a policy is valid (the authenticator's own command says so, see authenticator.py), whether anything
answers at a URL, and which layouts of API servers there are (apiserver).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

import ops
import pydantic
from cryptography import x509

import which_juju
from errors import ConfigError, Waiting
from files import NAME
from image import Reference
from keystone_charm import Related

DEFAULT_ENDPOINT = "https://127.0.0.1:8443/webhook"
PRIVATE_PORT = 8444
"""The authenticator's private listener: health and state, no tokens."""
UPSTREAM_PORTS = (8445, 8446)
"""Where an operator's own k8s-keystone-auth listens, on loopback; at a change the new one takes the other port."""
RESOURCE = "k8s-keystone-auth"
"""The Juju resource that may hold one."""
INCOMING = "/var/lib/kubernetes-keystone/incoming"
LAYOUTS = ("charmed", "canonical", "microk8s", "static-pod")


class Listen(pydantic.BaseModel, frozen=True):
    """Where the local endpoint is: a loopback address and a port."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """As systemd and the authenticator take it: `127.0.0.1:8443`, `[::1]:8443`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The endpoint as the API server calls it."""
        return f"https://{self.address}/webhook"


def _pem(value: str) -> str:
    """Take PEM, or base64 of PEM, and give PEM; every certificate in it must parse."""
    if not value.strip():
        return ""
    text = value
    if "-----BEGIN" not in text:
        try:
            text = base64.b64decode("".join(value.split()), validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            text = ""
    if "-----BEGIN" not in text:
        raise ValueError("is neither PEM (-----BEGIN CERTIFICATE-----) nor base64 of PEM")
    if "PRIVATE KEY-----" in text:
        raise ValueError(
            "holds a private key; give the certificates alone, and think of that key as known to others now"
        )
    try:
        x509.load_pem_x509_certificates(text.encode())
    except ValueError as error:
        raise ValueError(
            f"holds a certificate that cannot be read ({error}); check that it was copied whole"
        ) from error
    return text.strip() + "\n"


def _url(value: str, schemes: tuple[str, ...]) -> SplitResult:
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        # What Python says of it repeats a part of the value.
        raise ValueError(f"{_shown(value)} is not a URL") from None
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    # What a URL may consist of (RFC 3986): a blank or a quote would otherwise reach a unit file.
    if (
        url.scheme not in schemes
        or not url.hostname
        or not re.fullmatch(r"[A-Za-z0-9._~:/?#\[\]@!$&()*+,;=%-]+", value)
    ):
        raise ValueError(f"{_shown(value)} is not a URL that begins with {wanted} and names a host")
    if url.username is not None or url.password is not None:
        raise ValueError("must not hold a user name or password")
    if port == 0:
        raise ValueError(f"{_shown(value)} names port 0")
    return url


def _shown(value: str) -> str:
    """Give a value for a message: not its password, wherever that may begin and end in what is no URL; nor too much."""
    _, at, after = value.rpartition("@")
    shown = f"…@{after}" if at else value
    return repr(shown if len(shown) <= 200 else f"{shown[:200]}…")


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def is_loopback(url: str) -> bool:
    """Tell whether a URL leads nowhere but to the machine that it is used on."""
    host = urlsplit(url).hostname
    return _is_loopback(host) or host in {"0.0.0.0", "::"}  # noqa: S104 - what a kubeconfig says, not what is bound


def _server_url(value: str) -> str:
    """Check authn-server-url and authz-server-url: https, and nothing but /webhook where they mean our endpoint."""
    value = value.strip()
    if not value:
        return ""
    url = _url(value, ("https",))
    if _is_loopback(url.hostname):
        if url.path not in {"", "/", "/webhook"} or url.query or url.fragment:
            raise ValueError(
                f"{_shown(value)} is on loopback, where the path is /webhook: use https://{url.netloc}/webhook"
            )
        if url.port is None:
            raise ValueError(f"{_shown(value)} names no port: use https://{url.netloc}:8443/webhook")
        if url.port in {PRIVATE_PORT, *UPSTREAM_PORTS}:
            raise ValueError(f"port {url.port} is used by the authenticator itself: choose another")
    return value


def _users_url(value: str) -> str:
    """Check kubernetes-url: what kubectl takes, and sends a token to."""
    value = value.strip().rstrip("/")
    if value:
        url = _url(value, ("https",))
        if url.query or url.fragment:
            raise ValueError(f"{_shown(value)} has more than a path; it should be like https://HOST:6443")
        if _is_loopback(url.hostname):
            raise ValueError(f"{_shown(value)} is on loopback, where no user's kubectl reaches the API server")
    return value


def _ca_of_related(value: str, info: pydantic.ValidationInfo) -> str:
    """Take the CA from where the URL is taken, unless the option says otherwise."""
    related: Related | None = info.data.get("related_keystone")
    from_relation = related is not None and info.data.get("keystone_url") == related.url
    return related.ca if related is not None and from_relation and not value.strip() else value


Word = pydantic.BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value)
"""Of a file (juju config OPTION=@FILE) it has a line's end."""
Pem = Annotated[str, pydantic.AfterValidator(_pem)]
UsersUrl = Annotated[str, pydantic.AfterValidator(_users_url)]
ServerUrl = Annotated[str, pydantic.AfterValidator(_server_url)]


class CharmConfig(pydantic.BaseModel, frozen=True):
    """The options as the rest of the charm sees them."""

    keystone_insecure: bool = False
    related_keystone: Related | None = None
    """No option: what Keystone's charm says, which counts where keystone-url is empty."""
    keystone_url: str = ""
    keystone_ca: Annotated[str, pydantic.BeforeValidator(_ca_of_related), pydantic.AfterValidator(_pem)] = ""
    k8s_keystone_auth_url: str = ""
    k8s_keystone_auth_sha256: str = ""
    k8s_keystone_auth_ca: Pem = ""
    k8s_keystone_auth_credentials: str = ""
    authn_server_url: ServerUrl = ""
    authz_server_url: ServerUrl = ""
    auth_server_ca: Pem = ""
    policy: str = ""
    policy_configmap: str = ""
    sync_config: str = ""
    sync_prune: Annotated[Literal["off", "empty", "all"], Word] = "off"
    sync_credentials: str = ""
    sync_kubeconfig: str = ""
    upstream_compatible: bool = False
    default_domain: str = "default"
    token_cache_ttl: Annotated[int, pydantic.Field(ge=0, le=3600)] = 60
    outage_grace: Annotated[int, pydantic.Field(ge=0, le=86400)] = 300
    api_server: Annotated[str, Word] = "auto"
    kubernetes_url: UsersUrl = ""
    kubernetes_ca: Pem = ""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Word] = "info"
    attached: Path | None = pydantic.Field(default=None, exclude=True)
    """No option: the resource that Juju has for this unit, see `with_resource`."""

    @pydantic.field_validator("keystone_url")
    @classmethod
    def _check_keystone_url(cls, value: str, info: pydantic.ValidationInfo) -> str:
        value = value.strip()
        related: Related | None = info.data.get("related_keystone")
        if not value and related is not None:
            if not related.url:
                raise Waiting("Keystone's charm has not said yet where Keystone is (keystone-credentials)")
            value = related.url
        if not value:
            raise ValueError(
                "is not set; juju config kubernetes-keystone keystone-url=https://HOST:5000/v3,"
                f" or {which_juju.current().integrate('keystone:identity-credentials', NAME)}"
            )
        url = _url(value, ("https", "http"))
        if url.scheme == "http" and not _is_loopback(url.hostname) and not info.data.get("keystone_insecure"):
            raise ValueError(f"{_shown(value)} would send tokens in clear: use https://, or set keystone-insecure=true")
        if url.query or url.fragment:
            raise ValueError(f"{_shown(value)} has more than a path; it should end in /v3")
        path = url.path.rstrip("/")
        if path.endswith("/v2.0"):
            raise ValueError(f"{_shown(value)} is the Identity API v2.0: use the v3 one, which ends in /v3")
        return url._replace(path=path if path.endswith("/v3") else f"{path}/v3").geturl()

    @pydantic.field_validator("k8s_keystone_auth_url")
    @classmethod
    def _check_download_url(cls, value: str) -> str:
        value = value.strip()
        if value.startswith("oci://"):
            try:
                Reference.parse(value)
            except ValueError as error:
                raise ValueError(f"{_shown(value)} {error}") from None
        elif value.startswith("file://"):
            if not re.fullmatch(rf"file://{INCOMING}/(?!\.\.?$)[A-Za-z0-9._+-]+", value):
                raise ValueError(f"{_shown(value)} is not in the one folder for it: use file://{INCOMING}/NAME")
        elif value:
            _url(value, ("https", "oci", "file"))
        return value

    @pydantic.field_validator("k8s_keystone_auth_sha256")
    @classmethod
    def _check_sha256(cls, value: str) -> str:
        value = value.strip().lower().removeprefix("sha256:")
        if value and not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError("is not a SHA-256 checksum: 64 hexadecimal digits, as sha256sum prints them")
        return value

    @pydantic.field_validator("default_domain")
    @classmethod
    def _check_domain(cls, value: str) -> str:
        value = value.strip()
        if not value:
            raise ValueError("is empty; it is the ID of a Keystone domain, usually default (openstack domain list)")
        if len(value) > 64:
            raise ValueError(f"{value[:64]!r}… is longer than a domain's ID can be (64)")
        # Everybody of the default domain would be called otherwise, for a letter that nobody sees.
        if not re.fullmatch(r"[\x21-\x7e]+", value):
            raise ValueError(f"{value!a} can be no domain's ID: it is not its name (openstack domain list)")
        return value

    @pydantic.field_validator("policy_configmap")
    @classmethod
    def _check_configmap(cls, value: str) -> str:
        value = value.strip()
        name = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
        if value and not re.fullmatch(rf"[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?/{name}", value):
            raise ValueError(f"{_shown(value)} is not namespace/name, such as kube-system/k8s-auth-policy")
        return value

    @pydantic.field_validator("k8s_keystone_auth_credentials", "sync_credentials")
    @classmethod
    def _check_credentials(cls, value: str) -> str:
        value = value.strip()
        # Whatever else is there may be the secret itself: nothing of it is repeated.
        if value and not re.fullmatch(r"secret:\S+|/\S+", value):
            raise ValueError(
                "is neither a Juju secret (secret:…) nor the absolute path of a file of root's on the units; if it was"
                " a password, think of it as known to others now"
            )
        return value

    @pydantic.field_validator("sync_kubeconfig")
    @classmethod
    def _check_kubeconfig(cls, value: str) -> str:
        value = value.strip()
        if value and not value.startswith("/"):
            raise ValueError("is not the absolute path of a file of root's on the units")
        return value

    @pydantic.field_validator("api_server")
    @classmethod
    def _check_api_server(cls, value: str) -> str:
        usable = f"use auto, {', '.join(LAYOUTS)} or manual"
        if value not in {"auto", *LAYOUTS, "manual"}:
            raise ValueError(f"{value!r} is unknown: {usable}")
        return value

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> CharmConfig:
        local = [
            url
            for url in (self.authn_server_url, self.authz_server_url)
            if url and _is_loopback(urlsplit(url).hostname)
        ]
        if len({_listen(url) for url in local}) > 1:
            raise ConfigError(
                "authz-server-url",
                "is on loopback as authn-server-url is, but names another host or port:"
                " both mean the one local endpoint, so set them alike or leave one empty",
            )
        if self.k8s_keystone_auth_url and self.authentication_service and self.authorization_service:
            raise ConfigError(
                "k8s-keystone-auth-url",
                "would never be asked: authn-server-url and authz-server-url both"
                " name services of their own. Unset one of the three",
            )
        url, sha256 = self.k8s_keystone_auth_url, self.k8s_keystone_auth_sha256
        if url.startswith("file://") and not sha256:
            raise ConfigError("k8s-keystone-auth-sha256", f"is required for {url}: sha256sum says what it is")
        if url.startswith("oci://"):
            image = Reference.parse(url)
            if not image.digest and not sha256:
                raise ConfigError(
                    "k8s-keystone-auth-sha256",
                    f"is required for {url}, as a tag says nothing of what is in it: the image's digest, or use"
                    f" oci://{image.registry}/{image.name}@sha256:…",
                )
            if image.digest and sha256 and image.digest != f"sha256:{sha256}":
                raise ConfigError("k8s-keystone-auth-sha256", f"contradicts the digest in {url}: set one or the other")
        if self.policy_configmap and (self.k8s_keystone_auth_url or self.authorization_service):
            raise ConfigError("policy-configmap", "would never be read: another authorizer than ours decides on access")
        if self.sync_credentials and not self.sync_config.strip():
            raise ConfigError("sync-credentials", "is set without sync-config, which says what is to be kept in step")
        if self.sync_prune != "off" and not self.sync_credentials:
            raise ConfigError("sync-prune", "needs sync-credentials: only Keystone knows which projects are gone")
        if self.api_server == "manual" and self.in_cluster and not self.sync_kubeconfig:
            raise ConfigError("sync-kubeconfig", "is needed with api-server=manual, where no administrator is known")
        return self

    def with_resource(self, path: Path | None) -> CharmConfig:
        """Add the Juju resource, if one is attached: the options alone do not say.

        Raises:
            ConfigError: there is an option for it, and neither a URL nor a resource.
        """
        if self.k8s_keystone_auth_sha256 and not self.k8s_keystone_auth_url and path is None:
            raise ConfigError(
                "k8s-keystone-auth-sha256",
                f"is set without k8s-keystone-auth-url and without the resource {RESOURCE}; set both or neither",
            )
        if self.policy_configmap and path is not None and self.takes_resource:
            raise ConfigError(
                "policy-configmap", f"would never be read: the resource {RESOURCE} decides on access in our place"
            )
        return self.model_copy(update={"attached": path})

    @property
    def takes_resource(self) -> bool:
        """Whether an attached resource would stand behind the endpoint: a URL and services of others come first."""
        both = self.authentication_service and self.authorization_service
        return not self.k8s_keystone_auth_url and not both

    @property
    def resource(self) -> Path | None:
        """The attached k8s-keystone-auth that is to stand behind the endpoint."""
        return self.attached if self.takes_resource else None

    @property
    def own_program(self) -> bool:
        """Whether a k8s-keystone-auth of the operator's runs behind the endpoint, on this machine."""
        return bool(self.k8s_keystone_auth_url) or self.resource is not None

    @property
    def listen(self) -> Listen:
        """Where the local endpoint is to be."""
        for url in (self.authn_server_url, self.authz_server_url):
            if url and _is_loopback(urlsplit(url).hostname):
                return _listen(url)
        return _listen(DEFAULT_ENDPOINT)

    @property
    def authentication_service(self) -> str | None:
        """Somebody else's service for tokens, which stands behind our endpoint."""
        return _foreign(self.authn_server_url)

    @property
    def authorization_service(self) -> str | None:
        """Somebody else's service for access reviews, which stands behind our endpoint."""
        return _foreign(self.authz_server_url)

    @property
    def names_upstream_way(self) -> bool:
        """Whether names are upstream's: asked for, or implied by a service that names no domains (decision 2)."""
        return self.upstream_compatible or self.implies_upstream_names

    @property
    def implies_upstream_names(self) -> bool:
        """Whether another service than the built-in authenticator is behind the endpoint."""
        return bool(self.own_program or self.authentication_service or self.authorization_service)

    @property
    def authorization(self) -> bool:
        """Whether the API server shall ask us about access."""
        return bool(self.policy.strip() or self.policy_configmap) or self.authorization_service is not None

    @property
    def in_cluster(self) -> bool:
        """Whether the authenticator has something to read or write in the cluster."""
        return bool(self.sync_config.strip() or self.policy_configmap)

    @property
    def keystone_overridden(self) -> bool:
        """Whether Keystone's charm names another place than the option, which wins."""
        return self.related_keystone is not None and self.related_keystone.url not in {"", self.keystone_url}

    @property
    def keystone_in_clear(self) -> bool:
        """Whether tokens cross a network unencrypted, which the status has to keep saying."""
        url = urlsplit(self.keystone_url)
        return url.scheme == "http" and not _is_loopback(url.hostname)


def load(charm: ops.CharmBase, related_keystone: Related | None = None) -> CharmConfig:
    """Read and check all options.

    Args:
        charm: whose options.
        related_keystone: what Keystone's charm says, which counts where keystone-url is empty.

    Raises:
        ConfigError: the first option that cannot be used, and how many more there are.
        Waiting: keystone-url is empty, and Keystone's charm has not said anything yet.
    """
    try:
        return charm.load_config(CharmConfig, related_keystone=related_keystone)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        option = str(found[0]["loc"][0]).replace("_", "-") if found[0]["loc"] else "config"
        cause = found[0].get("ctx", {}).get("error")
        problem = str(cause) if isinstance(cause, ValueError) else found[0]["msg"]
        if len(found) > 1:
            others = ", ".join(str(item["loc"][0]).replace("_", "-") for item in found[1:])
            problem += f" (and {len(found) - 1} more: {others})"
        raise ConfigError(option, problem) from None


def _listen(url: str) -> Listen:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else str(parts.hostname)
    return Listen(host=host, port=parts.port or 443)


def _foreign(url: str) -> str | None:
    return url if url and not _is_loopback(urlsplit(url).hostname) else None
