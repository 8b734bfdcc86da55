"""A small machine with its own systemd, network address and root file system, for what must be tried on a whole system.

It is a systemd-nspawn container on an overlay of the image that `testbed.setup` makes. Its mounts and its network live
in namespaces that the kernel ends with it, so a test that is killed leaves a folder behind and nothing else, and the
next machine's start removes that. What runs on it is others' (`testbed.charmed`, `testbed.agent`). Needs root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from testbed import cache, setup
from testbed.cache import TestbedError, say

START_TIMEOUT = 60.0  # seconds; 3 to 8 are usual
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"
# Set aside for tests between machines (RFC 2544), so that no real network is hidden; each machine takes four addresses.
NETWORK = "198.18.{index}.{host}"
NETWORKS = 200

# In new mount, network and process namespaces, all of which end with its first process: control groups of its own (two
# machines must not share one), the overlay, a /run that systemd-nspawn may litter, a wait until the host has plugged in
# the network, then the machine; 133 asks for a reboot.
BOOT = """
for group in $GROUPS; do
    mkdir -p "$group" && echo 0 > "$group/cgroup.procs" || exit
done
mount -t overlay overlay -o "lowerdir=$IMAGE,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$FOLDER/root" || exit
mount -t tmpfs tmpfs /run || exit
read -r _
status=133
while [ $status = 133 ]; do
    systemd-nspawn --quiet --boot --register=no --keep-unit --console=pipe --resolv-conf=off --timezone=off \\
        --machine="$NAME" --directory="$FOLDER/root" --network-namespace-path=/proc/self/ns/net "$@"
    status=$?
done
exit $status
"""
NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


class CommandFailed(TestbedError):
    """A command on the machine ended with an error; `code`, `stdout` and `stderr` have what it left."""

    def __init__(self, command: str, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        super().__init__(f"{command} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")


class Machine:
    """A machine of one's own.

    Args:
        name: its host name.
        binds: what it sees of this system, read-only: path there to path here.

    """

    def __init__(self, name: str = "control-plane-0", binds: Mapping[str, Path] | None = None) -> None:
        self.name = name
        self.binds = dict(binds or {})
        self.address = ""
        self.host_address = ""
        self._beyond: list[str] = []
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._index: int | None = None

    # --- its life

    def __enter__(self) -> Machine:
        """Boot it, and wait until its systemd says that it runs."""
        if os.geteuid() != 0:
            raise TestbedError("a machine of the test bed needs root: run it with sudo")
        self._image = setup.machine_image()
        clean()
        self._run = cache.Run(self.name)
        self._folder = self._run.folder
        try:
            for part in ("upper", "work", "root", "upper/etc"):
                (self._folder / part).mkdir(mode=0o755)
            etc = self._folder / "upper/etc"
            (etc / "hostname").write_text(f"{self.name}\n")
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n::1 localhost\n")
            (etc / "resolv.conf").write_text("")  # there is no name server: names fail at once
            self.power_on()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it at once, as a power cut would, and remove everything of it."""
        self.power_off()
        if self.address:
            subprocess.run(["ip", "route", "delete", *self._no_way_out()], capture_output=True)
        _remove_groups(self._folder)
        self._run.remove()

    def power_on(self) -> None:
        """Start it (again, after `power_off`), and wait until its systemd says that it runs."""
        log = (self._folder / "console").open("ab")
        binds = [f"--bind-ro={here}:{there}" for there, here in self.binds.items()]
        self._nspawn = subprocess.Popen(
            # With setpriv it dies with whoever started it, also when that is killed.
            ["setpriv", "--pdeathsig=KILL", "--", "unshare", *NAMESPACES, "sh", "-c", BOOT, "sh", *binds],
            env={
                "PATH": PATH,
                "IMAGE": str(self._image),
                "FOLDER": str(self._folder),
                "NAME": self.name,
                "GROUPS": " ".join(map(str, _groups(self._folder))),
            },
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self._plug_in()
        assert self._nspawn.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._nspawn.stdin.write(b"go\n")
            self._nspawn.stdin.flush()
        self.wait(self._runs, "its systemd to run", START_TIMEOUT)

    def _plug_in(self) -> None:
        """Connect the machine's network namespace with ours by a cable of its own."""
        assert self._nspawn is not None
        pid = self._nspawn.pid
        # unshare has to have happened before anything can be put into the new namespace
        ours = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{pid}/ns/net").readlink() == ours:
            if self._nspawn.poll() is not None:
                raise TestbedError(f"the machine does not start:\n{self.console()}")
            time.sleep(0.01)
        for index in range(NETWORKS) if self._index is None else (self._index,):
            interface = f"testbed{index}"
            cable = ["ip", "link", "add", interface, "type", "veth", "peer", "name", "host0", "netns", str(pid)]
            done = subprocess.run(cable, capture_output=True, text=True)
            if done.returncode == 0:
                break
            if "File exists" not in done.stderr:
                raise TestbedError(f"no network for the machine: {done.stderr.strip()}")
        else:
            raise TestbedError("all networks of the test bed are in use; look for testbed* in `ip link`")
        self._index = index
        self.host_address = NETWORK.format(index=index, host=1)
        self.address = NETWORK.format(index=index, host=2)
        there = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
        for command in (
            ["ip", "address", "add", f"{self.host_address}/30", "dev", interface],
            ["ip", "link", "set", interface, "up"],
            ["ip", "route", "replace", *self._no_way_out()],
            [*there, "address", "add", f"{self.address}/30", "dev", "host0"],
            [*there, "link", "set", "lo", "up"],
            [*there, "link", "set", "host0", "up"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        for address in self._beyond:
            self._route(address)

    def reach(self, address: str) -> None:
        """Let it reach another address of this system, such as the one that this system has for another machine."""
        if address != self.host_address and address not in self._beyond:
            self._beyond.append(address)
            self._route(address)

    def _route(self, address: str) -> None:
        assert self._nspawn is not None
        enter = ["nsenter", f"--net=/proc/{self._nspawn.pid}/ns/net"]
        subprocess.run(
            [*enter, "ip", "route", "replace", address, "via", self.host_address], check=True, capture_output=True
        )

    def _no_way_out(self) -> list[str]:
        """Give the route for when the machine is off: its packets must not leave this system by the default route."""
        return ["unreachable", f"{self.address.rpartition('.')[0]}.0/30", "metric", "4000"]

    def _runs(self) -> bool:
        if self._nspawn is None or self._nspawn.poll() is not None:
            hint = "if it says overlay: KUBERNETES_KEYSTONE_CACHE has to name a folder on a disk of its own"
            raise TestbedError(f"the machine {self.name} ended ({hint}):\n{self.console()}")
        if self._leader() is None:
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        if state == "degraded":
            failed = self.run("systemctl", "--failed", "--no-legend", "--plain", check=False).stdout
            raise TestbedError(f"the machine {self.name} started with failed units:\n{failed}")
        return state == "running"

    def power_off(self) -> None:
        """Cut its power: everything on it is killed. Its files stay until the context ends."""
        process, self._nspawn = self._nspawn, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        if self._index is not None:  # goes with the namespace, but not at once
            subprocess.run(["ip", "link", "delete", f"testbed{self._index}"], capture_output=True)

    @property
    def on(self) -> bool:
        """Whether it has power."""
        return self._nspawn is not None

    def reboot(self) -> None:
        """Shut it down in order and start it again; files and address stay."""
        before = self._leader()
        self.run("systemctl", "--no-block", "reboot")
        self.wait(lambda: self._leader() not in (None, before), "it to shut down", 120)
        self.wait(self._runs, "its systemd to run", START_TIMEOUT)

    def _leader(self) -> int | None:
        """Give the process that is PID 1 on the machine, if there is one."""
        if self._nspawn is None:
            return None
        return next((pid for pid in _descendants(self._nspawn.pid) if _is_init(pid)), None)

    def console(self) -> str:
        """Give the end of what its console showed."""
        return (self._folder / "console").read_text(errors="replace")[-4000:]

    # --- what one does on it

    def command(self, *command: str, env: Mapping[str, str] | None = None) -> list[str]:
        """Give the command line that runs a command on the machine, as root, from here."""
        leader = self._leader()
        if leader is None:
            raise TestbedError(f"the machine {self.name} is not running:\n{self.console()}")
        enter = ["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root"]
        base = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
        settings = [f"{name}={value}" for name, value in {**base, **(env or {})}.items()]
        return [*enter, "--", "env", "-i", *settings, *command]

    def run(
        self,
        *command: str,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine and wait for it.

        Args:
            command: program and arguments; no shell, unless it is one.
            check: whether an exit code but 0 is an error.
            input: for its standard input; otherwise that is empty.
            env: what to add to its (fresh) environment.
            timeout: seconds.

        Raises:
            CommandFailed: see `check`.
            TestbedError: if it takes longer.

        """
        try:
            done = subprocess.run(
                self.command(*command, env=env),
                input=input or "",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise TestbedError(f"{' '.join(command)} on {self.name} takes over {timeout:.0f} s") from error
        if check and done.returncode:
            raise CommandFailed(" ".join(command), done)
        return done

    def shell(self, script: str, *, check: bool = True, timeout: float = 300) -> str:
        """Run a shell script on the machine and give what it prints, the last newline aside."""
        return self.run("sh", "-ec", script, check=check, timeout=timeout).stdout.rstrip("\n")

    def write(self, path: str, content: str | bytes, mode: int = 0o644, owner: str = "root:root") -> None:
        """Write a file in place (what is there is overwritten, links are followed); folders are made as needed."""
        data = content.encode() if isinstance(content, str) else content
        script = 'mkdir -p "${1%/*}" && cat > "$1" && chown "$3" "$1" && chmod "$2" "$1"'
        command = self.command("sh", "-ec", script, "sh", path, f"{mode:o}", owner)
        done = subprocess.run(command, input=data, capture_output=True, timeout=120)
        if done.returncode:
            raise TestbedError(f"cannot write {path} on {self.name}: {done.stderr.decode(errors='replace')}")

    def read(self, path: str) -> bytes:
        """Give a file's bytes."""
        done = subprocess.run(self.command("cat", path), capture_output=True, timeout=120)
        if done.returncode:
            raise TestbedError(f"cannot read {path} on {self.name}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def exists(self, path: str) -> bool:
        """Tell whether a file or folder is there."""
        return self.run("test", "-e", path, check=False).returncode == 0

    def journal(self, unit: str, lines: int = 1000) -> str:
        """Give the end of a unit's journal, messages only."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-n", str(lines), "-u", unit).stdout

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Give properties of a unit as systemd shows them, such as `ActiveState`, `InvocationID`, `MainPID`."""
        told = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).stdout
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    def wait(self, condition: Callable[[], object], what: str, timeout: float = 60, every: float = 0.1) -> None:
        """Wait until a condition holds.

        Raises:
            TestbedError: after `timeout` seconds, naming `what` was waited for.

        """
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise TestbedError(f"{self.name}: waited {timeout:.0f} s for {what}")
            time.sleep(every)


def _descendants(pid: int) -> Iterator[int]:
    """Give the processes below one, nearest first."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children:
        yield int(child)
    for child in children:
        yield from _descendants(int(child))


def _is_init(pid: int) -> bool:
    """Tell whether a process is PID 1 of a PID namespace and is systemd already."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return fields.get("Name") == "systemd" and fields.get("NSpid", "").split()[-1:] == ["1"]


def _groups(folder: Path) -> list[Path]:
    """Give the machine's control groups: one in each hierarchy that its systemd will look at."""
    base = Path("/sys/fs/cgroup")
    hierarchies = [base] if (base / "cgroup.controllers").exists() else [base / "systemd", base / "unified"]
    return [hierarchy / f"testbed-{folder.name}" for hierarchy in hierarchies if hierarchy.is_dir()]


def _remove_groups(folder: Path) -> None:
    for _ in range(100):  # the kernel takes a moment to let go of killed processes
        for group in _groups(folder):
            for path, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(path).rmdir()
        if not any(group.exists() for group in _groups(folder)):
            return
        time.sleep(0.05)
    say(f"cannot remove {_groups(folder)}: some process is still in there")


def clean() -> None:
    """Remove what killed processes left: machines, and whatever else had a folder of `cache.Run`."""
    with cache.locked("clean"):
        for folder in cache.stale_runs():
            _remove_groups(folder)
            cache.remove(folder)
