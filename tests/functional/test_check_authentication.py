"""check-authentication with everything real: Keystone, the authenticator, and API servers that ask it or do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import apiserver
import authenticator
import check_authentication
import host
import webhook
from authenticator import Backends
from check_authentication import Report
from config import CharmConfig
from files import Places
from testbed.apiserver import ApiServer
from testbed.certificates import Authority
from testbed.keystone import Keystone, Project, User
from testbed.processes import free_port
from tests.functional.conftest import PROJECT

pytestmark = pytest.mark.functional

POLICY = [{"users": {"projects": ["demo"]}, "resource_permissions": {"default/pods": ["list", "get"]}}]


@dataclass
class Unit:
    """A control-plane machine as far as this action looks at it: a static pod's manifest, and our service."""

    places: Places
    place: apiserver.Place
    config: CharmConfig
    keystone: Keystone
    demo: Project
    alice: User
    port: int

    def run_api_server(self, *flags: str) -> ApiServer:
        """Make an API server of this machine's; it is started by whoever enters it."""
        return ApiServer(*flags)

    def belongs(self, api: ApiServer) -> None:
        """Say in the manifest that it is this machine's."""
        command = ["kube-apiserver", "--bind-address=127.0.0.1", f"--secure-port={api.port}"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "kube-apiserver", "namespace": "kube-system"},
            "spec": {"hostNetwork": True, "containers": [{"name": "kube-apiserver", "command": command}]},
        }
        admin = {
            "clusters": [
                {"name": "k", "cluster": {"server": "https://127.0.0.1:6443", "certificate-authority": str(api.ca)}}
            ],
            "users": [{"name": "a", "user": {"token": api.admin_token}}],
            "contexts": [{"name": "a", "context": {"cluster": "k", "user": "a"}}],
            "current-context": "a",
        }
        folder = self.places.root / "etc/kubernetes"
        (folder / "manifests").mkdir(parents=True, exist_ok=True)
        (folder / "manifests/kube-apiserver.yaml").write_text(yaml.safe_dump(pod))
        (folder / "admin.conf").write_text(yaml.safe_dump(admin))

    def check(self, token: str, **changes: str) -> Report:
        """Run it."""
        config = self.config.model_copy(update=changes)
        report = check_authentication.check(self.places, self.place, config, token, "default")
        assert token not in json.dumps(report.results)
        return report


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    root = tmp_path_factory.mktemp("root")
    patch = pytest.MonkeyPatch()
    places = Places(root, PROJECT)
    with Keystone() as keystone, patch.context() as patched:
        patched.setattr(host, "group_id", lambda _: os.getegid())
        patched.setattr(authenticator, "PRIVATE_PORT", free_port())
        config = CharmConfig(
            keystone_url=keystone.url,
            keystone_ca=keystone.ca.read_text(),
            authn_server_url=f"https://127.0.0.1:{free_port()}/webhook",
        )
        for folder in (places.tls, places.state, places.opt / "current"):
            folder.mkdir(parents=True)
        launcher = places.opt / "current" / authenticator.LAUNCHER
        launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m keystone_authenticator "$@"\n')
        launcher.chmod(0o755)
        write(places, config)
        serve = [launcher, "serve", "--config", places.settings]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
        with subprocess.Popen([str(word) for word in serve], env=environment) as running:
            try:
                authenticator.wait_until_ready(30)
                demo = keystone.project("demo")
                place = apiserver.Place(root=root)
                yield Unit(places, place, config, keystone, demo, keystone.member("alice", demo), config.listen.port)
            finally:
                running.terminate()


def write(places: Places, config: CharmConfig) -> None:
    """Write what the charm writes."""
    (places.etc / "chained").write_text("chained 1\nnone\n")
    tls = webhook.ensure_tls(places, config.listen, os.getegid())
    authenticator.write_inputs(places, config, json.dumps(POLICY).encode())
    authenticator.write_settings(
        places,
        config,
        tls,
        chained=places.etc / "chained",
        certified=True,
        flags=None,
        authorization=True,
        backends=Backends(),
    )


@pytest.fixture(scope="module")
def wired(unit: Unit) -> Iterator[ApiServer]:
    """An API server that asks our endpoint."""
    path = unit.places.root / "webhook.yaml"
    content = webhook.kubeconfig(unit.places, webhook.tls(unit.places), unit.config.listen, with_client=True)
    path.write_bytes(content)
    flags = (
        f"authentication-token-webhook-config-file={path}",
        "authentication-token-webhook-version=v1",
        "authentication-token-webhook-cache-ttl=1s",
        "authorization-mode=RBAC,Webhook",
        f"authorization-webhook-config-file={path}",
        "authorization-webhook-version=v1",
    )
    with unit.run_api_server(*flags) as api:
        yield api


@pytest.fixture
def here(unit: Unit, wired: ApiServer) -> ApiServer:
    """The wired one is this machine's."""
    unit.belongs(wired)
    return wired


def test_a_good_token_gets_all_the_way(unit: Unit, here: ApiServer) -> None:
    report = unit.check(unit.keystone.token(unit.alice, unit.demo))

    assert report.failure == ""
    results = report.results
    assert list(results)[:5] == ["keystone", "identity", "chain", "api-server", "access"]
    assert all(results[name].startswith("ok: ") for name in list(results)[:5])
    assert "alice (domain Default) in the project demo, roles member, reader, until 20" in results["keystone"]
    assert "keystone:alice" in results["identity"]
    assert "not needed" in results["chain"]
    assert results["user"] == "keystone:alice"
    assert f"keystone:project:{unit.demo.id}" in results["groups"].splitlines()
    may = dict(line.split(": ", 1) for line in results["may"].splitlines())
    assert (may["list pods"], may["create pods"], may["create pods/exec"], may["* *"]) == ("yes", "no", "no", "no")


def test_a_token_that_ended_stops_at_keystone(unit: Unit, here: ApiServer) -> None:
    token = unit.keystone.token(unit.alice, unit.demo)
    time.sleep(1.1)  # Keystone keeps no revocation apart from an issue within the same second
    unit.keystone.revoke_token(token)
    report = unit.check(token)

    assert list(report.results) == ["keystone"]
    assert report.failure.startswith("stopped at keystone: Keystone, or what counts of its answer, says no: ")
    assert report.failure.endswith("take a new one")


def test_a_token_for_no_project_stops_at_keystone(unit: Unit, here: ApiServer) -> None:
    failure = unit.check(unit.keystone.token(unit.alice)).failure
    assert "is unscoped, only project scope counts. Take a token for a project" in failure


def test_a_user_who_may_nothing_is_told_so(unit: Unit, here: ApiServer) -> None:
    project = unit.keystone.project("other")
    bob = unit.keystone.member("bob", project)
    report = unit.check(unit.keystone.token(bob, project))

    assert report.failure == ""
    assert report.results["access"].startswith("ok: nothing of what was asked in the namespace default: bind")
    assert ": yes" not in report.results["may"]


def test_keystone_away_stops_there_and_says_what_to_look_at(unit: Unit, here: ApiServer) -> None:
    token = unit.keystone.token(unit.alice, unit.demo)
    unit.keystone.stop()
    try:
        failure = unit.check(token).failure
    finally:
        unit.keystone.start()
    assert failure.startswith(f"stopped at keystone: Keystone at {unit.keystone.url} gives no verdict: ")
    assert "Look at keystone-url, keystone-ca" in failure


def test_the_wrong_ca_stops_at_keystone(unit: Unit, here: ApiServer) -> None:
    token = unit.keystone.token(unit.alice, unit.demo)
    right = unit.places.keystone_ca.read_bytes()
    unit.places.keystone_ca.write_bytes(Authority("wrong").certificate)
    try:
        failure = unit.check(token).failure
    finally:
        unit.places.keystone_ca.write_bytes(right)
    assert failure.startswith("stopped at keystone: ")
    assert "certificate" in failure


def test_an_api_server_that_does_not_ask_us_is_where_it_stops(unit: Unit, wired: ApiServer) -> None:
    with unit.run_api_server() as other:
        unit.belongs(other)
        token = unit.keystone.token(unit.alice, unit.demo)
        report = unit.check(token)
        by_hand = unit.check(token, api_server="manual")

    assert report.results["identity"].startswith("ok: ")
    assert report.failure.startswith(
        "stopped at api-server: the API server does not know the token (401). It does not ask"
    )
    assert "(absent)" in report.failure
    assert "show-webhook-config prints what to set" in by_hand.failure


def test_the_api_servers_own_tokens_never_reach_keystone(unit: Unit, here: ApiServer) -> None:
    unit.keystone.forget_calls()
    report = unit.check(here.admin_token)

    assert report.failure == ""
    assert "never leaves the cluster" in report.results["keystone"]
    assert "there is no token webhook of the cluster's behind ours" in report.results["chain"]
    assert report.results["user"] == "admin"
    assert "* *: yes" in report.results["may"].splitlines()
    assert unit.keystone.calls() == []
    nobodys = unit.check("nobodys-0123456789")
    assert nobodys.failure.startswith("stopped at api-server: ")
    assert "Nobody knows it" in nobodys.failure


def test_a_service_that_is_not_there_is_where_it_stops(unit: Unit, here: ApiServer) -> None:
    moved = f"https://127.0.0.1:{free_port()}/webhook"
    report = unit.check(unit.keystone.token(unit.alice, unit.demo), authn_server_url=moved)

    assert report.failure.startswith(f"stopped at identity: the authenticator does not answer at {moved}")


def test_without_an_api_server_here_the_options_say_where_one_is(unit: Unit, wired: ApiServer) -> None:
    (Path(unit.places.root) / "etc/kubernetes/manifests/kube-apiserver.yaml").unlink(missing_ok=True)
    token = unit.keystone.token(unit.alice, unit.demo)
    assert "kubernetes-url=" in unit.check(token, api_server="manual").failure
    found = {"kubernetes_url": f"https://127.0.0.1:{wired.port}", "kubernetes_ca": wired.ca.read_text()}
    assert unit.check(token, api_server="manual", **found).results["user"] == "keystone:alice"
    assert "does not answer" in unit.check(token, api_server="manual", **{**found, "kubernetes_ca": ""}).failure
