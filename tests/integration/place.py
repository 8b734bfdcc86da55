"""A real Juju's way to tell the scenarios: commands through pytest-operator, kubectl and Keystone from here."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_operator.plugin import OpsTest

from testbed import pack
from testbed.certificates import Authority
from testbed.keystone import Api
from tests.integration import commands
from tests.juju_output import status
from tests.scenarios import PATIENCE, Failed, Kind, Said

REST = 30.0  # seconds without a hook, until a command's hooks count as run
UPDATE_STATUS = "update-status-hook-interval"


@dataclass
class RealJuju:
    """A `scenarios.Place`: a model of pytest-operator's.

    The steps are plain functions and run in a thread; what they ask of pytest-operator runs in its event loop.
    """

    ops_test: OpsTest
    loop: asyncio.AbstractEventLoop
    kind: Kind
    control_plane: str
    charm: Path
    folder: Path
    before: str = ""
    server: str = ""
    server_ca: bytes = b""

    def juju(self, line: str) -> str:
        words = shlex.split(line)
        running = self.ops_test.juju(*words, cwd=self.folder)
        code, output, errors = asyncio.run_coroutine_threadsafe(running, self.loop).result()
        if code:
            raise Failed(f"juju {line}: {errors.strip()}", output)
        if commands.waits_for_hooks(words):
            self._rest()
        return output

    def _rest(self) -> None:
        end, since = time.monotonic() + PATIENCE, time.monotonic()
        while time.monotonic() - since < REST:
            time.sleep(2)
            if not commands.idle(status(self.juju("status --format=json"))):
                since = time.monotonic()
            if time.monotonic() > end:
                raise Failed(f"the model was not at rest within {PATIENCE:.0f} s\n{self.juju('status')}", "")

    def kubectl(self, *arguments: str, kubeconfig: Path | None = None, server: str | None = None) -> Said:
        at = [f"--server={server}"] if server else []
        command = ["kubectl", f"--kubeconfig={kubeconfig or self.folder / 'admin.kubeconfig'}", *at, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return Said(done.returncode, done.stdout + done.stderr)

    def settle(self) -> None:
        self.juju(f"model-config {UPDATE_STATUS}=10s")
        try:
            self._rest()
        finally:
            self.juju(f"model-config --reset {UPDATE_STATUS}")

    # What there is before the story

    def furnish(self) -> None:
        """Bring into the model what is not there, and find out how to reach it."""
        for command in commands.missing(status(self.juju("status --format=json")), self.kind, self.control_plane):
            self.juju(command)
        self._give_keystone_a_certificate()
        told = self._results(f"run --format=json {self.control_plane}/leader get-kubeconfig")
        path = self.folder / "admin.kubeconfig"
        path.touch(0o600)
        path.write_text(told["kubeconfig"])
        self.server, self.server_ca = commands.cluster(told["kubeconfig"])
        told = self._results("exec --format=json --unit keystone/leader -- leader-get admin_passwd")
        password = told["stdout"].strip()
        self.keystone = Api(self._url, self.folder / "keystone-ca.pem", password, {"name": "admin_domain"})
        packed = str(pack.changed(self.charm, self.folder / "last-release.charm"))
        self.before = commands.first_release(os.environ.get("LAST_RELEASE", ""), packed)

    def _give_keystone_a_certificate(self) -> None:
        (unit, *_) = status(self.juju("status --format=json")).units("keystone")
        authority = Authority("Keystone of the integration tests")
        made = authority.sign("keystone", hosts=[unit.address])
        options = self.folder / "keystone.yaml"
        options.touch(0o600)
        options.write_text(commands.https(made.certificate, made.key, authority.certificate))
        (self.folder / "keystone-ca.pem").write_bytes(authority.certificate)
        self.juju(f"config keystone --file={options}")
        self._rest()
        self._url = commands.url_of_keystone(unit.address)

    def _results(self, line: str) -> dict[str, Any]:
        return dict(commands.first_task(self.juju(line))["results"])
