"""Machines of the test bed: each for itself, and gone with whoever made them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import cache, machine
from testbed.machine import CommandFailed, Machine

pytestmark = [pytest.mark.machine, pytest.mark.skipif(os.geteuid() != 0, reason="a machine needs root")]

OWNER = """
import sys, time
from testbed.machine import Machine
with Machine("doomed") as machine:
    print(machine.address, flush=True)
    time.sleep(600)
"""


def test_machines_have_their_own_names_addresses_services_and_files():
    with Machine("one") as one, Machine("two") as two:
        assert one.shell("hostname") == "one"
        assert one.address != two.address
        assert one.address in one.shell("ip -brief address")
        one.write("/etc/mark", "here", 0o600)
        assert one.shell("stat -c '%a %U' /etc/mark") == "600 root"
        assert not two.exists("/etc/mark")
        one.run("systemctl", "stop", "dbus.socket", "dbus.service")
        assert two.show("dbus", "ActiveState") == {"ActiveState": "active"}
        with pytest.raises(CommandFailed, match="ended with 3"):
            one.shell("exit 3")


def test_a_power_cut_and_a_reboot_keep_files_and_address():
    with Machine("steady") as steady:
        address = steady.address
        steady.write("/etc/mark", "here")
        steady.power_off()
        steady.power_on()
        steady.reboot()
        assert (steady.address, steady.read("/etc/mark")) == (address, b"here")


def test_nothing_is_left_of_a_machine_whose_owner_was_killed():
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    address = owner.stdout.readline().strip()
    owner.kill()
    owner.communicate()
    machine.clean()
    assert list((cache.root() / "runs").glob("doomed-*")) == []
    assert list(Path("/sys/fs/cgroup").glob("*testbed-doomed-*")) == []
    assert list(Path("/sys/fs/cgroup").glob("*/testbed-doomed-*")) == []
    names = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(b"--machine=doomed" in name for name in names)
    assert address != ""
