"""A Keystone that fails in every way that a socket allows: the stand-in's answers, given or spoiled as a test says.

It speaks TLS, counts what it is asked and how much of that at once, and can be broken and mended while it runs.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from tests.unit.authenticator.support import Authority, eventually, fernet_token, keystone_error, token_body

# What each fault does to an answer: status, headers and body in its place.
SPOILED: dict[str, tuple[int, str, bytes]] = {
    "500": (500, "", json.dumps(keystone_error(500)).encode()),
    "503 with Retry-After": (503, "Retry-After: 30\r\n", b"<html>maintenance</html>"),
    "429": (429, "Retry-After: 1\r\n", b""),
    "a proxy's login page": (401, "", b"<html>who are you?</html>"),
    "a page in place of JSON": (200, "", b"<html>welcome</html>"),
    "half of the JSON": (200, "", b'{"token": {"user": {"id": "u", '),
    "another JSON": (200, "", b'{"versions": {"values": []}}'),
}
FAULTS = (
    *SPOILED,
    "refusing",
    "hanging after accept",
    "silent before TLS",
    "byte by byte",
    "a head without end",
    "a body without end",
    "reset on accept",
    "reset mid-answer",
    "closed mid-answer",
    "another's certificate",
    "vanished",
)


class FaultyKeystone:
    """Knows the tokens that it issued, as `KeystoneStandIn` does, as long as nothing is broken."""

    def __init__(self, authority: Authority, stranger: Authority) -> None:
        """`stranger` signs the certificate that does not verify."""
        self._good, self._bad = authority.issue("faulty-keystone"), stranger.issue("faulty-keystone")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*self._good)
        self.tokens: dict[str, dict[str, Any]] = {}
        self.fault: str | None = None
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._server: asyncio.Server | None = None
        self.port = 0
        self._do(self._listen())
        self.url = f"https://127.0.0.1:{self.port}/v3"

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def issue(self, **changes: Any) -> str:
        """A token that is good here."""
        token = fernet_token()
        self.tokens[token] = token_body(**changes)
        return token

    def fail(self, fault: str) -> None:
        """Break it in this way."""

        async def apply() -> None:
            self.fault = fault
            if fault in ("refusing", "silent before TLS"):
                await self._close()
            if fault == "silent before TLS":
                await self._listen(deaf=True)
            if fault == "another's certificate":
                self._context.load_cert_chain(*self._bad)
                self._drop()
            if fault == "reset on accept":
                self._drop()
            if fault == "vanished":
                self._dead |= self._writers

        self._do(apply())

    def mend(self) -> None:
        """End the fault; connections that vanished stay as dead as they are."""

        async def apply() -> None:
            fault, self.fault = self.fault, None
            self._context.load_cert_chain(*self._good)
            if fault == "silent before TLS":
                await self._close()
            if fault in ("refusing", "silent before TLS"):
                await self._listen()

        self._do(apply())

    def close(self) -> None:
        """End it."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        eventually(lambda: not self._loop.is_running())
        self._loop.close()

    # -- inside

    async def _listen(self, deaf: bool = False) -> None:
        options: dict[str, Any] = {} if deaf else {"ssl": self._context}
        meet: Callable[..., Any] = self._hold if deaf else self._serve
        self._server = await asyncio.start_server(meet, "127.0.0.1", self.port, backlog=200, **options)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._drop()

    def _drop(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _hold(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.fault == "reset on accept":
                _reset(writer)
            if self.fault == "vanished":
                self._dead.add(writer)
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(head.decode("latin-1"))
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    await self._answer(head.decode("latin-1"), reader, writer)
                finally:
                    self.at_once -= 1
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            self._dead.discard(writer)
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self.fault
        status, headers, body = SPOILED[fault] if fault in SPOILED else self._right(head)
        start = f"HTTP/1.1 {status} Something\r\nContent-Type: application/json\r\n{headers}".encode()
        whole = start + b"Content-Length: %d\r\n\r\n" % len(body) + body
        if fault == "hanging after accept" or writer in self._dead:
            await reader.read()  # until the other side has enough
            raise ConnectionResetError
        if fault == "byte by byte":
            for byte in whole:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.1)
        elif fault == "a head without end":
            writer.write(start)
            while True:
                writer.write(b"X-More: and more\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        elif fault == "a body without end":
            writer.write(start + b"\r\n")
            while True:
                writer.write(b" " * 65536)
                await writer.drain()
        elif fault in ("reset mid-answer", "closed mid-answer"):
            writer.write(whole[:-20])
            await writer.drain()
            await asyncio.sleep(0.05)
            if fault == "reset mid-answer":
                _reset(writer)
            raise ConnectionResetError
        else:
            writer.write(whole)
            await writer.drain()

    def _right(self, head: str) -> tuple[int, str, bytes]:
        lines = head.split("\r\n")
        fields = dict(line.lower().split(": ", 1)[:1] + line.split(": ", 1)[1:] for line in lines[1:] if ": " in line)
        token = self.tokens.get(fields.get("x-auth-token", ""))
        if token is None:
            return 401, "", json.dumps(keystone_error(401)).encode()
        answer = {"groups": [], "links": {"next": None}} if "/groups" in lines[0] else {"token": token}
        return 200, "", json.dumps(answer).encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other side gets a reset."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
