"""What the plug-in's tests share: a Keystone that can be told how to answer, and calls as kubectl makes them."""

from __future__ import annotations

import json
import os
import pty
import ssl
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from kubectl_keystone_auth.cache import Cache
from kubectl_keystone_auth.options import read
from tests.unit.authenticator.support import SOURCE, StandIn, fernet_token, keystone_error, token_body

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Examples may take their time: others work on the machine as well."""
USER = ("--user-name=alice", "--project-name=demo")
CREDENTIAL = "9f5a3e1c7b8d4f60a1b2c3d4e5f60718"
PASSWORD = 'pass "word"\n\\n$(id) \N{SNOWMAN}'
SECRET = "secret'`{}\t&%41\N{LATIN SMALL LETTER U WITH DIAERESIS}"


def exec_info(version: str = "v1", interactive: bool = False, **more: Any) -> str:
    """What kubectl says."""
    spec = {"interactive": interactive, **more}
    info = {"kind": "ExecCredential", "apiVersion": f"client.authentication.k8s.io/{version}", "spec": spec}
    return json.dumps(info, separators=(",", ":")) + "\n"


class LoginStandIn(StandIn):
    """Logs in who has the right password or secret; `answer` takes another's place where a test wants it."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(context)
        self.behaviour = self.login
        self.lifetime = 3600.0
        self.answer: tuple[int, Any] | None = None
        self.token = ""
        self.url += "/v3"

    def login(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.headers.pop("X-Subject-Token", None)
        if self.answer is not None:
            return self.answer
        auth = json.loads(body)["auth"]
        identity = auth["identity"]
        if "application_credential" in identity:
            credential = identity["application_credential"]
            if credential.get("id", CREDENTIAL) != CREDENTIAL:
                return 404, keystone_error(404, f"Could not find Application Credential: {credential['id']}.")
            good, project = credential["secret"] == SECRET, "demo"
        else:
            good, scope = identity["password"]["user"]["password"] == PASSWORD, auth["scope"]
            project = None if scope == "unscoped" else scope["project"]["name"]
        if not good or project not in (None, "demo"):
            return 401, keystone_error(401)
        self.headers["X-Subject-Token"] = self.token or fernet_token()
        return 201, {"token": token_body(project=project, expires=self.lifetime)}

    @property
    def logins(self) -> int:
        """How often somebody has tried."""
        return len(self.requests)


class Terminal:
    """A program on a terminal of its own; its standard output is that too, or a pipe, as kubectl gives to plug-ins."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], *, piped: bool) -> None:
        read, write = os.pipe()
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            if piped:
                os.dup2(write, 1)
            os.execve(command[0], [str(word) for word in command], dict(environment))
        os.close(write)
        self._output, self.shown = read, ""

    def answer(self, prompt: str, text: str) -> None:
        """Wait for a prompt, and type; what is hidden is so before its prompt appears."""
        while prompt not in self.shown:
            self.shown += os.read(self._terminal, 1000).decode()
        os.write(self._terminal, text.encode() + b"\n")

    def end(self) -> tuple[int, str]:
        """Give the exit code and standard output, if that is piped."""
        part = b" "
        while part:
            try:
                part = os.read(self._terminal, 1000)
            except OSError:
                part = b""
            self.shown += part.decode()
        output = os.read(self._output, 100_000).decode()
        os.close(self._output)
        _, status = os.waitpid(self._pid, 0)
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(status), output


class Plugin:
    """The plug-in as a program, for a user with a home of his own."""

    def __init__(self, home: Path, ca: Path) -> None:
        self.home = home
        self.folder = home / ".kube" / "cache" / "keystone-auth"
        self._ca = ca

    def environment(self, info: str | None = exec_info(), **more: str) -> dict[str, str]:
        """What it is called with."""
        found = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(SOURCE),
            "OS_CACERT": str(self._ca),
        }
        return {**found, **({"KUBERNETES_EXEC_INFO": info} if info is not None else {}), **more}

    def begin(self, *arguments: str, info: str | None = exec_info(), **more: str) -> subprocess.Popen[str]:
        """Start a call."""
        return subprocess.Popen(
            [sys.executable, "-m", "kubectl_keystone_auth", *arguments],
            env=self.environment(info, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def on_terminal(self, *arguments: str, info: str | None) -> Terminal:
        """Call it on a terminal."""
        command = [sys.executable, "-m", "kubectl_keystone_auth", *arguments]
        return Terminal(command, self.environment(info), piped=True)

    def call(self, *arguments: str, info: str | None = exec_info(), **more: str) -> tuple[int, str, str]:
        """Call it; gives exit code, standard output and standard error."""
        started = self.begin(*arguments, info=info, **more)
        output, errors = started.communicate(timeout=60)
        assert "Traceback" not in errors
        return started.returncode, output, errors

    def token(self, *arguments: str, info: str | None = exec_info(), **more: str) -> str:
        """Call it and give the token."""
        code, output, errors = self.call(*arguments, info=info, **more)
        assert code == 0, errors
        return json.loads(output)["status"]["token"]

    def refusal(self, *arguments: str, info: str | None = exec_info(), **more: str) -> tuple[int, str]:
        """Call it and give the code and the one line that it ends with."""
        code, output, errors = self.call(*arguments, info=info, **more)
        assert (output, errors.count("\n")) == ("", 1), (output, errors)
        return code, errors.removeprefix("kubectl-keystone-auth: ").removesuffix("\n")

    def cache(self, *arguments: str, **more: str) -> Cache:
        """Give what is kept of the login that these arguments name."""
        return Cache(str(self.folder), read(list(arguments), self.environment(**more)).login())

    def age(self, seconds: float, left: float | None = None, *arguments: str, **more: str) -> None:
        """Let the token at hand be older by so many seconds, and if asked have so many left."""
        path = Path(self.cache(*arguments, **more).path)
        lines = path.read_text().split("\n")
        lines[2] = str(float(lines[2]) - seconds)
        if left is not None:
            lines[3] = str(float(lines[2]) + seconds + left)
        path.write_text("\n".join(lines))

    def kept(self) -> str:
        """Everything that lies in the cache."""
        found = [path.name + path.read_bytes().decode("latin-1") for path in self.folder.glob("*")]
        return "".join(found)
