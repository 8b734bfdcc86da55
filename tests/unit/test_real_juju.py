"""What is typed at a real Juju, as far as it can be tested without one."""

from __future__ import annotations

import base64
import json
import shlex

import pytest
import yaml

from tests import scenarios
from tests.integration import commands
from tests.juju_output import status
from tests.unit.test_scenarios import MODEL

ALL: dict[str, bool] = dict.fromkeys(commands.PROGRAMS, True)
KINDS = (scenarios.CHARMED, scenarios.CANONICAL)


@pytest.mark.parametrize(
    ("found", "version", "controller", "reason"),
    [
        (ALL | {"juju": False, "kubectl": False}, "", False, "there is no juju, no kubectl on this machine"),
        (
            ALL,
            "2.9.51-ubuntu-amd64\n",
            True,
            "juju is 2.9.51-ubuntu-amd64, and the steps are typed as for 3.3 and later",
        ),
        (ALL, "3.2.4-genericlinux-amd64", True, "juju is 3.2.4-genericlinux-amd64"),
        (ALL, "3.6.1-ubuntu-amd64", False, "juju has no controller here"),
    ],
)
def test_what_is_missing_is_named(found: dict[str, bool], version: str, controller: bool, reason: str) -> None:
    assert commands.why_not(found, version, controller).startswith(reason)


@pytest.mark.parametrize("version", ["3.3.0-ubuntu-amd64", "3.10.1", "4.0-beta1-ubuntu-amd64"])
def test_a_juju_that_is_new_enough_and_has_a_controller_is_taken(version: str) -> None:
    assert commands.why_not(ALL, version, True) == ""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.layout)
def test_an_empty_model_gets_a_control_plane_and_a_keystone_and_a_full_one_nothing(kind: scenarios.Kind) -> None:
    application, control_plane = commands.CONTROL_PLANES[kind.layout]
    empty = status(json.dumps({**MODEL, "applications": {}}))
    assert commands.missing(empty, kind, application) == [*control_plane, *commands.KEYSTONE]
    there = {"keystone": {"charm": "keystone"}, application: {"charm": application}}
    assert commands.missing(status(json.dumps({**MODEL, "applications": there})), kind, application) == []


def test_applications_are_deployed_before_they_are_integrated() -> None:
    deployed: set[str] = set()
    for line in commands.KEYSTONE:
        command, *words = shlex.split(line)
        if command == "deploy":
            deployed.add(words[1] if len(words) > 1 and not words[1].startswith("-") else words[0])
        else:
            assert {word.partition(":")[0] for word in words} <= deployed, line


def test_a_model_rests_when_no_agent_has_anything_to_do() -> None:
    assert not commands.idle(status(json.dumps(MODEL)))
    assert commands.idle(status(json.dumps(MODEL).replace("executing", "idle")))


@pytest.mark.parametrize(
    ("line", "waits"),
    [
        ("deploy ./x.charm kubernetes-keystone", True),
        ("config kubernetes-keystone policy=@policy.json", True),
        ("config kubernetes-keystone --reset policy", True),
        ("config kubernetes-keystone policy", False),
        ("status --format=json", False),
        ("exec --unit k8s/0 -- true", False),
        ("run kubernetes-keystone/0 check-access user=alice", False),
    ],
)
def test_only_commands_that_hooks_follow_are_waited_for(line: str, waits: bool) -> None:
    assert commands.waits_for_hooks(shlex.split(line)) is waits


def test_keystones_key_goes_by_a_file() -> None:
    (application, options), *rest = yaml.safe_load(commands.https(b"certificate", b"key", b"ca")).items()
    assert (application, rest) == ("keystone", [])
    told = {name: base64.b64decode(value) for name, value in options.items()}
    assert told == {"ssl_cert": b"certificate", "ssl_key": b"key", "ssl_ca": b"ca"}


def test_keystones_url_has_an_address_of_either_kind() -> None:
    assert commands.url_of_keystone("10.1.2.3") == "https://10.1.2.3:5000/v3"
    assert commands.url_of_keystone("fd00::1") == "https://[fd00::1]:5000/v3"


def test_server_and_ca_are_those_of_the_current_context() -> None:
    ca = base64.b64encode(b"the CA").decode()
    kubeconfig = {
        "clusters": [
            {"name": "other", "cluster": {"server": "https://192.0.2.9:6443", "certificate-authority-data": ""}},
            {"name": "k8s", "cluster": {"server": "https://192.0.2.1:6443", "certificate-authority-data": ca}},
        ],
        "contexts": [{"name": "here", "context": {"cluster": "k8s", "user": "admin"}}],
        "current-context": "here",
    }
    assert commands.cluster(yaml.safe_dump(kubeconfig)) == ("https://192.0.2.1:6443", b"the CA")


def test_a_leaders_task_is_found_whichever_unit_leads() -> None:
    told = {"keystone/2": {"id": "4", "results": {"stdout": "secret\n"}, "status": "completed"}}
    assert commands.first_task(json.dumps(told))["results"] == {"stdout": "secret\n"}
    with pytest.raises(ValueError, match="2 answer"):
        commands.first_task(json.dumps(told | {"keystone/3": {}}))


def test_the_story_begins_with_the_release_that_is_named_or_with_a_file() -> None:
    assert commands.first_release("latest/stable", "/x.charm") == "kubernetes-keystone --channel latest/stable"
    assert commands.first_release("", "/a folder/x.charm") == "'/a folder/x.charm'"
