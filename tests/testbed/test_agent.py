"""The stand-in for Juju's unit agent, with a small ops charm on a machine of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.agent import HookFailed, Unit
from testbed.cache import TestbedError
from testbed.machine import Machine

pytestmark = [pytest.mark.machine, pytest.mark.skipif(os.geteuid() != 0, reason="a machine needs root")]

METADATA = """
name: small
subordinate: true
requires:
  up: {interface: juju-info, scope: container}
resources:
  thing: {type: file, filename: thing.bin, description: anything}
"""
CONFIG = """
options:
  text: {type: string, default: hello}
  number: {type: int, default: 7}
  switch: {type: boolean, default: false}
  unset: {type: string}
  fail: {type: boolean, default: false}
"""
ACTIONS = """
ask:
  params:
    word: {type: string, default: please}
    times: {type: integer}
  required: [times]
"""
CHARM = """#!/usr/bin/env python3
import json, pathlib
import ops

class Small(ops.CharmBase):
    _stored = ops.StoredState()

    def __init__(self, framework):
        super().__init__(framework)
        self._stored.set_default(count=0)
        for event in self.on.events().values():
            if event.event_kind not in ("ask_action", "collect_unit_status", "collect_app_status", "collect_metrics"):
                framework.observe(event, self.any)
        framework.observe(self.on.ask_action, self.ask)

    def any(self, event):
        if self.config["fail"] and isinstance(event, ops.ConfigChangedEvent):
            raise RuntimeError("as told")
        if isinstance(event, (ops.PreCommitEvent, ops.CommitEvent)):
            return
        self._stored.count += 1
        relations = self.model.relations["up"]
        seen = {
            "event": event.handle.kind,
            "count": self._stored.count,
            "config": dict(self.config),
            "units": sorted(unit.name for relation in relations for unit in relation.units),
            "leader": self.unit.is_leader(),
            "address": str(self.model.get_binding("up").network.bind_address) if relations else "",
        }
        for name, get in (("thing", self.thing), ("secret", self.secret)):
            try:
                seen[name] = get()
            except (ops.ModelError, ops.SecretNotFoundError) as error:
                seen[name] = f"{type(error).__name__}: {error}"
        with open("/var/tmp/seen", "a") as file:
            file.write(json.dumps(seen) + "\\n")
        if relations and relations[0].active:
            relations[0].data[self.unit]["said"] = "hi"
        self.unit.set_workload_version("1.0-VERSION")
        self.unit.status = ops.ActiveStatus("-x " + event.handle.kind)

    def thing(self):
        return self.model.resources.fetch("thing").read_text()

    def secret(self):
        text = self.config["text"]
        return self.model.get_secret(id=text).get_content(refresh=True) if text.startswith("secret:") else None

    def ask(self, event):
        event.log("asked")
        if event.params["times"] < 0:
            event.fail("not so often")
        event.set_results({"word": event.params["word"], "deep": {"times": event.params["times"]}})

if __name__ == "__main__":
    ops.main(Small)
"""
DISPATCH = "#!/bin/sh\nPYTHONPATH=lib:venv exec /usr/bin/python3 src/charm.py\n"


def pack(path: Path, version: str) -> Path:
    """Make a charm with the ops that is installed here."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (("metadata.yaml", METADATA), ("config.yaml", CONFIG), ("actions.yaml", ACTIONS)):
            archive.writestr(name, text)
        for name, text in (("dispatch", DISPATCH), ("src/charm.py", CHARM.replace("VERSION", version))):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "dispatch")
        for package in ("ops", "yaml", "websocket", "opentelemetry", "typing_extensions"):
            spec = importlib.util.find_spec(package)
            assert spec is not None
            places = [
                Path(place) for place in spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
            ]
            for place in places:
                for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
                    archive.write(file, f"venv/{file.relative_to(place.parent)}")
    return path


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine("small-0") as machine:
        yield machine


@pytest.fixture
def unit(machine: Machine, tmp_path: Path) -> Iterator[Unit]:
    machine.shell("rm -rf /var/tmp/seen /var/lib/juju")
    unit = Unit(machine, "small", "up", "big/0")
    unit.deploy(pack(tmp_path / "small.charm", "one"), {"text": "deployed"})
    yield unit
    assert [line for line in unit.log if line.level in ("WARNING", "ERROR") and "as told" not in line.message] == []


def seen(machine: Machine) -> list[dict]:
    return [json.loads(line) for line in machine.read("/var/tmp/seen").splitlines()]


def test_nothing_runs_before_a_subordinate_is_related(unit: Unit, machine: Machine):
    assert unit.hooks == []
    assert not machine.exists("/var/lib/juju")


def test_a_related_unit_lives_through_jujus_events_in_order(unit: Unit, machine: Machine):
    unit.relate()
    unit.configure(text="other")
    unit.configure(text="other")
    unit.update_status()
    unit.remove()
    events = [one["event"] for one in seen(machine)]
    assert events == [
        *("install", "up_relation_created", "leader_elected", "config_changed", "start"),
        *("up_relation_joined", "up_relation_changed"),
        *("config_changed", "update_status"),
        *("up_relation_departed", "up_relation_broken", "stop", "remove"),
    ]
    assert not machine.exists("/var/lib/juju/agents/unit-small-0")
    assert not machine.exists("/var/lib/juju/tools/unit-small-0")


def test_what_is_deployed_after_a_removal_begins_with_the_charms_defaults(unit: Unit, machine: Machine, tmp_path: Path):
    unit.relate()
    unit.configure(number=8)
    unit.remove()
    unit.deploy(pack(tmp_path / "again.charm", "one"), {"text": "again"})
    unit.relate()
    assert seen(machine)[-1]["config"] == {"text": "again", "number": 7, "switch": False, "fail": False}


def test_the_charm_sees_its_config_its_relation_and_its_address(unit: Unit, machine: Machine):
    unit.relate()
    last = seen(machine)[-1]
    assert last["config"] == {"text": "deployed", "number": 7, "switch": False, "fail": False}
    assert (last["units"], last["leader"], last["address"]) == (["big/0"], True, machine.address)
    assert unit.status == ("active", "-x up_relation_changed")
    assert unit.workload_version == "1.0-one"
    assert "small/0*" in str(unit)
    assert "unit.small/0.juju-log" in unit.debug_log()


def test_actions_take_parameters_and_give_results(unit: Unit):
    unit.relate()
    result = unit.run_action("ask", times=3)
    assert (result.status, result.results) == ("completed", {"word": "please", "deep": {"times": "3"}})
    assert result.log == ["asked"]
    failed = unit.run_action("ask", times=-1)
    assert (failed.status, failed.message) == ("failed", "not so often")
    with pytest.raises(TestbedError, match="additional property"):
        unit.run_action("ask", times=1, colour="red")
    with pytest.raises(TestbedError, match="times is required"):
        unit.run_action("ask")


def test_a_resource_is_there_once_it_is_attached(unit: Unit, machine: Machine):
    unit.relate()
    assert "ModelError: ERROR could not download resource" in seen(machine)[-1]["thing"]
    unit.attach("thing", b"one")
    assert [(one["event"], one["thing"]) for one in seen(machine)[-2:]] == [
        ("upgrade_charm", "one"),
        ("config_changed", "one"),
    ]
    unit.attach("thing", b"two")
    assert seen(machine)[-1]["thing"] == "two"


def test_a_secret_is_there_for_whoever_names_it(unit: Unit, machine: Machine):
    unit.relate()
    unit.configure(text=unit.add_secret(username="me", password="no one's"))
    assert seen(machine)[-1]["secret"] == {"username": "me", "password": "no one's"}
    unit.configure(text="secret:d0000000000000000000")
    assert seen(machine)[-1]["secret"].startswith("SecretNotFoundError")


def test_wrong_settings_are_refused_before_any_hook(unit: Unit):
    for name, value in (("nope", "x"), ("number", "seven"), ("switch", 1), ("text", 3)):
        with pytest.raises(TestbedError):
            unit.configure(**{name: value})


def test_a_failed_hook_is_an_error_until_it_has_been_run_again(unit: Unit):
    unit.relate()
    with pytest.raises(HookFailed, match="config-changed"):
        unit.configure(fail=True)
    assert 'hook failed: "config-changed"' in str(unit)
    with pytest.raises(TestbedError, match="error state"):
        unit.update_status()
    with pytest.raises(HookFailed):
        unit.retry()
    unit.put(fail=False)
    unit.retry()
    assert unit.status.name == "active"
    unit.log.clear()


def test_an_upgrade_replaces_the_charm_and_keeps_what_it_stored(unit: Unit, machine: Machine, tmp_path: Path):
    unit.relate()
    before = seen(machine)[-1]["count"]
    unit.upgrade(pack(tmp_path / "new.charm", "two"))
    after = seen(machine)[-2:]
    assert [(one["event"], one["count"]) for one in after] == [
        ("upgrade_charm", before + 1),
        ("config_changed", before + 2),
    ]
    assert unit.workload_version == "1.0-two"


def test_a_reboot_runs_start_again(unit: Unit, machine: Machine):
    unit.relate()
    unit.reboot()
    assert seen(machine)[-1]["event"] == "start"
