"""The way of an API server that is a static pod; see `ways.Way` for what the methods mean.

Our lines are put into the manifest by `manifest.py`, and taken out by the script `apiserver-pod` among the templates,
which watches over them whether the charm lives or not. What the running server was given is read from its process's
command line: a container's process is one of the machine's as well.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import grp
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from apiserver import args, files, process, script, systemd, wanted, yamltext
from apiserver.args import Args
from apiserver.manifest import MARK, Manifest, foreign
from apiserver.model import Conflict, WiringError
from apiserver.process import Process
from apiserver.static_pod import StaticPod
from apiserver.wanted import Wanted

_WATCH = "kubernetes-keystone-watch.service"
_BYPASS = "kubernetes-keystone-bypass.service"
_CONTAINER = "kube-apiserver"
_GUARD_SECONDS = 40  # the script tries the lock for a moment, too
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


@dataclass(frozen=True)
class Pod:
    """An API server that the kubelet runs."""

    layout: StaticPod

    @property
    def evidence(self) -> str:
        """The manifest."""
        return f"the kubelet with {self.layout.manifest}"

    @property
    def where(self) -> str:
        """The manifest."""
        return str(self.layout.manifest)

    @property
    def log(self) -> str:
        """Where the kubelet has the container's output written, whatever runs it."""
        return f"{self._logs}/kube-system_kube-apiserver-*"

    # --- what is there

    def check(self) -> None:
        """See that lines can be put in and taken out, and that the pod could reach us."""
        found = self._manifest()
        whole = self.layout.manifest.read_bytes().decode(errors="replace")
        if number := foreign(whole, self.layout.config_folder):
            raise yamltext.conflict(self.layout.manifest, f"line {number} ends in '{MARK}' and is not ours")
        if not found.host_network:
            raise Conflict(
                f"{self.layout.manifest} has not `hostNetwork: true`, so the API server cannot reach the authenticator "
                "on 127.0.0.1; nothing was changed"
            )
        manifests = self.layout.manifest.resolve().parent
        etc = _existing(self.layout.config_folder).resolve()
        if manifests.stat().st_dev != etc.stat().st_dev:
            raise Conflict(
                f"{manifests} and {self.layout.config_folder} are on different file systems, so that no manifest can "
                "be put in place by one rename; nothing was changed"
            )

    def read(self) -> Args:
        """Read the manifest."""
        return Manifest.parse(self.layout.manifest, self.layout.manifest.read_bytes()).args

    def others(self) -> Args:
        """Read the manifest without our lines."""
        return self._manifest().args

    def modes(self, flags: Args) -> tuple[str, ...]:
        """Give those of all flags; a mode in two of them and the API server ends."""
        return flags.items(args.MODE)

    def named(self, path: str) -> bytes:
        """Find it through the pod's volumes."""
        return self._content(self._manifest(), PurePosixPath("/", path))

    def seen(self, path: str) -> PurePosixPath:
        """Take the pod's name."""
        return PurePosixPath("/", path)

    def file(self, path: str) -> tuple[PurePosixPath, Path]:
        """Find it through the pod's volumes, of its folder: where a file is mounted alone, that file stays there."""
        found, seen = self._manifest(), self.seen(path)
        if found.mounts_alone(seen):
            raise Conflict(
                f"{self.layout.manifest} mounts {seen} alone, so that the API server would not see another file in its "
                "place: mount its folder; nothing was changed"
            )
        host = found.on_host(seen)
        if host is None:
            raise Conflict(f"{seen} is in no hostPath volume of {self.layout.manifest}; nothing was changed")
        return seen, self.layout.place.root / host.relative_to("/")

    # --- what keeps it safe

    def installed(self) -> bool:
        """Look for script and unit."""
        return self.layout.place.pod_script.exists() or (self.layout.place.unit_folder / _WATCH).exists()

    def install(self) -> None:
        """Put script and units in place, and start to watch."""
        self._install_script()
        values = {"script": self.layout.place.pod_script}
        for unit in (_WATCH, _BYPASS):
            files.write(self.layout.place.unit_folder / unit, script.render(unit, values), 0o644)
        systemd.reload_if_needed(_WATCH, _BYPASS)
        if systemd.show(_WATCH, "ActiveState") != "active" or systemd.show(_WATCH, "UnitFileState") != "enabled":
            systemd.enable(_WATCH)

    def uninstall(self) -> None:
        """Take script and units away."""
        place = self.layout.place
        paths = [place.unit_folder / unit for unit in (_WATCH, _BYPASS)]
        there = any(path.exists() for path in paths)
        if there:
            systemd.disable(_WATCH)
        for path in (*paths, place.pod_script, place.state_folder / script.TEMPORARY):
            files.remove(path)
        if there:
            systemd.daemon_reload()
        with contextlib.suppress(OSError):  # others keep things there, too
            place.pod_script.parent.rmdir()

    def chain(self) -> None:
        """Find the displaced webhook's files through the pod's own volumes; they keep the names that the pod knows."""
        place = self.layout.place
        found = self._manifest()
        lines = ["chained 1"]
        kubeconfig = found.args.last("authentication-token-webhook-config-file")
        if kubeconfig:
            version = found.args.last("authentication-token-webhook-version") or "v1beta1"
            ttl = found.args.last("authentication-token-webhook-cache-ttl") or "2m"
            path = PurePosixPath("/", kubeconfig)
            content = self._content(found, path)
            lines += [f"version {version}", f"ttl {ttl}", _record("kubeconfig", path, content)]
            named = sorted({path.parent / name for name in _named_files(content)})
            lines += [_record("file", name, self._content(found, name)) for name in named]
        else:
            lines.append("none")
        reader = grp.getgrnam(place.reader).gr_gid
        files.write(place.chain_file, "".join(f"{line}\n" for line in lines).encode(), 0o640, (os.geteuid(), reader))

    # --- the change itself

    def write_files(self, contents: Mapping[Path, bytes]) -> None:
        """Write them for the user that the container runs as."""
        owner = self._manifest().owner if os.geteuid() == 0 else None
        for path, content in contents.items():
            files.write(path, content, 0o600, owner)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Hold a lock that ends with this process: when the script finds it free, a trial is over."""
        files.folder(self.layout.config_folder)
        descriptor = os.open(self.layout.config_folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _until(lambda: _locked(descriptor), _GUARD_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def start_with(self, trial: Wanted, seconds: float) -> str:
        """Put our lines in by one rename, and wait until the kubelet has started the server with them."""
        folder, place = self.layout.config_folder, self.layout.place
        manifest = self.layout.manifest.resolve()  # a link stays one
        found = self._manifest()
        edited = found.with_flags(args.flag_lines(trial.lines).flags, folder)
        if self._run("others", edited) != found.text:
            raise Conflict(f"{manifest} cannot be edited so that it could be undone; nothing was changed")
        have = manifest.stat()
        mode, owner = have.st_mode & 0o7777, (have.st_uid, have.st_gid)
        files.write(folder / "manifest.ours", edited.encode(), 0o600)
        self._keep(manifest, found.text)
        wanted.write(place, replace(trial, starts=0, life=wanted.taken()))
        new = folder / script.TEMPORARY
        new.unlink(missing_ok=True)
        files.write(new, edited.encode(), mode, owner)
        new.replace(manifest)
        _sync(manifest.parent)
        if not _until(lambda: self.in_force(trial), seconds):
            return f"the kubelet did not start the API server with Keystone's flags within {seconds:.0f} s"
        return ""

    def cut(self) -> None:
        """Have the script do it, where there is anything of ours."""
        if b"kubernetes-keystone" in (files.read(self.layout.manifest) or b""):
            self._install_script()
            self._run("cut")

    def start_without(self, seconds: float) -> str:
        """Wait for the kubelet, which has seen that the manifest is another one."""
        if not _until(lambda: not self.with_ours() and any(process.servers()), seconds):
            return f"the kubelet did not start the API server without Keystone's flags within {seconds:.0f} s"
        return ""

    # --- what runs

    def running(self) -> Process | None:
        """Find the API server that listens where the manifest says: others may be seen from here, such as kind's."""
        found = list(process.servers())
        try:
            flags = self.read()
        except WiringError:  # a manifest that cannot be read, as with a shell's command
            return found[0] if len(found) == 1 else None
        where = ("advertise-address", "secure-port")
        return next((one for one in found if all(one.flags.last(name) == flags.last(name) for name in where)), None)

    def unread(self, running: Process) -> bool:  # noqa: ARG002
        """Give False: its command line says what it was given."""
        return False

    def life(self) -> str:
        """Name the processes and when they began."""
        return " ".join(sorted(running.life for running in process.servers()))

    def down(self, for_any_reason: bool) -> bool:
        """Look for a process; the kubelet gives nothing up for good."""
        return for_any_reason and not any(process.servers())

    def with_ours(self) -> bool:
        """Look at the processes."""
        return any(running.flags.mentions(self.layout.config_folder) for running in process.servers())

    def in_force(self, what: Wanted) -> bool:
        """Look at the processes."""
        flags = args.flag_lines(what.lines).flags
        return any(all(running.flags.include(flag) for flag in flags) for running in process.servers())

    def log_tail(self, since: float) -> tuple[str, ...]:
        """Read the newest file of the container's output that was written since (format: CRI, `TIME STREAM F TEXT`)."""
        newest: tuple[float, Path] | None = None
        for path in self._logs.glob(f"kube-system_kube-apiserver-*/{_CONTAINER}/*.log"):
            with contextlib.suppress(OSError):  # rotated in between
                at = path.stat().st_mtime
                if at >= int(since) and (newest is None or at > newest[0]):
                    newest = at, path
        if newest is None:
            return ()
        try:
            with newest[1].open("rb") as file:
                file.seek(max(0, newest[1].stat().st_size - 1_000_000))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ()
        return systemd.telling([line.split(" ", 3)[-1] for line in lines if line.strip()])

    # ---

    @property
    def _logs(self) -> Path:
        return self.layout.place.root / "var/log/pods"

    def _manifest(self) -> Manifest:
        """Read what others have in the manifest."""
        text = self.layout.manifest.read_bytes()
        if b"kubernetes-keystone" in text:
            Manifest.parse(self.layout.manifest, text)  # in its own words what cannot be read
            text = self._run("others", text.decode()).encode()
        return Manifest.parse(self.layout.manifest, text)

    def _keep(self, manifest: Path, text: str) -> None:
        """Keep the very file as it is, if nothing of ours is in it, for the way back."""
        before = self.layout.config_folder / "manifest.before"
        if manifest.read_bytes() == text.encode():
            before.unlink(missing_ok=True)
            try:
                os.link(manifest, before)
            except OSError:
                shutil.copy2(manifest, before)
                os.chown(before, manifest.stat().st_uid, manifest.stat().st_gid)

    def _content(self, found: Manifest, path: PurePosixPath) -> bytes:
        """Read a file of the machine by the name that the pod knows."""
        host, why = found.on_host(path), "which the API server's token webhook needs"
        if host is None:
            raise WiringError(f"{path}, {why}, is in no hostPath volume of its pod")
        try:
            content = (self.layout.place.root / host.relative_to("/")).read_bytes()
        except OSError as error:
            raise WiringError(f"cannot read {host}, {why}: {error.strerror}") from None
        if not content:
            raise WiringError(f"{host}, {why}, is empty")
        return content

    def _install_script(self) -> None:
        files.write(self.layout.place.pod_script, self._script(), 0o755)

    def _script(self) -> bytes:
        place = self.layout.place
        return script.render(
            "apiserver-pod",
            {
                "manifest": self.layout.manifest.resolve(),
                "config_folder": self.layout.config_folder,
                "wanted": place.wanted,
                "lock": place.lock,
                "hook": place.hook,
                "alone": place.alone,
                "authorizer": place.authorizer_script,
            },
        )

    def _run(self, mode: str, given: str = "") -> str:
        """Run the script, be it installed or not.

        Raises:
            WiringError: with what it said, where it did not succeed.

        """
        return script.execute(self.layout.place.pod_script, mode, text=self._script(), given=given).decode()


def _named_files(kubeconfig: bytes) -> Iterator[str]:
    """Give the files that a kubeconfig names."""
    try:
        config: Any = yaml.safe_load(kubeconfig)
        entries = [one["cluster"] for one in config.get("clusters") or ()]
        entries += [one["user"] for one in config.get("users") or ()]
        for entry in entries:
            yield from (str(entry[name]) for name in _FILES if entry and entry.get(name))
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
        raise WiringError("the API server's token webhook has a kubeconfig that cannot be read") from None


def _record(kind: str, path: PurePosixPath, content: bytes) -> str:
    return f"{kind} {base64.b64encode(content).decode()} {path}"


def _existing(path: Path) -> Path:
    """Give the path, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; the process of a server that ends at once is seen only by who looks often."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
