"""The limit that this machine allows: our server class with a handler that answers the same bytes, whatever is asked.

Arguments: port, certificate, key, client CA, file with the answer.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from keystone_authenticator.parts import server_context
from keystone_authenticator.server import Listener, Reply, Request
from keystone_authenticator.service import bound_socket
from keystone_authenticator.settings import Address, Tls


class Empty:
    """Answers without looking."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def refuse(self, request: Request) -> Reply | None:  # noqa: ARG002
        """Never."""
        return None

    def answer(self, request: Request, body: bytes) -> bytes:  # noqa: ARG002
        """Answer."""
        return self._reply


async def main() -> None:
    """Serve until the end."""
    port, certificate, key, client_ca, reply = sys.argv[1:]
    context, _ = server_context(Tls(Path(certificate), Path(key), Path(client_ca), True))
    listener = Listener(bound_socket(Address("127.0.0.1", int(port))), Empty(Path(reply).read_bytes()))
    listener.listen(context)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
