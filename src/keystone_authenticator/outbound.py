"""Calls to other services: Keystone, the displaced token webhook, an upstream authenticator. Bounded in time and size.

No redirect is followed (a token would go along), no proxy is taken from the environment, no cookie is kept from one
user's call to another's. What an answer means is for the caller to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from keystone_authenticator.metrics import Calls

RETRY_AFTER = 0.1
MAX_ANSWER = 2 * 1024 * 1024
# Who waits for a name server waits so long if there is an address that was good before.
LOOKUP_PATIENCE = 1.0
# oslo.middleware's; anything else is not worth a place in a log.
_REQUEST_ID = re.compile(r"req-[0-9a-f-]{36}")


class CannotTell(Exception):
    """No verdict could be had; the message says from whom and why, and names no secret.

    `unreachable`: not even a connection was made, so that it is no matter of this one request. `single`: the service is
    well, it is a matter of this one request alone.
    """

    def __init__(self, reason: str, unreachable: bool = False, single: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable
        self.single = single


class _BrokenConnection(CannotTell):
    """The connection could not be made or broke: another one may not."""


class TlsMaterialError(Exception):
    """Certificates or keys cannot be used; the message says which and why."""


class Answer(NamedTuple):
    """An HTTP answer, whole; `request_id` is what an OpenStack service calls the request in its own log.

    `subject_token` is the token that Keystone gives to whoever logs in.
    """

    status: int
    body: bytes
    request_id: str = ""
    subject_token: str = ""


def client_context(ca: str | None, certificate: bytes | None = None, key: bytes | None = None) -> ssl.SSLContext:
    """A TLS context that verifies: against `ca` (PEM) alone, or the system's authorities if that is None.

    Raises:
        TlsMaterialError: one of them is no usable PEM.

    """
    try:
        context = ssl.create_default_context(cadata=ca)
    except (ssl.SSLError, ValueError) as error:
        raise TlsMaterialError(f"the CA certificate is not usable PEM: {error}") from None
    # On by default from Python 3.13; private authorities made by older tools (easyrsa) lack the extensions that it
    # wants.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    if certificate is not None:
        load_certificate(context, certificate, key if key is not None else certificate)
    return context


def remote_context(url: str, ca: Path | None) -> ssl.SSLContext | None:
    """The TLS context for calls to a service whose CA is in a file (None: the system's); None without TLS.

    Raises:
        TlsMaterialError: the file cannot be read or used.

    """
    if not url.startswith("https:"):
        return None
    try:
        return client_context(ca.read_text("ascii") if ca is not None else None)
    except OSError as error:
        raise TlsMaterialError(f"{ca}: {error.strerror}") from None
    except (TlsMaterialError, UnicodeDecodeError) as error:
        raise TlsMaterialError(f"{ca}: {error}") from None


def load_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load a certificate and its key from memory, by way of anonymous files that no other user can open.

    Raises:
        TlsMaterialError: not PEM, or the two do not belong together.

    """
    descriptors: list[int] = []
    try:
        paths = []
        for name, content in (("certificate", certificate), ("key", key)):
            descriptor = os.memfd_create(name)
            descriptors.append(descriptor)
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(content)
            paths.append(f"/proc/self/fd/{descriptor}")
        # An encrypted key would otherwise ask for its password on the terminal.
        context.load_cert_chain(paths[0], paths[1], password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TlsMaterialError(f"certificate and key cannot be used: {error}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class _Resolver(AbstractResolver):
    """Finds a name's addresses; while the name servers fail or do not answer, those that it had last.

    The certificate tells whether it is still the right service. One look-up of a name at a time, as each takes one of
    the few threads that the process has for them until the system's resolver gives up, which can be much later.
    """

    def __init__(self) -> None:
        self._system = aiohttp.ThreadedResolver()
        self._last: dict[tuple[str, int, int], list[ResolveResult]] = {}
        self._lookups: dict[tuple[str, int, int], asyncio.Task[list[ResolveResult] | OSError]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Give the addresses.

        Raises:
            OSError: there are none, and were none.

        """
        key = (host, port, int(family))
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = asyncio.get_running_loop().create_task(self._look_up(host, port, family))
            self._lookups[key] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(key))
        last = self._last.get(key)
        await asyncio.wait((lookup,), timeout=None if last is None else LOOKUP_PATIENCE)
        found = lookup.result() if lookup.done() else OSError("the look-up is still under way")
        if isinstance(found, list):
            self._last[key] = found
            return found
        if last is None:
            raise found
        return last

    async def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult] | OSError:
        try:
            return await self._system.resolve(host, port, family)
        except OSError as error:
            return error

    async def close(self) -> None:
        """Leave look-ups to the system's own patience: a thread cannot be stopped."""


class _Pool:
    """Kept connections to a service, until a call fails on one of them."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.calls = 0
        self.given_up = False


class Client:
    """Calls one service, over connections that are kept."""

    def __init__(
        self,
        name: str,
        context: ssl.SSLContext | None,
        deadline: float,
        limit: int = 32,
        server_name: str | None = None,
        calls: Calls | None = None,
        most: int = MAX_ANSWER,
    ) -> None:
        """Calls end after `deadline` seconds and are counted in `calls`; `name` is what messages call the service.

        `most` is how many bytes an answer may have, `limit` how many calls are made at once.
        """
        self._name = name
        self._context = context
        self._server_name = server_name
        self._deadline = deadline
        self._limit = limit
        self._calls = calls or Calls()
        self._most = most
        self._pool: _Pool | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._resolver: _Resolver | None = None

    def _open(self) -> _Pool:
        if self._pool is None:
            self._resolver = self._resolver or _Resolver()
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._limit,
                    ssl=self._context if self._context is not None else True,
                    keepalive_timeout=30,
                    ttl_dns_cache=10,
                    resolver=self._resolver,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                headers={"User-Agent": "kubernetes-keystone", "Accept-Encoding": "identity"},
            )
            self._pool = _Pool(session)
        return self._pool

    def _give_up(self, pool: _Pool) -> None:
        """Take no connection out of this pool any more.

        What lies between may have forgotten all of them and told nobody (a firewall or load balancer that was
        replaced): tried one after the other, each would cost somebody a deadline.
        """
        pool.given_up = True
        if self._pool is pool:
            self._pool = None

    def _done(self, pool: _Pool) -> None:
        pool.calls -= 1
        if pool.given_up and not pool.calls:
            task = asyncio.get_running_loop().create_task(pool.session.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def call(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None, attempts: int = 1
    ) -> Answer:
        """One request, one answer of any status; repeated where the connection could not be made or broke.

        Raises:
            CannotTell: there was none in time, or it was too large.

        """
        began, status = time.monotonic(), 0
        end = began + self._deadline
        self._calls.in_flight += 1
        try:
            answer = await self._repeated(method, url, headers, body, attempts, end)
            status = answer.status
            return answer
        finally:
            self._calls.in_flight -= 1
            self._calls.ended(status, time.monotonic() - began)

    async def _repeated(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, attempts: int, end: float
    ) -> Answer:
        for attempt in range(1, attempts + 1):
            try:
                return await self._once(method, url, headers, body, end - time.monotonic())
            except _BrokenConnection as error:
                if attempt == attempts or time.monotonic() + attempt * RETRY_AFTER >= end:
                    raise CannotTell(str(error), unreachable=error.unreachable) from None
            await asyncio.sleep(attempt * RETRY_AFTER)
        raise AssertionError("unreachable")

    async def _once(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, seconds: float
    ) -> Answer:
        async with self._response(method, url, headers, body, aiohttp.ClientTimeout(total=seconds)) as response:
            parts, size = [], 0
            async for part in response.content.iter_any():
                size += len(part)
                if size > self._most:
                    raise CannotTell(f"{self._name} answered with more than {self._most} bytes")
                parts.append(part)
            found = _REQUEST_ID.fullmatch(response.headers.get("X-Openstack-Request-Id", ""))
            token = response.headers.get("X-Subject-Token", "")
            return Answer(response.status, b"".join(parts), found.group() if found else "", token)

    async def lines(self, url: str, headers: Mapping[str, str], silence: float) -> AsyncIterator[bytes]:
        """The lines of an answer that has no end, such as a watch, as they come.

        Raises:
            CannotTell: it is no 200, a line is too long, or there was silence for so many seconds.

        """
        began, status = time.monotonic(), 0
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._deadline, sock_read=silence)
        try:
            async with self._response("GET", url, headers, None, timeout) as response:
                status = response.status
                if status != 200:
                    raise CannotTell(f"{self._name} answered with status {status}")
                rest = b""
                async for part in response.content.iter_any():
                    *whole, rest = (rest + part).split(b"\n")
                    for line in whole:
                        yield line
                    if len(rest) > self._most:
                        raise CannotTell(f"{self._name} answered with more than {self._most} bytes")
        finally:
            self._calls.ended(status, time.monotonic() - began)

    @contextlib.asynccontextmanager
    async def _response(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer's head, and its body to be read; whatever goes wrong meanwhile is `CannotTell`."""
        pool = self._open()
        pool.calls += 1
        answered = False
        try:
            async with pool.session.request(
                method,
                url,
                headers=headers,
                data=body,
                allow_redirects=False,
                server_hostname=self._server_name,
                timeout=timeout,
            ) as response:
                yield response
                answered = True
        except asyncio.TimeoutError:
            raise CannotTell(f"{self._name} did not answer within {self._deadline:g} s") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise CannotTell(f"{self._name} cannot be reached: {_short(error)}", unreachable=True) from None
        except aiohttp.ClientConnectorError as error:
            raise _BrokenConnection(f"{self._name} cannot be reached: {_short(error)}", unreachable=True) from None
        except (aiohttp.ServerDisconnectedError, ConnectionError) as error:
            raise _BrokenConnection(f"{self._name} closed the connection: {_short(error)}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise CannotTell(f"the call to {self._name} failed: {_short(error)}") from None
        finally:
            # Also where the caller's patience ended, which is a cancellation here.
            if not answered:
                self._give_up(pool)
            self._done(pool)

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            await self._pool.session.close()
        if self._closing:
            await asyncio.wait(self._closing)


def _short(error: BaseException) -> str:
    # aiohttp puts the request's headers into some messages, and a token is one: name the kind, and the cause where it
    # is the system's.
    cause = getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message})"
    if isinstance(cause, socket.gaierror):
        return "its name does not resolve"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return type(cause).__name__
