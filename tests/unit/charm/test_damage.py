"""What a machine, or a stranger at the other end, can do to the charm besides being slow or gone."""

from __future__ import annotations

import errno
import http.server
import os
import threading
import time

import ops
import pytest

import apiserver
import authenticator
import host
import reach


def test_a_program_that_a_power_cut_emptied_is_installed_anew_and_started(unit, machine):
    unit.run()
    installed = (machine.places.opt / "current").resolve()
    module = installed / "lib/keystone_authenticator/__init__.py"
    content = module.read_bytes()
    module.write_bytes(b"")
    machine.forget_calls()

    assert isinstance(unit.run(), ops.ActiveStatus)
    assert module.read_bytes() == content
    assert "restart kubernetes-keystone.service" in machine.calls


def test_a_full_disk_is_said_and_not_a_fault_of_the_charm(unit, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/etc/kubernetes-keystone/settings.json")

    monkeypatch.setattr(authenticator, "write_settings", full)
    status = unit.run()
    assert isinstance(status, ops.BlockedStatus)
    assert "No space left on device: '/etc/kubernetes-keystone/settings.json'" in status.message


def test_a_status_is_one_line_of_bounded_length(unit, wiring):
    wiring.raises["check"] = apiserver.Conflict("x\n" * 200_000)
    status = unit.run()
    assert isinstance(status, ops.BlockedStatus)
    assert "\n" not in status.message
    assert len(status.message) < 1100


def test_what_a_service_has_logged_may_be_any_bytes():
    assert host.run("printf", r"not UTF-8: \377") == "not UTF-8: \ufffd"
    with pytest.raises(host.HostError, match=r"nor this: \ufffd$"):
        host.run("sh", "-c", r"printf 'nor this: \377' >&2; exit 1")


@pytest.mark.parametrize(
    "content",
    [pytest.param(b"[" * 60_000, id="deep"), b"\xff\xfe", b'"', b"[1]", b'{"kind": "TokenReview", "status": []}'],
)
def test_an_answer_of_any_kind_is_told_from_the_right_one(content):
    class Odd(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v3"
        with pytest.raises(reach.ConfigError, match="but not as Keystone"):
            reach.keystone(url, "")
        with pytest.raises(reach.ConfigError, match="but not as a TokenReview"):
            reach.service("authn-server-url", url, "", "TokenReview")
        server.shutdown()


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_an_answer_that_never_ends_is_not_waited_for(monkeypatch, pause):
    class Endless(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" " if pause else b" " * 65536)
                    time.sleep(pause)
            except OSError:
                pass

    monkeypatch.setattr(reach, "TIMEOUT", (1.0, 0.5))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    began = time.monotonic()
    try:
        with pytest.raises(reach.ConfigError, match="but not as Keystone"):
            reach.keystone(f"http://127.0.0.1:{server.server_address[1]}/v3", "")
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - began < 5
