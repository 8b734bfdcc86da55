"""A TCP balancer as a highly available control plane has one in front, on an address of this system.

As haproxy with a health check: a server gets connections while it says that it is ready, and none after one check that
failed. A connection that a server refuses goes to the next. What is under way when a server ends is lost, as anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from testbed.cache import TestbedError

PORT = 6443
EVERY = 0.5  # seconds between two checks of a server


class Seen(NamedTuple):
    """What a check saw, and when (Unix time)."""

    at: float
    ready: bool


class Balancer:
    """A balancer in front of these servers, at work inside the context.

    Args:
        address: of this system.
        servers: a name each, and where it listens.
        check: whether the server of this name is ready; called in a thread of its own.

    """

    def __init__(self, address: str, servers: Mapping[str, tuple[str, int]], check: Callable[[str], bool]) -> None:
        self.address = address
        self.url = f"https://{address}:{PORT}"
        self.seen: dict[str, list[Seen]] = {name: [] for name in servers}
        self._servers = dict(servers)
        self._check = check
        self._turn = 0
        self._end = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._threads = [threading.Thread(target=self._loop.run_forever, daemon=True)]
        self._threads += [threading.Thread(target=self._watch, args=(name,), daemon=True) for name in servers]

    def __enter__(self) -> Balancer:
        """Listen, and wait until every server is ready."""
        for thread in self._threads:
            thread.start()
        listening = asyncio.start_server(self._serve, self.address, PORT)
        self._listener = asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)
        end = time.monotonic() + 120
        while not all(self._ready(name) for name in self._servers):
            if time.monotonic() > end:
                self.__exit__()
                raise TestbedError(f"not every server becomes ready: {self.seen}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening; what is under way is cut."""
        self._end.set()
        self._loop.call_soon_threadsafe(self._listener.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            thread.join(30)

    def _watch(self, name: str) -> None:
        while not self._end.is_set():
            ready = self._check(name)
            if not self.seen[name] or self.seen[name][-1].ready != ready:
                self.seen[name].append(Seen(time.time(), ready))
            self._end.wait(EVERY)

    def _ready(self, name: str) -> bool:
        return bool(self.seen[name]) and self.seen[name][-1].ready

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names = [name for name in self._servers if self._ready(name)]
        self._turn += 1
        for number in range(len(names)):
            host, port = self._servers[names[(self._turn + number) % len(names)]]
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                there = await asyncio.wait_for(asyncio.open_connection(host, port), 2)
                await asyncio.gather(_pass_on(reader, there[1]), _pass_on(there[0], writer))
                return
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
