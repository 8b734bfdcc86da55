"""What somebody who has taken over a service of ours would try; run inside the service's sandbox, on the machine.

Prints a line of JSON: each attempt, and `done` or the name of the error that it ended with. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
# No function of the C library's: numbers of the system calls, by machine.
SYSCALLS = {
    "x86_64": {"load a kernel module": 175, "load a BPF program": 321, "watch the processor": 298, "take a key": 250},
    "aarch64": {"load a kernel module": 105, "load a BPF program": 280, "watch the processor": 241, "take a key": 219},
}
PTRACE_ATTACH, CLONE_NEWUSER, CLONE_NEWNS, MS_BIND, ADDR_NO_RANDOMIZE = 16, 0x10000000, 0x20000, 4096, 0x40000
REBOOT_CAD_OFF = 0


def call(result: int) -> None:
    """Raise what a function of the C library failed with."""
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")


def write(folder: str) -> None:
    path = Path(folder, f"intruder-{os.getpid()}")
    path.touch()
    path.unlink()


def listen(family: int, kind: int, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def set_user_bit() -> None:
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0o4755)  # noqa: PTH101


def write_and_execute() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def see_others() -> None:
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and entry.stat().st_uid != os.getuid():
            return
    raise PermissionError(errno.EACCES, "there are only processes of this user's")


def become_root() -> None:
    os.setresuid(0, 0, 0)
    if os.getuid() != 0 or b"CapEff:\t0000000000000000" in Path("/proc/self/status").read_bytes():
        raise PermissionError(errno.EPERM, "not with any privilege")


def stop_the_socket() -> None:
    command = ["systemctl", "--no-ask-password", "stop", "kubernetes-keystone.socket"]
    if os.spawnvp(os.P_WAIT, "systemctl", command) != 0:
        raise PermissionError(errno.EACCES, "the system's manager refuses")


def attempts(victim: int, readable: list[str], hidden: list[str]) -> dict[str, Callable[[], object]]:
    calls = SYSCALLS[os.uname().machine]
    made: dict[str, Callable[[], object]] = {
        **{f"read {path}": Path(path).read_bytes for path in (*readable, *hidden)},
        **{
            f"write to {folder}": lambda folder=folder: write(folder)
            for folder in (
                *("/etc", "/etc/kubernetes-keystone", "/usr/bin", "/opt/kubernetes-keystone", "/var/lib"),
                *("/var/lib/kubernetes-keystone", "/var/log", "/run", "/root", "/home", "/boot", "/tmp"),
            )
        },
        "write to the kernel's settings": lambda: Path("/proc/sys/kernel/core_pattern").write_text("|/bin/sh"),
        "write to a cgroup": lambda: Path("/sys/fs/cgroup/cgroup.procs").write_text(str(os.getpid())),
        "read the kernel's log": lambda: open("/dev/kmsg", "rb").close(),  # noqa: PTH123
        "open a raw socket": lambda: listen(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "open a packet socket": lambda: listen(socket.AF_PACKET, socket.SOCK_RAW),
        "open a netlink socket": lambda: listen(socket.AF_NETLINK, socket.SOCK_RAW),
        "open a vsock": lambda: listen(socket.AF_VSOCK, socket.SOCK_STREAM),
        "see other processes": see_others,
        "read another's environment": Path(f"/proc/{victim}/environ").read_bytes,
        "signal another process": lambda: os.kill(victim, 0),
        "trace another process": lambda: call(LIBC.ptrace(PTRACE_ATTACH, victim, 0, 0)),
        "become root": become_root,
        "make a program that becomes somebody": set_user_bit,
        "map memory that can be written and executed": write_and_execute,
        "make a user namespace": lambda: call(LIBC.unshare(CLONE_NEWUSER)),
        "make a mount namespace": lambda: call(LIBC.unshare(CLONE_NEWNS)),
        "mount something": lambda: call(LIBC.mount(b"/tmp", b"/etc", b"none", MS_BIND, None)),
        "change the root folder": lambda: os.chroot("/tmp"),
        "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time() + 3600),
        "set the host's name": lambda: socket.sethostname("intruder"),
        "reboot": lambda: call(LIBC.reboot(REBOOT_CAD_OFF)),
        "be scheduled before all others": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "take the randomness off addresses": lambda: call(LIBC.personality(ADDR_NO_RANDOMIZE)),
        "stop the socket": stop_the_socket,
        **{name: lambda number=number: call(LIBC.syscall(number, 0, 0, 0, 0, 0)) for name, number in calls.items()},
    }
    return made


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = attempts(given["victim"], given["readable"], given["hidden"])
    print(json.dumps({name: outcome(attempt) for name, attempt in found.items()}), flush=True)
