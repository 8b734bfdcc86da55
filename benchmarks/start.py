"""`python3 -m benchmarks.start`: how long from the start of the process to an answer, beside an empty one's.

The empty process imports asyncio and ssl, loads the same certificate and answers over TLS: what a server in Python
takes at least. Ours with nobody waiting; without compiled bytecode, as after a copy that was not compiled (the charm
compiles it); and behind a socket on which reviews wait, each on a connection of its own with a client certificate, as
they do when systemd holds the port. By turns, medians.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import HERE, program, servers, work
from benchmarks.measure import client_command, ratios, times
from benchmarks.report import Row, spread, table
from benchmarks.servers import ENVIRONMENT, Files, Server
from benchmarks.work import OURS
from testbed import setup
from testbed.cache import Run, TestbedError, say
from testbed.processes import free_port, process

PASSES = 7
# A new connection costs about a millisecond; an API server has 25 kept ones and makes more when it has more to ask.
WAITING = 400


class Nowhere:
    """A Keystone that nobody asks."""

    url = "https://127.0.0.1:1/v3"
    ca = None


def settings(files: Files, port: int) -> Path:
    """Write settings that need nothing but the certificates, with the example policy."""
    policy = files.folder / "policy.json"
    policy.write_text(json.dumps(work.policy(1)))
    path = servers.settings(files, Nowhere, policy, port)  # pyright: ignore[reportArgumentType]
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "keystone": {"url": Nowhere.url, "ca": None}}))
    return path


def empty(files: Files) -> float:
    """Start the empty process; gives seconds to its first answer."""
    port = free_port()
    command = [sys.executable, HERE / "empty_process.py", str(port), files.path("server.pem"), files.path("server.key")]
    with servers.running(files, "empty-process", command, port, False) as server:
        return server.seconds_to_ready


def ours(files: Files, *options: str) -> float:
    """Start ours, the interpreter with these options; gives seconds to its first answer."""
    port = free_port()
    command = [sys.executable, *options, *servers.ours_command(settings(files, port))[1:]]
    with servers.running(files, "ours", command, port, True) as server:
        return server.seconds_to_ready


def waited_for(files: Files, client: Path) -> float:
    """Let clients wait on a socket that is held as systemd does, start ours behind it; seconds to the last answer."""
    items = work.save(files.folder / "waiting", work.token_items(OURS, work.service_account_tokens(WAITING), ()))
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(4096)
        port = held.getsockname()[1]
        command = [*client_command(client, files, Server(0, port, True, 0), items, WAITING), "-count=0"]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while _queued(port) < WAITING:
            if asking.poll() is not None:
                raise TestbedError(f"the clients ended: {asking.stderr and asking.stderr.read()[-1000:]}")
            time.sleep(0.05)
        path = settings(files, port)
        began = time.monotonic()
        with _behind(files, held, path):
            told = json.loads(asking.communicate(timeout=120)[0])
            seconds = time.monotonic() - began
    if told["total"] != WAITING or told["failed"] or told["wrong"]:
        raise TestbedError(f"not all of the waiting reviews were answered: {told}")
    return seconds


def _queued(port: int) -> int:
    """Give how many connections wait to be accepted on a port of 127.0.0.1: the queue of its listening socket."""
    wanted = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == wanted and fields[3] == "0A":
            return int(fields[4].partition(":")[2], 16)
    return 0


@contextlib.contextmanager
def _behind(files: Files, held: socket.socket, path: Path) -> Iterator[None]:
    shell = f'exec 3<&{held.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=webhook exec "$@"'
    command = ["sh", "-c", shell, "sh", *servers.ours_command(path)]
    with process(files.folder / "ours-on-a-socket.log", command, (held.fileno(),), ENVIRONMENT):
        yield


def rows(files: Files, client: Path, passes: int) -> list[Row]:
    """Measure, by turns."""
    taken: dict[str, list[float]] = {"empty": [], "ours": [], "uncompiled": [], "waiting": []}
    for number in range(passes):
        say(f"start to ready, {number + 1} of {passes}")
        taken["empty"].append(empty(files))
        taken["ours"].append(ours(files))
        taken["uncompiled"].append(ours(files, "-X", f"pycache_prefix={files.folder}/none", "-B"))
        taken["waiting"].append(waited_for(files, client))
    least = f"{spread(taken['empty'])}: an empty server in Python (asyncio, ssl)"
    return [
        Row(
            f"start to {what}, s",
            spread(taken[name]),
            ratio=f"{times(ratios(taken[name], taken['empty']))} the empty one's",
            limit=least,
        )
        for name, what in (
            ("ours", "the first answer"),
            ("uncompiled", "the first answer, nothing compiled"),
            ("waiting", f"the last answer of {WAITING} reviews that wait, each on a new mTLS connection"),
        )
    ]


def main() -> int:
    """Measure, and print a table."""
    client = setup.benchmark_program("client")
    kept = Run("start")
    try:
        print(table(rows(Files(kept.folder), client, PASSES)))
    finally:
        kept.remove()
    return 0


if __name__ == "__main__":
    program(main)
