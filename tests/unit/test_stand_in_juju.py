"""The stand-in's `juju` as far as no hook runs: what it takes, what it refuses, and that its answers read as Juju's."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from testbed.agent import Unit
from testbed.cache import TestbedError
from testbed.juju import Juju
from testbed.machine import Machine
from tests.juju_output import status

CONFIG = """
options:
  text: {type: string, default: hello}
  number: {type: int, default: 7}
  switch: {type: boolean, default: false}
"""


class Nowhere(SimpleNamespace):
    """A machine that is never asked for anything but its address."""

    address = "192.0.2.1"


def packed(path: Path, config: str = CONFIG) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.yaml", "name: kubernetes-keystone\nsubordinate: true\n")
        archive.writestr("config.yaml", config)
        archive.writestr("actions.yaml", "{}")
    return path


def units(count: int) -> list[Unit]:
    machine = cast(Machine, Nowhere())
    return [Unit(machine, principal=f"kubernetes-master/{number}", number=number) for number in range(count)]


@pytest.fixture
def juju(tmp_path: Path) -> Juju:
    return Juju(units(2), packed(tmp_path / "released.charm"), machines=1)


def settings(juju: Juju) -> dict[str, Any]:
    return json.loads(juju("config kubernetes-keystone --format json"))["settings"]


def test_before_anything_is_deployed_the_control_plane_is_all_there_is(juju: Juju) -> None:
    told = status(juju("status --format=json"))
    assert list(told.applications) == ["kubernetes-master"]
    assert [unit.workload for unit in told.units("kubernetes-master")] == ["active"]


def test_a_subordinate_has_no_unit_until_it_is_integrated(juju: Juju) -> None:
    juju("deploy kubernetes-keystone --config text=there")
    told = status(juju("status --format=json"))
    assert told.applications["kubernetes-keystone"].state == "unknown"
    assert told.units("kubernetes-keystone") == []
    assert "kubernetes-keystone" in juju("status")


def test_a_status_can_be_asked_for_by_name(juju: Juju) -> None:
    juju("deploy kubernetes-keystone")
    assert list(status(juju("status kubernetes-keystone --format=json")).applications) == ["kubernetes-keystone"]
    nothing = juju.run(["status", "mysql"])
    assert (nothing.code, nothing.errors) == (0, "Nothing matched specified filters.\n")


def test_values_are_of_the_kinds_that_the_charm_declares(juju: Juju, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("[not, a, list]\n")
    juju("deploy kubernetes-keystone --config number=8 --config switch=true --config text=@text", tmp_path)
    assert settings(juju) == {"text": "[not, a, list]\n", "number": 8, "switch": True}
    juju("config kubernetes-keystone text=12 number=9")
    assert settings(juju) == {"text": "12", "number": 9, "switch": True}
    assert juju("config kubernetes-keystone number") == "9\n"
    juju("config kubernetes-keystone --reset text,number")
    assert settings(juju) == {"text": "hello", "number": 7, "switch": True}


def test_options_come_from_a_file_as_well(juju: Juju, tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("kubernetes-keystone: {number: 3}\n")
    juju("deploy kubernetes-keystone --config options.yaml --config text=too", tmp_path)
    assert settings(juju) == {"text": "too", "number": 3, "switch": False}


def test_a_file_is_deployed_under_the_applications_name(juju: Juju, tmp_path: Path) -> None:
    packed(tmp_path / "mine.charm", CONFIG + "  mine: {type: string, default: yes it is}\n")
    juju("deploy ./mine.charm kubernetes-keystone", tmp_path)
    assert settings(juju)["mine"] == "yes it is"
    juju("refresh kubernetes-keystone")
    assert "mine" not in settings(juju), "which is a refresh to what Charmhub has"


def test_both_names_of_the_same_control_plane_are_taken_until_one_is_in_use(tmp_path: Path) -> None:
    cluster = cast(Any, SimpleNamespace(layout="charmed"))
    juju = Juju(units(1), packed(tmp_path / "x.charm"), [cluster])
    assert juju.control_plane == "kubernetes-master"
    assert juju.run(["config", "kubernetes-control-plane", "authorization-mode"]).code == 0
    assert juju.units[0].principal == "kubernetes-control-plane/0"
    assert list(juju.status()["applications"]) == ["kubernetes-control-plane"]


def test_a_control_planes_own_support_for_keystone_ends_with_its_relation(tmp_path: Path) -> None:
    cluster = SimpleNamespace(layout="charmed", own_keystone="there", configure=lambda _: None)
    juju = Juju(units(1), packed(tmp_path / "x.charm"), [cast(Any, cluster)])
    juju("deploy kubernetes-keystone")
    remove = "remove-relation kubernetes-control-plane:keystone-credentials keystone"
    juju(remove)
    assert cluster.own_keystone is None
    assert juju.run(remove.split()).code == 1


def test_a_secret_is_named_by_what_adding_it_prints(juju: Juju, tmp_path: Path) -> None:
    (tmp_path / "token.txt").write_text("t")
    juju("deploy kubernetes-keystone")
    secret = juju("add-secret hers token#file=token.txt", tmp_path).strip()
    assert secret.startswith("secret:")
    juju("grant-secret hers kubernetes-keystone")
    juju("remove-secret hers")
    assert "not found" in juju.run(["grant-secret", "hers", "kubernetes-keystone"]).errors


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("deploy mysql", "no charm mysql here"),
        ("deploy kubernetes-keystone other", 'can be called "kubernetes-keystone" alone'),
        ("deploy kubernetes-keystone --config nothing=1", 'unknown option "nothing"'),
        ("deploy kubernetes-keystone --config number=many", 'option "number" expected int'),
        ("deploy kubernetes-keystone --to 3", "juju deploy"),
        ("config kubernetes-keystone text=x", 'application "kubernetes-keystone" not found'),
        ("integrate kubernetes-master kubernetes-keystone", 'application "kubernetes-keystone" not found'),
        ("add-unit kubernetes-master -n 2", "has 2 machines in all"),
        ("add-unit kubernetes-keystone", "only kubernetes-master has machines"),
        ("run kubernetes-keystone/0", "UNIT… ACTION"),
        ("status --format=summary", "juju status --format summary"),
        ("bootstrap lxd", "juju bootstrap is not known here"),
        ("remove-application kubernetes-keystone", 'application "kubernetes-keystone" not found'),
    ],
)
def test_what_is_not_known_or_not_there_is_refused_and_named(juju: Juju, line: str, why: str) -> None:
    answer = juju.run(line.split())
    assert answer.code == 1
    assert answer.errors.startswith("ERROR ")
    assert why in answer.errors
    with pytest.raises(TestbedError):
        juju(line)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("deploy kubernetes-keystone", "already exists"),
        ("integrate kubernetes-keystone mysql", 'application "mysql" not found'),
        ("integrate kubernetes-keystone:cos-agent kubernetes-master", "no relations found"),
        ("remove-relation kubernetes-master kubernetes-keystone", "not found"),
        ("run kubernetes-keystone/0 reload-policy", 'unit "kubernetes-keystone/0" not found'),
        ("resolved kubernetes-keystone/7", 'unit "kubernetes-keystone/7" not found'),
    ],
)
def test_once_it_is_deployed_as_well(juju: Juju, line: str, why: str) -> None:
    juju("deploy kubernetes-keystone")
    answer = juju.run(line.split())
    assert answer.code == 1
    assert why in answer.errors


def test_a_deployment_that_was_refused_left_nothing(juju: Juju) -> None:
    assert juju.run(["deploy", "kubernetes-keystone", "--config", "number=many"]).code == 1
    juju("deploy kubernetes-keystone")
    assert settings(juju)["number"] == 7
