"""The endpoint's certificate by another charm's word: what happens when it comes, changes and goes.

The other side is charmlibs' own provider (testbed/issuer.py).
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import os

import ops
import ops.testing
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import apiserver
import pki
from certificates import RELATION
from charm import KubernetesKeystoneCharm
from testbed.issuer import Issuer, Signer
from tests.unit.charm.conftest import _spec

# Each runs the charm half a dozen times; make check has the first few.
slow = pytest.mark.slow
DAY = datetime.timedelta(days=1)
NONE_YET = (
    "ready: charmed, no policy, RBAC alone decides, certificates: issuer has given none yet; what was in force still is"
)
WELL = "ready: charmed, no policy, RBAC alone decides"


class Story:
    """A unit that is related to an issuer, and what it has of it."""

    def __init__(self, unit, machine, wiring):
        self.unit, self.machine, self.wiring, self.issuer = unit, machine, wiring, Issuer()

    def relate(self) -> ops.StatusBase:
        made = ops.testing.Relation(RELATION, interface="tls-certificates", remote_app_name="issuer")
        self.unit.state = dataclasses.replace(self.unit.state, relations={*self.unit.state.relations, made})
        return self.run()

    def separate(self) -> ops.StatusBase:
        context, broken = self.unit.context, self.relation
        self.unit.state = context.run(context.on.relation_broken(broken), self.unit.state)
        others = {one for one in self.unit.state.relations if one.endpoint != RELATION}
        self.unit.state = dataclasses.replace(self.unit.state, relations=others)
        return self.status

    @property
    def relation(self) -> ops.testing.Relation:
        return next(one for one in self.unit.state.relations if one.endpoint == RELATION)

    @property
    def said(self) -> dict[str, str]:
        return dict(self.relation.local_unit_data)

    @property
    def status(self) -> ops.StatusBase:
        shown = self.unit.state.unit_status
        return ops.StatusBase.from_name(shown.name, shown.message)

    def tell(self, **data: str) -> ops.StatusBase:
        """Have the provider say this, and Juju tell the unit."""
        told = dataclasses.replace(self.relation, remote_app_data=data)
        others = {one for one in self.unit.state.relations if one.endpoint != RELATION}
        self.unit.state = dataclasses.replace(self.unit.state, relations={*others, told})
        context = self.unit.context
        self.unit.state = context.run(context.on.relation_changed(told, remote_unit=0), self.unit.state)
        return self.status

    def give(self, **how: bool) -> ops.StatusBase:
        """Have the provider answer what has been asked for."""
        return self.tell(**self.issuer.answer(self.said, self.relation.remote_app_data, **how))

    def run(self) -> ops.StatusBase:
        return self.unit.run("update_status")

    @property
    def shown(self) -> list[x509.Certificate]:
        """What the endpoint shows."""
        return pki.parse((self.machine.places.tls / "server.crt").read_bytes())

    @property
    def is_theirs(self) -> bool:
        return pki.signed_by(self.shown[0], self.issuer.authority.certificate)

    @property
    def known(self) -> list[x509.Certificate]:
        """The CAs by which the API server knows the endpoint."""
        (kubeconfig,) = self.wiring.desired.files.values()
        cluster = yaml.safe_load(kubeconfig)["clusters"][0]["cluster"]
        return pki.parse(base64.b64decode(cluster["certificate-authority-data"]))

    @property
    def own(self) -> x509.Certificate:
        return pki.parse((self.machine.places.tls / "ca.crt").read_bytes())[0]

    @property
    def waits(self) -> bool:
        return (self.machine.places.tls / "coming.crt").exists()


@pytest.fixture
def story(unit, machine, wiring) -> Story:
    made = Story(unit, machine, wiring)
    unit.run()
    made.relate()
    return made


def test_until_a_certificate_has_come_our_own_stays_and_the_request_names_the_endpoint(story):
    assert story.status == ops.ActiveStatus(NONE_YET)
    assert not story.is_theirs
    key = story.machine.places.requested_key
    assert key.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in str(story.said)
    (request,) = json.loads(story.said["certificate_signing_requests"])
    csr = x509.load_pem_x509_csr(request["certificate_signing_request"].encode())
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sorted(str(name.value) for name in names) == ["127.0.0.1", "localhost"]
    assert serialization.load_pem_private_key(key.read_bytes(), None).public_key() == csr.public_key()

    said = story.said
    story.run()
    assert story.said == said


def test_what_comes_is_put_in_force_once_the_api_server_knows_its_ca(story):
    story.wiring.raises["apply"] = apiserver.NotOurTurn("another unit restarts its API server")
    assert isinstance(story.give(), ops.WaitingStatus)
    assert story.waits
    assert not story.is_theirs

    story.wiring.raises.clear()
    restarts = story.wiring.restarts
    assert story.run() == ops.ActiveStatus(WELL)
    assert story.wiring.restarts == restarts + 1
    assert story.known == [story.own, story.issuer.authority.certificate]
    assert story.is_theirs
    assert not story.waits
    key = story.machine.places.tls / "server.key"
    assert key.stat().st_mode & 0o777 == 0o640
    assert "PRIVATE" not in story.unit.log

    before = story.machine.snapshot()
    story.run()
    assert story.machine.snapshot() == before
    assert story.wiring.restarts == restarts + 1


def test_a_renewal_by_the_same_ca_restarts_nothing(story):
    story.issuer.age = 250 * DAY
    story.give()
    first, asked, restarts = story.shown, story.said, story.wiring.restarts
    assert story.is_theirs
    story.run()
    assert story.said == asked  # not again within the hour

    os.utime(story.machine.places.requested_key, (0, 0))
    story.run()
    assert story.said != asked
    story.tell()  # the provider takes the old one out at once, which is no reason not to use it
    assert story.shown == first
    story.issuer.age = 0 * DAY
    assert story.give() == ops.ActiveStatus(WELL)
    assert story.is_theirs
    assert story.shown != first
    assert story.wiring.restarts == restarts


@slow
def test_another_ca_goes_bundle_first_and_the_old_one_leaves_when_something_else_changes(story):
    story.give()
    old, restarts, before = story.issuer.authority.certificate, story.wiring.restarts, story.shown
    story.issuer.authority = Signer.make("another CA")
    story.wiring.raises["apply"] = apiserver.NotOurTurn("another unit restarts its API server")
    story.give(again=True)
    assert story.shown == before

    story.wiring.raises.clear()
    assert story.run() == ops.ActiveStatus(WELL)
    assert story.is_theirs
    assert story.known == [story.own, old, story.issuer.authority.certificate]
    story.run()
    assert story.known == [story.own, old, story.issuer.authority.certificate]
    assert story.wiring.restarts == restarts + 1

    second = story.issuer.authority.certificate
    story.issuer.authority = Signer.make("a third CA")
    story.give(again=True)
    assert story.known == [story.own, second, story.issuer.authority.certificate]
    assert story.wiring.restarts == restarts + 2


@slow
def test_when_the_relation_goes_our_own_is_back_without_a_restart_as_its_ca_has_stayed_known(story):
    story.give()
    restarts, known = story.wiring.restarts, story.known
    assert story.separate() == ops.ActiveStatus(WELL)
    assert pki.signed_by(story.shown[0], story.own)
    assert (story.wiring.restarts, story.known) == (restarts, known)
    assert not story.machine.places.requested_key.exists()


@slow
def test_a_ca_that_fails_its_trial_is_not_relied_on_and_goes_with_the_relation(story):
    before, known = story.shown, story.known
    story.wiring.raises["apply"] = apiserver.ApplyFailed("the API server did not become ready")
    assert isinstance(story.give(), ops.BlockedStatus)
    assert story.shown == before

    story.wiring.raises.clear()
    restarts = story.wiring.restarts
    assert story.separate() == ops.ActiveStatus(WELL)
    assert (story.wiring.restarts, story.known, story.shown) == (restarts, known, before)
    assert not story.waits


BAD = {
    "another key": ({"other_key": True}, "it is for another key than the one that was asked for"),
    "other names": ({"hosts": [x509.DNSName("kubernetes.example")]}, "certificate is not valid for '127.0.0.1'"),
    "over": ({"life": 30 * DAY, "age": 31 * DAY}, "certificate has expired"),
    "a strange CA": (
        {"authority": Signer.make(curve=ec.BrainpoolP256R1)},
        "a key of a kind that an API server does not",
    ),
    "at its end": ({"life": 30 * DAY, "age": 29 * DAY}, "it has come to its end"),
    "not yet": ({"age": -2 * DAY}, "certificate is not yet valid"),
}


@pytest.mark.parametrize(("how", "reason"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("what", ["the first", "a later one"])
@slow
def test_what_cannot_be_used_changes_nothing_and_the_status_says_why(story, how, reason, what):
    if what == "a later one":
        story.give()
    before, restarts = story.shown, story.wiring.restarts
    for name, value in how.items():
        setattr(story.issuer, name, value)
    status = story.give(again=True)

    assert isinstance(status, ops.ActiveStatus)
    assert "certificates: what issuer gives is not used (" in status.message
    assert reason in status.message
    assert (story.shown, story.wiring.restarts) == (before, restarts)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"certificates": "garbage"}, "what issuer says is not this interface's"),
        ({"certificates": '[{"certificate": 7}]'}, "what issuer says is not this interface's"),
        ({"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}, "no certificate"),
        ({"certificate": "garbage"}, "no certificate"),
        ({"ca": "other"}, "its CA has not signed it"),
    ],
)
@slow
def test_what_is_no_certificate_changes_nothing_and_fails_no_hook(story, data, reason):
    before = story.shown
    if "certificates" not in data:
        (one,) = json.loads(story.issuer.answer(story.said)["certificates"])
        other = pki.pem(Signer.make("other").certificate).decode()
        one |= {**{key: other if value == "other" else value for key, value in data.items()}, "chain": None}
        data = {"certificates": json.dumps([one])}
    status = story.tell(**data)

    assert isinstance(status, ops.ActiveStatus)
    assert reason in status.message
    assert story.shown == before


@pytest.mark.parametrize("shuffled", [False, True])
@slow
def test_a_chain_is_shown_and_its_root_is_what_the_api_server_knows(story, shuffled):
    root = Signer.make("the root")
    story.issuer.authority, story.issuer.shuffled = Signer.make("below it", by=root), shuffled
    assert story.give() == ops.ActiveStatus(WELL)

    assert story.shown[1] == story.issuer.authority.certificate
    assert story.known == [story.own, root.certificate]
    restarts = story.wiring.restarts
    story.issuer.authority = Signer.make("another below it", by=root)
    story.give(again=True)
    assert story.is_theirs
    assert story.wiring.restarts == restarts


@slow
def test_a_ca_without_its_root_is_known_as_it_is(story):
    authority = Signer.make("below what nobody tells", by=Signer.make("the root"))
    story.issuer.authority = dataclasses.replace(authority, above=())
    assert story.give() == ops.ActiveStatus(WELL)
    assert story.is_theirs
    assert story.known == [story.own, authority.certificate]


@slow
def test_when_no_renewal_comes_our_own_takes_over_in_time(story, monkeypatch):
    story.issuer.age = 300 * DAY
    story.give()
    assert story.is_theirs
    restarts = story.wiring.restarts
    monkeypatch.setattr("certificates.NEARLY_OVER", 0.5)  # as if that much of its life were left to it
    assert "it has come to its end" in story.run().message
    assert pki.signed_by(story.shown[0], story.own)
    assert story.wiring.restarts == restarts


@slow
def test_what_is_taken_back_is_shown_no_longer_and_another_one_asked_for(story):
    story.give()
    asked, restarts = story.said, story.wiring.restarts
    os.utime(story.machine.places.requested_key, (0, 0))
    story.give(revoke=True)
    assert pki.signed_by(story.shown[0], story.own)
    assert story.said != asked
    assert story.give() == ops.ActiveStatus(WELL)
    assert story.is_theirs
    assert story.wiring.restarts == restarts


@slow
@pytest.mark.parametrize("juju_version", ["2.9.52", "3.6.9"])
def test_it_comes_and_goes_with_every_version_of_juju(unit, machine, wiring, juju_version):
    unit.context = ops.testing.Context(KubernetesKeystoneCharm, juju_version=juju_version, **_spec())
    story = Story(unit, machine, wiring)
    story.relate()
    assert story.give() == ops.ActiveStatus(WELL)
    assert story.is_theirs
    assert story.separate() == ops.ActiveStatus(WELL)
    assert not story.is_theirs


@slow
def test_the_providers_ca_vouches_for_no_api_server(story):
    story.give()
    trusted = pki.parse((story.machine.places.tls / "ca.crt").read_bytes())
    assert trusted == [story.own]
    assert story.machine.settings()["tls"]["client_ca"] == str(story.machine.places.tls / "ca.crt")


@slow
def test_a_provider_that_refuses_is_quoted(story):
    status = story.give(deny=True)
    assert isinstance(status, ops.ActiveStatus)
    assert "certificates: issuer gives none: no addresses here; what was in force still is" in status.message


@slow
def test_a_key_that_is_lost_means_another_request(story):
    said = story.said
    story.machine.places.requested_key.unlink()
    story.run()
    assert story.said != said
    assert story.give() == ops.ActiveStatus(WELL)


@slow
def test_a_moved_endpoint_has_our_own_until_one_for_its_address_has_come(story):
    story.give()
    story.unit.configure(authn_server_url=f"https://127.0.0.2:{story.machine.endpoint_port}/webhook").run()
    assert pki.signed_by(story.shown[0], story.own)
    assert story.give() == ops.ActiveStatus(WELL)
    assert story.is_theirs
    assert pki.names(story.shown[0], ["127.0.0.2"])


@slow
def test_set_by_hand_the_certificate_waits_until_the_api_server_has_the_new_kubeconfig(story):
    kubeconfig = story.machine.places.by_hand
    story.wiring.by_hand = [apiserver.byhand.Server(story.wiring.layout, True, ())]
    story.unit.configure(api_server="manual").run()
    story.wiring.by_hand_kubeconfigs = [kubeconfig.read_bytes()]
    story.run()
    status = story.give()
    assert isinstance(status, ops.ActiveStatus)
    assert "next certificate waits until the API server knows its CA" in status.message
    assert not story.is_theirs

    story.wiring.by_hand_kubeconfigs = [kubeconfig.read_bytes()]
    assert story.run() == ops.ActiveStatus("ready: manual, charmed, no policy, RBAC alone decides")
    assert story.is_theirs
