"""The stand-in for Juju's unit agent does what docs/stand-in.md says: its tables are read here, row by row."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import which_juju
from testbed import hook_tools
from testbed.agent import HookFailed, Unit
from testbed.cache import TestbedError
from testbed.machine import Machine

PAGE = Path(__file__).parents[2] / "docs/stand-in.md"
OLD = "2.9.51"
METADATA = """
name: small
subordinate: true
requires:
  up: {interface: juju-info, scope: container}
  down: {interface: anything, scope: container}
resources:
  thing: {type: file, filename: thing.bin, description: anything}
"""
CONFIG = "options: {text: {type: string, default: hello}, gone: {type: string, default: x}}"
# A charm in three lines: it tells what it sees, and does what a test has put there for it, in the hook that is named.
DISPATCH = """#!/bin/bash
printf '%s;%s;%s;%s;%s;%s\\n' "$JUJU_DISPATCH_PATH" "$(relation-ids up)" "$(relation-list -r up:1 2>/dev/null)" \\
    "$JUJU_REMOTE_UNIT" "$JUJU_DEPARTING_UNIT" "$(relation-get 2>/dev/null | grep -o colour)" >> /var/tmp/seen
env > "/var/tmp/env-$(basename "$JUJU_DISPATCH_PATH")"
if [ -e /var/tmp/do ]; then . /var/tmp/do; fi
"""
here = pytest.mark.skipif(os.geteuid() != 0, reason="a machine needs root")


def table(heading: str) -> list[list[str]]:
    """The rows of the one table under a heading, without the sources and with plain cells."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    header, _, *found = rows
    assert header[-1] == "from"
    for row in found:
        assert len(row) == len(header), row
        assert row[-1].startswith("["), f"where is this from: {row}"
    return [row[:-1] for row in found]


def names(cell: str) -> list[str]:
    return [] if cell == "none" else cell.split(", ")


def test_every_source_that_a_row_names_is_explained() -> None:
    body, _, sources = PAGE.read_text().partition("## Sources")
    named = set(re.findall(r"\[([A-Z]{1,2}|\d{4,5})\]", body))
    assert named == set(re.findall(r"\[([A-Z]{1,2}|\d{4,5})\]", sources))


# --- the tools, each by itself


def context(where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What a hook may see, and its environment, as the agent would write them."""
    kinds = where.split(", ")
    relation = {
        "id": 1,
        "endpoint": "up",
        "remote_app": "big",
        "remote_units": [] if "departed" in kinds or "broken" in kinds else ["big/0"],
        "data": {"small/0": {}, "big/0": {"colour": "blue"}},
        "broken": "broken" in kinds,
    }
    seen = {
        "juju": [2, 9] if "2.9" in kinds else [3, 6],
        "unit": "small/0",
        "options": ["number", "switch", "text", "unset"],
        "config": {"text": "hello", "number": 7, "switch": True},
        "leader": "not leading" not in kinds,
        "relations": [relation],
        "status": ["waiting", "for it"],
        "action": {"name": "ask", "params": {"word": "please", "deep": {"times": 3}}} if "an action" in kinds else None,
        "address": "198.51.100.7",
        "resources": {"thing": "/somewhere/thing.bin"},
        "secrets": {
            "abc": {"revisions": [{"word": "old"}, {"word": "new"}], "granted": True, "tracked": 1},
            "denied": {"revisions": [{"word": "x"}], "granted": False, "tracked": None},
        },
        "state": {"one": "1"},
    }
    environment = {} if "no hook" in kinds else {"JUJU_CONTEXT_ID": "small/0-x-1", "JUJU_MODEL_UUID": "m"}
    if {"joined", "departed", "broken"} & set(kinds):
        environment |= {"JUJU_RELATION": "up", "JUJU_RELATION_ID": "up:1", "JUJU_REMOTE_APP": "big"}
        environment["JUJU_REMOTE_UNIT"] = "" if "broken" in kinds else "big/0"
    return seen, environment


@pytest.mark.parametrize(
    ("where", "command", "code", "prints"),
    table("What the hook tools print, and how they end"),
    ids=lambda cell: cell.strip("`")[:60],
)
def test_a_hook_tool_prints_and_ends_as_the_page_says(
    tmp_path: Path, where: str, command: str, code: str, prints: str
) -> None:
    seen, environment = context(where)
    (tmp_path / "context.json").write_text(json.dumps(seen))
    (tmp_path / "hook-tool").write_bytes(Path(hook_tools.__file__).read_bytes())
    (tmp_path / "hook-tool").chmod(0o755)
    for tool in hook_tools.tools_of((seen["juju"][0], seen["juju"][1])):
        (tmp_path / tool).symlink_to("hook-tool")
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command.strip("`")], env=environment, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    said = (done.stdout + done.stderr).removesuffix("\n")
    assert (said, done.returncode) == ("" if prints == "nothing" else prints.strip("`").replace("\\n", "\n"), int(code))


# --- the life of a unit


def pack(path: Path, **more: str) -> Path:
    files = {"metadata.yaml": METADATA, "config.yaml": CONFIG, "brought": "one", **more}
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        entry = zipfile.ZipInfo("dispatch")
        entry.external_attr = 0o100755 << 16
        archive.writestr(entry, DISPATCH)
    return path


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine("stand-in-0") as machine:
        yield machine


@pytest.fixture
def make(machine: Machine, tmp_path: Path) -> Callable[..., Unit]:
    """Make a unit of a charm that is nothing but a shell script; the first thing that the principal said is there."""
    machine.shell("rm -rf /var/tmp/* /var/lib/juju /usr/bin/juju-exec /usr/bin/juju-run")
    charm = pack(tmp_path / "small.charm")

    def made(*, application: str = "small", related: bool = True, **arguments: Any) -> Unit:
        unit = Unit(machine, application, "up", "big/0", juju_exec=True, **arguments)
        unit.deploy(charm)
        if related:
            unit.relate()
            unit.hooks.clear()
        return unit

    return made


def do(unit: Unit, script: str, hook: str = "*") -> None:
    """Have the charm do this in a hook, from now on."""
    unit.machine.write("/var/tmp/do", f'case "$JUJU_DISPATCH_PATH" in hooks/{hook}) {script} ;; esac\n')


def fails(unit: Unit, hook: str, step: Callable[[], object]) -> None:
    """Have a hook fail, and be resolved once what was wrong is over."""
    do(unit, "exit 1", hook)
    with pytest.raises(HookFailed):
        step()
    unit.machine.run("rm", "/var/tmp/do")


def resolved(unit: Unit, hook: str, step: Callable[[], object], **options: str) -> None:
    fails(unit, hook, step)
    unit.put(**options)
    unit.retry()


def updated(unit: Unit, read: bool) -> None:
    name = unit.add_secret(word="old")
    if read:
        do(unit, f"secret-get {name}")
        unit.update_status()
        unit.hooks.clear()
    unit.update_secret(name, word="new")


HAPPENS: dict[str, Callable[[Unit], object]] = {
    "it is deployed, and not related": lambda unit: None,
    "it is related to its principal": lambda unit: unit.relate(),
    "it is, as a unit that does not lead": lambda unit: unit.relate(),
    "an option changes": lambda unit: unit.configure(text="other"),
    "an option is set to what it is": lambda unit: unit.configure(text="hello"),
    "time passes": lambda unit: unit.update_status(),
    "the charm is refreshed": lambda unit: unit.upgrade(Path(str(unit._charm))),
    "a resource is attached": lambda unit: unit.attach("thing", b"x"),
    "another application is related, whose unit is there": lambda unit: unit.integrate("down", "other/0"),
    "that relation is removed": lambda unit: unit.separate("down"),
    "the machine reboots": lambda unit: unit.hook("start"),  # the reboot itself is in test_agent.py
    "a secret that it has read gets another revision": lambda unit: updated(unit, read=True),
    "a secret that it has not read gets another revision": lambda unit: updated(unit, read=False),
    "the leader before it is gone": lambda unit: unit.lead(),
    "it is removed, or its relation, or its principal": lambda unit: unit.remove(),
    "a hook fails and is resolved": lambda unit: resolved(unit, "update-status", unit.update_status),
    "one fails, options change, and it is resolved": lambda unit: resolved(
        unit, "update-status", unit.update_status, text="meanwhile"
    ),
    "the second of its life fails and is resolved": lambda unit: resolved(unit, "up-relation-created", unit.relate),
    "its last but one fails and is resolved": lambda unit: resolved(unit, "stop", unit.remove),
}


@here
@pytest.mark.machine
@pytest.mark.parametrize(("what", "hooks"), table("Hooks, and their order"), ids=lambda cell: cell[:50])
def test_hooks_run_in_the_order_that_the_page_says(make: Callable[..., Unit], what: str, hooks: str) -> None:
    before = ("it is deployed", "it is related", "it is, as", "the second of its life")
    leader = what not in ("it is, as a unit that does not lead", "the leader before it is gone")
    unit = make(related=not what.startswith(before), leader=leader)
    if what == "that relation is removed":
        unit.integrate("down", "other/0")
        unit.hooks.clear()
    HAPPENS[what](unit)
    named = [re.sub("^E-", "up-", re.sub("^F-", "down-", name)) for name in names(hooks)]
    assert unit.hooks == named


def test_the_page_has_everything_that_happens() -> None:
    assert [what for what, _ in table("Hooks, and their order")] == list(HAPPENS)


@here
@pytest.mark.machine
@pytest.mark.parametrize("juju", ["3.6.9", OLD])
def test_a_hook_sees_of_its_relation_what_the_page_says(make: Callable[..., Unit], juju: str) -> None:
    unit = make(related=False, juju_version=juju)
    machine, entered = unit.machine, unit._enter

    def enter(endpoint: str, remote: str) -> None:
        entered(endpoint, remote)
        unit._relations[endpoint].data[remote]["colour"] = "blue"

    unit._enter = enter  # type: ignore[method-assign]
    unit.relate()
    unit.remove()
    seen = [line.split(";") for line in machine.read("/var/tmp/seen").decode().splitlines()]
    expected = []
    for hook, ids, ids_old, units, remote, departing, said in table("What a hook sees of a relation"):
        cells = [ids_old if juju == OLD else ids, units, remote, departing]
        told = ["" if cell == "none" else cell.replace("E:", "up:") for cell in cells]
        expected.append([f"hooks/{re.sub('^E-', 'up-', hook)}", *told, "colour" if said == "what it said" else ""])
    assert seen == expected


@here
@pytest.mark.machine
def test_a_hooks_environment_has_what_the_page_says(make: Callable[..., Unit]) -> None:
    unit = make(related=False, machine_id="4")
    unit.relate()
    updated(unit, read=True)
    unit._yaml = lambda name: {"actions.yaml": {"ask": {}}, "metadata.yaml": {}}[name]  # type: ignore[method-assign]
    unit.run_action("ask")
    unit.remove()
    rows = {when: set(names(variables)) for when, variables in table("What is in a hook's environment")}
    files = {
        "E-relation-created": "up-relation-created",
        "E-relation-departed": "up-relation-departed",
        "an action": "ask",
    }
    always = rows.pop("always")
    for when, more in {"config-changed": set(), **rows}.items():
        lines = unit.machine.read(f"/var/tmp/env-{files.get(when, when)}").decode().splitlines()
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        wanted = {name for name in values if name.startswith(("JUJU_", "CHARM_", "CLOUD_"))}
        assert wanted == always | more, when
        assert (values["JUJU_MACHINE_ID"], values["JUJU_PRINCIPAL_UNIT"]) == ("4", "big/0")


def counts(unit: Unit, set_by: str) -> None:
    """What a hook sets is seen by itself, and by others once it has ended well."""
    do(unit, f"{set_by}; exit 1")
    with pytest.raises(HookFailed):
        unit.update_status()
    assert "said" not in unit.said("up")
    assert unit._state == {}
    do(unit, set_by)
    unit.retry()


def test_the_page_has_all_that_counts_and_goes() -> None:
    assert [what for what, _ in table("What counts, what goes, and when")] == list(GOES)


def settings_count(unit: Unit) -> None:
    counts(unit, "relation-set -r up:1 said=hi; test $(relation-get -r up:1 said small/0) = hi || exit 1")
    assert unit.said("up")["said"] == "hi"


def state_counts(unit: Unit) -> None:
    counts(unit, "state-set said=hi; test $(state-get said) = hi || exit 1")
    assert unit._state == {"said": "hi"}


def other_things_count_at_once(unit: Unit) -> None:
    do(unit, "status-set blocked so; application-version-set 2; juju-log it is; exit 1")
    with pytest.raises(HookFailed):
        unit.update_status()
    assert (unit.status, unit.workload_version) == (("blocked", "so"), "2")
    assert "it is" in unit.debug_log()
    assert 'hook failed: "update-status"' in str(unit)


def nothing_is_gone(unit: Unit) -> None:
    do(unit, "relation-set -r up:1 said=hi")
    unit.update_status()
    do(unit, "relation-set -r up:1 said=")
    unit.update_status()
    assert "said" not in unit.said("up")


def departed_can_be_read(unit: Unit) -> None:
    do(unit, 'test -n "$(relation-get private-address)" || exit 1', "up-relation-departed")
    unit.remove()


def refreshed(unit: Unit) -> tuple[str, str]:
    """Refresh to a charm that brings other files, and give two paths in its folder: of the old charm, and its own."""
    folder = f"/var/lib/juju/agents/unit-{unit.name.replace('/', '-')}/charm"
    do(unit, "echo mine > written")
    unit.update_status()
    newer = pack(Path(str(unit._charm)).with_name("newer.charm"), **{"config.yaml": "options: {}"})
    with zipfile.ZipFile(newer) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != "brought"}
    with zipfile.ZipFile(newer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, content)
    assert unit.machine.exists(f"{folder}/brought")
    unit.upgrade(newer)
    return f"{folder}/brought", f"{folder}/written"


def brought_goes(unit: Unit) -> None:
    assert not unit.machine.exists(refreshed(unit)[0])


def written_stays(unit: Unit) -> None:
    written = refreshed(unit)[1]
    assert unit.machine.exists(written)
    unit.remove()
    assert not unit.machine.exists(written)


def folder_goes(unit: Unit) -> None:
    folders = [f"/var/lib/juju/{kind}/unit-small-0" for kind in ("agents", "tools")]
    fails(unit, "remove", unit.remove)
    assert [unit.machine.exists(folder) for folder in folders] == [True, True]
    unit.retry()
    assert [unit.machine.exists(folder) for folder in folders] == [False, False]
    assert unit.status.name == "terminated"


def options_go(unit: Unit) -> None:
    unit.configure(gone="y")
    refreshed(unit)
    with pytest.raises(TestbedError, match="unknown option"):
        unit.configure(gone="z")


def exec_in_a_hook(unit: Unit) -> None:
    do(unit, "juju-exec -u small/0 true; test $? = 2 || exit 1")
    unit.update_status()
    assert "juju-exec cannot be called from within a hook" in unit.debug_log()


def exec_for_nobody(unit: Unit) -> None:
    done = unit.machine.run("juju-exec", "-u", "small/7", "true", check=False)
    assert (done.returncode, done.stderr) == (1, 'ERROR unit "small/7" not found on this machine\n')


def exec_waits(unit: Unit) -> None:
    other = Unit(unit.machine, "another", "up", "big/0", juju_exec=True)
    other.deploy(Path(str(unit._charm)))
    other.relate()
    do(unit, "touch /var/tmp/busy; while [ ! -e /var/tmp/enough ]; do sleep 0.05; done; date +%s.%N > /var/tmp/over")
    running = threading.Thread(target=other.update_status)
    running.start()
    unit.machine.wait(lambda: unit.machine.exists("/var/tmp/busy"), "the other unit's hook")
    command = "date +%s.%N > /var/tmp/began; relation-set -r up:1 said=$JUJU_UNIT_NAME"
    asked = threading.Thread(target=lambda: unit.machine.run("juju-exec", "-u", "small/0", command))
    asked.start()
    time.sleep(0.5)
    unit.machine.write("/var/tmp/enough", "")
    running.join()
    asked.join()
    over, began = (float(unit.machine.read(f"/var/tmp/{name}")) for name in ("over", "began"))
    assert over <= began
    unit.catch_up()
    assert unit.said("up")["said"] == "small/0"


GOES: dict[str, Callable[[Unit], None]] = {
    "settings of a relation that a hook has set": settings_count,
    "stored state that a hook has set": state_counts,
    "a status, a version, a line of the log": other_things_count_at_once,
    "a setting that is set to nothing": nothing_is_gone,
    "settings of a unit that has departed": departed_can_be_read,
    "a file that the old charm brought and the new one does not": brought_goes,
    "a file that the charm wrote into its own folder": written_stays,
    "the charm's folder, the tools": folder_goes,
    "an option that the new charm does not have": options_go,
    "`juju-exec` in a hook": exec_in_a_hook,
    "`juju-exec` for a unit that is not there": exec_for_nobody,
    "`juju-exec` while a hook runs on the machine": exec_waits,
}


@here
@pytest.mark.machine
@pytest.mark.parametrize("what", GOES, ids=lambda what: what[:50])
def test_what_counts_and_what_goes_is_as_the_page_says(make: Callable[..., Unit], what: str) -> None:
    GOES[what](make())


# --- Juju's versions


@here
@pytest.mark.machine
@pytest.mark.parametrize(("column", "juju"), [(0, OLD), (1, "3.6.9")])
def test_what_differs_by_version_is_as_the_page_says(
    make: Callable[..., Unit], monkeypatch: pytest.MonkeyPatch, column: int, juju: str
) -> None:
    rows = {what: cells[column] for what, *cells in table("What differs by Juju's version")}
    unit = make(juju_version=juju)
    machine = unit.machine
    monkeypatch.setenv("JUJU_VERSION", juju)
    current = which_juju.current()

    tools = machine.shell("ls /var/lib/juju/tools/unit-small-0").split()
    secrets = [tool for tool in tools if tool.startswith("secret-")]
    assert (str(len(secrets)) if secrets else "none") == rows.pop("the tools `secret-…`")

    runners = [name for name in which_juju.MACHINES_TOOLS if machine.exists(f"/usr/bin/{name}")]
    assert runners == [rows.pop("what runs a command in a hook's environment")]
    machine.run(*runners, "-u", "small/0", "JUJU_DISPATCH_PATH=hooks/update-status ./dispatch")
    assert "hooks/update-status" in machine.read("/var/tmp/seen").decode()

    there = rows.pop("`juju add-secret`").startswith("there")
    assert current.has_operators_secrets == there
    if there:
        unit.add_secret(word="x")
    else:
        with pytest.raises(TestbedError, match=r"add-secret is no command of Juju 2\.9"):
            unit.add_secret(word="x")
    assert current.integrate("a", "b") == f"{rows.pop('an operator' + chr(39) + 's command to relate')} a b"
    assert list(rows) == ["an operator's command to run an action"]  # the charm prints none
