"""`python3 -m benchmarks.soak`: a day of mixed load in ten minutes, at full speed; exit code 1 if it leaves traces.

Known tokens, new ones, guesses, cluster tokens, very long ones and access reviews at once, over connections that are
made anew every few seconds; the policy and the certificate change all the time, connections that say nothing come and
go, and Keystone falls silent now and then. The caches' times are shortened (`hurried`), so that what lives for minutes
is made and forgotten as often as in a day. Between the slices, when nobody asks, it is looked at what is left: memory
and descriptors have to be flat, p99 steady, and every answer right.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import HERE, program, servers, work
from benchmarks.hurried import SPEED
from benchmarks.measure import client_command
from benchmarks.report import number
from benchmarks.servers import Files, Server
from benchmarks.work import OURS
from keystone_authenticator import reviews
from keystone_authenticator.identity import Identity
from testbed import setup
from testbed.cache import Run, TestbedError, say
from testbed.keystone import Keystone
from testbed.processes import free_port

MINUTES = 10.0
SLICES = 40
# How many connections each kind of client has; the p99 of `STEADY` has to be so.
CLIENTS = {"known": 3, "new": 2, "guesses": 1, "cluster": 2, "long": 1, "access": 3}
STEADY = ("cluster", "access")
KNOWN = 8  # each is asked about anew every 0.4 s, and Keystone answers some hundred calls a second
ITEMS = 1_000  # of the policy
SILENT = 40
PAUSE = 1.0  # seconds of silence of Keystone's: less than the grace that is left at this speed
ADMIN = Identity("cluster-admin", "admin", ("system:masters",), ())
# What the last fifth may be beyond the second one (the first fills caches and pools).
MORE_MEMORY = 8.0  # MB
MORE_DESCRIPTORS = 4
MORE_THREADS = 4  # an executor makes its own when they are wanted at the same time, six at most
MOST_SILENT = 0.3
MORE_P99 = 3.0  # times, on a machine that does other things as well
LEAST_P99 = 10.0  # ms, below which nothing is called unsteady


@dataclass(frozen=True)
class Sample:
    """A slice and what was left after it: answers by kind (right and not), p99 in ms, MB, and open descriptors.

    `silent`: a call to Keystone ended without an answer, after 4 s; then valid users whose grace is over, two seconds
    here, are rightly told that nothing can be told.
    """

    answered: dict[str, int]
    not_right: dict[str, int]
    silent: bool
    p99: dict[str, float]
    memory: float
    descriptors: int
    threads: int


def fifths(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """Cut the run into fifths."""
    cuts = [len(samples) * part // 5 for part in range(6)]
    return [samples[begin:end] for begin, end in pairwise(cuts)]


def problems(samples: Sequence[Sample], log: str) -> list[str]:
    """Say what is not as it should be."""
    found = []
    for kind in CLIENTS:
        bad = sum(sample.not_right[kind] for sample in samples)
        if bad:
            found.append(f"{bad} answers to {kind} were not right")
        if not sum(sample.answered[kind] for sample in samples):
            found.append(f"there was no answer to {kind}")
    silent = sum(sample.silent for sample in samples)
    if silent > len(samples) * MOST_SILENT:
        found.append(f"Keystone gave no answers in {silent} of {len(samples)} slices: the machine is too busy for this")
    parts = fifths(samples)
    second, last = parts[1], parts[4]
    before, after = (median(sample.memory for sample in part) for part in (second, last))
    if after > before + MORE_MEMORY:
        found.append(f"memory grew from {number(before)} to {number(after)} MB")
    for what, most in (("descriptors", MORE_DESCRIPTORS), ("threads", MORE_THREADS)):
        # The least of them, as idle connections to Keystone come and go.
        before, after = max(getattr(one, what) for one in second), min(getattr(one, what) for one in last)
        if after > before + most:
            found.append(f"{what} grew from {before} to {after}")
    for kind in STEADY:
        before, after = (median(sample.p99[kind] for sample in part) for part in (second, last))
        if after > max(LEAST_P99, before * MORE_P99):
            found.append(f"p99 of {kind} grew from {number(before)} to {number(after)} ms")
    found += [f"the log has: {line}" for line in log.splitlines() if "Traceback" in line or "fault of ours" in line]
    return found


def table(samples: Sequence[Sample], seconds: float) -> str:
    """Give the run in fifths, as Markdown."""
    lines = ["| part | reviews/s | p99 of known, cluster, access in ms | resident MB | descriptors | threads |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, part in zip(("first fifth", "second", "third", "fourth", "last"), fifths(samples), strict=True):
        rate = sum(sum(sample.answered.values()) for sample in part) / (len(part) * seconds)
        p99 = ", ".join(number(median(sample.p99[kind] for sample in part)) for kind in ("known", *STEADY))
        memory = number(median(sample.memory for sample in part))
        descriptors = f"{min(one.descriptors for one in part)} to {max(one.descriptors for one in part)}"
        threads = max(sample.threads for sample in part)
        lines.append(f"| {name} | {number(rate)} | {p99} | {memory} | {descriptors} | {threads} |")
    return "\n".join(lines)


class Soak:
    """What the slices share."""

    def __init__(self, files: Files, keystone: Keystone, client: Path, server: Server) -> None:
        self._files, self._keystone, self._client, self._server = files, keystone, client, server
        self._slice = 0
        self._failures = 0.0

    def slice(self, seconds: float) -> Sample:
        """Let all clients work, disturb them, and look at what is left."""
        clients = {
            kind: subprocess.Popen(
                [
                    *client_command(self._client, self._files, self._server, self._files.folder / kind, connections),
                    f"-duration={seconds * 1000:.0f}ms",
                    f"-first={random.randrange(1000)}",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for kind, connections in CLIENTS.items()
        }
        self._disturb(seconds)
        told, problem = {}, ""
        for kind, process in clients.items():
            answer, errors = process.communicate(timeout=seconds + 60)
            if process.returncode:
                raise TestbedError(f"the client for {kind} failed: {errors[-2000:]}")
            told[kind], problem = json.loads(answer), problem + errors
        if problem:
            say(problem.strip()[-500:])
        self._slice += 1
        time.sleep(0.5)
        pid = f"/proc/{self._server.pid}"
        failures, before = self._failed_calls(), self._failures
        silent, self._failures = failures > before, failures
        return Sample(
            {kind: one["total"] for kind, one in told.items()},
            {kind: one["wrong"] + one["failed"] + (0 if silent else one["refused"]) for kind, one in told.items()},
            silent,
            {kind: one["p99"] for kind, one in told.items()},
            self._server.memory(),
            len(list(Path(pid, "fd").iterdir())),
            len(list(Path(pid, "task").iterdir())),
        )

    def _failed_calls(self) -> float:
        """How many calls to Keystone ended without a verdict until now."""
        settings = json.loads((self._files.folder / f"settings-{self._server.port}.json").read_text())
        with urllib.request.urlopen(f"http://{settings['private_listen']}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        wanted = 'kubernetes_keystone_call_failures_total{service="keystone"}'
        return next(float(line.split()[1]) for line in lines if line.startswith(wanted))

    def _disturb(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._change_files()
        silent = [socket.create_connection(("127.0.0.1", self._server.port), 5) for _ in range(SILENT)]
        if self._slice % 4 == 3:
            self._keystone.pause()
            time.sleep(PAUSE)
            self._keystone.resume()
        time.sleep(max(0.0, end - time.monotonic() - 0.5))
        for one in silent:
            one.close()

    def _change_files(self) -> None:
        """Give the authenticator another policy, and now and then its certificate anew."""
        items = work.policy(ITEMS)
        _replace(self._files.folder / "policy.json", json.dumps([*items, *work.policy(1)][: ITEMS + self._slice % 2]))
        if self._slice % 3 == 1:
            _replace(self._files.folder / "server.pem", (self._files.folder / "server.pem").read_text())


def _replace(path: Path, content: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(content)
    new.replace(path)


def guesses(count: int) -> list[str]:
    """Make tokens with the outside of Keystone's that it never made."""
    issued = int(time.time()).to_bytes(8, "big")
    made = (b"\x80" + issued + secrets.token_bytes(16 + 128 + 32) for _ in range(count))
    return [base64.urlsafe_b64encode(raw).decode().rstrip("=") for raw in made]


def write_work(files: Files, keystone: Keystone) -> None:
    """Write what each kind of client asks."""
    accounts = work.people(keystone)
    minted = work.mint(keystone, accounts, KNOWN + 4_000)
    nobody = work.token_items(OURS, work.service_account_tokens(200), ())
    # The displaced webhook knows everybody as this one; other tokens than these never reach it.
    admin = {"user": ADMIN.username, "uid": ADMIN.uid}
    cluster = [{**item, **admin} for item in nobody]
    asked = {
        "known": work.token_items(OURS, minted[:KNOWN], accounts),
        # The accounts take turns, and go on where the known ones ended.
        "new": work.token_items(OURS, minted[KNOWN:], [*accounts[KNOWN:], *accounts[:KNOWN]]),
        "guesses": work.token_items(OURS, guesses(4_000), ()),
        "cluster": cluster,
        "long": [{**item, **admin} for item in work.token_items(OURS, [letter * 20_000 for letter in "xyz"], ())],
        "access": work.access_items(OURS, work.questions(ITEMS, 5_000)),
    }
    for kind, items in asked.items():
        work.save(files.folder / kind, items)


def settings(files: Files, keystone: Keystone, webhook: Server, speed: float = SPEED) -> tuple[Path, int]:
    """Write the settings, the policy and the chain, with the times shortened; gives the port as well."""
    port = free_port()
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "webhook", "cluster": {"server": f"https://127.0.0.1:{webhook.port}/webhook"}}],
        "contexts": [{"name": "webhook", "context": {"cluster": "webhook", "user": "api-server"}}],
        "current-context": "webhook",
        "users": [{"name": "api-server", "user": {}}],
    }
    named = {"certificate-authority": "ca.pem", "client-certificate": "client.pem", "client-key": "client.key"}
    lines = ["chained 1", "version v1", f"ttl {120 / speed:.3f}s"]
    for key, name in named.items():
        holder = kubeconfig["clusters"][0]["cluster"] if "authority" in key else kubeconfig["users"][0]["user"]
        holder[key] = f"/webhook/{name}"
        lines.append(f"file {_encoded((files.folder / name).read_bytes())} /webhook/{name}")
    lines.append(f"kubeconfig {_encoded(json.dumps(kubeconfig).encode())} /webhook/config")
    (files.folder / "chained").write_text("\n".join(lines) + "\n")
    policy = files.folder / "policy.json"
    policy.write_text(json.dumps(work.policy(ITEMS)))
    path = servers.settings(files, keystone, policy, port, ttl=60 / speed)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "outage_grace": 300 / speed, "chained": str(files.folder / "chained")}))
    return path, port


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def run(minutes: float) -> int:
    """Do it all; gives the exit code."""
    client = setup.benchmark_program("client")
    kept = Run("soak")
    seconds = minutes * 60 / SLICES
    samples: list[Sample] = []
    try:
        files = Files(kept.folder)
        with ExitStack() as stack:
            keystone = stack.enter_context(Keystone())
            say("users, tokens and questions")
            write_work(files, keystone)
            answer = reviews.authenticated("v1", ADMIN)
            webhook = stack.enter_context(servers.empty(files, answer))
            path, port = settings(files, keystone, webhook)
            command = [sys.executable, HERE / "hurried.py", "serve", "--config", path]
            server = stack.enter_context(servers.running(files, "ours", command, port, True))
            soak = Soak(files, keystone, client, server)
            say(f"{minutes:g} minutes of mixed load, {SPEED * minutes / 60:.1f} hours of the caches' time")
            began = time.monotonic()
            while time.monotonic() - began < minutes * 60 or len(samples) < 10:
                samples.append(soak.slice(seconds))
            log = (files.folder / "ours.log").read_text(errors="replace")
    finally:
        kept.remove()
    total = {kind: sum(sample.answered[kind] for sample in samples) for kind in CLIENTS}
    print(f"{sum(total.values()):,} reviews: " + ", ".join(f"{count:,} {kind}" for kind, count in total.items()))
    print(table(samples, seconds))
    print(f"in {sum(one.silent for one in samples)} of {len(samples)} slices Keystone gave no answer in time")
    found = problems(samples, log)
    print("\n".join(f"NOT AS IT SHOULD BE: {one}" for one in found) or "flat, steady, and every answer right")
    return 1 if found else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.soak", description="A day of mixed load, hurried.")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long (a day of the caches takes ten)")
    return run(parser.parse_args(arguments).minutes)


if __name__ == "__main__":
    program(main)
