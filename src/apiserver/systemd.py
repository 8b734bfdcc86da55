"""What is asked of systemd and of the running API server's process. Every call has a time limit."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

from apiserver.args import Args, from_words
from apiserver.model import WiringError

_LOG_LINES = 20
_LOG_WIDTH = 300
# Tokens of Keystone (Fernet), JWTs, Charmed Kubernetes' `uid::token`, what follows "Bearer" or "token=", and any long
# run of characters that is neither a path nor a flag's name.
_SECRETS = re.compile(
    r"gAAAA[\w=-]+|eyJ[\w.=-]+|[^\s\"']+::[^\s\"']+"
    r"|(?i:(?<=bearer )|(?<=token=)|(?<=password=))[^\s\"']+"
    r"|(?<![\w/.-])(?=[a-z-]*[A-Z0-9])[A-Za-z0-9+/_=-]{32,}"
)


def show(unit: str, name: str) -> str:
    """Give a property of a unit; empty where there is none, or no answer."""
    done = _systemctl("show", "-p", name, "--value", unit, timeout=20)
    return done.stdout.strip() if done else ""


def active(unit: str) -> bool:
    """Whether the unit runs. One that is restarted by systemd after a crash does not, for the moment."""
    return show(unit, "ActiveState") == "active"


def restart(unit: str, timeout: float) -> str:
    """Restart a unit, or start it, even one that has failed too often. Returns what systemctl complained about."""
    if show(unit, "ActiveState") == "failed":
        _systemctl("reset-failed", unit, timeout=20)
    done = _systemctl("restart", unit, timeout=timeout)
    if done is None:
        return f"systemctl restart {unit} did not end within {timeout:.0f} s"
    return done.stderr.strip() if done.returncode else ""


def stop(unit: str) -> None:
    """Stop a unit, be it there or not."""
    _systemctl("stop", unit, timeout=30)


def has_drop_in(unit: str, path: Path) -> bool:
    """Whether systemd, as it is now, takes this file into account for the unit."""
    return str(path) in show(unit, "DropInPaths").split()


def reload_if_needed(*units: str) -> None:
    """Have systemd read its files again if what it knows of one of the units is not what is on disk.

    Asked of systemd instead of remembered, so that a run that was killed in between does no harm.
    """
    if any(show(unit, "NeedDaemonReload") == "yes" for unit in units):
        daemon_reload()


def daemon_reload() -> None:
    """Have systemd read its files again."""
    done = _systemctl("daemon-reload", timeout=90)
    if done is None or done.returncode:
        raise WiringError(f"systemctl daemon-reload failed: {done.stderr.strip() if done else 'no end within 90 s'}")


def running_args(unit: str) -> Args | None:
    """Give the flags that the unit's process runs with; None where it does not run.

    Where the main process is a wrapper that waits for the real one, its children's count as well.
    """
    pid = show(unit, "MainPID")
    if not pid.isdecimal() or pid == "0":
        return None
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    found: list[str] = []
    for process in (pid, *children):
        with contextlib.suppress(OSError):  # ended in between
            found += Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return from_words(found) if found else None


def log_tail(unit: str, since: float) -> tuple[str, ...]:
    """Give the unit's last lines since a time (Unix), shortened and without anything that looks like a secret."""
    command = [
        "journalctl",
        "-u",
        unit,
        "--since",
        f"@{int(since)}",
        "-n",
        str(_LOG_LINES),
        "-o",
        "cat",
        "--no-pager",
        "-q",
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = done.stdout.decode(errors="replace").splitlines()[-_LOG_LINES:]
    return tuple(_SECRETS.sub("[…]", line)[:_LOG_WIDTH] for line in lines if line.strip())


def _systemctl(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            ["systemctl", *arguments], capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        raise WiringError(f"systemctl cannot be run: {error}") from error
