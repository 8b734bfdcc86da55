"""Certificates of our own when they change under API servers that know what they know (webhook.ensure_tls)."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pytest

import files
import pki
import webhook
from apiserver import Knows
from certificates import Offer
from config import Listen
from files import Places
from tests.unit.charm.conftest import PROJECT

HERE = Listen(host="127.0.0.1", port=8443)
UNKNOWN = Knows()
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.timezone.utc)


class Endpoint:
    """The certificates of one unit, and an API server that knows what its last kubeconfig said."""

    def __init__(self, places: Places):
        self.places, self.tls = places, webhook.tls(places)
        self.served: pki.Issued | None = None  # where it is not what the files say
        self.begin()

    def begin(self) -> None:
        """Make everything while nobody asks, and give it to the API server."""
        webhook.ensure_tls(self.places, HERE, os.getegid())
        self.server = self.offered

    def ensure(self, *asked_by: Knows) -> None:
        webhook.ensure_tls(self.places, HERE, os.getegid(), asked_by=asked_by or (self.server,))

    @property
    def offered(self) -> Knows:
        """What an API server knows that is given the kubeconfig of now."""
        return Knows.of(webhook.kubeconfig(self.places, self.tls, HERE, with_client=True))

    @property
    def kubeconfig(self) -> bytes:
        return webhook.kubeconfig(self.places, self.tls, HERE, with_client=True)

    def issued(self, name: str) -> pki.Issued:
        found = self.loaded(name)
        assert found is not None
        return found

    def loaded(self, name: str) -> pki.Issued | None:
        certificate, key = (self.places.tls / f"{name}.{suffix}" for suffix in ("crt", "key"))
        return pki.load(certificate.read_bytes(), key.read_bytes())

    @property
    def works(self) -> bool:
        """Whether a review would come through: the server takes the endpoint, and the endpoint its certificate."""
        known = pki.parse(self.server.authorities)
        taken = not pki.refusal(self.served or self.issued("server"), known, HERE.host)
        (client,) = pki.parse(self.server.client or b"")
        return taken and any(pki.signed_by(client, one) for one in pki.parse(self.tls.ca.read_bytes()))

    def snapshot(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.places.tls.iterdir()}

    def age(self, name: str, days: float) -> None:
        """Let a server's certificate have been made so long ago."""
        hosts, then = ("127.0.0.1", "localhost"), NOW - datetime.timedelta(days=days)
        made = pki.issue("kubernetes-keystone", self.issued("ca"), hosts, webhook.LEAF_LIFE, then)
        for suffix, content in (("key", made.key_pem), ("crt", made.shown)):
            (self.places.tls / f"{name}.{suffix}").write_bytes(content)


@pytest.fixture
def endpoint(tmp_path) -> Endpoint:
    places = Places(tmp_path, PROJECT)
    places.tls.mkdir(parents=True)
    return Endpoint(places)


def test_a_leaf_is_renewed_at_once_and_changes_nothing_for_the_api_server(endpoint):
    endpoint.age("server", 500)
    old, kubeconfig = endpoint.issued("server").certificate, endpoint.kubeconfig
    assert endpoint.works
    endpoint.ensure()
    assert endpoint.issued("server").certificate != old
    assert endpoint.works
    assert endpoint.kubeconfig == kubeconfig


@pytest.mark.parametrize("lost", ["ca.key", "ca.crt", "it is old"])
def test_a_new_ca_is_relied_on_in_both_directions_only_once_it_is_known(endpoint, lost):
    if lost == "it is old":
        for path in endpoint.places.tls.iterdir():
            path.unlink()
        webhook.ensure_tls(endpoint.places, HERE, os.getegid(), NOW - datetime.timedelta(days=3300))
        endpoint.age("server", 10)
        endpoint.server = endpoint.offered
    else:
        (endpoint.places.tls / lost).write_text("damaged")
    assert webhook.goes_on(endpoint.places, HERE, [endpoint.server])
    before = endpoint.issued("server").certificate

    endpoint.ensure()
    assert endpoint.issued("server").certificate == before
    assert webhook.waits(endpoint.tls)
    if lost != "ca.crt":  # by which the API server's certificate was known
        assert endpoint.works
    snapshot = endpoint.snapshot()
    endpoint.ensure()
    assert endpoint.snapshot() == snapshot

    endpoint.server = endpoint.offered
    assert endpoint.works
    endpoint.ensure()
    assert endpoint.works
    assert not webhook.waits(endpoint.tls)
    assert pki.signed_by(endpoint.issued("server").certificate, endpoint.issued("ca").certificate)
    assert pki.parse(endpoint.tls.ca.read_bytes()) == [endpoint.issued("ca").certificate]
    kubeconfig = endpoint.kubeconfig
    endpoint.ensure()
    assert endpoint.kubeconfig == kubeconfig


class Killed(BaseException):
    """The charm ends here."""


@pytest.mark.parametrize("what", ["a new CA", "a renewal", "a certificate of somebody else's"])
def test_a_charm_that_is_killed_at_any_write_leaves_what_works_and_the_next_hook_goes_on(endpoint, monkeypatch, what):
    begun = endpoint.snapshot()
    theirs = pki.issue_authority("their CA", 9 * DAY, NOW)
    issued = pki.issue("theirs", theirs, ("127.0.0.1",), 9 * DAY, NOW)
    given = pki.load(issued.shown + pki.pem(theirs.certificate), issued.key_pem)
    offer = Offer(related=True, server=given) if what.startswith("a certificate") else Offer()

    def hooks(*until: int) -> None:
        """What the hooks do until all is done, or until so many changes have been made."""
        left = list(until)

        def write(path: Path, *rest: Any) -> bool:
            if left and not left[0]:
                raise Killed
            changed = files_write(path, *rest)
            if left and changed:
                left[0] -= 1
            return changed

        monkeypatch.setattr("files.write", write)
        for _ in range(2):
            webhook.ensure_tls(endpoint.places, HERE, os.getegid(), offer=offer, asked_by=[endpoint.server])
            endpoint.server = endpoint.offered

    files_write, steps = files.write, 0
    while True:
        for path in endpoint.places.tls.iterdir():
            path.unlink()
        for name, content in begun.items():
            (endpoint.places.tls / name).write_bytes(content)
        endpoint.server = endpoint.offered
        if what == "a new CA":
            (endpoint.places.tls / "ca.key").unlink()
        if what == "a renewal":
            endpoint.age("server", 500)
        served = endpoint.issued("server")
        try:
            hooks(steps)
        except Killed:
            # The authenticator keeps what it has where the two files do not fit.
            endpoint.served = endpoint.loaded("server") or served
            assert endpoint.works, f"after {steps} changes"
            hooks()
            endpoint.served = None
            assert endpoint.works
            assert not webhook.waits(endpoint.tls)
            steps += 1
            continue
        break
    assert steps > 1
    assert pki.signed_by(endpoint.issued("server").certificate, theirs.certificate) == offer.related


def test_of_several_servers_the_last_one_is_waited_for(endpoint):
    (endpoint.places.tls / "ca.key").unlink()
    endpoint.ensure()
    old, new = endpoint.server, endpoint.offered
    for servers in ((old, new), (new, UNKNOWN)):
        endpoint.ensure(*servers)
        assert webhook.waits(endpoint.tls)
        assert endpoint.works
    endpoint.server = new
    endpoint.ensure(new, new)
    assert not webhook.waits(endpoint.tls)
    assert endpoint.works


def test_where_it_cannot_be_told_what_the_server_knows_what_works_stays(endpoint):
    endpoint.age("server", 500)
    before = endpoint.issued("server").certificate
    endpoint.ensure(UNKNOWN)
    assert endpoint.issued("server").certificate == before
    endpoint.ensure()
    assert endpoint.issued("server").certificate != before


def test_a_ca_of_the_past_leaves_the_kubeconfig_with_the_next_change_there_and_never_by_itself(endpoint):
    (endpoint.places.tls / "ca.key").unlink()
    endpoint.ensure()
    endpoint.server = endpoint.offered
    endpoint.ensure()
    both = endpoint.kubeconfig
    for told in (UNKNOWN, endpoint.server, UNKNOWN):
        endpoint.ensure(told)
        assert endpoint.kubeconfig == both
    (endpoint.places.tls / "client.key").unlink()
    endpoint.ensure()
    assert pki.parse(endpoint.offered.authorities) == [endpoint.issued("ca").certificate]


@pytest.mark.parametrize("name", ["server.key", "server.crt"])
def test_a_certificate_that_is_damaged_is_made_anew_at_once_as_its_ca_is_known(endpoint, name):
    (endpoint.places.tls / name).write_text("damaged")
    kubeconfig = endpoint.kubeconfig
    assert webhook.goes_on(endpoint.places, HERE, [endpoint.server])
    endpoint.ensure()
    assert endpoint.works
    assert endpoint.kubeconfig == kubeconfig


def test_what_is_lost_together_cannot_go_on(endpoint):
    for path in endpoint.places.tls.iterdir():
        path.unlink()
    assert not webhook.goes_on(endpoint.places, HERE, [endpoint.server])
    endpoint.begin()
    assert endpoint.works


def test_what_an_older_charm_has_left_changes_nothing_for_the_api_server(endpoint):
    kubeconfig = endpoint.kubeconfig
    (endpoint.places.tls / "authorities.crt").unlink()
    endpoint.ensure()
    assert endpoint.kubeconfig == kubeconfig
    assert endpoint.works


def test_the_api_servers_certificate_lives_as_long_as_its_ca(endpoint):
    ca, client = endpoint.issued("ca").certificate, endpoint.issued("client").certificate
    assert client.not_valid_after_utc == ca.not_valid_after_utc
