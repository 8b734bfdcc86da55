"""The machine's users and services: the few commands that the rest needs, with errors that say what failed.

Not here: files (files.py), and the API server's own service (apiserver).
"""

from __future__ import annotations

import grp
import subprocess
import sys
import types
from pathlib import Path

from charmhelpers import osplatform

# charmhelpers knows Ubuntu and CentOS alone and refuses to be imported elsewhere; the test bed's machine is a Debian,
# where the users' and services' commands are the same.
osplatform.get_platform = lambda: "ubuntu"

# charmhelpers 1.2.1 imports a class from distutils, which Python 3.12 has no more, for a question about Juju's version
# that is not asked here.
_version = types.ModuleType("distutils.version")
_version.LooseVersion = type("LooseVersion", (), {})  # pyright: ignore[reportAttributeAccessIssue]
_stand_ins = {"distutils": types.ModuleType("distutils"), "distutils.version": _version}
_had = {name: sys.modules[name] for name in _stand_ins if name in sys.modules}
sys.modules |= _stand_ins
try:
    from charmhelpers.core import host as charmhelpers_host
finally:
    for _name in _stand_ins:
        del sys.modules[_name]
    sys.modules |= _had


class HostError(Exception):
    """A command on the machine failed; the text says which one and what it said."""


def ensure_user(name: str) -> None:
    """Make the system user and the group of this name, without shell or home; nothing happens where they are."""
    if not charmhelpers_host.group_exists(name):
        charmhelpers_host.add_group(name, system_group=True)
    if not charmhelpers_host.user_exists(name):
        # Not charmhelpers' adduser: it leaves a system user the default shell.
        run(
            "useradd",
            "--system",
            "--gid",
            name,
            "--shell",
            "/usr/sbin/nologin",
            "--home-dir",
            "/nonexistent",
            "--no-create-home",
            name,
        )


def remove_user(name: str) -> None:
    """Remove the user and the group of this name where they are."""
    if charmhelpers_host.user_exists(name):
        run("userdel", name)
    if charmhelpers_host.group_exists(name):
        run("groupdel", name)


def group_id(name: str) -> int:
    """Give the ID of a group that is there."""
    return grp.getgrnam(name).gr_gid


def systemctl(*arguments: str, timeout: float = 90) -> str:
    """Run systemctl and return what it printed.

    Raises:
        HostError: it failed, or took longer than `timeout` seconds.
    """
    return run("systemctl", *arguments, timeout=timeout)


def is_active(unit: str) -> bool:
    """Tell whether a unit is running (or, for a socket, listening)."""
    done = subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False, timeout=30, capture_output=True)
    return done.returncode == 0


def journal(unit: str, lines: int = 5) -> str:
    """Give the last lines that a unit's own processes logged, or nothing where there are none."""
    try:
        # Not --unit: what systemd says about the unit would come last, and says less.
        query = ["--no-pager", "--quiet", "--output=cat", f"--lines={lines}", f"_SYSTEMD_UNIT={unit}"]
        return run("journalctl", *query, timeout=30).strip()
    except HostError:
        return ""


def run(*command: str, timeout: float = 90) -> str:
    """Run a command and return its output.

    Raises:
        HostError: it is not there, failed, or took longer than `timeout` seconds.
    """
    shown = " ".join([Path(command[0]).name, *command[1:]])
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise HostError(f"{shown}: no such program on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{shown}: took longer than {timeout:.0f} s") from error
    if done.returncode != 0:
        raise HostError(f"{shown}: {done.stderr.strip() or done.stdout.strip() or f'exit code {done.returncode}'}")
    return done.stdout
