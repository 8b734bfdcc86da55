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
_WITH, _WITHOUT = "starting with Keystone", "starting without Keystone"  # what the script says
_INFORMATION = re.compile(r"I\d{4} ")
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


def enable(unit: str) -> None:
    """Have a unit started with the machine, and now."""
    done = _systemctl("enable", "--now", unit, timeout=60)
    if done is None or done.returncode:
        raise WiringError(f"systemctl enable --now {unit}: {done.stderr.strip() if done else 'no end within 60 s'}")


def disable(unit: str) -> None:
    """Take that back, be it there or not."""
    _systemctl("disable", "--now", unit, timeout=60)


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
    """Give the last lines that the unit wrote in a trial begun at `since` (Unix time), without what may be a secret.

    What it wrote before the script put our flags in, and after it left them out, is not of interest; nor is what klog
    marks as information, if there is anything else. Read forwards, for `-n` with `--since` gives the first lines.
    """
    command = ["journalctl", "-u", unit, "--since", f"@{int(since)}", "-o", "cat", "--no-pager", "-q"]
    limited = ["timeout", "20", "sh", "-c", '"$@" | head -c 8000000', "sh", *command]
    try:
        done = subprocess.run(limited, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    begin = next((n + 1 for n, line in enumerate(lines) if _WITH in line), 0)
    end = next((n for n, line in enumerate(lines) if n >= begin and _WITHOUT in line), len(lines))
    lines = lines[begin:end]
    return telling(lines)


def telling(lines: list[str]) -> tuple[str, ...]:
    """Give the last lines of a log that say more than information, without what may be a secret."""
    telling = [line for line in lines if not _INFORMATION.match(line)]
    return tuple(_SECRETS.sub("[…]", line)[:_LOG_WIDTH] for line in (telling or lines)[-_LOG_LINES:])


def _systemctl(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            ["systemctl", *arguments], capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        raise WiringError(f"systemctl cannot be run: {error}") from error
