"""Our kubectl plug-in, as pip installs it, beside upstream's: `python3 -m benchmarks.plugin` prints the table.

Warm: our token at hand, and upstream's, which knows none, logging in as it does at each call. Cold: nothing at hand, so
that both log in. By turns, and a ratio is the median of the ratios of the turns: what else the machine does meets both.

A login waits for Keystone's hash of the secret more than for anything else, so Keystone hashes as it does by default
here. Beside that stand the figures with the test bed's hashes, the cheapest there are, where hardly more is left of a
login than the start of Python or Go. All on loopback: to a Keystone farther away, upstream's two requests take longer.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import HERE, program
from benchmarks.report import Row, number, spread, table
from testbed import setup
from testbed.cache import Run, TestbedError, call, say
from testbed.keystone import Keystone

TURNS = 25
HASHES = "password_hash_rounds = {}"
CHEAPEST, DEFAULT = 4, 12
INFO = '{{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/{}","spec":{{"interactive":false}}}}'


class Cost(NamedTuple):
    """What a call cost: milliseconds by the clock, and of processor time (user and system)."""

    clock: float
    processor: float


class Side:
    """A plug-in, and how it is called."""

    def __init__(self, program: Path, version: str, home: Path, ca: Path) -> None:
        self._program = program
        self._home = home
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "OS_CACERT": str(ca),
            "KUBERNETES_EXEC_INFO": INFO.format(version),
        }

    def call(self, arguments: Sequence[str], environment: dict[str, str], *, cold: bool) -> Cost:
        """Call it once, with nothing at hand if it is to be cold, and check that it gives a token."""
        if cold:
            shutil.rmtree(self._home / ".kube", ignore_errors=True)
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [self._program, *arguments],
            env={**self._environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            token = json.loads(done.stdout)["status"]["token"]
        except (ValueError, KeyError):
            token = ""
        if done.returncode or len(token) < 100:
            raise TestbedError(f"{self._program.name} gives no token: {done.stderr or done.stdout}")
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Cost(clock * 1000, processor * 1000)


def install(folder: Path) -> Path:
    """Install our plug-in as a user does, without what only other logins need; gives the program."""
    call([sys.executable, "-m", "venv", folder], "python3-venv is needed")
    pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", HERE.parent]
    call(pip, "the package index has to be reachable for what builds it")
    return folder / "bin" / "kubectl-keystone-auth"


def rows() -> list[Row]:
    """Take the figures: a minute."""
    upstream_program = setup.upstream_plugin()
    run = Run("benchmarks-plugin")
    try:
        program = install(run.folder / "installed")
        with Keystone() as keystone:
            ours = Side(program, "v1", run.folder / "ours", keystone.ca)
            upstream = Side(upstream_program, "v1beta1", run.folder / "upstream", keystone.ca)
            found = []
            for rounds in (DEFAULT, CHEAPEST):
                _hash(keystone, rounds)
                say(f"our plug-in and upstream's by turns, {TURNS} times each; {HASHES.format(rounds)}")
                found += _rows(ours, upstream, keystone, as_usual=rounds == DEFAULT)
            return found
    finally:
        run.remove()


def _hash(keystone: Keystone, rounds: int) -> None:
    """Let Keystone hash the secrets made from now on with so many rounds."""
    path = keystone.folder / "keystone.conf"
    keystone.stop()
    lines = path.read_text().splitlines()
    path.write_text("\n".join(HASHES.format(rounds) if "password_hash_rounds" in line else line for line in lines))
    keystone.start()


def _rows(ours: Side, upstream: Side, keystone: Keystone, *, as_usual: bool) -> list[Row]:
    suffix = uuid.uuid4().hex[:8]
    project = keystone.project(f"demo-{suffix}")
    alice = keystone.member(f"alice-{suffix}", project)
    credential = keystone.application_credential(alice, project)
    url = f"--keystone-url={keystone.url}"
    # Upstream's takes a credential from arguments only if its name is there too.
    by_credential = [url, f"--application-credential-id={credential.id}"]
    by_credential += [f"--application-credential-name={credential.name}"]
    by_credential += [f"--application-credential-secret={credential.secret}"]
    by_password = [url, f"--user-name={alice.name}", f"--project-name={project.name}", "--domain-name=Default"]
    by_password += [f"--password={alice.password}"]
    found = []
    for login, arguments in (("application credential", by_credential), ("password", by_password)):
        if not as_usual:
            login += ", cheapest hash"
        warm, cold = _turns(ours, upstream, arguments, cold=False), _turns(ours, upstream, arguments, cold=True)
        found += [
            _clock(f"kubectl plug-in, {login}, a token at hand: ms", warm, at_least=8.0 if as_usual else None),
            _clock(f"kubectl plug-in, {login}, no token at hand: ms", cold, at_most=1.3 if as_usual else None),
            _processor(f"kubectl plug-in, {login}, a token at hand: ms of processor", warm, at_most=40.0),
            _processor(f"kubectl plug-in, {login}, no token at hand: ms of processor", cold),
        ]
    return found


def _turns(ours: Side, upstream: Side, arguments: Sequence[str], *, cold: bool) -> list[tuple[Cost, Cost]]:
    pairs = []
    ours.call(arguments, {}, cold=cold)
    upstream.call(arguments, {}, cold=cold)
    for turn in range(TURNS):
        costs = {}
        for side in (ours, upstream) if turn % 2 else (upstream, ours):
            costs[side] = side.call(arguments, {}, cold=cold)
        pairs.append((costs[ours], costs[upstream]))
    return pairs


def _clock(
    measured: str, pairs: list[tuple[Cost, Cost]], *, at_least: float | None = None, at_most: float | None = None
) -> Row:
    """Compare by the clock, both ways round."""
    mine, theirs = [one.clock for one, _ in pairs], [other.clock for _, other in pairs]
    quicker = median(other.clock / one.clock for one, other in pairs)
    longer = median(one.clock / other.clock for one, other in pairs)
    shown = f"{number(quicker)}x as quick, {number(longer)}x as long"
    target, met = "", None
    if at_least is not None:
        target, met = f"≥ {at_least:g}x as quick", quicker >= at_least
    if at_most is not None:
        target, met = f"≤ {at_most:g}x as long", longer <= at_most
    return Row(measured, spread(mine), spread(theirs), shown, target, met=met)


def _processor(measured: str, pairs: list[tuple[Cost, Cost]], *, at_most: float | None = None) -> Row:
    mine, theirs = [one.processor for one, _ in pairs], [other.processor for _, other in pairs]
    target, met = ("", None) if at_most is None else (f"< {at_most:g}", median(mine) < at_most)
    return Row(measured, spread(mine), spread(theirs), f"{number(median(mine) / median(theirs))}x", target, met=met)


def main() -> int:
    """Measure, and print a table."""
    print(table(rows()))
    return 0


if __name__ == "__main__":
    program(main)
