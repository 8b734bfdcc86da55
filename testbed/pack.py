"""Pack the charm for the test bed: charmcraft in destructive mode, on this very system and for its Python.

    python3 -m testbed.pack            pack (or find in the cache), check, print the path
    python3 -m testbed.pack --check F  only check that a packed charm has what it needs and nothing else
    python3 -m testbed.pack --wheels   only check that the pins are wheels that fit together on every base of the charm
    python3 -m testbed.pack --proof    only have charm-tools look at this checkout

charmcraft packs in destructive mode only where the host calls itself the Ubuntu of charmcraft.yaml. Where it is
another Debian, it runs in a mount namespace of its own with an os-release that says Ubuntu 22.04; nothing outside that
namespace sees it. What comes out holds wheels for **this** Python and is for the test bed alone: the artefact that is
released is made by ``charmcraft pack`` on Ubuntu.

Not here: the development environment (make venv), and everything else of the test bed (testbed/setup).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parent.parent
CHARMCRAFT = "4.5.0"
CHARM_TOOLS = "3.0.9"
PIP = "25.3"
"""charmcraft wants a newer one than Ubuntu's, and would download it from a fixed address if it found none."""
INPUTS = (
    "charmcraft.yaml",
    "metadata.yaml",
    "config.yaml",
    "actions.yaml",
    "LICENSE",
    "copyright",
    "icon.svg",
    "requirements.txt",
    "requirements-authenticator.txt",
    "src",
    "templates",
)
SYSTEM_PYTHON = "/usr/bin/python3"
"""The distribution's: python3-apt is made for it, and a charm's hooks run on it."""
MEMBERS = (
    "dispatch",
    "metadata.yaml",
    "config.yaml",
    "actions.yaml",
    "manifest.yaml",
    "LICENSE",
    "copyright",
    "icon.svg",
    "src/charm.py",
    "src/apiserver/__init__.py",
    "src/prometheus_alert_rules/kubernetes-keystone.yaml",
    "src/grafana_dashboards/kubernetes-keystone.json",
    "authenticator/keystone-authenticator",
    "authenticator/lib/keystone_authenticator/__main__.py",
)
"""Without any one of these the packed charm cannot work."""
LOGINS = "src/kubectl_keystone_auth/logins"
"""All that charm and plug-in have in common: files that both read."""
SOURCE_ONLY = {"charmhelpers"}
"""Published without a wheel; pure Python, so that packing makes one in a second."""
PINS = ("requirements.txt", "requirements-authenticator.txt")
PYTHONS = ("3.10", "3.12")
"""Those of Ubuntu 22.04 and 24.04."""
MACHINES = ("x86_64", "aarch64")
GLIBC = "manylinux_2_35"
"""Ubuntu 22.04's, the older one."""
EXECUTABLE = ("dispatch", "src/charm.py", "authenticator/keystone-authenticator")
TOP_LEVEL = {
    "dispatch",
    "hooks",
    "metadata.yaml",
    "config.yaml",
    "actions.yaml",
    "manifest.yaml",
    "LICENSE",
    "copyright",
    "README.md",
    "icon.svg",
    "src",
    "venv",
    "templates",
    "authenticator",
    "lib",
}
"""All that a packed charm may have at its top."""


class PackError(Exception):
    """Packing failed, or what was packed is not fit; the message says what and where to look."""


def cache() -> Path:
    """Return the cache folder of packed charms and of charmcraft itself."""
    base = os.environ.get("KUBERNETES_KEYSTONE_CACHE") or Path.home() / ".cache" / "kubernetes-keystone"
    return Path(base) / "pack"


def pack() -> Path:
    """Pack the charm of this checkout, or find it in the cache, and check it.

    Returns:
        The path of the packed charm, named after a hash of all that went into it.

    Raises:
        PackError: packing failed (the log's path is in the message), or the check found something.
    """
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / "lock"):
        target = folder / f"kubernetes-keystone-{_hash()[:16]}.charm"
        _say(
            "a test-bed pack, for this system's Python; the artefact that is released is packed by charmcraft on Ubuntu"
        )
        if target.exists():
            _say(f"unchanged since it was packed: {target}")
            return target
        started = time.monotonic()
        pack_anew(target)
        for old in sorted(folder.glob("kubernetes-keystone-*.charm"), key=lambda path: path.stat().st_mtime)[:-5]:
            old.unlink()
        _say(f"packed in {time.monotonic() - started:.0f} s: {target} ({target.stat().st_size / 1e6:.1f} MB)")
        return target


def pack_anew(target: Path) -> None:
    """Pack the charm of this checkout, check it and have charmcraft analyse it; one and the same content each time.

    Raises:
        PackError: as `pack`.
    """
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    _say("packing the charm with charmcraft (usually 1 to 2 minutes, the first time 3)")
    charmcraft = _charmcraft(folder)
    with tempfile.TemporaryDirectory(prefix="tree-", dir=folder) as work:
        packed = _run_charmcraft(charmcraft, _copy_inputs(Path(work) / "kubernetes-keystone"), folder / "pack.log")
        _raise_for([*problems(packed), *_analysed(charmcraft, packed)])
        shutil.move(packed, target)


def problems(charm: Path) -> list[str]:
    """Say what a packed charm lacks and what it should not have; an empty list is a good charm.

    It is unpacked, the charm's modules and the authenticator are started from it with nothing else importable.
    """
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="charm-check-") as scratch:
        tree = Path(scratch)
        unpack(charm, tree)
        found += [f"{name} is missing" for name in MEMBERS if not (tree / name).is_file()]
        found += [
            f"{name} is not executable"
            for name in EXECUTABLE
            if (tree / name).is_file() and not os.access(tree / name, os.X_OK)
        ]
        found += [
            f"{path.relative_to(PROJECT)} is missing"
            for part in ("templates", LOGINS)
            for path in _files(part)
            if not (tree / path.relative_to(PROJECT)).is_file()
        ]
        found += [
            f"{path.name} should not be in a charm" for path in sorted(tree.iterdir()) if path.name not in TOP_LEVEL
        ]
        found += [
            f"{path.relative_to(tree)} should not be in a charm"
            for part in ("src", "templates")
            for path in (tree / part).rglob("*")
            if path.name in {"__pycache__", ".git", "tests"}
        ]
        found += [
            f"{path.relative_to(tree)} is not the charm's"
            for name in ("keystone_authenticator", "kubectl_keystone_auth")
            for path in (tree / "src" / name).rglob("*")
            if path.is_file() and (tree / LOGINS) not in path.parents
        ]
        if not found:
            alone = f"import sys; sys.path[:0] = [{str(tree / 'src')!r}, {str(tree / 'venv')!r}]; import charm"
            found += _fails("the charm's modules", ["-I", "-S", "-c", alone])
            found += _fails(
                "the authenticator", ["-I", "-S", str(tree / "authenticator/keystone-authenticator"), "--version"]
            )
    return found


def proof() -> list[str]:
    """Say what `charm proof` finds in this checkout, its remarks ("I:") left out.

    It knows nothing of `dispatch` (Juju 2.8), by which a charm's one program runs every action too, and misses a
    program in `actions/` for each. That is left out as well, for those that actions.yaml has.
    """
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    program = _tool(folder, "charm-tools", CHARM_TOOLS) / "charm-proof"
    done = subprocess.run([str(program), str(PROJECT)], capture_output=True, text=True, check=False, timeout=120)
    lines = [line.strip() for line in done.stdout.splitlines()]
    if done.returncode not in {0, 100, 200}:  # nothing, warnings, errors
        return [f"charm proof ended with {done.returncode}: {(done.stderr or done.stdout).strip()}"]
    actions = yaml.safe_load((PROJECT / "actions.yaml").read_text(encoding="utf-8"))
    expected = {f"W: actions.{name}: actions/{name} does not exist" for name in actions}
    return [f"charm proof, {line}" for line in lines if not line.startswith("I:") and line not in expected]


def unresolved() -> list[str]:
    """Say for which of the charm's bases the pins are no whole set of wheels; asks the index, installs nothing.

    That is where a wheel is missing, where two pins contradict each other, and where one needs what is not pinned.
    """
    wanted = itertools.product(PINS, PYTHONS, MACHINES)
    with concurrent.futures.ThreadPoolExecutor() as side_by_side:  # nearly all of it is waiting for the index
        return [found for found in side_by_side.map(lambda one: _resolve(*one), wanted) if found]


def _resolve(name: str, python: str, machine: str) -> str:
    """Resolve one file of pins as it would be on a base; uv judges markers and wheels by that one, pip by its own."""
    place = f"{name}, Python {python}, {machine}"
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += [f"--python-version={python}", f"--python-platform={machine}-{GLIBC}", "--only-binary=:all:"]
    command += [f"--no-binary={package}" for package in SOURCE_ONLY]
    done = subprocess.run([*command, str(PROJECT / name)], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        return f"{place}: {done.stderr.strip()}"
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("#")[0].partition(";")[0].strip() for line in lines}
    needed = sorted(set(done.stdout.split()) - pinned)
    return f"{place}: needs what is not pinned: {', '.join(needed)}" if needed else ""


def unpack(charm: Path, folder: Path) -> None:
    """Unpack a charm as Juju does: modes and symbolic links kept."""
    with zipfile.ZipFile(charm) as archive:
        for member in archive.infolist():
            mode = member.external_attr >> 16
            path = folder / member.filename
            if mode & 0o170000 == 0o120000:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(archive.read(member).decode())
                continue
            archive.extract(member, folder)
            if mode & 0o777:
                path.chmod(mode & 0o777)


def changed(charm: Path, path: Path) -> Path:
    """Give another charm at `path`, by a line in the authenticator's program."""
    with zipfile.ZipFile(charm) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("authenticator/lib/keystone_authenticator/__init__.py"):
                content += b"# the next version\n"
            new.writestr(entry, content)
    return path


def _fails(what: str, arguments: list[str]) -> list[str]:
    python = SYSTEM_PYTHON if Path(SYSTEM_PYTHON).exists() else sys.executable
    done = subprocess.run([python, "-B", *arguments], capture_output=True, text=True, timeout=120, check=False)
    return (
        [] if done.returncode == 0 else [f"{what} do(es) not start from the packed charm alone: {done.stderr.strip()}"]
    )


def _raise_for(found: list[str]) -> None:
    if found:
        raise PackError("the packed charm is not fit:\n  " + "\n  ".join(found))


def _files(name: str) -> list[Path]:
    path = PROJECT / name
    if path.is_file():
        return [path]
    return sorted(item for item in path.rglob("*") if item.is_file() and "__pycache__" not in item.parts)


def _hash() -> str:
    digest = hashlib.sha256(f"{CHARMCRAFT} {PIP} {_python_version()} {platform.machine()}".encode())
    for path in (Path(__file__), *(path for name in INPUTS for path in _files(name))):
        digest.update(f"{path.name}\0{path.stat().st_mode:o}\0{path.stat().st_size}\0".encode())
        digest.update(str(path.relative_to(PROJECT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _python_version() -> str:
    return subprocess.run([SYSTEM_PYTHON, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def _copy_inputs(tree: Path) -> Path:
    for name in INPUTS:
        for path in _files(name):
            target = tree / path.relative_to(PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    return tree


def _charmcraft(folder: Path) -> Path:
    """Install charmcraft into the cache (its own environment, with the system's python3-apt in it)."""
    if os.geteuid() != 0:
        raise PackError("packing in destructive mode needs root (a mount namespace, build packages): run it as root")
    missing = [
        name
        for name, test in (("python3-apt", "apt_pkg"), ("python3-venv", "ensurepip"))
        if subprocess.run([SYSTEM_PYTHON, "-c", f"import {test}"], capture_output=True, check=False).returncode
    ]
    if missing:
        _say(f"installing {', '.join(missing)}")
        _run(["apt-get", "update", "-qq"], folder / "apt.log")
        _run(["apt-get", "install", "-y", "-qq", *missing], folder / "apt.log", {"DEBIAN_FRONTEND": "noninteractive"})
    # Only python3-apt of the system's packages: with all of them, an older pyOpenSSL breaks charmcraft's imports.
    return _tool(folder, "charmcraft", CHARMCRAFT, "apt*") / "charmcraft"


def _tool(folder: Path, name: str, version: str, system: str = "") -> Path:
    """Install a tool into the cache, with the system's packages that a pattern finds; give its programs' folder."""
    home = folder / f"{name}-{version}-{_python_version().split()[1]}"
    log = folder / f"{name}.log"
    if not (home / ".done").exists():
        _say(f"installing {name} {version} into the cache (about 30 s)")
        shutil.rmtree(home, ignore_errors=True)
        _run([SYSTEM_PYTHON, "-m", "venv", str(home)], log)
        _run([str(home / "bin" / "pip"), "install", "--quiet", f"{name}=={version}"], log)
        for item in Path("/usr/lib/python3/dist-packages").glob(system) if system else ():
            next(home.glob("lib/python3*/site-packages")).joinpath(item.name).symlink_to(item)
        (home / ".done").touch()
    return home / "bin"


def _run_charmcraft(charmcraft: Path, tree: Path, log: Path) -> Path:
    """Run charmcraft on a copy of the sources; return the charm it packed."""
    work = tree.parent
    system = _os_release(Path("/etc/os-release").read_text(encoding="utf-8"))
    release = system.get("VERSION_ID", "")
    disguise = ""
    if system.get("ID") != "ubuntu" or release not in {"22.04", "24.04"}:
        release = "22.04"
        (work / "os-release").write_text(
            f'ID=ubuntu\nID_LIKE=debian\nNAME="Ubuntu"\nVERSION_ID="{release}"\n'
            'VERSION_CODENAME=jammy\nPRETTY_NAME="Ubuntu (test bed)"\n',
            encoding="utf-8",
        )
        disguise = f"mount --bind {shlex.quote(str(work / 'os-release'))} /etc/os-release && "
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    # The python3 that charmcraft finds: the distribution's, but with a pip that charmcraft takes as it is.
    shim = work / "bin" / "python3"
    shim.parent.mkdir()
    shim.write_text(
        f'#!/bin/sh\n{SYSTEM_PYTHON} "$@" || exit\n'
        f'case "$1 $2" in "-m venv") exec "$3/bin/pip" install --quiet pip=={PIP} ;; esac\n',
        encoding="utf-8",
    )
    shim.chmod(0o755)
    base = f"ubuntu@{release}:{architecture}"
    command = f"{shlex.quote(str(charmcraft))} pack --destructive-mode --verbosity=debug --platform={base}"
    path = f"{shim.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    _run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", disguise + "exec " + command],
        log,
        {"PATH": path, "XDG_STATE_HOME": str(work / "state"), "XDG_CACHE_HOME": str(work / "cache")},
        cwd=tree,
    )
    packed = list(tree.glob("*.charm"))
    if len(packed) != 1:
        raise PackError(f"charmcraft ended well but left {len(packed)} charms in {tree}; its log: {log}")
    return packed[0]


def _analysed(charmcraft: Path, charm: Path) -> list[str]:
    """Say what charmcraft's own checks of a packed charm warn of."""
    done = subprocess.run(
        [str(charmcraft), "analyse", "--format=json", str(charm)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    try:
        checks = json.loads(done.stdout)
    except ValueError:
        return [f"charmcraft cannot analyse it: {done.stderr.strip()}"]
    return [
        f"charmcraft analyse, {check['name']}: {check.get('text') or check['result']}"
        for check in checks
        if check["result"] in {"warning", "error", "fatal"}
    ]


def _os_release(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key: "".join(shlex.split(value)) for key, _, value in pairs}


def _run(command: list[str], log: Path, environment: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            check=False,
            timeout=1800,
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise PackError(f"{command[0]} failed ({done.returncode}); the whole log is {log}; its end:\n{tail}")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"pack: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m testbed.pack", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", type=Path, metavar="CHARM", help="only check a packed charm")
    parser.add_argument("--wheels", action="store_true", help="only check that the pins resolve on every base")
    parser.add_argument("--proof", action="store_true", help="only have charm-tools look at this checkout")
    arguments = parser.parse_args()
    try:
        if arguments.proof:
            if found := proof():
                raise PackError("\n  ".join(["charm-tools is not content:", *found]))
            _say("charm proof has nothing to say")
        elif arguments.check:
            _raise_for(problems(arguments.check))
            _say(f"{arguments.check} has what it needs and nothing else")
        elif arguments.wheels:
            if found := unresolved():
                raise PackError("the pins do not resolve:\n  " + "\n  ".join(found))
            _say("the pins are whole sets of wheels for Ubuntu 22.04 and 24.04 on amd64 and arm64")
        else:
            print(pack())
    except PackError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
