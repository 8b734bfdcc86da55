"""The running service: the endpoint for the API server, two listeners, and what goes on at times.

What answers is in `parts`, which follow their files; how they are is on `pages`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from keystone_authenticator import __version__, reviews, watchdog
from keystone_authenticator.authentication import Overloaded
from keystone_authenticator.metrics import ACCESS_RESULTS, TOKEN_RESULTS, Metrics
from keystone_authenticator.pages import Pages
from keystone_authenticator.parts import Parts
from keystone_authenticator.reviews import AccessReview, NotAReview, TokenReview
from keystone_authenticator.server import Connections, Limits, Listener, Reply, Request, text
from keystone_authenticator.settings import Address

logger = logging.getLogger("keystone_authenticator.service")

# The API server's audit ID of the request that is worked on, where it was sent.
AUDIT_ID: ContextVar[str] = ContextVar("audit_id", default="")
LOOK_EVERY = 0.5
_C = ctypes.CDLL(None)
SWEEP_EVERY = 30.0
DRAIN_QUIET = 1.0
DRAIN_DEADLINE = 15.0


class StartError(Exception):
    """The service cannot start; the message says what is missing and where."""


def give_back_memory() -> None:
    """Give the system what the C library holds back between what is in use.

    Buffers of connections that come and go leave holes: without this, some thousand of them leave tens of megabytes.
    """
    trim = getattr(_C, "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


class WebhookHandler:
    """`POST /webhook`, for the API server."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # The watchdog's: it has no client certificate, and what it asks is about nobody.
        self.own_path = f"/{secrets.token_urlsafe(24)}"

    def refuse(self, request: Request) -> Reply | None:
        """All that can be said from the head."""
        own = request.path == self.own_path
        if request.path != "/webhook" and not own:
            return text(404, "there is only /webhook here")
        if request.method != "POST":
            return text(405, "only POST", b"Allow: POST\r\n")
        if not request.certified and not own and self._parts.settings.tls.require_client_certificate:
            return text(403, "a client certificate is required")
        kind = request.content_type
        if kind != "application/json" and kind.partition(";")[0].strip().lower() not in ("application/json", ""):
            return text(415, "only application/json")
        return None

    def answer(self, request: Request, body: bytes) -> bytes | Reply | Coroutine[Any, Any, bytes | Reply]:
        """Answer a review."""
        parts = self._parts
        began = time.perf_counter()
        try:
            review = reviews.parse(body)
        except NotAReview as error:
            parts.metrics.not_reviews += 1
            return text(400, str(error))
        if isinstance(review, AccessReview):
            answer = parts.authorizer.answer(review)
        else:
            answer = parts.authenticator.answer(review, request.certified)
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
        counted, seconds, version = self._parts.metrics, now - began, review.version
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


class Service:
    """Everything that runs."""

    def __init__(self, config: Path, metrics: Metrics) -> None:
        """Read the settings.

        Raises:
            SettingsError: they cannot be used.

        """
        self.parts = Parts(config, metrics)
        self._webhook: Listener | None = None
        self._private: Listener | None = None
        self._addresses: tuple[Address | None, Address] = (None, self.parts.settings.private_listen)
        self._address_error: str | None = None
        self._tls_listening: ssl.SSLContext | None = None
        self._handler = WebhookHandler(self.parts)

    def _own_endpoint(self) -> tuple[tuple[str, int], str]:
        if self._webhook is None:
            raise watchdog.NoAnswer("there is no endpoint")
        return self._webhook.address, self._handler.own_path

    def _connections(self) -> Connections | None:
        return self._webhook.connections if self._webhook is not None else None

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
        private_address = (self.parts.settings.private_listen.host, self.parts.settings.private_listen.port)
        by_use = {sock.getsockname()[:2] == private_address: sock for sock in inherited}
        webhook, private = by_use.get(False), by_use.get(True)
        self.parts.inherited_address = webhook.getsockname()[:2] if webhook is not None else None
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
        await self.parts.close()

    async def start(self, webhook: socket.socket | None, private: socket.socket | None) -> None:
        """Begin to answer, on these sockets or on our own; nothing is followed yet.

        Raises:
            StartError: it cannot serve at all.

        """
        await self.parts.look()
        if self.parts.tls_context is None:
            raise StartError(f"the endpoint's certificate cannot be used: {self.parts.tls_part.error}")
        try:
            sock = webhook or bound_socket(self.parts.settings.listen)
            private = private or bound_socket(self.parts.settings.private_listen)
        except OSError as error:
            raise StartError(str(error)) from None
        self._addresses = (None if webhook else self.parts.settings.listen, self.parts.settings.private_listen)
        self._webhook = Listener(sock, self._handler)
        pages = Pages(self.parts, self._connections, lambda: self._address_error)
        self._private = Listener(private, pages, Limits(body=0, connections=64, idle=60, first_request=30))
        self._private.listen(None)
        self._webhook.listen(self.parts.tls_context)
        self._tls_listening = self.parts.tls_context

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.parts.look()
                await self._listen_anew()
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
                self.parts.authenticator.sweep()
                # In a thread, as with a large heap it takes some milliseconds.
                await asyncio.get_running_loop().run_in_executor(None, give_back_memory)

    async def _listen_anew(self) -> None:
        """Follow the settings to other addresses, and the certificate."""
        if self._webhook is None or self._private is None:
            return
        try:
            own, private = self._addresses
            if own is not None and own != self.parts.settings.listen:
                self._webhook = await self._moved(self._webhook, self.parts.settings.listen, self.parts.tls_context)
                own = self.parts.settings.listen
                self._tls_listening = self.parts.tls_context
            if private != self.parts.settings.private_listen:
                self._private = await self._moved(self._private, self.parts.settings.private_listen, None)
            self._addresses = (own, self.parts.settings.private_listen)
            self._address_error = None
        except OSError as error:
            if self._address_error is None:
                logger.error("the old address stays: %s", error)
            self._address_error = str(error)
        if self.parts.tls_context is not self._tls_listening:
            self._tls_listening = self.parts.tls_context
            self._webhook.listen(self.parts.tls_context)

    async def _moved(self, old: Listener, address: Address, context: ssl.SSLContext | None) -> Listener:
        new = Listener(bound_socket(address), old.connections.handler, old.connections.limits)
        new.listen(context)
        old.close()
        old.connections.draining = True
        return new


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
