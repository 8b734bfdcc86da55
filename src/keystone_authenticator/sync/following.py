"""Sync as part of the running service: notes of logins, and the passes of the one unit that holds the Lease.

A pass is a process of its own, see `passes`; here it is started, bounded in time, ended with the Lease, and heard out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from keystone_authenticator import document
from keystone_authenticator.kubernetes import Kubernetes, Refusal
from keystone_authenticator.outbound import CannotTell
from keystone_authenticator.sync.lease import NAME, NAMESPACE, SECONDS, Lease
from keystone_authenticator.sync.passes import Summary

logger = logging.getLogger("keystone_authenticator.sync")

RENEW_EVERY = 15.0
# A holder that could not write it anew for so long stops, before another unit may think that it is gone.
GIVE_UP_AFTER = SECONDS - RENEW_EVERY
LONGEST_PASS = 1800.0
_FIRST_WAIT = 30.0
_summary = document.decoder(Summary)


class PassCounts:
    """What became of the passes; outlives whoever makes them."""

    def __init__(self) -> None:
        self.done = self.failed = 0
        self.changes: dict[str, int] = {}
        self.last: Summary | None = None
        self.last_at: float | None = None
        self.error: str | None = None
        self.holds = False
        self.holder = ""


class Passes:
    """A pass every `interval` seconds, as long as the Lease is ours."""

    def __init__(self, kube: Kubernetes, settings: Path, interval: float, counts: PassCounts) -> None:
        self._kube = kube
        self._command = [sys.executable, "-m", "keystone_authenticator", "sync", "--config", str(settings)]
        self._interval = interval
        self._counts = counts
        # The process is part of the name: one that was killed holds nothing for its successor.
        self._lease = Lease(kube, f"{socket.gethostname()} {secrets.token_hex(4)}")
        self._renewed = 0.0
        self._tasks = [asyncio.get_running_loop().create_task(work) for work in (self._hold(), self._work())]

    async def _hold(self) -> None:
        while True:
            try:
                holds = await self._lease.hold()
            except Exception as error:
                if not isinstance(error, (CannotTell, Refusal, ValueError)):
                    logger.exception("a fault of ours while the Lease was written")
                self._told(f"the Lease {NAMESPACE}/{NAME}: {error}")
                holds = self._counts.holds and time.monotonic() - self._renewed < GIVE_UP_AFTER
            else:
                self._renewed = time.monotonic()
            if holds != self._counts.holds:
                other = f", which {self._lease.other} has" if self._lease.other and not holds else ""
                logger.info("sync: this unit %s the Lease %s/%s%s", "holds" if holds else "does not hold",
                            NAMESPACE, NAME, other)  # fmt: skip
            self._counts.holds, self._counts.holder = holds, self._lease.other
            await asyncio.sleep(RENEW_EVERY)

    async def _work(self) -> None:
        wait = _FIRST_WAIT
        while True:
            while not self._counts.holds:
                await asyncio.sleep(0.2)
            began = time.monotonic()
            try:
                summary = await self._pass()
            except Exception as error:
                logger.exception("a fault of ours while a pass was made")
                summary = Summary(error=f"an internal fault ({type(error).__name__})")
            if summary is None:
                continue  # the Lease was lost
            if summary.error is None:
                self._counts.done += 1
                self._counts.error = None
                self._counts.last, self._counts.last_at = summary, time.time()
                for key, count in summary.changes.items():
                    self._counts.changes[key] = self._counts.changes.get(key, 0) + count
                if summary.changes or summary.problems:
                    changed = ", ".join(f"{count} {key}" for key, count in summary.changes.items()) or "no change"
                    logger.info("sync: a pass: %s; %d problems", changed, summary.problems)
                wait, pause = _FIRST_WAIT, self._interval
            else:
                self._counts.failed += 1
                self._told(f"a pass failed: {summary.error}")
                wait, pause = min(wait * 2, self._interval), min(wait, self._interval)
            await asyncio.sleep(max(1.0, began + pause - time.monotonic()))

    def _told(self, error: str) -> None:
        if error != self._counts.error:
            logger.warning("sync: %s", error)
        self._counts.error = error

    async def _pass(self) -> Summary | None:
        """Run a pass to its end; None if the Lease was lost meanwhile."""
        # The package's own folder, be it the installed tree or a checkout; nothing else of the environment.
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.environ.get("PATH", "")}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env=environment
            )
        except OSError as error:
            return Summary(error=f"the process does not start: {error.strerror}")
        reading = asyncio.ensure_future(process.communicate())
        end = time.monotonic() + LONGEST_PASS
        try:
            while True:
                done, _ = await asyncio.wait((reading,), timeout=0.5)
                if done:
                    break
                if not self._counts.holds:
                    return None
                if time.monotonic() > end:
                    return Summary(error=f"it took longer than {LONGEST_PASS:g} s")
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            reading.cancel()
        output, _ = reading.result()
        try:
            return _summary(output)
        except (document.NotJson, document.NotOfType):
            return Summary(error=f"the process ended with {process.returncode} and said nothing")

    async def close(self) -> None:
        """End what is under way, and let another unit go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        if self._counts.holds:
            self._counts.holds = False
            with contextlib.suppress(CannotTell, Refusal, ValueError, asyncio.TimeoutError):
                await asyncio.wait_for(self._lease.give_back(), 3)
        await self._kube.close()


def told(summary: Summary | None) -> dict[str, Any] | None:
    """A summary for `/status`; no names are in it."""
    if summary is None:
        return None
    return {key: value for key, value in msgspec.to_builtins(summary).items() if key != "first_problems"}
