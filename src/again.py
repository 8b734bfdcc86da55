"""Another look soon: where the charm waits for something on this machine, its hook runs every minute instead of five.

What it waits for comes without any event of Juju's: a snap is installed after us, an API server comes up, another unit
is done with its restart, the authenticator is back. So systemd asks Juju's agent to run update-status, by the tool that
it has on every machine for that. Nothing depends on it: Juju runs that hook too.
"""

from __future__ import annotations

import contextlib

import files
import host
import which_juju
from files import Places

SERVICE = "kubernetes-keystone-hook.service"
TIMER = "kubernetes-keystone-hook.timer"


def install(places: Places, unit: str) -> None:
    """Put the units in place, or renew them; the wiring's scripts start the service, too."""
    values = {"unit": unit, "tools": which_juju.MACHINES_TOOLS}
    written = [
        files.write(places.units / name, files.render(places.templates, name, values).encode(), 0o644)
        for name in (SERVICE, TIMER)
    ]
    if any(written):
        host.systemctl("daemon-reload")


def soon(*, wanted: bool) -> None:
    """Have the hook run every minute from now on, or no longer."""
    if wanted != host.is_active(TIMER):
        host.systemctl("start" if wanted else "stop", TIMER)


def uninstall(places: Places) -> None:
    """Take the units away. Safe to repeat."""
    present = [name for name in (TIMER, SERVICE) if (places.units / name).exists()]
    if not present:
        return
    with contextlib.suppress(host.HostError):
        # Not the service: this may be the very hook that it waits for.
        host.systemctl("stop", TIMER)
    for name in present:
        files.remove(places.units / name)
    host.systemctl("daemon-reload")
