"""A person's shell at the test bed: a home of its own, and the programs that the documentation calls.

`juju` is the stand-in's (juju.py), behind a program that hands its arguments over. kubectl, the openstack client, jq
and pipx are the real ones. A session keeps what was exported and where one is, as a person's terminal does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from testbed import setup
from testbed.cache import TestbedError
from testbed.juju import Juju
from testbed.processes import Standing

JUJU = """#!{python} -I
# Hands an operator's command to the test bed, which plays the controller, and ends as that says.
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as line:
    line.connect({socket!r})
    line.sendall(json.dumps({{"arguments": sys.argv[1:], "folder": os.getcwd()}}).encode())
    line.shutdown(socket.SHUT_WR)
    code, output, errors = json.loads(b"".join(iter(lambda: line.recv(65536), b"")))
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(code)
"""
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE = 900.0  # seconds for one command; a hook may wait for others


class Said(NamedTuple):
    """How a command of a session ended; what it printed, errors among it."""

    code: int
    text: str


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Shell(Standing):
    """The programs and the home, there inside the context.

    Args:
        juju: what plays the controller.
        folder: where they lie; what else is in it stays.

    """

    def __init__(self, juju: Juju, folder: Path) -> None:
        super().__init__()
        self._juju, self._lock = juju, threading.Lock()
        self.programs, self.home = folder / "bin", folder / "home"
        self._socket = folder / "juju.socket"

    def _begin(self) -> None:
        setup.programs()
        for folder in (self.programs, self.home):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.programs / "kubectl").symlink_to(setup.kubernetes() / "kubectl")
        if (openstack := Path(sys.executable).with_name("openstack")).exists():
            (self.programs / "openstack").symlink_to(openstack)
        program = self.programs / "juju"
        program.write_text(JUJU.format(python=sys.executable, socket=str(self._socket)))
        program.chmod(0o755)

        shell = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked = json.loads(self.rfile.read())
                with shell._lock:  # Juju queues, too
                    answer = shell._juju.run(asked["arguments"], Path(asked["folder"]))
                self.wfile.write(json.dumps(answer).encode())

        server = self._stack.enter_context(_Server(str(self._socket), Handler))
        self._stack.callback(self._socket.unlink, missing_ok=True)
        self._stack.callback(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def environment(self, **more: str) -> dict[str, str]:
        """Give what a shell of it is started with."""
        path = f"{self.home}/.local/bin:{self.programs}:{SYSTEM}"
        base = {"HOME": str(self.home), "PATH": path, "LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb")}
        # Where packages come from, if this system says so.
        taken = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        taken |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        return base | taken | more


class Session(contextlib.AbstractContextManager["Session"]):
    """A shell that takes one command after the other, without a terminal.

    Args:
        shell: whose programs and home.
        folder: where it begins.
        environment: what it is started with, beside `Shell.environment`.

    """

    def __init__(self, shell: Shell, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._command, self._told = shell.home / ".command", shell.home / ".told"
        read, write = os.pipe()
        self._ends = read
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=shell.environment(**(environment or {}), ENDS=str(write)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[write],
            start_new_session=True,
        )
        os.close(write)

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        os.close(self._ends)

    def run(self, command: str) -> Said:
        """Run a command, as long as it may be, and give its exit code and what it printed."""
        self._command.write_text(f"{command}\n")
        files = shlex.quote(str(self._command)), shlex.quote(str(self._told))
        line = f'. {files[0]} >{files[1]} 2>&1 </dev/null; echo "$?" >&"$ENDS"\n'
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        end, code = time.monotonic() + PATIENCE, b""
        while not code.endswith(b"\n"):
            if not select.select([self._ends], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TestbedError(f"takes over {PATIENCE:.0f} s: {command}\n{self._told.read_text()[-3000:]}")
            if not (more := os.read(self._ends, 16)):
                raise TestbedError(f"the shell ended with: {command}\n{self._told.read_text()[-3000:]}")
            code += more
        return Said(int(code), self._told.read_text(errors="replace"))
