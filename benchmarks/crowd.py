"""`python3 -m benchmarks.crowd`: does a million known tokens slow reviews down? Exit code 1 if by more than a fifth.

The authenticator's own parts with Keystone's answers made at the HTTP client (as `inside`), filled with a million
tokens of 10,000 people, behind its own listener with mTLS. Then the client asks by turns about 26 tokens and about
20,000 chosen at random from the million.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from benchmarks import inside, servers, work
from benchmarks.measure import client_command
from benchmarks.report import number, spread
from benchmarks.servers import Files, Server
from benchmarks.work import OURS
from keystone_authenticator import service
from keystone_authenticator.access import Authorizer
from keystone_authenticator.authentication import Authenticator, ClusterTokens, KeystoneTokens, KeystoneValidator
from keystone_authenticator.keystone import Keystone
from keystone_authenticator.metrics import Metrics
from keystone_authenticator.reviews import TokenReview
from keystone_authenticator.server import Listener
from keystone_authenticator.settings import Address, Tls
from testbed import setup
from testbed.cache import Run, TestbedError, call, say
from testbed.processes import free_port, process

FEW, MANY = 26, 20_000
PASSES = 5
SECONDS = 2.0
CONNECTIONS = 16
LEAST = 0.8  # of the rate with few
FILL_SECONDS = 600.0


async def serve(port: int, folder: Path, tokens: int, issued: int) -> None:
    """Fill the cache, and serve until the end."""
    metrics = Metrics()
    client = inside.FakeKeystone("Keystone", None, 4)
    validator = KeystoneValidator(Keystone("https://fake/v3", client), OURS.naming, 3600, 0)
    authenticator = Authenticator(KeystoneTokens(validator, 3600, 0, metrics), ClusterTokens(None), metrics)
    tls = Tls(folder / "server.pem", folder / "server.key", folder / "ca.pem", True)
    # As the service does before it serves; what comes later is looked at by the collector.
    gc.collect()
    gc.freeze()
    for which in range(tokens):
        answer = authenticator.answer(TokenReview("v1", inside.token(which, issued.to_bytes(8, "big")), ()), True)
        if not isinstance(answer, bytes):
            await answer
    parts: Any = SimpleNamespace(
        settings=SimpleNamespace(tls=tls),
        authenticator=authenticator,
        authorizer=Authorizer(OURS.naming),
        metrics=metrics,
    )
    context, _ = service.server_context(tls)
    Listener(service.bound_socket(Address("127.0.0.1", port)), service.WebhookHandler(parts)).listen(context)
    await asyncio.Event().wait()


def items(which: Sequence[int], issued: int) -> list[dict[str, Any]]:
    """Ask about these of the million."""
    people = [
        work.account(f"{who:032x}", f"user-{who}", f"{who % 500:032x}", f"project-{who % 500}")
        for who in (one % inside.IDENTITIES for one in which)
    ]
    return work.token_items(OURS, [inside.token(one, issued.to_bytes(8, "big")) for one in which], people)


def main() -> int:
    """Measure, and say how it is."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    client = setup.benchmark_program("client")
    kept, issued, port = Run("crowd"), int(time.time()), free_port()
    rates: dict[str, list[float]] = {"few": [], "many": []}
    costs: dict[str, list[float]] = {"few": [], "many": []}
    try:
        files = Files(kept.folder)
        chosen = random.Random(1).sample(range(inside.TOKENS), MANY)
        asked = {
            "few": work.save(kept.folder / "few", items(chosen[:FEW], issued)),
            "many": work.save(kept.folder / "many", items(chosen, issued)),
        }
        say(f"{inside.TOKENS:,} tokens, a minute or two")
        command = [sys.executable, "-m", "benchmarks.crowd", str(port), kept.folder, str(inside.TOKENS), str(issued)]
        with process(kept.folder / "crowd.log", command, environment=servers.ENVIRONMENT) as started:
            wait_for(started, port, kept.folder / "crowd.log")
            server = Server(started.pid, port, True, 0)
            for number_of_pass in range(PASSES):
                for kind in ("few", "many") if number_of_pass % 2 else ("many", "few"):
                    before = server.processor()
                    told = json.loads(
                        call(
                            [
                                *client_command(client, files, server, asked[kind], CONNECTIONS),
                                f"-duration={SECONDS * 1000:.0f}ms",
                            ],
                            "see what the client says",
                        )
                    )
                    if told["refused"] or told["wrong"] or told["failed"]:
                        raise TestbedError(f"not all answers were right: {told}")
                    rates[kind].append(told["rate"])
                    costs[kind].append((server.processor() - before) / told["total"] * 1e6)
            memory = server.memory()
    finally:
        kept.remove()
    share = median(many / few for many, few in zip(rates["many"], rates["few"], strict=True))
    for kind, count in (("few", FEW), ("many", MANY)):
        print(
            f"{count:,} of {inside.TOKENS:,} tokens: {spread(rates[kind])} reviews/s, {median(costs[kind]):.1f} µs each"
        )
    print(f"{share:.2f} of the rate, {number(memory)} MB resident")
    return 0 if share >= LEAST else 1


def wait_for(started: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server listens."""
    end = time.monotonic() + FILL_SECONDS
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    while wanted not in Path("/proc/net/tcp").read_text():
        if started.poll() is not None or time.monotonic() > end:
            raise TestbedError(f"the server does not come: {log.read_text()[-2000:]}")
        time.sleep(0.2)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        import uvloop

        uvloop.install()
        asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
    try:
        sys.exit(main())
    except TestbedError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
