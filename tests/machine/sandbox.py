"""A unit's sandbox with an intruder in it: the unit's own file, in which all that is changed is what is started."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from testbed.machine import Machine

INTRUDER = Path(__file__).with_name("intruder.py")
_SCRIPT = "/usr/local/lib/intruder.py"  # readable to every user, and seen from inside every sandbox
_SAID = "/run/intruder.json"  # opened by systemd, which is outside
_UNIT = "intruder.service"
# What is not the sandbox: what is started, and when it counts as started, failed or hanging.
_OTHERWISE = r"(Type|ExecStart|Restart|RestartSec|TimeoutStartSec|WatchdogSec|WatchdogSignal)="


def exposure(machine: Machine, unit: str) -> float:
    """How much systemd thinks that a unit could do; 0 is nothing, 10 everything."""
    said = machine.run("systemd-analyze", "security", "--no-pager", unit, env={"SYSTEMD_COLORS": "0"}).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found, said
    return float(found[1])


def intrude(
    machine: Machine, unit: str, *, readable: Sequence[str] = (), hidden: Sequence[str] = (), sandbox: bool = True
) -> dict[str, str]:
    """What comes of each of the intruder's attempts: `done`, or the name of an error.

    Args:
        machine: where.
        unit: whose sandbox.
        readable: files that the service reads, to see that an attempt can succeed.
        hidden: files that are there, and not for it.
        sandbox: False leaves all of it away but for the user, to see that the attempts are real.

    """
    victim = int(machine.show("dbus.service", "MainPID")["MainPID"])
    given = json.dumps({"victim": victim, "readable": [*readable], "hidden": [*hidden]})
    lines = machine.read(f"/etc/systemd/system/{unit}").decode().splitlines()
    section = lines[lines.index("[Service]") : lines.index("[Install]")]
    kept = [line for line in section if not re.match(_OTHERWISE, line)]
    if not sandbox:
        kept = ["[Service]", *(line for line in kept if re.match(r"(User|Group|DynamicUser)=", line))]
    kept += [
        "Type=oneshot",
        f"StandardOutput=truncate:{_SAID}",
        "StandardError=null",
        f"ExecStart=/usr/bin/python3 -I {_SCRIPT} {shlex.quote(given)}",
    ]
    machine.write(_SCRIPT, INTRUDER.read_bytes())
    machine.write(f"/run/systemd/system/{_UNIT}", "\n".join(kept) + "\n")
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", _UNIT)
        return json.loads(machine.read(_SAID))
    finally:
        machine.run("rm", "-f", _SCRIPT, _SAID, f"/run/systemd/system/{_UNIT}")
        machine.run("systemctl", "daemon-reload")
