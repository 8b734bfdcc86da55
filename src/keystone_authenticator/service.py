"""The running service: puts the parts together from the settings, follows the files while it runs, and says how it is.

Each part is rebuilt when something that it is made from has changed. What cannot be used changes nothing: the last
good one stays in force, and the status says so.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hashlib
import logging
import os
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from keystone_authenticator import (
    __version__,
    certificates,
    chain,
    document,
    flags,
    metrics,
    reviews,
    settings,
    watchdog,
)
from keystone_authenticator.access import Authorizer
from keystone_authenticator.authentication import (
    Authenticator,
    BackendValidator,
    ClusterTokens,
    KeystoneTokens,
    KeystoneValidator,
    Overloaded,
)
from keystone_authenticator.backend import DEADLINE as BACKEND_DEADLINE
from keystone_authenticator.backend import Backend
from keystone_authenticator.chain import ChainedWebhook, ChainError
from keystone_authenticator.identity import Identity, Naming
from keystone_authenticator.keystone import DEADLINE, Keystone
from keystone_authenticator.kubernetes import KubeconfigError, Kubernetes
from keystone_authenticator.metrics import ACCESS_RESULTS, CONTENT_TYPE, TOKEN_RESULTS, Metrics
from keystone_authenticator.outbound import Client, TlsMaterialError, load_certificate, remote_context
from keystone_authenticator.policy import Policy, PolicyError, check
from keystone_authenticator.policy_configmap import PolicyConfigMap
from keystone_authenticator.reviews import AccessReview, NotAReview, TokenReview
from keystone_authenticator.server import Limits, Listener, Reply, Request, text
from keystone_authenticator.settings import Address, SettingsError
from keystone_authenticator.sync.config import SyncConfig, SyncConfigError
from keystone_authenticator.sync.following import PassCounts, Passes, told
from keystone_authenticator.sync.logins import Counts, Logins
from keystone_authenticator.sync.passes import read_config

logger = logging.getLogger("keystone_authenticator.service")

# The API server's audit ID of the request that is worked on, where it was sent.
AUDIT_ID: ContextVar[str] = ContextVar("audit_id", default="")
LOOK_EVERY = 0.5
_C = ctypes.CDLL(None)
SWEEP_EVERY = 30.0
# Calls that are under way when their client is replaced end within this.
LAST_CALLS = 15.0
DRAIN_QUIET = 1.0
DRAIN_DEADLINE = 15.0


class StartError(Exception):
    """The service cannot start; the message says what is missing and where."""


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


def rfc3339(seconds: float) -> str:
    """A time as Kubernetes writes it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def read(path: Path) -> bytes:
    """Read a file.

    Raises:
        OSError: with a message that names the file.

    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(f"{path}: {error.strerror}") from None


def give_back_memory() -> None:
    """Give the system what the C library holds back between what is in use.

    Buffers of connections that come and go leave holes: without this, some thousand of them leave tens of megabytes.
    """
    trim = getattr(_C, "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


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


class WebhookHandler:
    """`POST /webhook`, for the API server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # The watchdog's: it has no client certificate, and what it asks is about nobody.
        self.own_path = f"/{secrets.token_urlsafe(24)}"

    def refuse(self, request: Request) -> Reply | None:
        """All that can be said from the head."""
        own = request.path == self.own_path
        if request.path != "/webhook" and not own:
            return text(404, "there is only /webhook here")
        if request.method != "POST":
            return text(405, "only POST", b"Allow: POST\r\n")
        if not request.certified and not own and self._service.settings.tls.require_client_certificate:
            return text(403, "a client certificate is required")
        kind = request.content_type
        if kind != "application/json" and kind.partition(";")[0].strip().lower() not in ("application/json", ""):
            return text(415, "only application/json")
        return None

    def answer(self, request: Request, body: bytes) -> bytes | Reply | Coroutine[Any, Any, bytes | Reply]:
        """Answer a review."""
        service = self._service
        began = time.perf_counter()
        try:
            review = reviews.parse(body)
        except NotAReview as error:
            service.metrics.not_reviews += 1
            return text(400, str(error))
        if isinstance(review, AccessReview):
            answer = service.authorizer.answer(review)
        else:
            answer = service.authenticator.answer(review, request.certified)
        if not isinstance(answer, bytes):
            return self._later(answer, review, began, request.audit_id)
        if request.path != self.own_path:
            self._count(review, answer, began)
        return answer

    async def _later(
        self, coming: Coroutine[Any, Any, bytes], review: TokenReview | AccessReview, began: float, audit_id: str
    ) -> bytes | Reply:
        # This runs in a task of its own, and what it starts inherits the ID for its lines in the log.
        AUDIT_ID.set(audit_id)
        try:
            answer = await coming
        except Overloaded as error:
            # The API server repeats on 429 with Retry-After, and does not on a bare 503.
            return text(429, str(error), b"Retry-After: 1\r\n")
        self._count(review, answer, began)
        return answer

    def _count(self, review: TokenReview | AccessReview, answer: bytes, began: float) -> None:
        now = time.perf_counter()
        counted, seconds, version = self._service.metrics, now - began, review.version
        if isinstance(review, AccessReview):
            result = reviews.access_result(version, answer)
            counted.access[version][result] += 1
            counted.access_seconds.observe(seconds)
            counted.last_access = now
        else:
            result = reviews.token_result(version, answer)
            counted.tokens[version][result] += 1
            counted.token_seconds.observe(seconds)
            counted.last_token = now
        # The access log: there is one at this level only.
        if logger.isEnabledFor(logging.DEBUG):
            kind = "SubjectAccessReview" if isinstance(review, AccessReview) else "TokenReview"
            results = ACCESS_RESULTS if isinstance(review, AccessReview) else TOKEN_RESULTS
            logger.debug("%s %s: %s in %.2f ms", kind, version, results[result], seconds * 1000)


class PrivateHandler:
    """`/healthz`, `/readyz`, `/status`, `/metrics`, for the charm and for monitoring; never a token or a user name."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def refuse(self, request: Request) -> Reply | None:
        """All that can be said from the head."""
        if request.path not in ("/healthz", "/readyz", "/status", "/metrics"):
            return text(404, "there are only /healthz, /readyz, /status and /metrics here")
        if request.method not in ("GET", "HEAD"):
            return text(405, "only GET", b"Allow: GET, HEAD\r\n")
        return None

    def answer(self, request: Request, body: bytes) -> bytes | Reply:  # noqa: ARG002  a GET has none
        """Answer."""
        if request.path == "/healthz":
            return text(200, "ok")
        if request.path == "/status":
            return document.encode(self._service.status())
        if request.path == "/metrics":
            return Reply(200, self._service.metrics_text(), CONTENT_TYPE)
        reasons = self._service.not_ready()
        return text(503, "\n".join(reasons)) if reasons else text(200, "ok")


class _Part:
    """What a part of the service was last made from, and how that went."""

    def __init__(self) -> None:
        self.made_from: object = _Part
        self.hash: str | None = None
        self.loaded: float | None = None
        self.error: str | None = None

    def changed(self, made_from: object) -> bool:
        if made_from == self.made_from:
            return False
        self.made_from = made_from
        return True

    def succeeded(self, digest: str | None) -> None:
        self.hash, self.loaded, self.error = digest, time.time(), None

    def failed(self, name: str, error: Exception) -> None:
        self.error = str(error)
        logger.error("%s: %s", name, error)


class Service:
    """Everything that runs, and how it follows its files."""

    def __init__(self, config: Path, metrics: Metrics) -> None:
        """Read the settings.

        Raises:
            SettingsError: they cannot be used.

        """
        self._config = config
        self._settings_part, self._policy_part, self._chain_part = _Part(), _Part(), _Part()
        self._tls_part, self._keystone_part, self._access_part = _Part(), _Part(), _Part()
        self._sync_part, self._writing_part, self._configmap_part = _Part(), _Part(), _Part()
        self._settings_part.changed(stamp(config))
        self.settings, digest = settings.load(config)
        self._settings_part.succeeded(digest)
        self._started = time.time()
        self._policy: Policy | None = None
        self._policy_source = "none"
        self._configmap: PolicyConfigMap | None = None
        self._sync = SyncConfig()
        self._logins: Logins | None = None
        self._login_counts = Counts()
        self._passes: Passes | None = None
        self._pass_counts = PassCounts()
        self._policy_ms = 0.0
        self._chain_state = "off"
        self._keystone: Keystone | None = None
        self._backend: Backend | None = None
        self._webhook: Listener | None = None
        self._private: Listener | None = None
        self._addresses: tuple[Address | None, Address] = (None, self.settings.private_listen)
        self._webhook_address: tuple[str, int] | None = None
        self._address_error: str | None = None
        self._tls_context: ssl.SSLContext | None = None
        self._tls_listening: ssl.SSLContext | None = None
        self._certificate_ends: float | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.metrics = metrics
        self.authenticator = Authenticator(_no_keystone("not set up yet"), ClusterTokens(None), self.metrics)
        self.authorizer = Authorizer(self._naming)
        self._handler = WebhookHandler(self)

    def _own_endpoint(self) -> tuple[tuple[str, int], str]:
        if self._webhook is None:
            raise watchdog.NoAnswer("there is no endpoint")
        return self._webhook.address, self._handler.own_path

    @property
    def _naming(self) -> Naming:
        return Naming(self.settings.default_domain, self.settings.upstream_compatible, self._sync.mappings)

    # -- running

    async def run(self, inherited: Sequence[socket.socket] = ()) -> None:
        """Serve until SIGTERM or SIGINT, on the inherited sockets or on our own.

        Raises:
            StartError: it cannot serve at all.

        """
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        private_address = (self.settings.private_listen.host, self.settings.private_listen.port)
        by_use = {sock.getsockname()[:2] == private_address: sock for sock in inherited}
        webhook, private = by_use.get(False), by_use.get(True)
        self._webhook_address = webhook.getsockname()[:2] if webhook is not None else None
        await self.start(webhook, private)
        # What is here now stays: the collector need not look at it while reviews wait.
        gc.collect()
        gc.freeze()
        notify("READY=1")
        logger.info("ready, version %s, %s", __version__, self._webhook.address if self._webhook else "")
        tasks = [loop.create_task(self._follow()), loop.create_task(self._sweep())]
        limit = watchdog.seconds()
        if limit is not None:
            tasks.append(loop.create_task(watchdog.feed(limit, self._own_endpoint, notify)))
        await stop.wait()
        notify("STOPPING=1")
        logger.info("stopping: answering what was asked")
        for task in tasks:
            task.cancel()
        if self._webhook is not None:
            await self._webhook.drain(DRAIN_QUIET, DRAIN_DEADLINE)
        if self._private is not None:
            await self._private.drain(0, 1)
        own = (self._logins, self._passes, self._configmap)
        for part in (self.authenticator.keystone, self.authenticator.cluster, self._backend, *own):
            if part is not None:
                await part.close()

    async def start(self, webhook: socket.socket | None, private: socket.socket | None) -> None:
        """Begin to answer, on these sockets or on our own; nothing is followed yet.

        Raises:
            StartError: it cannot serve at all.

        """
        await self.look()
        if self._tls_context is None:
            raise StartError(f"the endpoint's certificate cannot be used: {self._tls_part.error}")
        try:
            sock = webhook or bound_socket(self.settings.listen)
            private = private or bound_socket(self.settings.private_listen)
        except OSError as error:
            raise StartError(str(error)) from None
        self._addresses = (None if webhook else self.settings.listen, self.settings.private_listen)
        self._webhook = Listener(sock, self._handler)
        self._private = Listener(
            private, PrivateHandler(self), Limits(body=0, connections=64, idle=60, first_request=30)
        )
        self._private.listen(None)
        self._webhook.listen(self._tls_context)
        self._tls_listening = self._tls_context

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
            except Exception:
                logger.exception("a fault of ours while the files were looked at")

    async def _sweep(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(1)
            for listener in (self._webhook, self._private):
                if listener is not None:
                    listener.connections.sweep()
            if time.monotonic() - last > SWEEP_EVERY:
                last = time.monotonic()
                self.authenticator.sweep()
                # In a thread, as with a large heap it takes some milliseconds.
                await asyncio.get_running_loop().run_in_executor(None, give_back_memory)

    # -- following the files

    async def look(self) -> None:
        """Look at all files, and rebuild what is made from one that has changed."""
        self._look_at_settings()
        self._look_at_tls()
        self._look_at_sync()
        self._look_at_configmap()
        await self._look_at_policy()
        self._look_at_keystone()
        self._look_at_chain()
        self._look_at_access()
        await self._listen_anew()

    def _look_at_settings(self) -> None:
        if not self._settings_part.changed(stamp(self._config)):
            return
        try:
            self.settings, digest = settings.load(self._config)
        except SettingsError as error:
            self._settings_part.failed("the settings stay as they were", error)
            return
        self._settings_part.succeeded(digest)
        logging.getLogger("keystone_authenticator").setLevel(self.settings.log_level.upper())
        logger.info("new settings are in force")

    def _look_at_tls(self) -> None:
        tls = self.settings.tls
        if not self._tls_part.changed((tls, stamp(tls.certificate), stamp(tls.key), stamp(tls.client_ca))):
            return
        try:
            self._tls_context, certificate = server_context(tls)
        except (TlsMaterialError, OSError) as error:
            self._tls_part.failed("the endpoint's certificate stays as it was", error)
            return
        self._certificate_ends = certificates.ends(certificate)
        self._tls_part.succeeded(hashlib.sha256(certificate).hexdigest())

    def _look_at_sync(self) -> None:
        now = self.settings
        if self._sync_part.changed((now.sync, stamp(now.sync.config if now.sync else None), now.upstream_compatible)):
            try:
                if now.sync is None:
                    self._sync = SyncConfig()
                    self._sync_part.succeeded(None)
                else:
                    content = read(now.sync.config)
                    self._sync = read_config(now.sync.config, now.upstream_compatible)
                    self._sync_part.succeeded(hashlib.sha256(content).hexdigest())
            except (SyncConfigError, OSError) as error:
                self._sync_part.failed("the sync configuration stays as it was", error)
        credentials = now.sync.credentials if now.sync else None
        made_from = (self._sync, now.sync, now.kubeconfig, stamp(now.kubeconfig), stamp(credentials), self._naming)
        if not self._writing_part.changed(made_from):
            return
        logins, passes = None, None
        try:
            if now.sync is not None and now.kubeconfig is not None and self._sync.writes:
                calls = self.metrics.calls["kubernetes"]
                kube = Kubernetes(now.kubeconfig, calls, limit=2)
                logins = Logins(kube, self._sync, self._login_counts, self._logins)
                if credentials is not None:
                    kube = Kubernetes(now.kubeconfig, calls, limit=1)
                    passes = Passes(kube, self._config, now.sync.interval, self._pass_counts)
        except KubeconfigError as error:
            self._writing_part.failed("nothing is written into the cluster", error)
        else:
            self._writing_part.succeeded(None)
        self._close_now(self._logins)
        self._close_now(self._passes)
        self._logins, self._passes = logins, passes

    def _note(self, identity: Identity) -> None:
        if self._logins is not None:
            self._logins.note(identity)

    def _look_at_configmap(self) -> None:
        named, kubeconfig = self.settings.policy_configmap, self.settings.kubeconfig
        if not self._configmap_part.changed((named, kubeconfig, stamp(kubeconfig))):
            return
        before, self._configmap = self._configmap, None
        self._close_now(before)
        if named is None or kubeconfig is None:
            self._configmap_part.succeeded(None)
            return
        try:
            kube = Kubernetes(kubeconfig, self.metrics.calls["kubernetes"], limit=2)
        except KubeconfigError as error:
            self._configmap_part.failed("the policy's ConfigMap cannot be read", error)
            return
        self._configmap = PolicyConfigMap(kube, *named)
        if before is not None:
            # Another way to it, or another one: until it has been looked at, what was there counts.
            self._configmap.content = before.content
        self._configmap_part.succeeded(None)

    async def _look_at_policy(self) -> None:
        path, naming = self.settings.policy, self._naming
        content = self._configmap.content if self._configmap is not None else None
        # While the ConfigMap is there it wins.
        wanted = path if content is None else content
        source = "configmap" if content is not None else "none" if path is None else "option"
        if not self._policy_part.changed((wanted, stamp(path) if content is None else None, naming)):
            return
        if wanted is None:
            self._policy, self._policy_source = None, source
            self._policy_part.succeeded(None)
            return
        try:
            # A policy of many items takes a while, and requests do not wait for it.
            policy, digest, milliseconds = await asyncio.get_running_loop().run_in_executor(
                None, load_policy, wanted, naming
            )
        except (PolicyError, OSError) as error:
            where = f"{'/'.join(self.settings.policy_configmap or ())}: " if content is not None else ""
            self._policy_part.failed("the policy stays as it was", _NotUsed(f"{where}{error}"))
            self.metrics.policy_failures += 1
            if self._policy is not None:
                # The last good items, but the names as the settings now want them.
                self._policy = Policy(self._policy.items, naming)
            return
        self._policy, self._policy_ms, self._policy_source = policy, milliseconds, source
        self._policy_part.succeeded(digest)
        logger.info("a policy of %d items is in force, from the %s", len(policy.items), source)

    def _look_at_keystone(self) -> None:
        now = self.settings
        backend = now.authentication_backend
        remote = backend or now.keystone
        made_from = (remote, backend is None, stamp(remote.ca), self._naming, now.token_cache_ttl, now.outage_grace)
        if not self._keystone_part.changed(made_from):
            return
        try:
            context = remote_context(remote.url, remote.ca)
        except (TlsMaterialError, OSError) as error:
            self._keystone_part.failed("calls to Keystone stay as they were", error)
            if self._keystone_part.loaded is None:
                self._replace_keystone(_no_keystone(str(error)))
            return
        if backend is None:
            self._keystone = Keystone(
                remote.url, Client("Keystone", context, DEADLINE, calls=self.metrics.calls["keystone"])
            )
            validator: Any = KeystoneValidator(self._keystone, self._naming, now.token_cache_ttl, now.outage_grace)
        else:
            self._keystone = None
            calls = self.metrics.calls["authentication_backend"]
            client = Client("the authentication backend", context, BACKEND_DEADLINE, calls=calls)
            validator = BackendValidator(Backend(remote.url, client))
        # What a backend says has no expiry, so that nobody could be let in past it.
        grace = now.outage_grace if backend is None else 0
        self._replace_keystone(KeystoneTokens(validator, now.token_cache_ttl, grace, self.metrics, self._note))
        self._keystone_part.succeeded(None)

    def _replace_keystone(self, tokens: KeystoneTokens) -> None:
        self._close_later(self.authenticator.keystone)
        self.authenticator.keystone = tokens

    def _look_at_chain(self) -> None:
        path = self.settings.chained
        if not self._chain_part.changed((path, stamp(path))):
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
            self._chain_part.failed("the cluster's own token webhook stays as it was", ChainError(reason))
            if self._chain_state not in ("none", "ready"):
                problem = f"the cluster's own token webhook is not known: {reason}"
                self._chain_state = "missing" if missing else "broken"
                self._close_later(self.authenticator.cluster)
                self.authenticator.cluster = ClusterTokens(None, problem)
            return
        digest = hashlib.sha256(content).hexdigest()
        if digest == self._chain_part.hash and self._chain_state in ("none", "ready"):
            # Written anew before each start of the API server: the same again is no reason to forget verdicts.
            self._chain_part.succeeded(digest)
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
        address = self._webhook_address or (self.settings.listen.host, self.settings.listen.port)
        return parts.port == address[1] and parts.hostname in (address[0], "localhost", "127.0.0.1", "::1")

    def _replace_chain(self, tokens: ClusterTokens, state: str, digest: str | None) -> None:
        self._close_later(self.authenticator.cluster)
        self.authenticator.cluster = tokens
        self._chain_state = state
        self._chain_part.succeeded(digest)

    def _look_at_access(self) -> None:
        remote = self.settings.authorization_backend
        if self._access_part.changed((remote, stamp(remote.ca) if remote else None)):
            try:
                backend = None
                if remote is not None:
                    calls, context = self.metrics.calls["authorization_backend"], remote_context(remote.url, remote.ca)
                    client = Client("the authorization backend", context, BACKEND_DEADLINE, limit=64, calls=calls)
                    backend = Backend(remote.url, client)
            except (TlsMaterialError, OSError) as error:
                self._access_part.failed("calls to the authorization backend stay as they were", error)
            else:
                self._close_later(self._backend)
                self._backend = backend
                self._access_part.succeeded(None)
        wanted = Authorizer(self._naming, self._policy, self._backend)
        if wanted != self.authorizer:
            self.authorizer = wanted

    async def _listen_anew(self) -> None:
        """Follow the settings to other addresses, and the certificate."""
        if self._webhook is None or self._private is None:
            return
        try:
            own, private = self._addresses
            if own is not None and own != self.settings.listen:
                self._webhook = await self._moved(self._webhook, self.settings.listen, self._tls_context)
                own = self.settings.listen
                self._tls_listening = self._tls_context
            if private != self.settings.private_listen:
                self._private = await self._moved(self._private, self.settings.private_listen, None)
            self._addresses = (own, self.settings.private_listen)
            self._address_error = None
        except OSError as error:
            if self._address_error is None:
                logger.error("the old address stays: %s", error)
            self._address_error = str(error)
        if self._tls_context is not self._tls_listening:
            self._tls_listening = self._tls_context
            self._webhook.listen(self._tls_context)

    async def _moved(self, old: Listener, address: Address, context: ssl.SSLContext | None) -> Listener:
        new = Listener(bound_socket(address), old.connections.handler, old.connections.limits)
        new.listen(context)
        old.close()
        old.connections.draining = True
        return new

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

    # -- how it is

    def not_ready(self) -> list[str]:
        """Why the API server should not be pointed here yet; Keystone's being down is no reason."""
        reasons = []
        if self._chain_state in ("missing", "broken"):
            reasons.append(f"chained: {self._chain_part.error}")
        if self.settings.policy is not None and self._policy is None:
            reasons.append(f"policy: {self._policy_part.error}")
        if self._keystone_part.loaded is None:
            reasons.append(f"keystone: {self._keystone_part.error}")
        if self.settings.authorization_backend is not None and self._backend is None:
            reasons.append(f"authorization_backend: {self._access_part.error}")
        return reasons

    def metrics_text(self) -> bytes:
        """All that is counted, for Prometheus."""
        page, policy, now = metrics.Text(), self._policy_part, time.time()
        page.counted(self.metrics)
        tokens, cluster = self.authenticator.keystone.gauges(), self.authenticator.cluster.gauges()
        page.family(
            "token_cache_entries",
            "gauge",
            "Verdicts at hand, kept past their time for the outage grace included.",
            [
                ({"tokens": "keystone", "verdict": "known"}, tokens["known"]),
                ({"tokens": "keystone", "verdict": "refused"}, tokens["refused"]),
                ({"tokens": "cluster", "verdict": "any"}, cluster["verdicts"]),
            ],
        )
        sizes = [({"tokens": "keystone"}, tokens["bytes"]), ({"tokens": "cluster"}, cluster["bytes"])]
        page.family("token_cache_bytes", "gauge", "About what they take.", sizes)
        page.value(
            "breaker_open", "gauge", "Whether calls about Keystone's tokens are held back.", tokens["breaker_open"]
        )
        page.value(
            "outage_seconds", "gauge", "For how long calls have been held back; 0 if they are not.", tokens["outage"]
        )
        page.value(
            "outage_grace_left_seconds",
            "gauge",
            "For how long the last user who was known before is let in without an answer; all of it without an outage.",
            tokens["grace_left"],
        )
        page.family("build_info", "gauge", "The version that runs.", [({"version": __version__}, 1)])
        loaded = policy.hash is not None and policy.loaded is not None
        hashes: list[tuple[metrics.Labels, float]] = [({"sha256": str(policy.hash)}, 1)] if loaded else []
        page.family("policy_info", "gauge", "The SHA-256 of the policy file in force.", hashes)
        page.value("policy_items", "gauge", "Items of the policy.", len(self._policy.items) if self._policy else 0)
        ages: list[tuple[metrics.Labels, float]] = [({}, now - (policy.loaded or 0))] if loaded else []
        page.family("policy_age_seconds", "gauge", "Time since the policy was put in force.", ages)
        for name, part in (
            ("policy", self._policy_part),
            ("settings", self._settings_part),
            ("chained", self._chain_part),
            ("tls", self._tls_part),
            ("sync", self._sync_part),
        ):
            about = f"Whether the last look at this file failed ({name})."
            page.value(f"{name}_failed", "gauge", about, int(part.error is not None))
        configmap = self._configmap_status()
        page.value(
            "policy_configmap_failed",
            "gauge",
            "Whether the policy's ConfigMap cannot be looked at.",
            int(configmap is not None and configmap["error"] is not None),
        )
        sources = [({"source": name}, int(self._policy_source == name)) for name in ("none", "option", "configmap")]
        page.family("policy_source", "gauge", "Where the policy in force comes from.", sources)
        self._sync_metrics(page)
        if self._webhook is not None:
            connections = self._webhook.connections
            page.value("connections", "gauge", "Open connections to the endpoint.", len(connections.open))
            errors = [({"status": str(status)}, count) for status, count in sorted(connections.errors.items())]
            page.family("http_errors_total", "counter", "Requests to the endpoint answered with an error.", errors)
        page.family(
            "certificate_end_timestamp_seconds",
            "gauge",
            "When it ends: the endpoint's own, the CA of its clients, the one that the API server showed last.",
            self._ends(),
        )
        state = flags.state(self.settings.flags)
        page.family(
            "api_server_flags",
            "gauge",
            "How it is with the API server's flags: 1 for the state that they are in.",
            [({"state": name}, int(name == state)) for name in flags.STATES],
        )
        # By flags for access reviews alone, no token comes here.
        expected = int(self.settings.chained is not None and state == flags.CONFIRMED)
        page.value("token_reviews_expected", "gauge", "Whether the API server's flags have it ask here.", expected)
        page.value("ready", "gauge", "Whether /readyz says so.", int(not self.not_ready()))
        page.process(self._started)
        return page.render()

    def _ends(self) -> list[tuple[metrics.Labels, float]]:
        client = self._webhook.connections.client_ends if self._webhook is not None else None
        found = {
            "endpoint": self._certificate_ends,
            "client_ca": certificates.last_authority_ends(self._tls_context) if self._tls_context else None,
            "api_server": ssl.cert_time_to_seconds(client) if client else None,
        }
        return [({"certificate": name}, end) for name, end in found.items() if end is not None]

    def status(self) -> dict[str, Any]:
        """All that the private listener tells."""
        last = self._keystone.last_answer if self._keystone is not None else None
        policy = self._policy_part
        return {
            "version": __version__,
            "started": rfc3339(self._started),
            "policy": {
                "hash": policy.hash,
                "rules": len(self._policy.items) if self._policy is not None else 0,
                "loaded": rfc3339(policy.loaded) if policy.loaded is not None and policy.hash is not None else None,
                "load_ms": self._policy_ms,
                "source": self._policy_source,
                "configmap": self._configmap_status(),
                "error": policy.error,
            },
            "sync": self._sync_status(),
            "settings": {
                "hash": self._settings_part.hash,
                "loaded": rfc3339(self._settings_part.loaded or self._started),
                "error": self._settings_part.error or self._address_error,
            },
            "chained": {
                "state": self._chain_state,
                "hash": self._chain_part.hash,
                "error": self._chain_part.error,
                "outage": self.authenticator.cluster.outage,
            },
            "tls": {"hash": self._tls_part.hash, "error": self._tls_part.error},
            "keystone": {
                "last_answer": {"at": rfc3339(last.at), "status": last.status, "error": last.error} if last else None,
                "error": self._keystone_part.error,
                "outage": self.authenticator.keystone.outage,
            },
        }

    def _configmap_status(self) -> dict[str, Any] | None:
        named, found = self.settings.policy_configmap, self._configmap
        if named is None:
            return None
        error = self._configmap_part.error if found is None else found.error
        state = "unknown" if found is None or not found.known else "absent" if found.content is None else "present"
        return {"name": "/".join(named), "state": state, "error": error}

    def _sync_status(self) -> dict[str, Any] | None:
        if self.settings.sync is None:
            return None
        logins, passes = self._login_counts, self._pass_counts
        return {
            "hash": self._sync_part.hash,
            "error": self._sync_part.error or self._writing_part.error,
            "logins": {
                "waiting": self._logins.waiting if self._logins is not None else 0,
                "done": logins.done,
                "failed": logins.failed,
                "dropped": logins.dropped,
                "error": logins.last_error,
            },
            "passes": {
                "set": self._passes is not None,
                "holds_lease": passes.holds,
                "holder": passes.holder,
                "done": passes.done,
                "failed": passes.failed,
                "last": told(passes.last),
                "last_at": rfc3339(passes.last_at) if passes.last_at is not None else None,
                "error": passes.error if self._passes is not None else None,
            },
        }

    def _sync_metrics(self, page: metrics.Text) -> None:
        logins, passes = self._login_counts, self._pass_counts
        outcomes = [("written", logins.done), ("failed", logins.failed), ("dropped", logins.dropped)]
        about = "Logins that were to be written into the cluster."
        page.family("sync_logins_total", "counter", about, [({"result": name}, count) for name, count in outcomes])
        waiting = self._logins.waiting if self._logins is not None else 0
        page.value("sync_logins_waiting", "gauge", "Logins that wait for it.", waiting)
        samples = [({"result": "done"}, passes.done), ({"result": "failed"}, passes.failed)]
        page.family("sync_passes_total", "counter", "Passes over everything that this unit made.", samples)
        changes: list[tuple[metrics.Labels, float]] = []
        for by, counted in (("login", logins.changes), ("pass", passes.changes)):
            for key, count in sorted(counted.items()):
                verb, kind = key.split()
                changes.append(({"by": by, "verb": verb, "kind": kind}, count))
        page.family("sync_changes_total", "counter", "Objects of the cluster that were changed.", changes)
        page.value("sync_holds_lease", "gauge", "Whether this unit makes the passes.", int(passes.holds))
        last: list[tuple[metrics.Labels, float]] = [({}, passes.last_at)] if passes.last_at is not None else []
        page.family("sync_last_pass_timestamp_seconds", "gauge", "When the last good pass ended.", last)
        problems = passes.last.problems if passes.last is not None else 0
        page.value("sync_problems", "gauge", "What the last good pass left as it is although it should not.", problems)


class _NoKeystone:
    """Stands where Keystone cannot be called at all, and says why."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def known(self, token: str) -> Any:  # noqa: ARG002  whoever it is
        from keystone_authenticator.outbound import CannotTell

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


# -------------------------------------------------------------------------------------------------------- sockets and
# systemd


def bound_socket(address: Address) -> socket.socket:
    """A socket bound to the address.

    Raises:
        OSError: with a message that names the address.

    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(target)
            sock.listen(1024)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise OSError(f"cannot listen on {address.host}:{address.port}: {error.strerror}") from None
    return sock


def inherited_sockets(environ: dict[str, str] | os._Environ[str] = os.environ) -> list[socket.socket]:
    """The listening sockets that systemd passed (sd_listen_fds(3)); which is for what, their addresses tell."""
    mine = environ.get("LISTEN_PID") == str(os.getpid())
    count = int(environ.get("LISTEN_FDS", "0")) if mine else 0
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)
    return [socket.socket(fileno=3 + number) for number in range(count)]


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), if it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            logger.warning("systemd could not be told %s: %s", state, error.strerror)
