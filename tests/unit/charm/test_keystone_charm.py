"""What Keystone's own charm says of Keystone, and that the options win over it."""

from __future__ import annotations

import base64
import dataclasses
from urllib.parse import urlsplit

import ops
import ops.testing
import pytest

import webhook
from config import Listen
from files import Places
from keystone_charm import REQUEST

NOT_SET = "juju integrate keystone:identity-credentials kubernetes-keystone"


def told(url: str, **more: str) -> dict[str, str]:
    """What a unit of Keystone's says, with the account that comes along."""
    parts = urlsplit(url)
    said = {
        "credentials_protocol": parts.scheme,
        "credentials_host": parts.hostname or "",
        "credentials_port": str(parts.port),
        "credentials_username": "kubernetes-keystone",
        "credentials_password": "not-for-us",
        "api_version": "3",
    }
    return said | more


@pytest.fixture
def relate(unit):
    """Relate the unit to a Keystone whose units say this; without words, to one that has not said anything yet."""

    def make(*units: dict[str, str], **options: str) -> None:
        relation = ops.testing.Relation(
            "keystone-credentials", interface="keystone-credentials", remote_app_name="keystone",
            remote_units_data=dict(enumerate(units)) or {0: {}},
        )  # fmt: skip
        others = {one for one in unit.state.relations if one.endpoint != "keystone-credentials"}
        unit.state = dataclasses.replace(unit.state, relations=frozenset({*others, relation}))
        unit.configure(**{"keystone_url": "", **options})

    return make


def ours(unit) -> dict[str, str]:
    return next(one for one in unit.state.relations if one.endpoint == "keystone-credentials").local_unit_data


def test_where_keystone_is_comes_from_its_charm_without_any_option(unit, machine, relate, keystone_url):
    relate(told(keystone_url))

    assert unit.run() == ops.ActiveStatus("ready: charmed, no policy, RBAC alone decides")
    assert machine.settings()["keystone"] == {"url": keystone_url, "ca": None}


def test_the_least_is_asked_for_and_the_password_goes_nowhere(unit, machine, relate, keystone_url):
    relate(told(keystone_url))
    unit.run()

    assert REQUEST.items() <= ours(unit).items()
    assert REQUEST["requested_grants"] == "reader"
    assert "not-for-us" not in unit.log
    for path in machine.places.root.rglob("*"):
        assert not path.is_file() or b"not-for-us" not in path.read_bytes()


def test_what_it_has_not_said_yet_is_waited_for(unit, machine, relate):
    relate()

    status = unit.run()
    assert isinstance(status, ops.WaitingStatus)
    assert "Keystone's charm has not said yet" in status.message
    assert not machine.places.settings.exists()


def test_the_option_wins_and_the_status_says_so(unit, machine, relate, keystone_url):
    relate(told("https://elsewhere.example:5000"), keystone_url=keystone_url)

    status = unit.run()
    assert status.message.startswith("ready: ")
    assert "keystone-url wins over keystone-credentials" in status.message
    assert machine.settings()["keystone"]["url"] == keystone_url


def test_of_several_units_with_addresses_of_their_own_the_one_in_use_stays(unit, machine, relate, keystone_url):
    relate(told(keystone_url))
    unit.run()
    relate(told("https://another.example:5000"), told(keystone_url))

    assert isinstance(unit.run("update_status"), ops.ActiveStatus)
    assert machine.settings()["keystone"]["url"] == keystone_url


def test_tokens_go_in_clear_by_nobodys_word_but_the_operators(unit, relate):
    relate(told("http://keystone.example:5000"))

    status = unit.run()
    assert isinstance(status, ops.BlockedStatus)
    assert "would send tokens in clear" in status.message


def test_an_old_identity_api_is_refused_with_what_to_do(unit, relate, keystone_url):
    relate(told(keystone_url, api_version="2.0"))

    assert "preferred-api-version=3" in unit.run().message


def test_when_the_relation_goes_what_was_in_force_stays_and_the_status_says_what_is_missing(
    unit, machine, relate, keystone_url
):
    relate(told(keystone_url))
    unit.run()
    unit.state = dataclasses.replace(
        unit.state, relations=frozenset(one for one in unit.state.relations if one.endpoint == "kubernetes-master")
    )

    status = unit.run()
    assert isinstance(status, ops.BlockedStatus)
    assert NOT_SET in status.message
    assert machine.settings()["keystone"]["url"] == keystone_url


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> str:
    places = Places(tmp_path_factory.mktemp("root"))
    places.tls.mkdir(parents=True)
    return webhook.ensure_tls(places, Listen(host="127.0.0.1", port=1), places.tls.stat().st_gid).ca.read_text()


@pytest.mark.parametrize("option", [False, True])
def test_the_ca_comes_with_the_url_unless_the_option_names_another(unit, machine, relate, keystone_url, pem, option):
    another = pem + pem
    ca = base64.b64encode(pem.encode()).decode()
    relate(told(keystone_url, ca_cert=ca), **({"keystone_ca": another} if option else {}))
    unit.run()

    assert machine.places.keystone_ca.read_text() == (another if option else pem)


def test_a_null_of_the_providers_peer_store_is_no_ca(unit, machine, relate, keystone_url):
    relate(told(keystone_url, ca_cert="__null__"))

    assert isinstance(unit.run(), ops.ActiveStatus)
    assert machine.settings()["keystone"]["ca"] is None
