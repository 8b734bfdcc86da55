"""The HTTP endpoint with raw sockets: order, bounds, time, and no request that makes it fall."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystone_authenticator.server import Connection, Connections, Limits, Listener, Reply, Request, text
from tests.unit.authenticator.support import eventually

LIMITS = Limits(
    head=2048,
    headers=20,
    body=10_000,
    all_bodies=15_000,
    pipelined=8,
    connections=20,
    receive=0.4,
    write=0.5,
    first_request=0.6,
    idle=0.6,
    linger=0.3,
)


class Echo:
    """Answers with the body: at once on /now, after a while on /later, never on /never; /fault fails; /big is large."""

    def refuse(self, request: Request) -> Reply | None:
        return text(404, "no such path") if request.path == "/missing" else None

    def answer(self, request: Request, body: bytes) -> bytes | Reply | Coroutine[Any, Any, bytes | Reply]:
        if request.path == "/later":
            return self._later(body)
        if request.path == "/never":
            return self._never()
        if request.path == "/fault":
            raise RuntimeError("a fault")
        if request.path == "/big":
            return b"x" * 4_000_000
        return body or b"-"

    async def _later(self, body: bytes) -> bytes:
        await asyncio.sleep(0.05)
        return body

    async def _never(self) -> bytes:
        await asyncio.sleep(60)
        return b""


class Running:
    def __init__(self, limits: Limits) -> None:
        self.loop = uvloop.new_event_loop()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen(100)
        self.port = sock.getsockname()[1]
        self.listener = Listener(sock, Echo(), limits)
        self.task: asyncio.Task[None] | None = None
        ready = threading.Event()

        async def main() -> None:
            self.listener.listen(None)
            ready.set()
            while True:
                await asyncio.sleep(0.05)
                self.listener.connections.sweep()

        def run() -> None:
            asyncio.set_event_loop(self.loop)
            self.task = self.loop.create_task(main())
            with contextlib.suppress(asyncio.CancelledError):
                self.loop.run_until_complete(self.task)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert ready.wait(5)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def ask(self, *parts: bytes, pause: float = 0.0) -> bytes:
        """Send the parts, and read until the server closes."""
        with self.connect() as sock:
            for part in parts:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(part)
                time.sleep(pause)
            return everything(sock)

    @property
    def open(self) -> int:
        return len(self.listener.connections.open)

    def close(self) -> None:
        assert self.task is not None
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(5)


def everything(sock: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            received += part
    return received


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


def post(path: str = "/now", body: bytes = b"hello", *headers: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1".encode(), b"Host: a", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


CLOSE = b"Connection: close"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    running = Running(LIMITS)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def still_serves(server: Running) -> Iterator[None]:
    """Whatever a test did, the next client is served, and nothing is left behind."""
    yield
    assert b"hello" in server.ask(post("/now", b"hello", CLOSE))
    eventually(lambda: server.open == 0, 3)
    assert server.listener.connections.buffered == 0


def test_a_request_in_single_bytes_is_answered(server: Running) -> None:
    request = post("/now", b"hello", CLOSE)
    answer = server.ask(*(request[index : index + 1] for index in range(len(request))))
    assert answer.endswith(b"\r\n\r\nhello")


def test_a_chunked_body_is_answered(server: Running) -> None:
    head = b"POST /now HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert server.ask(head, b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n").endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("path", ["/now", "/later"])
@pytest.mark.parametrize("line", [b"POST %b HTTP/1.0", b"POST %b HTTP/1.1\r\nConnection: close"])
def test_a_client_that_wants_an_end_gets_it_each_time(server: Running, path: str, line: bytes) -> None:
    request = line.replace(b"%b", path.encode()) + b"\r\nContent-Length: 5\r\n\r\nhello"
    for _ in range(3):
        answer = server.ask(request)
        assert answer.endswith(b"hello")
        assert b"Connection: close" in answer


def test_requests_sent_ahead_are_answered_in_order(server: Running) -> None:
    requests = [post("/later" if number % 2 else "/now", b"body-%d" % number) for number in range(6)]
    answer = server.ask(b"".join(requests) + post("/now", b"last", CLOSE))
    bodies = [part.split(b"\r\n\r\n")[1] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"body-0", b"body-1", b"body-2", b"body-3", b"body-4", b"body-5", b"last"]


@pytest.mark.parametrize("path", ["/later", "/now"])
def test_too_many_requests_sent_ahead_end_the_connection(server: Running, path: str) -> None:
    # Those that are answered at once as well: thousands of them in one piece would be answered before anybody else.
    answer = server.ask(post(path) * 200)
    assert answer.count(b"HTTP/1.1 200") <= LIMITS.pipelined + 1


def test_http_1_0_is_answered_and_closed(server: Running) -> None:
    assert status_of(server.ask(b"GET /now HTTP/1.0\r\n\r\n")) == 200


def test_head_has_no_body(server: Running) -> None:
    answer = server.ask(b"HEAD /now HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 1" in answer


def test_a_client_that_waits_for_100_continue_gets_it(server: Running) -> None:
    with server.connect() as sock:
        head, _, body = post("/now", b"hello", b"Expect: 100-continue", CLOSE).partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        assert everything(sock).endswith(b"hello")


def test_a_path_that_is_refused_is_refused_before_its_body(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /missing HTTP/1.1\r\nContent-Length: 9999\r\n\r\n")
        assert status_of(sock.recv(1000)) == 404


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 5000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 5000, 431),
        (b"GET / HTTP/1.1\r\n" + b"a" * 5000, 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 10001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4000\r\n" + b"a" * 0x4000, 413),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nA: b\x00\n\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\r\n\r\n\r\n\x00", 400),
    ],
)
def test_what_is_too_long_or_no_request_gets_a_4xx_and_the_end(server: Running, request_: bytes, status: int) -> None:
    assert status_of(server.ask(request_)) == status


def test_a_head_that_never_ends_is_ended(server: Running) -> None:
    answer = server.ask(b"GET / HTTP/1.1\r\nA: ", *(b"a" * 200 for _ in range(30)), pause=0.001)
    assert status_of(answer) == 431


@pytest.mark.parametrize("begun", [b"0\r\nA: ", b"0\r\nA", b"1;a="], ids=["trailer", "its name", "extension"])
def test_what_is_around_a_body_is_bounded_as_the_body_is(server: Running, begun: bytes) -> None:
    head = b"POST /now HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = server.ask(head + begun, *(b"a" * 1000 for _ in range(60)), pause=0.001)
    assert status_of(answer) == 413


@pytest.mark.slow
def test_a_head_that_trickles_is_ended_in_time(server: Running) -> None:
    began = time.monotonic()
    answer = server.ask(b"GET / HTTP/1.1\r\n", *(b"A: b\r\n" for _ in range(15)), pause=0.05)
    assert status_of(answer) == 408
    assert time.monotonic() - began < 2


@pytest.mark.slow
def test_a_body_that_trickles_is_ended_in_time(server: Running) -> None:
    assert status_of(server.ask(b"POST /now HTTP/1.1\r\nContent-Length: 100\r\n\r\nx")) == 408


def test_a_connection_without_requests_is_closed_after_a_while(server: Running) -> None:
    assert server.ask() == b""


@pytest.mark.slow
def test_an_idle_connection_is_closed_after_a_while_and_not_before(server: Running) -> None:
    with server.connect() as sock:
        for _ in range(3):
            sock.sendall(post())
            assert status_of(sock.recv(1000)) == 200
            time.sleep(0.25)
        assert everything(sock) == b""


def test_a_client_that_does_not_read_is_cut_off(server: Running) -> None:
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(post("/big") * 3)
        eventually(lambda: server.open == 0, 5)


@pytest.mark.slow
def test_bodies_of_all_clients_together_are_bounded(server: Running) -> None:
    sockets = [server.connect() for _ in range(3)]
    try:
        for sock in sockets:
            sock.sendall(b"POST /now HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + b"x" * 8000)
            time.sleep(0.05)
        answers = [everything(sock) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
    shed = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429")]
    assert shed
    assert all(b"Retry-After: 1" in answer for answer in shed)


def test_bodies_that_wait_for_their_turn_count_among_them(server: Running) -> None:
    with server.connect() as first, server.connect() as second:
        first.sendall(post("/never") + post("/now", b"x" * 9000))
        eventually(lambda: server.listener.connections.buffered == 9000, 5)
        second.sendall(post("/never") + post("/now", b"x" * 9000))
        assert everything(second) == b""


def test_too_many_connections_are_turned_away_and_the_others_served(server: Running) -> None:
    busy = [server.connect() for _ in range(LIMITS.connections)]
    try:
        for sock in busy:
            sock.sendall(b"POST /later HTTP/1.1\r\nContent-Length: 2\r\n\r\n")
        eventually(lambda: server.open == LIMITS.connections)
        with server.connect() as sock:
            assert everything(sock) == b""
        for sock in busy:
            sock.sendall(b"ok")
        assert all(status_of(sock.recv(1000)) == 200 for sock in busy)
    finally:
        for sock in busy:
            sock.close()


def test_a_fault_of_ours_is_a_plain_500_without_details(server: Running) -> None:
    answer = server.ask(post("/fault", b"x", CLOSE))
    assert status_of(answer) == 500
    assert b"RuntimeError" not in answer


def test_a_client_that_goes_away_ends_its_work(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(post("/never"))
        eventually(lambda: server.listener.connections.busy == 1)
    eventually(lambda: server.open == 0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(0, 60))
def test_no_bytes_make_it_fall(server: Running, noise: bytes, position: int) -> None:
    good = post("/now", b"hello", CLOSE)
    for content in (noise, good[:position] + noise + good[position:]):
        with server.connect() as sock:
            sock.sendall(content)
            sock.shutdown(socket.SHUT_WR)
            answer = everything(sock)
        assert answer == b"" or status_of(answer) in range(200, 500)


# -- heads that were seen before


class Written:
    """A transport that keeps what is written, until it is closed."""

    def __init__(self) -> None:
        self.said = b""
        self.closed = False

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.said += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Forgetful(dict[bytes, Any]):
    """Heads that are never remembered."""

    def __setitem__(self, key: bytes, value: object) -> None: ...


class Telling(Echo):
    """Tells what it was asked."""

    def answer(self, request: Request, body: bytes) -> bytes:
        return repr((request, body)).encode()


HEADS = [
    b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    b"POST /now HTTP/1.1\r\nHost: a\r\ncontent-length: 4\r\nAudit-ID: x\r\n\r\n",
    b"\r\nPOST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    b"POST /now?a=b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
    b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    b"POST /now HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /missing HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
    b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD /now HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /now HTTP/1.0\r\nContent-Length: 5\r\n\r\n",
    b"POST /now HTTP/1.0\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
    b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"no request\r\n\r\n",
]
BODIES = [
    b"",
    b"hello",
    b"four",
    b"\r\n\r\nX",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"hello" + HEADS[0] + b"hello",
]
PIECES = st.lists(st.tuples(st.sampled_from(HEADS), st.sampled_from(BODIES)).map(b"".join), min_size=1, max_size=6)


async def told(connections: Connections, pieces: list[bytes], cut: int) -> tuple[bytes, bool]:
    """What a connection answers to these pieces, as they come or cut to that length."""
    connection, transport = Connection(connections), Written()
    connection.connection_made(transport)
    for piece in pieces:
        for start in range(0, len(piece), cut or len(piece)):
            connection.data_received(piece[start : start + (cut or len(piece))])
    connection.connection_lost(None)
    return transport.said, transport.closed


@settings(max_examples=300)
@given(PIECES, st.sampled_from([0, 0, 1, 7, 70]))
def test_a_head_that_was_seen_before_is_answered_as_one_that_is_new(pieces: list[bytes], cut: int) -> None:
    async def both() -> None:
        remembering, forgetting = Connections(Telling(), LIMITS), Connections(Telling(), LIMITS)
        forgetting.heads = {True: Forgetful(), False: Forgetful()}
        for head in HEADS:
            for body in BODIES:
                await told(remembering, [head + body], 0)
        assert remembering.heads[False]
        assert await told(remembering, pieces, cut) == await told(forgetting, pieces, cut)

    asyncio.run(both())


async def test_a_head_that_was_seen_before_is_refused_once_it_is_to_be() -> None:
    class Changing(Telling):
        refusing = False

        def refuse(self, request: Request) -> Reply | None:
            return text(403, "not any more") if self.refusing else None

    handler = Changing()
    connections = Connections(handler, LIMITS)
    connection, transport = Connection(connections), Written()
    connection.connection_made(transport)
    for _ in range(2):
        connection.data_received(post())
    assert transport.said.count(b" 200 OK") == 2
    handler.refusing = True
    connection.data_received(post())
    assert b" 403 Forbidden" in transport.said
    assert transport.closed


async def test_what_strangers_send_takes_no_place_from_the_api_server() -> None:
    connections = Connections(Echo(), LIMITS)
    for number in range(3000):
        await told(connections, [post(f"/now?{number}")], 0)
    assert 0 < len(connections.heads[False]) <= 1024
    assert connections.heads[True] == {}
