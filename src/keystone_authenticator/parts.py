"""What the service is made of, and how it follows the files that say so.

Each part is made anew when something that it is made from has changed. What cannot be used changes nothing: the last
good one stays in force, and the part's `error` says why. Not here: the listeners (`service`), and how it is told
(`pages`).
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from keystone_authenticator import certificates, chain, settings
from keystone_authenticator.access import Authorizer
from keystone_authenticator.authentication import (
    Authenticator,
    BackendValidator,
    ClusterTokens,
    KeystoneTokens,
    KeystoneValidator,
)
from keystone_authenticator.backend import DEADLINE as BACKEND_DEADLINE
from keystone_authenticator.backend import Backend
from keystone_authenticator.chain import ChainedWebhook, ChainError
from keystone_authenticator.identity import Identity, Naming
from keystone_authenticator.keystone import DEADLINE, Keystone
from keystone_authenticator.kubernetes import KubeconfigError, Kubernetes
from keystone_authenticator.metrics import Metrics
from keystone_authenticator.outbound import CannotTell, Client, TlsMaterialError, load_certificate, remote_context
from keystone_authenticator.policy import Policy, PolicyError, check
from keystone_authenticator.policy_configmap import PolicyConfigMap
from keystone_authenticator.settings import SettingsError
from keystone_authenticator.sync.config import SyncConfig, SyncConfigError
from keystone_authenticator.sync.following import PassCounts, Passes
from keystone_authenticator.sync.logins import Counts, Logins
from keystone_authenticator.sync.passes import read_config

logger = logging.getLogger("keystone_authenticator.service")

# Calls that are under way when their client is replaced end within this.
LAST_CALLS = 15.0


def stamp(path: Path | None) -> tuple[int, ...] | None:
    """What changes when a file does; None if it is not there."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    # The change time as well: a file that could not be read for its mode has the same content afterwards.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def read(path: Path) -> bytes:
    """Read a file.

    Raises:
        OSError: with a message that names the file.

    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(f"{path}: {error.strerror}") from None


def server_context(tls: settings.Tls) -> tuple[ssl.SSLContext, bytes]:
    """The webhook endpoint's TLS context, and the certificate file that it was made from.

    Raises:
        TlsMaterialError, OSError: a file cannot be read or used.

    """
    certificate = read(tls.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # HTTP/2 over one connection is what Go prefers where offered; this server speaks HTTP/1.1.
    context.set_alpn_protocols(["http/1.1"])
    # Go resumes no sessions, and tickets are a fourth of what a handshake costs here.
    context.num_tickets = 0
    load_certificate(context, certificate, read(tls.key))
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(cadata=read(tls.client_ca).decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise TlsMaterialError(f"{tls.client_ca}: not usable PEM: {error}") from None
        context.verify_mode = ssl.CERT_OPTIONAL
    return context, certificate


class Part:
    """What a part of the service was last made from, and how that went."""

    def __init__(self) -> None:
        self.made_from: object = Part
        self.hash: str | None = None
        self.loaded: float | None = None
        self.error: str | None = None

    def changed(self, made_from: object) -> bool:
        """Tell whether it is to be made anew, and take down what from."""
        if made_from == self.made_from:
            return False
        self.made_from = made_from
        return True

    def succeeded(self, digest: str | None) -> None:
        """Take down that it has been; `digest` is the SHA-256 of what it was made from, if it is told."""
        self.hash, self.loaded, self.error = digest, time.time(), None

    def failed(self, name: str, error: Exception) -> None:
        """Take down, and log, that it could not be; `name` says what becomes of it."""
        self.error = str(error)
        logger.error("%s: %s", name, error)


class Parts:
    """Everything that answers, and what it is made from: of each the last that could be used."""

    def __init__(self, config: Path, metrics: Metrics) -> None:
        """Read the settings.

        Raises:
            SettingsError: they cannot be used.

        """
        self._config = config
        self.metrics = metrics
        self.started = time.time()
        self.settings_part, self.policy_part, self.chain_part = Part(), Part(), Part()
        self.tls_part, self.keystone_part, self.access_part = Part(), Part(), Part()
        self.sync_part, self.writing_part, self.configmap_part = Part(), Part(), Part()
        self.settings_part.changed(stamp(config))
        self.settings, digest = settings.load(config)
        self.settings_part.succeeded(digest)
        self.tls_context: ssl.SSLContext | None = None
        self.certificate_ends: float | None = None
        self.policy: Policy | None = None
        self.policy_source = "none"
        self.policy_ms = 0.0
        self.configmap: PolicyConfigMap | None = None
        self.sync = SyncConfig()
        self.logins: Logins | None = None
        self.login_counts = Counts()
        self.passes: Passes | None = None
        self.pass_counts = PassCounts()
        self.chain_state = "off"
        self.keystone: Keystone | None = None
        self.backend: Backend | None = None
        # Where the endpoint is, if systemd and not the settings have said so.
        self.inherited_address: tuple[str, int] | None = None
        self.authenticator = Authenticator(_no_keystone("not set up yet"), ClusterTokens(None), metrics)
        self.authorizer = Authorizer(self._naming)
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def _naming(self) -> Naming:
        return Naming(self.settings.default_domain, self.settings.upstream_compatible, self.sync.mappings)

    async def look(self) -> None:
        """Look at all files, and make anew what is made from one that has changed."""
        self._look_at_settings()
        self._look_at_tls()
        self._look_at_sync()
        self._look_at_configmap()
        await self._look_at_policy()
        self._look_at_keystone()
        self._look_at_chain()
        self._look_at_access()

    def _look_at_settings(self) -> None:
        if not self.settings_part.changed(stamp(self._config)):
            return
        try:
            self.settings, digest = settings.load(self._config)
        except SettingsError as error:
            self.settings_part.failed("the settings stay as they were", error)
            return
        self.settings_part.succeeded(digest)
        logging.getLogger("keystone_authenticator").setLevel(self.settings.log_level.upper())
        logger.info("new settings are in force")

    def _look_at_tls(self) -> None:
        tls = self.settings.tls
        if not self.tls_part.changed((tls, stamp(tls.certificate), stamp(tls.key), stamp(tls.client_ca))):
            return
        try:
            self.tls_context, certificate = server_context(tls)
        except (TlsMaterialError, OSError) as error:
            self.tls_part.failed("the endpoint's certificate stays as it was", error)
            return
        self.certificate_ends = certificates.ends(certificate)
        self.tls_part.succeeded(hashlib.sha256(certificate).hexdigest())

    def _look_at_sync(self) -> None:
        now = self.settings
        if self.sync_part.changed((now.sync, stamp(now.sync.config if now.sync else None), now.upstream_compatible)):
            try:
                if now.sync is None:
                    self.sync = SyncConfig()
                    self.sync_part.succeeded(None)
                else:
                    content = read(now.sync.config)
                    self.sync = read_config(now.sync.config, now.upstream_compatible)
                    self.sync_part.succeeded(hashlib.sha256(content).hexdigest())
            except (SyncConfigError, OSError) as error:
                self.sync_part.failed("the sync configuration stays as it was", error)
        credentials = now.sync.credentials if now.sync else None
        made_from = (self.sync, now.sync, now.kubeconfig, stamp(now.kubeconfig), stamp(credentials), self._naming)
        if not self.writing_part.changed(made_from):
            return
        logins, passes = None, None
        try:
            if now.sync is not None and now.kubeconfig is not None and self.sync.writes:
                calls = self.metrics.calls["kubernetes"]
                kube = Kubernetes(now.kubeconfig, calls, limit=2)
                logins = Logins(kube, self.sync, self.login_counts, self.logins)
                if credentials is not None:
                    kube = Kubernetes(now.kubeconfig, calls, limit=1)
                    passes = Passes(kube, self._config, now.sync.interval, self.pass_counts)
        except KubeconfigError as error:
            self.writing_part.failed("nothing is written into the cluster", error)
        else:
            self.writing_part.succeeded(None)
        self._close_now(self.logins)
        self._close_now(self.passes)
        self.logins, self.passes = logins, passes

    def _note(self, identity: Identity) -> None:
        if self.logins is not None:
            self.logins.note(identity)

    def _look_at_configmap(self) -> None:
        named, kubeconfig = self.settings.policy_configmap, self.settings.kubeconfig
        if not self.configmap_part.changed((named, kubeconfig, stamp(kubeconfig))):
            return
        before, self.configmap = self.configmap, None
        self._close_now(before)
        if named is None or kubeconfig is None:
            self.configmap_part.succeeded(None)
            return
        try:
            kube = Kubernetes(kubeconfig, self.metrics.calls["kubernetes"], limit=2)
        except KubeconfigError as error:
            self.configmap_part.failed("the policy's ConfigMap cannot be read", error)
            return
        self.configmap = PolicyConfigMap(kube, *named)
        if before is not None:
            # Another way to it, or another one: until it has been looked at, what was there counts.
            self.configmap.content = before.content
        self.configmap_part.succeeded(None)

    async def _look_at_policy(self) -> None:
        path, naming = self.settings.policy, self._naming
        content = self.configmap.content if self.configmap is not None else None
        # While the ConfigMap is there it wins.
        wanted = path if content is None else content
        source = "configmap" if content is not None else "none" if path is None else "option"
        if not self.policy_part.changed((wanted, stamp(path) if content is None else None, naming)):
            return
        if wanted is None:
            self.policy, self.policy_source = None, source
            self.policy_part.succeeded(None)
            return
        try:
            # A policy of many items takes a while, and requests do not wait for it.
            policy, digest, milliseconds = await asyncio.get_running_loop().run_in_executor(
                None, load_policy, wanted, naming
            )
        except (PolicyError, OSError) as error:
            where = f"{'/'.join(self.settings.policy_configmap or ())}: " if content is not None else ""
            self.policy_part.failed("the policy stays as it was", _NotUsed(f"{where}{error}"))
            self.metrics.policy_failures += 1
            if self.policy is not None:
                # The last good items, but the names as the settings now want them.
                self.policy = Policy(self.policy.items, naming)
            return
        self.policy, self.policy_ms, self.policy_source = policy, milliseconds, source
        self.policy_part.succeeded(digest)
        logger.info("a policy of %d items is in force, from the %s", len(policy.items), source)

    def _look_at_keystone(self) -> None:
        now = self.settings
        backend = now.authentication_backend
        remote = backend or now.keystone
        made_from = (remote, backend is None, stamp(remote.ca), self._naming, now.token_cache_ttl, now.outage_grace)
        if not self.keystone_part.changed(made_from):
            return
        try:
            context = remote_context(remote.url, remote.ca)
        except (TlsMaterialError, OSError) as error:
            self.keystone_part.failed("calls to Keystone stay as they were", error)
            if self.keystone_part.loaded is None:
                self._replace_keystone(_no_keystone(str(error)))
            return
        if backend is None:
            self.keystone = Keystone(
                remote.url, Client("Keystone", context, DEADLINE, calls=self.metrics.calls["keystone"])
            )
            validator: Any = KeystoneValidator(self.keystone, self._naming, now.token_cache_ttl, now.outage_grace)
        else:
            self.keystone = None
            calls = self.metrics.calls["authentication_backend"]
            client = Client("the authentication backend", context, BACKEND_DEADLINE, calls=calls)
            validator = BackendValidator(Backend(remote.url, client))
        # What a backend says has no expiry, so that nobody could be let in past it.
        grace = now.outage_grace if backend is None else 0
        self._replace_keystone(KeystoneTokens(validator, now.token_cache_ttl, grace, self.metrics, self._note))
        self.keystone_part.succeeded(None)

    def _replace_keystone(self, tokens: KeystoneTokens) -> None:
        self._close_later(self.authenticator.keystone)
        self.authenticator.keystone = tokens

    def _look_at_chain(self) -> None:
        path = self.settings.chained
        if not self.chain_part.changed((path, stamp(path))):
            return
        if path is None:
            self._replace_chain(ClusterTokens(None), "off", None)
            return
        content = None
        try:
            content = path.read_bytes()
            displaced = chain.parse(content)
            if displaced is not None and self._is_ourselves(displaced.url):
                raise ChainError(f"the displaced webhook {displaced.url} is this endpoint itself")
        except (ChainError, OSError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = f"{path}: {'not there yet' if missing else getattr(error, 'strerror', None) or error}"
            self.chain_part.failed("the cluster's own token webhook stays as it was", ChainError(reason))
            if self.chain_state not in ("none", "ready"):
                problem = f"the cluster's own token webhook is not known: {reason}"
                self.chain_state = "missing" if missing else "broken"
                self._close_later(self.authenticator.cluster)
                self.authenticator.cluster = ClusterTokens(None, problem)
            return
        digest = hashlib.sha256(content).hexdigest()
        if digest == self.chain_part.hash and self.chain_state in ("none", "ready"):
            # Written anew before each start of the API server: the same again is no reason to forget verdicts.
            self.chain_part.succeeded(digest)
            return
        if displaced is None:
            self._replace_chain(ClusterTokens(None), "none", digest)
        else:
            self._replace_chain(
                ClusterTokens(ChainedWebhook(displaced, self.metrics.calls["cluster_webhook"])), "ready", digest
            )

    def _is_ourselves(self, url: str) -> bool:
        """Whether a URL leads back here; to chain there would be a request that never ends."""
        parts = urlsplit(url)
        address = self.inherited_address or (self.settings.listen.host, self.settings.listen.port)
        return parts.port == address[1] and parts.hostname in (address[0], "localhost", "127.0.0.1", "::1")

    def _replace_chain(self, tokens: ClusterTokens, state: str, digest: str | None) -> None:
        self._close_later(self.authenticator.cluster)
        self.authenticator.cluster = tokens
        self.chain_state = state
        self.chain_part.succeeded(digest)

    def _look_at_access(self) -> None:
        remote = self.settings.authorization_backend
        if self.access_part.changed((remote, stamp(remote.ca) if remote else None)):
            try:
                backend = None
                if remote is not None:
                    calls, context = self.metrics.calls["authorization_backend"], remote_context(remote.url, remote.ca)
                    client = Client("the authorization backend", context, BACKEND_DEADLINE, limit=64, calls=calls)
                    backend = Backend(remote.url, client)
            except (TlsMaterialError, OSError) as error:
                self.access_part.failed("calls to the authorization backend stay as they were", error)
            else:
                self._close_later(self.backend)
                self.backend = backend
                self.access_part.succeeded(None)
        wanted = Authorizer(self._naming, self.policy, self.backend)
        if wanted != self.authorizer:
            self.authorizer = wanted

    async def close(self) -> None:
        """End all calls."""
        own = (self.logins, self.passes, self.configmap)
        for part in (self.authenticator.keystone, self.authenticator.cluster, self.backend, *own):
            if part is not None:
                await part.close()

    def _close_now(self, part: Any) -> None:
        self._close_later(part, 0)

    def _close_later(self, part: Any, seconds: float = LAST_CALLS) -> None:
        async def close() -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                await part.close()

        if part is not None:
            task = asyncio.get_running_loop().create_task(close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class _NoKeystone:
    """Stands where Keystone cannot be called at all, and says why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def known(self, token: str) -> Any:  # noqa: ARG002  whoever it is
        raise CannotTell(self._reason)

    async def close(self) -> None:
        pass


def _no_keystone(reason: str) -> KeystoneTokens:
    return KeystoneTokens(_NoKeystone(reason), 0, 0)


class _NotUsed(Exception):
    """A policy is not put in force; the message says whose it is and why."""


def load_policy(source: Path | bytes, naming: Naming) -> tuple[Policy, str, float]:
    """Read, check and compile a policy, a file's or a text.

    Returns:
        it, the SHA-256 of its bytes, and the milliseconds that it took.

    Raises:
        PolicyError, OSError: it cannot be used.

    """
    began = time.perf_counter()
    content = source if isinstance(source, bytes) else read(source)
    # Nothing of this is garbage, and the collector would look at all of it again and again while it grows.
    collecting = gc.isenabled()
    gc.disable()
    try:
        checked = check(content, naming.upstream_compatible)
        if checked.items is None:
            raise PolicyError(checked.errors)
        policy = Policy(checked.items, naming)
    finally:
        if collecting:
            gc.enable()
    return policy, hashlib.sha256(content).hexdigest(), round((time.perf_counter() - began) * 1000, 1)
