"""A small HTTP/1.1 server: an `asyncio.Protocol` over httptools that answers what it can inside `data_received`.

Everything is bounded. It knows HTTP and connections; what a request means is its handler's business. Connections are
kept and not closed first, as the API server repeats no request on one that goes away, and new ones with client
certificates are dear.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

import httptools

logger = logging.getLogger("keystone_authenticator.server")


@dataclass(frozen=True)
class Limits:
    """What clients may use: bytes, seconds and how many of each.

    Every user of the machine can connect. `strangers` are connections without a client certificate, `handshakes` those
    that have not even come that far; of both the oldest goes for a new one, so that they never keep out the API server.
    Go's client drops idle connections after 90 s, well before `idle`.
    """

    head: int = 16 * 1024
    headers: int = 100
    body: int = 1024 * 1024
    all_bodies: int = 32 * 1024 * 1024
    pipelined: int = 16
    connections: int = 1024
    strangers: int = 256
    handshakes: int = 512
    receive: float = 15.0
    write: float = 15.0
    first_request: float = 120.0
    idle: float = 600.0
    handshake: float = 10.0
    linger: float = 2.0


class Reply(NamedTuple):
    """An answer other than 200 with JSON."""

    status: int
    body: bytes
    content_type: bytes = b"text/plain; charset=utf-8"
    headers: bytes = b""


class Request(NamedTuple):
    """A request's head; `path` is without the query, `certified` says whether a client certificate was verified."""

    method: str
    path: str
    content_type: str
    certified: bool
    audit_id: str = ""


class KnownHead(NamedTuple):
    """A head that was parsed before, of a request on a connection that is kept, and how long the body after it is."""

    request: Request
    length: int


_UNREAD = Request("", "", "", False)


class Handler(Protocol):
    """What a listener serves."""

    def refuse(self, request: Request) -> Reply | None:
        """Look at the head before any of the body is read; a reply ends it there."""
        ...

    def answer(self, request: Request, body: bytes) -> bytes | Reply | Coroutine[Any, Any, bytes | Reply]:
        """Answer; bare bytes are a 200 with JSON."""
        ...


def text(status: int, message: str, headers: bytes = b"") -> Reply:
    """A reply of one line."""
    return Reply(status, f"{message}\n".encode(), headers=headers)


# A Kubernetes API server's head has about 250 bytes, and its reviews differ in length by some hundred bytes.
_MOST_HEADS = 1024
_LONGEST_HEAD = 1024
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def _render(reply: bytes | Reply, close: bool, without_body: bool) -> bytes:
    if isinstance(reply, bytes):
        if not close and not without_body:
            return _JSON_HEAD % len(reply) + reply
        reply = Reply(200, reply, b"application/json")
    head = b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s%s\r\n" % (
        reply.status,
        _REASONS.get(reply.status, b"Status"),
        reply.content_type,
        len(reply.body),
        reply.headers,
        b"Connection: close\r\n" if close else b"",
    )
    return head if without_body else head + reply.body


class Connections:
    """All connections of a listener, with their limits and the handler they share."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.handler = handler
        self.limits = limits
        self.draining = False
        self.buffered = 0
        self.open: set[Connection] = set()
        # How many replies other than a 200 there were, by status.
        self.errors: dict[int, int] = {}
        # When the client certificate that was shown last ends, as `ssl` writes it.
        self.client_ends: str | None = None
        # Heads that were parsed before, and what they say; those of strangers, who may send any, on their own.
        self.heads: dict[bool, dict[bytes, KnownHead]] = {True: {}, False: {}}

    def remember(self, head: bytes, known: KnownHead) -> None:
        """Keep what a head says. A client repeats its own but for the length of the body."""
        heads = self.heads[known.request.certified]
        if len(heads) >= _MOST_HEADS:
            heads.clear()
        if len(head) <= _LONGEST_HEAD:
            heads[head] = known

    def count(self, reply: Reply) -> None:
        """Count a reply if it is an error."""
        if reply.status >= 400:
            self.errors[reply.status] = self.errors.get(reply.status, 0) + 1

    def sweep(self) -> None:
        """End the connections whose time is up."""
        now = time.monotonic()
        for connection in list(self.open):
            connection.check_time(now)

    def make_room(self) -> bool:
        """Whether one more connection may be; the oldest stranger goes for it, or the one that is idle longest."""
        strangers = [connection for connection in self.open if not connection.certified]
        if len(strangers) > self.limits.strangers:
            min(strangers, key=lambda connection: connection.began).abort()
            return True
        if len(self.open) <= self.limits.connections:
            return True
        now = time.monotonic()
        idle = [connection for connection in self.open if connection.is_idle and now - connection.since > 5]
        if not idle:
            return False
        min(idle, key=lambda connection: connection.since).abort()
        return True

    @property
    def busy(self) -> int:
        """How many connections have a request that is not answered yet."""
        return sum(not connection.is_idle for connection in self.open)


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, connections: Connections) -> None:
        self._all = connections
        self._heads = connections.heads[False]
        self._limits = connections.limits
        self._handler = connections.handler
        self._transport: Any = None
        self._parser: Any = None
        self.certified = False
        self.began = self.since = time.monotonic()
        self._receiving = False
        self._requests = 0
        self._head_bytes = 0
        self._header_count = 0
        self._in_head = True
        self._completed = self._answered = False
        self._url = b""
        self._content_type = ""
        self._audit_id = ""
        self._expects = False
        self._request = _UNREAD
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._body_wire = 0
        self._last = KnownHead(_UNREAD, 0)
        self._keep_alive = True
        self._waiting: deque[tuple[Request, bytes, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._lingering = self._final = False
        self._write_paused = False

    # -- the transport's side

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        certificate = transport.get_extra_info("peercert")
        self.certified = bool(certificate)
        if certificate:
            self._all.client_ends = certificate["notAfter"]
        self._heads = self._all.heads[self.certified]
        self._parser = httptools.HttpRequestParser(self)
        self._all.open.add(self)
        if not self._all.make_room():
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End; whoever else waits for the same verdict still gets it."""
        self._all.open.discard(self)
        self._all.buffered -= self._body_bytes
        self._body_bytes = 0
        self._forget_waiting()
        self._lingering = True
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client does not read its answers."""
        self._write_paused = True
        self.since = time.monotonic()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._write_paused = False
        self.since = time.monotonic()
        self._resume()
        self._next()

    def eof_received(self) -> bool:
        """The client went away; with TLS there is no half-closed connection that could still be answered."""
        return False

    def data_received(self, data: bytes) -> None:
        """Parse, and answer what can be answered at once."""
        if self._lingering or self._final:
            return
        in_work, started_in_head = self._receiving, self._in_head
        end = 0
        if not in_work and not self._head_bytes:
            end = data.find(b"\r\n\r\n") + 4
            known = self._heads.get(data[:end])
            if known is not None and len(data) - end == known.length:
                refusal = self._handler.refuse(known.request)
                self._answered = False
                if refusal is None:
                    self._take(known.request, data[end:], True)
                else:
                    self._fail(refusal)
                return
        self._completed = self._answered = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(text(400, "no other protocol is spoken here"))
        except httptools.HttpParserError:
            if not self._final:
                self._fail(text(400, "not a request in HTTP/1.1"))
        if self._lingering:
            return
        if self._completed:
            self._head_bytes = 0
            # The body is all that stands behind the first empty line: this was one request, and a plain one.
            alone = end > 3 and not self._receiving and self._last.length == len(data) - end
            if alone and not self._expects and self._keep_alive:
                self._all.remember(data[:end], self._last)
        elif self._in_head and started_in_head:
            self._head_bytes += len(data)
            # The parser keeps a header until it is whole; one that never ends is seen only here.
            if self._head_bytes > self._limits.head:
                self._fail(text(431, "the request's head is too long"))
        elif not self._in_head:
            # Extensions of chunks and trailers have no end of their own, and the parser keeps the latter.
            self._body_wire += len(data)
            if self._body_wire > self._limits.head + 2 * self._limits.body:
                self._fail(text(413, "the body, with what is around it, is too long"))
        if self._receiving and (self._completed or not in_work):
            self.since = time.monotonic()

    # -- the parser's side

    def on_message_begin(self) -> None:
        """A request begins."""
        self._receiving = True
        self._in_head = True
        self._body_wire = 0
        self._header_count = 0
        self._url = b""
        self._content_type = ""
        self._audit_id = ""
        self._expects = False
        self._head_length = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._url += url
        self._head_length += len(url)
        if self._head_length > self._limits.head:
            self._fail(text(431, "the request's head is too long"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._header_count += 1
        self._head_length += len(name) + len(value) + 4
        if self._head_length > self._limits.head or self._header_count > self._limits.headers:
            self._fail(text(431, "the request's head is too long"))
            return
        lowered = name.lower()
        if lowered == b"content-type":
            self._content_type = value.decode("latin-1")
        elif lowered == b"content-length":
            if value.isdigit() and int(value[:20]) > self._limits.body:
                self._fail(text(413, f"the body is longer than {self._limits.body} bytes"))
        elif lowered == b"audit-id":
            self._audit_id = value[:64].decode("latin-1")
        elif lowered == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._head_bytes = 0
        if self._lingering:
            return
        method = self._parser.get_method().decode("latin-1")
        path = self._url.partition(b"?")[0].decode("latin-1")
        self._keep_alive = self._parser.should_keep_alive()
        self._request = Request(method, path, self._content_type, self.certified, self._audit_id)
        refusal = self._handler.refuse(self._request)
        if self._parser.should_upgrade():
            self._fail(text(400, "no other protocol is spoken here"))
        elif refusal is not None:
            self._fail(refusal)
        elif self._expects:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._lingering:
            return
        self._body.append(body)
        self._body_bytes += len(body)
        self._all.buffered += len(body)
        if self._body_bytes > self._limits.body:
            self._fail(text(413, f"the body is longer than {self._limits.body} bytes"))
        elif self._all.buffered > self._limits.all_bodies:
            self._fail(text(429, "too many requests at once", b"Retry-After: 1\r\n"))

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._lingering:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._all.buffered -= self._body_bytes
        self._body_bytes = 0
        self._in_head = True
        self._completed = True
        self._receiving = False
        # What comes next is not this request: whether an error is told with a body depends on its own method.
        request, self._request = self._request, _UNREAD
        self._last = KnownHead(request, len(body))
        self._take(request, body, self._keep_alive)

    # -- answering

    def _take(self, request: Request, body: bytes, keep_alive: bool) -> None:
        self._requests += 1
        # What comes behind a client's last request is none, even while that one waits for its turn.
        self._final = not keep_alive
        if self._task is not None or self._waiting or self._write_paused or self._answered:
            # One at once of each piece that comes: then it is somebody else's turn.
            if not self._waiting:
                asyncio.get_running_loop().call_soon(self._next)
            self._waiting.append((request, body, keep_alive))
            self._all.buffered += len(body)
            if self._all.buffered > self._limits.all_bodies:
                self._fail(text(429, "too many requests at once", b"Retry-After: 1\r\n"))
            elif len(self._waiting) > self._limits.pipelined:
                self._fail(text(400, "too many requests sent ahead"))
            elif len(self._waiting) >= self._limits.pipelined // 2:
                self._transport.pause_reading()
            return
        self._answered = True
        self._answer(request, body, keep_alive)

    def _answer(self, request: Request, body: bytes, keep_alive: bool) -> None:
        try:
            reply = self._handler.answer(request, body)
        except Exception:
            logger.exception("a fault of ours while a request was answered")
            reply = text(500, "an internal fault")
        if isinstance(reply, (bytes, Reply)):
            self._write(reply, request, keep_alive)
            return
        self._task = asyncio.get_running_loop().create_task(self._answer_later(reply, request, keep_alive))

    async def _answer_later(
        self, coming: Coroutine[Any, Any, bytes | Reply], request: Request, keep_alive: bool
    ) -> None:
        try:
            reply = await coming
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("a fault of ours while a request was answered")
            reply = text(500, "an internal fault")
        self._task = None
        self._write(reply, request, keep_alive)
        self._next()

    def _next(self) -> None:
        """Go on with what the client sent ahead."""
        while self._waiting and self._task is None and not self._write_paused and not self._lingering:
            request, body, keep_alive = self._waiting.popleft()
            self._all.buffered -= len(body)
            self._answer(request, body, keep_alive)
        self._resume()

    def _forget_waiting(self) -> None:
        self._all.buffered -= sum(len(body) for _, body, _ in self._waiting)
        self._waiting.clear()

    def _resume(self) -> None:
        if not self._lingering and not self._write_paused and len(self._waiting) < self._limits.pipelined // 2:
            self._transport.resume_reading()

    def _write(self, reply: bytes | Reply, request: Request, keep_alive: bool) -> None:
        if self._lingering:
            return
        close = not keep_alive or self._all.draining
        self.since = time.monotonic()
        if not isinstance(reply, bytes):
            self._all.count(reply)
        self._transport.write(_render(reply, close, request.method == "HEAD"))
        if close:
            self._end()

    def _fail(self, reply: Reply) -> None:
        """Answer with an error and end the connection; what else comes on it is not read as requests."""
        if self._lingering:
            return
        if self._task is None and not self._waiting:
            self._all.count(reply)
            self._transport.write(_render(reply, close=True, without_body=self._request.method == "HEAD"))
        self._end()

    def _end(self) -> None:
        # Closing while the client still sends would reset the connection and could take the answer with it.
        self._lingering = True
        self.since = time.monotonic()
        self._forget_waiting()
        if self._receiving and not self._completed:
            self._transport.resume_reading()
            asyncio.get_running_loop().call_later(self._limits.linger, self._transport.close)
        else:
            self._transport.close()

    # -- time

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked and nothing owed."""
        return self._task is None and not self._waiting and not self._receiving and not self._write_paused

    def check_time(self, now: float) -> None:
        """End what takes too long."""
        age = now - self.since
        if self._write_paused:
            if age > self._limits.write:
                self.abort()
        elif self._receiving:
            if age > self._limits.receive:
                self._fail(text(408, "the request did not come in time"))
        elif self._task is None and age > (self._limits.idle if self._requests else self._limits.first_request):
            self.close()

    def close(self) -> None:
        """Close after what is written."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


class Listener:
    """A listening socket and its connections; the TLS context can be replaced while it listens."""

    def __init__(self, sock: socket.socket, handler: Handler, limits: Limits | None = None) -> None:
        """Take over a bound socket."""
        sock.setblocking(False)
        self._socket = sock
        self._context: ssl.SSLContext | None = None
        self._accepting = False
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self.connections = Connections(handler, limits or Limits())

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self._socket.getsockname()[:2]

    def listen(self, context: ssl.SSLContext | None) -> None:
        """Accept connections, from now on with this context; those that are open stay as they are."""
        self._context = context
        if not self._accepting:
            self._socket.listen(1024)
            asyncio.get_running_loop().add_reader(self._socket, self._accept)
            self._accepting = True

    def _accept(self) -> None:
        for _ in range(64):  # and then somebody else's turn
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors are left: those who are in go on, and the queue waits
                logger.warning("a connection cannot be accepted: %s", error.strerror)
                return
            sock.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._begin(sock))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))
            if len(self._handshakes) > self.connections.limits.handshakes:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()

    async def _begin(self, sock: socket.socket) -> None:
        options: dict[str, Any] = {}
        if self._context is not None:
            options = {"ssl": self._context, "ssl_handshake_timeout": self.connections.limits.handshake}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self.connections), sock, **options
            )
        except asyncio.CancelledError:
            sock.close()
            raise
        except (OSError, ssl.SSLError):  # no handshake, or none in time; no concern of ours
            sock.close()

    def stop_accepting(self) -> None:
        """Accept no more; what waits in the socket's queue is left to whoever else holds the socket."""
        if self._accepting:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._accepting = False

    async def drain(self, quiet: float, deadline: float) -> None:
        """Answer what was asked, each connection's next answer being its last, and close.

        `quiet`: how long a connection that is kept open may still bring a request before it is closed on its client.
        """
        self.connections.draining = True
        self.stop_accepting()
        end = time.monotonic() + quiet
        while (self.connections.open or self._handshakes) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        end = time.monotonic() + deadline
        while self.connections.open and time.monotonic() < end:
            for connection in list(self.connections.open):
                if connection.is_idle:
                    connection.close()
            await asyncio.sleep(0.02)
        for connection in list(self.connections.open):
            connection.abort()
        for handshake in list(self._handshakes):
            handshake.cancel()
        self._socket.close()

    def close(self) -> None:
        """Stop listening, and give the socket up; open connections stay until they are done."""
        self.stop_accepting()
        self._socket.close()
