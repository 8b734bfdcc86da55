"""What a machine, or a stranger at the other end, can do to the charm besides being slow or gone."""

from __future__ import annotations

import http.server
import threading
import time

import ops
import pytest

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
