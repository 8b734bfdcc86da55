"""The plug-in where what only POSIX has is gone, modules and functions: as much of Windows as there is without it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.unit.plugin.support import PASSWORD, USER

ALICE = {"OS_PASSWORD": PASSWORD}
WINDOWS = """
import fcntl, os, subprocess, sys, types  # the standard library takes a system with msvcrt for Windows

locks = []

def locking(descriptor, mode, count):
    locks.append((mode, count))
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, os.lseek(descriptor, 0, os.SEEK_CUR))

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
for name in ("fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "syslog"):
    sys.modules[name] = None
for name in ("getuid", "geteuid", "getgid", "getegid", "fork", "chown", "fchown", "O_NOFOLLOW", "O_NONBLOCK"):
    delattr(os, name)
os.name = "nt"
from kubectl_keystone_auth import cache
os.name = "posix"  # for the standard library, which is this system's
assert cache.WINDOWS
"""
ALL = """
import importlib, pkgutil
import kubectl_keystone_auth

for module in pkgutil.iter_modules(kubectl_keystone_auth.__path__):
    if module.name != "__main__":
        importlib.import_module(f"kubectl_keystone_auth.{module.name}")
print("imported")
"""
CALL = """
from kubectl_keystone_auth.main import main

code = main()
print(code, *locks)
"""


@pytest.fixture
def run(plugin):
    def called(program: str, *arguments: str, **environment: str) -> list[str]:
        command = [sys.executable, "-c", WINDOWS + program, *arguments]
        done = subprocess.run(command, env=plugin.environment(**environment), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return called


def test_no_module_needs_what_windows_has_not_to_be_imported(run):
    assert run(ALL) == ["imported"]


def test_a_login_is_kept_under_a_lock_of_windows_own_and_found_again(run, keystone):
    url = f"--keystone-url={keystone.url}"
    first, how = run(CALL, url, *USER, **ALICE)
    assert how == "0 (2, 1)"
    again, how = run(CALL, url, *USER, **ALICE)
    assert how == "0"
    assert json.loads(again)["status"]["token"] == json.loads(first)["status"]["token"]
    assert keystone.logins == 1
