"""Certificates that are renewed and CAs that change under a busy cluster: no review is lost but by a due restart.

Two kinds of clients: those of the API server, one of which has it ask its webhook each time, and some that ask the
endpoint itself as an API server does, each time over a new connection. The tests stand in the order of the story; the
other side of the relation is charmlibs' own provider (testbed/issuer.py).
"""

from __future__ import annotations

import base64
import datetime
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import yaml

import pki
from testbed.issuer import Issuer, Signer
from testbed.reviewers import CLIENTS, KUBECONFIG, Reviewers, token_review
from testbed.stage import Stage
from testbed.traffic import Traffic, lives_of

FOLDER = "/etc/kubernetes-keystone/tls"
POLICY = json.dumps([{"users": {"projects": ["demo"]}, "resource_permissions": {"default/pods": ["list"]}}])
DAY = datetime.timedelta(days=1)


@dataclass
class Story:
    """What the tests know of each other."""

    stage: Stage
    issuer: Issuer = field(default_factory=Issuer)

    def read(self, name: str) -> list:
        return pki.parse(self.stage.machine.read(f"{FOLDER}/{name}"))

    @property
    def own(self):
        """Our CA."""
        return self.read("ca.crt")[0]

    @property
    def shown(self):
        """The certificate that a new connection is shown, by the word of OpenSSL on the machine."""
        command = "openssl s_client -connect 127.0.0.1:8443 </dev/null 2>/dev/null | openssl x509"
        return pki.parse(self.stage.machine.shell(command).encode())[0]

    @property
    def known(self) -> list:
        """The CAs by which the API server knows the endpoint."""
        config = yaml.safe_load(self.stage.machine.read(KUBECONFIG))
        return pki.parse(base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]))

    def give(self, **how: bool) -> None:
        """Have the provider answer."""
        unit = self.stage.unit
        unit.tell("certificates", self.issuer.answer(unit.said("certificates"), unit.heard("certificates"), **how))

    def under_load(self, what: Callable[[], None], restarts: int) -> None:
        """Do something while all clients are busy; nothing may be lost but by this many restarts of the API server."""
        stage = self.stage
        admin = token_review(stage.cluster.tokens["admin"].token, "admin")
        with Traffic(stage.cluster, reviews=True) as traffic, Reviewers(stage.machine, admin, fresh=True) as clients:
            time.sleep(1)  # at work
            what()
            time.sleep(3)  # still at work
            seen = clients.end()
        outcome = traffic.outcome()
        print(f"{outcome}; at the endpoint: {seen.answered}, {seen.kinds}")
        assert outcome.lost == []
        assert outcome.restarts == restarts
        assert outcome.requests > 20
        # These know the CAs of the time before, as the API server does until it is restarted; and they look at each
        # certificate, where it keeps its connections.
        ended = lives_of(stage.cluster)[-2].ending if restarts else float("inf")
        assert [one for one in seen.failures if one["began"] < ended] == []
        assert seen.answered > 20 * CLIENTS
        assert stage.unit.status.name == "active", stage.unit.status


@pytest.fixture(scope="module")
def story(stage: Stage) -> Story:
    stage.unit.deploy(stage.charm, {**stage.keystone_options, "policy": POLICY})
    stage.unit.relate()
    assert stage.unit.status.name == "active"
    stage.machine.run("systemctl", "reset-failed", "kubernetes-keystone.service")
    return Story(stage)


def test_a_certificate_of_our_own_is_renewed_long_before_its_end_and_nobody_notices(story: Story) -> None:
    machine = story.stage.machine
    authority = pki.load(machine.read(f"{FOLDER}/ca.crt"), machine.read(f"{FOLDER}/ca.key"))
    assert authority is not None
    began = datetime.datetime.now(datetime.timezone.utc) - 500 * DAY
    old = pki.issue("kubernetes-keystone", authority, ("127.0.0.1", "localhost"), 731 * DAY, began)
    for name, content in (("server.key", old.key_pem), ("server.crt", old.shown)):
        machine.write(f"{FOLDER}/.{name}", content, 0o640)
        machine.shell(f"chgrp kubernetes-keystone {FOLDER}/.{name} && mv {FOLDER}/.{name} {FOLDER}/{name}")
    machine.wait(lambda: story.shown == old.certificate, "the authenticator to show the old one", 10)

    story.under_load(story.stage.unit.update_status, restarts=0)
    assert story.shown != old.certificate
    assert pki.signed_by(story.shown, authority.certificate)


def test_a_new_ca_of_our_own_costs_the_one_restart_that_tells_the_api_server(story: Story) -> None:
    before = story.own
    story.stage.machine.run("rm", f"{FOLDER}/ca.key")
    story.under_load(story.stage.unit.update_status, restarts=1)

    assert story.own != before
    assert story.known == [story.own, before]
    assert pki.signed_by(story.shown, story.own)
    assert story.read("ca.crt") == [story.own]  # nobody shows a certificate of the old one any more


def test_until_a_certificate_comes_over_the_relation_nothing_changes(story: Story) -> None:
    before = story.shown
    story.under_load(lambda: story.stage.unit.integrate("certificates", "issuer/0"), restarts=0)
    assert story.shown == before
    assert "issuer has given none yet" in story.stage.unit.status.message


def test_the_ca_of_what_comes_goes_to_the_api_server_first(story: Story) -> None:
    story.issuer.age = 300 * DAY
    story.under_load(story.give, restarts=1)
    assert story.known == [story.own, story.issuer.authority.certificate]
    assert pki.signed_by(story.shown, story.issuer.authority.certificate)
    machine = story.stage.machine
    assert machine.shell(f"stat -c '%a %U:%G' {FOLDER}/server.key") == "640 root:kubernetes-keystone"
    assert machine.shell(f"stat -c '%a %U:%G' {FOLDER}/requested.key") == "600 root:root"
    key = machine.read(f"{FOLDER}/server.key").decode().splitlines()[1]
    assert key not in machine.shell("journalctl -q -o cat")
    assert key not in story.stage.unit.debug_log(10**6)


def test_a_renewal_is_asked_for_and_put_in_force_and_nobody_notices(story: Story) -> None:
    unit, machine, before, asked = (
        story.stage.unit,
        story.stage.machine,
        story.shown,
        story.stage.unit.said("certificates"),
    )
    story.issuer.age = 0 * DAY
    machine.run("touch", "--date=2 hours ago", f"{FOLDER}/requested.key")

    def renew() -> None:
        unit.update_status()
        assert unit.said("certificates") != asked
        story.give()

    story.under_load(renew, restarts=0)
    assert story.shown != before
    assert pki.signed_by(story.shown, story.issuer.authority.certificate)


def test_another_ca_of_the_providers_costs_one_restart(story: Story) -> None:
    old = story.issuer.authority.certificate
    story.issuer.authority = Signer.make("below it", by=Signer.make("another root"))
    story.under_load(lambda: story.give(again=True), restarts=1)
    assert story.known == [story.own, old, story.issuer.authority.above[0]]
    assert pki.signed_by(story.shown, story.issuer.authority.certificate)


def test_when_the_relation_goes_our_own_is_back_at_once(story: Story) -> None:
    story.under_load(lambda: story.stage.unit.separate("certificates"), restarts=0)
    assert pki.signed_by(story.shown, story.own)
    assert not story.stage.machine.exists(f"{FOLDER}/requested.key")


def test_the_charm_leaves_nothing_of_it(story: Story) -> None:
    story.stage.unit.remove()
    assert not story.stage.machine.exists(FOLDER)
