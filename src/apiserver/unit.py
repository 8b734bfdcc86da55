"""The way of an API server that is a systemd unit; see `ways.Way` for what the methods mean.

What is done is done by the script before each start (`script.py`) and by systemd (`systemd.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from apiserver import args, files, script, systemd, wanted
from apiserver.args import Args
from apiserver.model import UnitLayout
from apiserver.process import Process
from apiserver.wanted import Wanted


@dataclass(frozen=True)
class Unit:
    """An API server that systemd runs."""

    layout: UnitLayout

    @property
    def evidence(self) -> str:
        """The unit, and its file or folder."""
        read = args.sources(self.layout)
        return f"{self.layout.service} with {read[0] if read == (self.layout.args_file,) else self.layout.args_folder}"

    @property
    def where(self) -> str:
        """The files."""
        return ", ".join(str(path) for path in args.sources(self.layout))

    @property
    def log(self) -> str:
        """The journal."""
        return f"`journalctl -u {self.layout.service}`"

    def check(self) -> None:
        """Do nothing: there is always room for a line."""

    def read(self) -> Args:
        """Read the files."""
        return args.read(self.layout)

    def others(self) -> Args:
        """Ask the script, which tells them apart."""
        return args.parse(script.others(self.layout))

    def modes(self, flags: Args) -> tuple[str, ...]:
        """Give those of all lines, or of the last file."""
        return args.modes(self.layout, flags)

    def named(self, path: str) -> bytes:
        """Read it from where the unit is started."""
        return self.file(path)[1].read_bytes()

    def file(self, path: str) -> tuple[PurePosixPath, Path]:
        """Put in what the snaps' wrappers do, and where the unit is started; the machine's names are the server's."""
        folders = {"SNAP_DATA": self.layout.working_folder, "SNAP_COMMON": self.layout.config_folder.parent}
        for name, folder in folders.items():
            for spelled in (f"${name}/", f"${{{name}}}/"):
                if path.startswith(spelled):
                    path = str(folder / path.removeprefix(spelled))
        found = self.layout.working_folder / path
        return PurePosixPath(found), found

    def seen(self, path: str) -> PurePosixPath:
        """Take the machine's name."""
        return self.file(path)[0]

    def installed(self) -> bool:
        """Look for script and drop-in."""
        return script.installed(self.layout)

    def install(self) -> None:
        """Put script, drop-in and units in place."""
        script.install(self.layout)

    def uninstall(self) -> None:
        """Take them away, and what a script that was killed left half done."""
        script.uninstall(self.layout)
        place = self.layout.place
        for folder in (self.layout.args_file.parent, place.chain_file.parent, place.state_folder):
            (folder / script.TEMPORARY).unlink(missing_ok=True)

    def chain(self) -> None:
        """Have the script do it, as it will before each start."""
        script.chain(self.layout)

    def write_files(self, contents: Mapping[Path, bytes]) -> None:
        """Write them for root, as whom the unit runs."""
        for path, content in contents.items():
            files.write(path, content, 0o600)

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: a trial has one start, whatever becomes of the charm."""
        return contextlib.nullcontext()

    def start_with(self, trial: Wanted, seconds: float) -> str:
        """Write `wanted`, which the script obeys, and restart."""
        wanted.write(self.layout.place, trial)
        return systemd.restart(self.layout.service, seconds)

    def cut(self) -> None:
        """Have the script do it, where there is anything of ours."""
        texts = [files.read(path) or b"" for path in (self.layout.args_file, script.own_file(self.layout)) if path]
        if not any(str(self.layout.config_folder).encode() in text for text in texts):
            return
        script.install_script(self.layout)
        script.run(self.layout, "cut")

    def start_without(self, seconds: float) -> str:
        """Restart."""
        return systemd.restart(self.layout.service, seconds)

    def running(self) -> Process | None:
        """Ask systemd for the process; where that shows no flags, its file is taken for them."""
        pid = systemd.show(self.layout.service, "MainPID")
        found = systemd.running_args(self.layout.service)
        if found is None:
            return None
        with contextlib.suppress(OSError):  # ended in between
            return Process.of(int(pid), found if self.layout.flags_shown else self.read())
        return None

    def unread(self, running: Process) -> bool:
        """Compare the times of file and process."""
        if self.layout.flags_shown:
            return False
        return any(running.older_than(path) for path in args.sources(self.layout))

    def life(self) -> str:
        """Give the InvocationID."""
        return systemd.show(self.layout.service, "InvocationID")

    def down(self, for_any_reason: bool) -> bool:
        """Ask systemd."""
        state = systemd.show(self.layout.service, "ActiveState")
        return state in (("failed", "inactive") if for_any_reason else ("failed",))

    def with_ours(self) -> bool:
        """Look at the process, or, where that shows no flags, at what the script wrote down about its start."""
        if not self.layout.flags_shown:
            return self._given() is not None
        running = systemd.running_args(self.layout.service)
        return running is not None and running.mentions(self.layout.config_folder)

    def in_force(self, what: Wanted) -> bool:
        """Look where `with_ours` does."""
        if not what.lines:
            return systemd.running_args(self.layout.service) is not None
        if not self.layout.flags_shown:
            return self._given() == ("yes", what.digest)
        running = systemd.running_args(self.layout.service)
        return running is not None and all(running.include(flag) for flag in args.flag_lines(what.lines).flags)

    def log_tail(self, since: float) -> tuple[str, ...]:
        """Read the journal."""
        return systemd.log_tail(self.layout.service, since)

    def _given(self) -> tuple[str, ...] | None:
        """Give what the script wrote down about the running process's start: how sure it is, and a digest."""
        content = files.read(script.given_path(self.layout))
        running = content and systemd.running_args(self.layout.service) is not None
        return tuple(content.decode().split()) if content and running else None
