"""The watchdog is fed by reviews that are answered, and by nothing else."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keystone_authenticator import watchdog
from tests.unit.authenticator.support import Authority, Service, StandIn, serving, token_review
from tests.unit.authenticator.test_service import chained_to

PATIENCE = 1.2

# What a process does that runs and does not answer: the switch is a file, as it is another process.
HANGING = """
import asyncio, pathlib, sys, time
from keystone_authenticator import __main__, reviews, server, service
folder = pathlib.Path({folder!r})
answer, made = service.WebhookHandler.answer, server.Connection.connection_made
async def never(): await asyncio.sleep(60)
def maybe(self, request, body):
    if (folder / "hang").exists(): return never()
    if (folder / "block").exists(): time.sleep(60)
    if (folder / "fail").exists(): raise RuntimeError("broken")
    if (folder / "lie").exists(): return reviews.cannot_tell("v1", "odd")
    return answer(self, request, body)
def deaf(self, transport):
    made(self, transport)
    if (folder / "deaf").exists(): transport.abort()
service.WebhookHandler.answer = maybe
server.Connection.connection_made = deaf
exit(__main__.main())
"""


class Told:
    """What systemd is told."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def during(self, seconds: float) -> list[bytes]:
        end, heard = time.monotonic() + seconds, []
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                heard.append(self._socket.recv(200))
            except TimeoutError:
                break
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    heard = Told(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(PATIENCE * 1e6)))
    yield heard
    heard.close()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "block", "fail", "lie", "deaf"])
def test_who_does_not_answer_does_not_feed_it(
    tmp_path: Path, authority: Authority, told: Told, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, authority)
    program = HANGING.format(folder=str(tmp_path))
    popen = watchdog_popen(program)
    monkeypatch.setattr("tests.unit.authenticator.support.subprocess.Popen", popen)
    try:
        service.start()
        assert told.during(PATIENCE * 2).count(b"WATCHDOG=1") >= 4
        (tmp_path / fault).touch()
        told.during(PATIENCE / 2)
        assert told.during(PATIENCE) == []
        if fault != "block":
            assert "does not answer its own reviews" in service.log
            (tmp_path / fault).unlink()
            assert b"WATCHDOG=1" in told.during(PATIENCE)
    finally:
        service.kill()


def watchdog_popen(program: str) -> Any:
    import subprocess

    original = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return original([sys.executable, "-c", program, *command[3:]], **options)

    return start


@pytest.mark.slow
def test_a_webhook_or_keystone_that_does_not_answer_is_no_reason_for_a_restart(
    tmp_path: Path, authority: Authority, webhook: StandIn, told: Told
) -> None:
    chain = tmp_path / "chained"
    chain.write_bytes(chained_to(webhook, authority))
    with serving(tmp_path, authority, chained=str(chain)) as service:
        webhook.hang()
        told.during(0.2)
        assert told.during(PATIENCE * 2).count(b"WATCHDOG=1") >= 4
        assert webhook.requests == []
        webhook.release()
        assert service.post(token_review("a::b"), certified=False)[0] == 403


@pytest.mark.parametrize(
    ("environ", "limit"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "7000000"}, 7.0),
        ({"WATCHDOG_USEC": "7000000", "WATCHDOG_PID": str(os.getpid())}, 7.0),
        ({"WATCHDOG_USEC": "7000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_it_is_fed_only_where_systemd_waits_for_it(environ: dict[str, str], limit: float | None) -> None:
    assert watchdog.seconds(environ) == limit


def test_the_units_patience_replaces_who_hangs_within_10_s_and_gives_up_who_always_does() -> None:
    unit = (Path(__file__).parents[3] / "templates" / "kubernetes-keystone.service").read_text()
    value = {key: text for key, _, text in (line.partition("=") for line in unit.splitlines())}
    patience, start = float(value["WatchdogSec"]), float(value["TimeoutStartSec"])
    restart = float(value["RestartSec"].removesuffix("ms")) / 1000
    assert patience + restart + 2 < 10
    for hangs in (start, patience + 1):
        assert (hangs + restart) * int(value["StartLimitBurst"]) < int(value["StartLimitIntervalSec"])
