"""The test bed's Keystone: real, counted, and out of order when told so."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml

from testbed import users
from testbed.keystone import Keystone, Project, User

pytestmark = pytest.mark.functional


@pytest.fixture(scope="module")
def keystone() -> Iterator[Keystone]:
    with Keystone() as keystone:
        yield keystone


@pytest.fixture(scope="module")
def project(keystone: Keystone) -> Project:
    return keystone.project("demo")


@pytest.fixture(scope="module")
def user(keystone: Keystone, project: Project) -> User:
    return keystone.member("alice", project)


def validated(keystone: Keystone, token: str, **headers: str) -> int:
    return keystone.send("GET", "/auth/tokens", token=token, headers={"X-Subject-Token": token, **headers}).status_code


def test_calls_are_counted_with_tokens_as_digests(keystone: Keystone, project: Project, user: User):
    token = keystone.token(user, project)
    keystone.forget_calls()
    assert validated(keystone, token) == 200
    (call,) = keystone.calls("GET", "/v3/auth/tokens")
    assert (call.status, call.subject) == (200, keystone.digest(token))


def test_a_stopped_keystone_refuses_and_knows_its_tokens_when_it_is_back(
    keystone: Keystone, project: Project, user: User
):
    token = keystone.token(user, project)
    keystone.stop()
    with pytest.raises(requests.ConnectionError):
        validated(keystone, token)
    keystone.start()
    assert validated(keystone, token) == 200


def test_a_paused_keystone_accepts_and_does_not_answer(keystone: Keystone):
    keystone.pause()
    with pytest.raises(requests.ReadTimeout):
        keystone.send("GET", "", timeout=1)
    keystone.resume()
    assert keystone.send("GET", "").ok


def test_a_credential_with_access_rules_validates_for_who_says_that_it_knows_them(
    keystone: Keystone, project: Project, user: User
):
    rules = [{"service": "kubernetes", "path": "/**", "method": "GET"}]
    token = keystone.credential_token(keystone.application_credential(user, project, access_rules=rules))
    assert validated(keystone, token) == 404
    assert validated(keystone, token, **{"OpenStack-Identity-Access-Rules": "1.0"}) == 200


@pytest.mark.parametrize("secret", ['a"b\\c', "tab\tnew\nline\n$HOME `id` %s 'q' ü", "\\n", "cr\rx"])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_kubeconfig_logs_in_with_any_secret_and_does_not_show_it(
    keystone: Keystone, project: Project, user: User, shell: str, secret: str
):
    credential = keystone.application_credential(user, project, secret=secret)
    text = users.kubeconfig(
        credential, keystone_url=keystone.url, keystone_ca=keystone.ca, server="https://127.0.0.1", server_ca=b"CA"
    )
    login = yaml.safe_load(text)["users"][0]["user"]["exec"]
    environment = {one["name"]: one["value"] for one in login["env"]}
    assert environment["OS_APPLICATION_CREDENTIAL_SECRET"] == secret
    done = subprocess.run(
        [shell, *login["args"]],
        env={"PATH": "/usr/bin:/bin", "SHELLOPTS": "xtrace", **environment},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert validated(keystone, yaml.safe_load(done.stdout)["status"]["token"]) == 200


def test_everything_of_a_keystone_is_gone_in_the_end():
    with Keystone() as other:
        folder: Path = other.folder
    assert not folder.exists()
