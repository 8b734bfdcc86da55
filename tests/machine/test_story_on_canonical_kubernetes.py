"""Steps of the story (tests/scenarios.py) on Canonical Kubernetes: those in which its charm's ways are others.

What else is special there, and what its machine shows, is test_layouts.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.canonical import Canonical
from testbed.stage import StageOf
from tests import scenarios
from tests.machine.place import StandIn


@pytest.fixture(scope="module")
def told(charm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[scenarios.Story]:
    with StageOf(Canonical, charm) as stage:
        folder = tmp_path_factory.mktemp("operator")
        yield scenarios.begin(StandIn(stage.juju, [stage.unit], stage.cluster, stage.keystone, stage.charm, folder))


def test_before_the_charm_a_keystone_user_is_nobody(told: scenarios.Story) -> None:
    scenarios.before_the_charm_a_keystone_user_is_nobody(told)


def test_two_commands_end_in_active_units(told: scenarios.Story) -> None:
    assert told.place.control_plane == "k8s"
    scenarios.two_commands_end_in_active_units(told)


def test_an_upgrade_from_the_last_release_restarts_no_api_server(told: scenarios.Story) -> None:
    scenarios.an_upgrade_from_the_last_release_restarts_no_api_server(told)


def test_the_policy_allows_what_it_says_and_nothing_else(told: scenarios.Story) -> None:
    scenarios.the_policy_allows_what_it_says_and_nothing_else(told)


def test_the_control_plane_sets_a_flag_of_its_own_and_ours_survive(told: scenarios.Story) -> None:
    scenarios.the_control_plane_sets_a_flag_of_its_own_and_ours_survive(told)


def test_removal_leaves_the_control_plane_as_it_was(told: scenarios.Story) -> None:
    scenarios.removal_leaves_the_control_plane_as_it_was(told)
