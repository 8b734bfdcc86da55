"""The script before each start of the API server, and the units around it: installed, run by hand, taken away."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import jinja2

from apiserver import files, systemd
from apiserver.model import MANAGED, UnitLayout, WiringError

_TEMPLATES = Path(__file__).resolve().parents[2] / "templates/apiserver"
_UNITS = ("kubernetes-keystone-bypass.service", "kubernetes-keystone-retry.service", "kubernetes-keystone-retry.timer")
TEMPORARY = ".kubernetes-keystone.new"
"""The name of a file that the script is about to put in the place of another one."""
OWN_FILE = "99-kubernetes-keystone"
"""The name of our file in a layout's `args_folder`: behind those of the owners."""
_RETRY_TIMER = "kubernetes-keystone-retry.timer"
_SECONDS = 40  # the scripts bound themselves to less


def own_file(layout: UnitLayout) -> Path | None:
    """Where our flags lie in a file of their own, if the layout has such a place."""
    return layout.args_folder / OWN_FILE if layout.args_folder else None


def given_path(layout: UnitLayout) -> Path:
    """Where the script writes down what the last start was given; it does so where no command line shows it."""
    return layout.config_folder / "given"


def drop_in_path(layout: UnitLayout) -> Path:
    """Where the drop-in lies that has systemd run the script."""
    return layout.place.unit_folder / f"{layout.service}.d/kubernetes-keystone.conf"


def installed(layout: UnitLayout) -> bool:
    """Whether the drop-in or the script is here, and is for this layout."""
    text = files.read(layout.place.script) or b""
    return drop_in_path(layout).exists() or f"ARGS='{layout.args_file}'".encode() in text


def install(layout: UnitLayout) -> None:
    """Put script, drop-in and units in place, or renew them. Restarts nothing, and sets no flag."""
    install_script(layout)
    for unit in _UNITS:
        files.write(layout.place.unit_folder / unit, _render(unit, layout), 0o644)
    drop_in = drop_in_path(layout)
    files.write(drop_in, _render("drop-in.conf", layout), 0o644)
    # NeedDaemonReload says nothing of the first drop-in of a unit: systemd keeps a list of the folders that there are.
    if systemd.has_drop_in(layout.service, drop_in):
        systemd.reload_if_needed(layout.service, *_UNITS)
    else:
        systemd.daemon_reload()


def install_script(layout: UnitLayout) -> None:
    """Put the script alone in place: what `remove` needs."""
    files.write(layout.place.script, _render("apiserver-flags", layout), 0o755)


def uninstall(layout: UnitLayout) -> None:
    """Take away drop-in, units and script, and have systemd forget them."""
    paths = [drop_in_path(layout), *(layout.place.unit_folder / unit for unit in _UNITS)]
    there = any(path.exists() for path in paths)
    if there:
        systemd.stop(_RETRY_TIMER)
    for path in (*paths, layout.place.script):
        files.remove(path)
    if there or systemd.has_drop_in(layout.service, paths[0]):  # a run before this one may have been killed in between
        systemd.daemon_reload()
    for folder in (drop_in_path(layout).parent, layout.place.script.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def chain(layout: UnitLayout) -> None:
    """Write the chain file, as the script does before each start, be it installed or not.

    Raises:
        WiringError: the webhook that is set now cannot be written down.

    """
    _run(layout, "chain", _render("apiserver-flags", layout))


def run(layout: UnitLayout, mode: str) -> None:
    """Run the installed script once, in a mode that restarts nothing (`cut`).

    Raises:
        WiringError: with what it said, where it did not succeed.

    """
    _run(layout, mode)


def others(layout: UnitLayout) -> str:
    """Give the flags that the next start reads without ours, as the script tells them apart, be it installed or not.

    Raises:
        WiringError: they cannot be read.

    """
    text = _run(layout, "others", _render("apiserver-flags", layout)).decode(errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def execute(path: Path, mode: str, *more: str, text: bytes | None = None, given: str = "") -> bytes:
    """Run one of our scripts and give what it printed.

    Args:
        path: where it is, or would be.
        mode: what it is to do.
        more: words after that.
        text: itself, where it need not be installed.
        given: for its standard input.

    Raises:
        WiringError: with what it said, where it did not succeed.

    """
    program = [str(path)] if text is None else ["-c", text, str(path)]
    command = ["/bin/sh", *program, mode, *more]
    try:
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise WiringError(f"{path} {mode} did not end within {_SECONDS} s: is a disk hanging?") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().removeprefix("kubernetes-keystone: ")
        raise WiringError(f"{path} {mode}: {said or f'status {done.returncode}'}")
    return done.stdout


def _run(layout: UnitLayout, mode: str, text: bytes | None = None) -> bytes:
    return execute(layout.place.script, mode, "bounded", text=text)


def _render(name: str, layout: UnitLayout) -> bytes:
    place = layout.place
    values = {
        "args_file": layout.args_file,
        "args_folder": layout.args_folder or "",
        "managed": MANAGED,
        "own_file": own_file(layout) or "",
        "whole_values": "yes" if layout.whole_values else "",
        "flags_shown": "yes" if layout.flags_shown else "",
        "working_folder": layout.working_folder,
        "config_folder": layout.config_folder,
        "service": layout.service,
        "wanted": place.wanted,
        "lock": place.lock,
        "chain_file": place.chain_file,
        "reader": place.reader,
        "script": place.script,
        "hook": place.hook,
        "alone": place.alone,
        "authorizer": place.authorizer_script,
    }
    return render(name, values)


def render(name: str, values: Mapping[str, object]) -> bytes:
    """Render a template of the wiring's; the values are paths and names."""
    how = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True, "trim_blocks": True}
    environment = jinja2.Environment(**how, autoescape=False)  # noqa: S701
    for key, value in values.items():
        # They stand in single quotes, in awk's strings and in unit files.
        if any(character in str(value) for character in " '\"\\\n%$"):
            raise WiringError(f"{key}: {value} has a character that no path of ours can have")
    return environment.from_string((_TEMPLATES / name).read_text(encoding="utf-8")).render(values).encode()
