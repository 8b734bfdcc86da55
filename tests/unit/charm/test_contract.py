"""Where charm and authenticator meet: the real program reads what the charm writes, and the charm what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import actions
import apiserver
import authenticator
import bindings
import config
import flags
import webhook
from apiserver import layouts, wanted
from apiserver.wanted import Stage
from authenticator import Backend, Backends
from config import CharmConfig
from errors import ConfigError
from files import Places
from keystone_authenticator import chain, identity, settings
from keystone_authenticator import flags as service_flags

PROJECT = Path(__file__).resolve().parents[3]
GOOD = """\
- users:
    roles: [member]
    projects: [demo]
  resource_permissions:
    "*/pods": [get, list]
- resource: {verbs: [create], resources: [pods], version: "*", namespace: default}
  match: [{type: role, values: [admin]}]
"""


@pytest.fixture
def places(machine) -> Places:
    """The temporary machine, with the repository's own authenticator."""
    made = Places(machine.places.root, PROJECT)
    made.tls.mkdir(parents=True)
    return made


def with_policy(text: str, **options: Any) -> CharmConfig:
    return CharmConfig(keystone_url="https://keystone.example:5000", policy=text, **options)


def test_a_policy_in_both_formats_is_valid_and_becomes_json(places):
    policy = authenticator.validate_policy(places, with_policy(GOOD))

    assert policy.rules == 2
    assert authenticator.validate_policy(places, with_policy(policy.content.decode())).content == policy.content


def test_what_a_policy_is_warned_about_depends_on_the_mode(places):
    native = authenticator.validate_policy(places, with_policy(GOOD))
    compatible = authenticator.validate_policy(places, with_policy(GOOD, upstream_compatible=True))

    assert any("sub-resources" in warning for warning in native.warnings)
    assert compatible.warnings == ()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("- users: [", ["line"]),
        (GOOD + "- userz: 1\n", ["item 3", "userz", "line"]),
        ("just a text", ["policy: "]),
        (GOOD.replace("[get, list]", "{a: b}"), ["item 1"]),
    ],
)
def test_what_is_wrong_with_a_policy_is_said_with_its_place(places, text, parts):
    with pytest.raises(ConfigError) as raised:
        authenticator.validate_policy(places, with_policy(text))
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize("everything", [True, False])
def test_the_program_reads_the_settings_that_the_charm_writes(places, everything, monkeypatch):
    group = places.tls.stat().st_gid
    options = {"keystone_url": "https://keystone.example:5000", "authn_server_url": "https://[::1]:9443/webhook"}
    tls = webhook.ensure_tls(places, CharmConfig.model_validate(options).listen, group)
    if everything:
        options["keystone_ca"] = options["auth_server_ca"] = tls.ca.read_text()
    chosen = CharmConfig.model_validate(options)
    backend = Backend("https://127.0.0.1:8445/webhook", tls.ca) if everything else None
    authenticator.write_inputs(places, chosen, b"[]")
    authenticator.write_settings(
        places, chosen, tls,
        chained=places.etc / "chained" if everything else None,
        certified=everything,
        flags=places.state / "wanted" if everything else None,
        authorization=everything,
        backends=Backends(backend, backend),
    )  # fmt: skip

    read, _ = settings.load(places.settings)
    assert (read.listen.host, read.listen.port) == ("::1", 9443)
    assert read.private_listen.port == authenticator.PRIVATE_PORT
    assert read.keystone.url == "https://keystone.example:5000/v3"
    assert read.tls.require_client_certificate is everything
    assert (read.policy is not None) is everything
    assert (read.authentication_backend is not None) is everything
    assert authenticator.in_force(places).listen == chosen.listen.address


@pytest.mark.parametrize(
    ("stage", "changes", "state"),
    [
        (Stage.TRIAL, {"starts": 0, "life": "boot 5"}, "trial"),
        (Stage.CONFIRMED, {"starts": 3, "life": "boot 5"}, "confirmed"),
        (Stage.CONFIRMED, {"starts": 0, "life": "boot 5"}, "confirmed"),
        (Stage.CONFIRMED, {"starts": 0}, "left_out"),
        (Stage.CONFIRMED, {"starts": 2}, "pending"),
        (Stage.BYPASSED, {"starts": 3}, "bypassed"),
        (Stage.ACQUITTED, {"starts": 3}, "acquitted"),
    ],
)
def test_the_program_tells_what_the_wiring_wrote_down_about_the_flags(tmp_path, stage, changes, state):
    place = apiserver.Place(root=tmp_path)
    found = wanted.Wanted(**{"stage": stage, "digest": "d", "files": (), "lines": (), "starts": 1, **changes})
    wanted.write(place, found)

    assert service_flags.state(place.wanted) == state
    assert state in service_flags.STATES
    assert (state == "left_out") is found.ran_out
    assert place.wanted.stat().st_mode & 0o777 == 0o644, "the service is not root"
    wanted.forget(place)
    assert service_flags.state(place.wanted) == service_flags.state(None) == "none"


def test_the_program_explains_by_the_policy_that_the_charm_wrote(places, machine):
    group = places.tls.stat().st_gid
    chosen = CharmConfig(keystone_url="https://keystone.example:5000")
    tls = webhook.ensure_tls(places, chosen.listen, group)
    authenticator.write_inputs(places, chosen, authenticator.validate_policy(places, with_policy(GOOD)).content)
    authenticator.write_settings(
        places, chosen, tls, chained=None, certified=False, flags=None, authorization=True, backends=Backends()
    )
    launcher = places.opt / "current" / authenticator.LAUNCHER
    launcher.parent.mkdir(parents=True)
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m keystone_authenticator "$@"\n')
    launcher.chmod(0o755)

    def check(**changes: Any) -> dict[str, Any]:
        asked = {"user": "alice", "project-name": "demo", "roles": "member", "verb": "list", "namespace": "default"}
        parameters = {**asked, "resource": "pods", **changes}
        named = {key.replace("-", "_"): value for key, value in parameters.items()}
        return actions.check_access(places, actions.Access.model_validate(named))

    assert check()["item"] == 1
    assert check(roles="reader") == {
        "allowed": "false",
        "reason": "no item allows it (2 came near); RBAC decides",
        "misses": "item 1: the user lacks the role member\n"
        "item 2: none of the item's roles ('admin') is the user's and the verb 'list' is not among its verbs",
    }
    for path, allowed in (("/api/v1/**", "true"), ("/apis/**", "false")):
        rules = json.dumps([{"service": "kubernetes", "method": "GET", "path": path}])
        assert check(**{"access-rules": rules, "api-version": "v1"})["allowed"] == allowed


def test_a_displaced_webhooks_own_answer_begins_as_the_charm_expects():
    assert webhook._CHAINED_SAYS == chain.SAYS


@pytest.mark.parametrize("name", ["alice", "Zoë O'Hara", "a/b", "a~b", "a:b@c", "50%", "a\nb"])
def test_commands_for_bindings_spell_names_as_the_authenticator_does(name):
    naming, project = identity.Naming("default", upstream_compatible=False), "0" * 32
    assert bindings.native("User", name) == naming.user(name, "default")
    assert bindings.native("Group", name) == naming.group(name, "default")
    assert bindings.native("Group", project) == naming.project(project)


def test_every_layout_that_there_is_can_be_chosen():
    names = [make(apiserver.Place()).name for make in layouts.LAYOUTS]
    assert list(config.LAYOUTS) == names
    description = yaml.safe_load((PROJECT / "config.yaml").read_text())["options"]["api-server"]["description"]
    assert [name for name in names if f"{name} (" not in description] == []


def test_the_private_port_is_the_one_that_the_contract_names():
    assert (config.PRIVATE_PORT, config.DEFAULT_ENDPOINT) == (8444, "https://127.0.0.1:8443/webhook")


def test_the_conditions_of_our_authorizer_ask_for_the_marks_that_the_authenticator_gives_and_looks_at() -> None:
    assert (flags._NATIVE, *flags._EXTRA) == (identity.PREFIX, identity.PROJECT_ID, identity.USER_DOMAIN_ID)
    assert flags._RESERVED == identity._RESERVED
    account = identity.Account("u", "alice", "default", "Default", "p", "demo", "default", ("member",))
    for upstream in (False, True):
        found = identity.Naming("default", upstream).identity(account, ())
        assert found.uid
        assert set(flags._EXTRA) <= dict(found.extra).keys()
        assert found.username.startswith(flags._NATIVE) != upstream
        assert not found.username.startswith(flags._RESERVED)
