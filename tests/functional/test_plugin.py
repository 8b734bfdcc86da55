"""The kubectl plug-in against a real Keystone: every login that it is to know, and what it says of bad ones."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from testbed.keystone import Keystone, Project, User
from tests.unit.plugin.support import Plugin, exec_info

pytestmark = pytest.mark.functional

HOSTILE = "'\"\\${IFS}`id`\n\t%41 &# \N{SNOWMAN}\N{PILE OF POO} \N{RIGHT-TO-LEFT OVERRIDE}-v --"


@pytest.fixture(scope="module")
def demo(keystone: Keystone) -> Project:
    return keystone.project("plugin-demo")


@pytest.fixture(scope="module")
def alice(keystone: Keystone, demo: Project) -> User:
    return keystone.member("plugin-alice", demo)


@pytest.fixture
def plugin(keystone: Keystone, tmp_path: Path) -> Plugin:
    (tmp_path / "home").mkdir()
    return Plugin(tmp_path / "home", keystone.ca)


@pytest.fixture
def url(keystone: Keystone) -> str:
    return f"--keystone-url={keystone.url}"


def body(keystone: Keystone, token: str) -> dict:
    """What Keystone says of a token."""
    headers = {"X-Subject-Token": token, "OpenStack-Identity-Access-Rules": "1.0"}
    return keystone.send("GET", "/auth/tokens", token=token, headers=headers).json()["token"]


# -- logins


def test_a_password_logs_in_by_names_and_by_ids(keystone, plugin, url, demo, alice):
    for words in (
        ("--user-name=plugin-alice", "--project-name=plugin-demo", "--domain-name=Default"),
        ("--user-name=plugin-alice", "--project-name=plugin-demo"),
        (f"--user-id={alice.id}", f"--project-id={demo.id}"),
    ):
        found = body(keystone, plugin.token(url, *words, OS_PASSWORD=alice.password))
        assert (found["user"]["id"], found["project"]["id"]) == (alice.id, demo.id)


def test_a_user_of_another_domain_logs_in_to_its_project(keystone, plugin, url):
    domain = keystone.domain(HOSTILE[:40])
    project = keystone.project("plugin-demo", domain)
    user = keystone.member("plugin-alice", project, domain=domain)
    words = ("--user-name=plugin-alice", "--project-name=plugin-demo", "--domain-name", domain.name)
    found = body(keystone, plugin.token(url, *words, OS_PASSWORD=user.password))
    assert (found["user"]["id"], found["project"]["id"]) == (user.id, project.id)


def test_names_and_secrets_may_be_anything_that_keystone_takes(keystone, plugin, url):
    project = keystone.project(f"p {HOSTILE}"[:64])
    user = keystone.user(f"u {HOSTILE}", password=f"{HOSTILE} password")
    keystone.grant("member", user, project)
    words = (f"--user-name={user.name}", f"--project-name={project.name}")
    assert body(keystone, plugin.token(url, *words, OS_PASSWORD=user.password))["user"]["id"] == user.id
    credential = keystone.application_credential(user, project, f"c {HOSTILE}", secret=f"{HOSTILE} secret")
    by_id = {"OS_APPLICATION_CREDENTIAL_ID": credential.id, "OS_APPLICATION_CREDENTIAL_SECRET": credential.secret}
    assert body(keystone, plugin.token(url, **by_id))["user"]["id"] == user.id
    named = (f"--application-credential-name={credential.name}", f"--user-name={user.name}")
    given = plugin.token(url, *named, OS_APPLICATION_CREDENTIAL_SECRET=credential.secret)
    assert body(keystone, given)["application_credential"]["id"] == credential.id
    _, _, shown = plugin.call(url, "-v", "--no-cache", **by_id)
    for secret in (user.password, credential.secret):
        for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], ascii(secret)[1:-1]):
            assert form not in shown
            assert form not in plugin.kept()
    code, said = plugin.refusal(url, *words, "--domain-id=default", OS_PASSWORD="wrong word")
    assert code == 3
    assert said.isprintable()


def test_an_application_credential_for_kubernetes_alone_logs_in(keystone, plugin, url, demo, alice):
    rules = [{"service": "kubernetes", "method": "GET", "path": "/**"}]
    credential = keystone.application_credential(alice, demo, access_rules=rules)
    token = plugin.token(
        url, f"--application-credential-id={credential.id}", OS_APPLICATION_CREDENTIAL_SECRET=credential.secret
    )
    assert body(keystone, token)["application_credential"]["access_rules"][0]["service"] == "kubernetes"


def test_clouds_of_clouds_yaml_log_in_and_their_tokens_are_kept(keystone, plugin, demo, alice):
    credential = keystone.application_credential(alice, demo)
    shared = {"cacert": str(keystone.ca), "region_name": "RegionOne"}
    known = {"auth_url": keystone.url, "user_domain_id": "default", "project_domain_id": "default"}
    login = {"username": alice.name, "password": alice.password, "project_name": demo.name}
    robot = {"application_credential_id": credential.id, "application_credential_secret": credential.secret}
    clouds = {
        "person": {**shared, "auth": {**known, **login}},
        "robot": {**shared, "auth_type": "v3applicationcredential", "auth": {"auth_url": keystone.url, **robot}},
        "wrong": {**shared, "auth": {**known, **login, "password": "wrong word"}},
        "untrusted": {"auth": {**known, **login}},
        "nowhere": {**shared, "auth": {**known, **login, "auth_url": "https://127.0.0.1:1/v3"}},
        "plain": {**shared, "auth": {**known, **login, "auth_url": "http://keystone.example/v3"}},
        "no project": {**shared, "auth": {"auth_url": keystone.url, "user_domain_id": "default", **login}},
    }
    del clouds["no project"]["auth"]["project_name"]
    folder = plugin.home / ".config" / "openstack"
    folder.mkdir(parents=True)
    (folder / "clouds.yaml").write_text(yaml.safe_dump({"clouds": clouds}))
    keystone.forget_calls()
    person = plugin.token("--os-cloud=person", OS_CACERT="")
    assert body(keystone, person)["user"]["id"] == alice.id
    assert "application_credential" in body(keystone, plugin.token(OS_CLOUD="robot", OS_USERNAME="bob"))
    assert plugin.token("--os-cloud=person", OS_CACERT="") == person
    assert len(keystone.calls("POST", "/v3/auth/tokens")) == 2
    for name, code, word in (
        ("wrong", 3, "refuses the login"),
        ("untrusted", 6, "not trusted"),
        ("nowhere", 5, "127.0.0.1:1"),
        ("plain", 2, "unencrypted"),
        ("no project", 4, "not for a project"),
        ("not there", 2, "'not there'"),
    ):
        found, said = plugin.refusal(f"--os-cloud={name}", OS_CACERT="")
        assert (found, word in said) == (code, True), said
        assert "wrong word" not in said


@pytest.mark.parametrize("cloud", [{"cacert": None}, {"verify": False}])
def test_a_credential_is_made_with_a_cloud_of_clouds_yaml(keystone, plugin, demo, alice, cloud):
    login = {"username": alice.name, "password": alice.password, "project_name": demo.name, "auth_url": keystone.url}
    login |= {"user_domain_id": "default", "project_domain_id": "default"}
    trusted = {"cacert": str(keystone.ca)} if "cacert" in cloud else cloud
    folder = plugin.home / ".config" / "openstack"
    folder.mkdir(parents=True)
    (folder / "clouds.yaml").write_text(yaml.safe_dump({"clouds": {"person": {**trusted, "auth": login}}}))
    name = f"ci-{secrets.token_hex(4)}"
    words = ("credential", "create", name, "--read-only", "--output=json", "--os-cloud=person")
    code, output, errors = plugin.call(*words, info=None, OS_CACERT="")
    assert code == 0, errors
    made = json.loads(output)
    assert made["OS_AUTH_URL"] == keystone.url
    given = {name: value for name, value in made.items() if name.startswith("OS_")}
    found = body(keystone, plugin.token(**given))["application_credential"]
    assert {(rule["service"], rule["method"], rule["path"]) for rule in found["access_rules"]} == {
        ("kubernetes", method, "/**") for method in ("GET", "HEAD")
    }
    code, said = plugin.refusal(*words, info=None, OS_CACERT="")
    assert (code, "of that name is there already" in said) == (2, True)


def test_what_was_sourced_for_openstack_logs_in(keystone, plugin, demo, alice):
    sourced = {
        "OS_AUTH_URL": keystone.url,
        "OS_PROJECT_ID": demo.id,
        "OS_PROJECT_NAME": demo.name,
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_USERNAME": alice.name,
        "OS_PASSWORD": alice.password,
        "OS_REGION_NAME": "RegionOne",
        "OS_INTERFACE": "public",
        "OS_IDENTITY_API_VERSION": "3",
    }
    assert body(keystone, plugin.token(**sourced))["project"]["id"] == demo.id
    for way in ("password", "v3password", "v3token"):
        more = {"OS_TOKEN": keystone.token(alice)} if way == "v3token" else {}
        assert body(keystone, plugin.token(OS_AUTH_TYPE=way, **more, **sourced))["user"]["id"] == alice.id


def test_a_token_for_a_token_is_not_kept(keystone, plugin, url, demo, alice):
    words = (url, "--os-auth-type=v3token", f"--project-id={demo.id}")
    other = keystone.member("plugin-bob", demo)
    for user in (alice, other, alice):
        assert body(keystone, plugin.token(*words, OS_TOKEN=keystone.token(user)))["user"]["id"] == user.id
    code, _, errors = plugin.call(*words, "-v", OS_TOKEN="not a token")
    assert code == 3
    assert "not a token" not in errors


@pytest.fixture
def totp_keystone() -> Iterator[Keystone]:
    with Keystone() as running:
        running.stop()
        path = running.folder / "keystone.conf"
        path.write_text(path.read_text() + "\n[auth]\nmethods = password,token,application_credential,totp\n")
        running.start()
        yield running


def test_a_passcode_logs_in_and_the_token_is_kept(totp_keystone: Keystone, tmp_path: Path):
    keystone = totp_keystone
    plugin = Plugin(tmp_path, keystone.ca)
    project = keystone.project("demo")
    user = keystone.member("alice", project)
    seed = secrets.token_bytes(20)
    blob = base64.b32encode(seed).decode()
    keystone.request("POST", "/credentials", {"credential": {"type": "totp", "blob": blob, "user_id": user.id}})
    words = (f"--keystone-url={keystone.url}", "--os-auth-type=v3totp", "--user-name=alice", "--project-name=demo")
    # RFC 6238, as authenticator programs do it.
    digest = hmac.digest(seed, struct.pack(">Q", int(time.time()) // 30), "sha1")
    place = digest[-1] & 15
    code = (struct.unpack(">I", digest[place : place + 4])[0] & 0x7FFFFFFF) % 1_000_000
    token = plugin.token(*words, OS_PASSCODE=f"{code:06}")
    assert body(keystone, token)["methods"] == ["totp"]
    assert plugin.token(*words) == token
    assert plugin.refusal(*words, "--no-cache") == (
        2,
        "missing for v3totp: OS_PASSCODE (in the environment, or the same as a flag: --os-...)",
    )


@pytest.mark.parametrize("way", ["v3samlpassword", "v3adfspassword"])
def test_a_way_that_lacks_its_package_says_how_to_get_it(plugin, url, way):
    code, said = plugin.refusal(url, f"--os-auth-type={way}", "--user-name=a", OS_PASSWORD="wrong word")
    assert code == 2
    assert "pip install 'kubectl-keystone-auth[saml]'" in said


# -- bad logins


def test_keystones_refusals_are_told_apart(keystone, plugin, url, demo):
    other = keystone.project("plugin-other")
    carol = keystone.member("plugin-carol", demo)
    good = keystone.application_credential(carol, demo)
    gone = keystone.application_credential(carol, demo)
    keystone.delete(gone)
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 1))
    past = keystone.application_credential(carol, demo, expires_at=soon)
    password, name = {"OS_PASSWORD": carol.password}, "--user-name=plugin-carol"

    def credential(which, secret=None):
        return {
            "OS_APPLICATION_CREDENTIAL_ID": which.id,
            "OS_APPLICATION_CREDENTIAL_SECRET": secret or which.secret,
        }

    time.sleep(1.1)
    for words, environment, code, word in (
        ((name, "--project-name=plugin-demo"), {"OS_PASSWORD": "wrong word"}, 3, "password is wrong"),
        (("--user-name=nobody", "--project-name=plugin-demo"), password, 3, "'nobody'"),
        ((name, "--project-name=plugin-demo", "--user-domain-name=x"), password, 3, "(domain 'x')"),
        ((name, "--project-name=nothing"), password, 4, "'nothing'"),
        ((name, f"--project-name={other.name}"), password, 4, "'plugin-other'"),
        ((name, "--project-name=plugin-demo", "--project-domain-name=x"), password, 4, "(domain 'x')"),
        ((), credential(good, "wrong word"), 3, "its secret is wrong"),
        ((), credential(gone), 3, "has no application credential"),
        ((), credential(past), 3, "has expired"),
    ):
        found, said = plugin.refusal(url, *words, "--no-cache", **environment)
        assert (found, word in said) == (code, True), said
        assert "wrong word" not in said
    keystone.update(carol, enabled=False)
    for words, environment in (((name, "--project-name=plugin-demo"), password), ((), credential(good))):
        assert plugin.refusal(url, *words, "--no-cache", **environment)[0] == 3


def test_a_url_without_the_version_will_do_and_one_that_is_not_keystones_is_said(keystone, plugin, alice, demo):
    words = ("--user-name=plugin-alice", "--project-name=plugin-demo", "--no-cache")
    root = keystone.url.removesuffix("/v3")
    assert plugin.token(f"--keystone-url={root}/", *words, OS_PASSWORD=alice.password)
    code, said = plugin.refusal(f"--keystone-url={root}/nova", *words, OS_PASSWORD=alice.password)
    assert (code, "is it Keystone's URL" in said) == (5, True)
    code, said = plugin.refusal(
        f"--keystone-url={root.replace('https', 'http')}", *words, "--insecure", OS_PASSWORD=alice.password
    )
    assert code == 5


def test_keystone_away_is_said_and_a_token_at_hand_goes_on(keystone, plugin, url, demo, alice):
    words = (url, "--user-name=plugin-alice", "--project-name=plugin-demo")
    token = plugin.token(*words, OS_PASSWORD=alice.password)
    keystone.stop()
    try:
        assert plugin.token(*words) == token
        code, said = plugin.refusal(*words, "--no-cache", OS_PASSWORD=alice.password)
        assert (code, "Connection refused" in said) == (5, True)
        # It is asked for anew, as if the cluster had refused it: there is none to be had, and this one has not ended.
        plugin.age(100, None, *words)
        assert plugin.token(*words, info=exec_info("v1beta1"), OS_PASSWORD=alice.password) == token
    finally:
        keystone.start()
