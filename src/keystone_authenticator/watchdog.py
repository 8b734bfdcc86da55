"""Systemd's watchdog, fed by real reviews: a process that runs but does not answer is killed and started anew.

Each time a TokenReview and an access review go over a new TLS connection to our own endpoint, through everything that
the API server's go through, to a path that only this process knows. They are about nobody, so that neither Keystone nor
another webhook is asked: whether those answer is no matter of a restart.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable

from keystone_authenticator import document, reviews

logger = logging.getLogger("keystone_authenticator.watchdog")

_REVIEWS = (
    (
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "watchdog"}},
        reviews.refused("v1"),
    ),
    (
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": "watchdog", "nonResourceAttributes": {"path": "/", "verb": "get"}},
        },
        reviews.no_opinion("v1"),
    ),
)


class NoAnswer(Exception):
    """The endpoint did not answer as it should; the message says what came instead."""


def seconds(environ: dict[str, str] | os._Environ[str] = os.environ) -> float | None:
    """After how long without a sign systemd gives the process up (sd_watchdog_enabled(3)); None if it does not."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    given = environ.get("WATCHDOG_USEC", "")
    return int(given) / 1e6 if given.isdecimal() and int(given) else None


async def ask(address: tuple[str, int], path: str) -> None:
    """Ask the endpoint both reviews.

    Raises:
        NoAnswer: it did not answer, or not as it should.

    """
    # Its certificate is our own, whoever signed it and whatever names it has.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    writer = None
    try:
        reader, writer = await asyncio.open_connection(*address, ssl=context)
        for review, expected in _REVIEWS:
            body = document.encode(review)
            head = f"POST {path} HTTP/1.1\r\nHost: watchdog\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            status = await reader.readline()
            while (line := await reader.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
                    if length != len(expected):
                        raise NoAnswer(f"{status.decode('latin-1').strip()}, and not the answer that is right")
            if await reader.readexactly(len(expected)) != expected:
                raise NoAnswer("the answer is not the one that is right")
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise NoAnswer(f"{type(error).__name__}: {error}") from None
    finally:
        if writer is not None:
            writer.transport.abort()


async def feed(limit: float, endpoint: Callable[[], tuple[tuple[str, int], str]], tell: Callable[[str], None]) -> None:
    """Tell systemd that all is well for as long as it is; `limit` is its patience in seconds."""
    every = limit / 4
    while True:
        try:
            await asyncio.wait_for(ask(*endpoint()), every)
        except asyncio.TimeoutError:
            logger.error("the endpoint does not answer its own reviews within %.1f s", every)
        except NoAnswer as error:
            logger.error("the endpoint does not answer its own reviews: %s", error)
        else:
            tell("WATCHDOG=1")
        await asyncio.sleep(every)
