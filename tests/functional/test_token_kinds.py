"""Tokens that the usual Keystone does not give out: those of its other provider, and of federated users."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from testbed.keystone import Keystone, Project
from tests.functional.conftest import Starter
from tests.unit.authenticator.support import token_review

pytestmark = pytest.mark.functional

REFUSED = {"authenticated": False}


@pytest.fixture
def jws_keystone() -> Iterator[Keystone]:
    """A Keystone whose tokens are JWS."""
    with Keystone() as running:
        running.stop()
        private = ec.generate_private_key(ec.SECP256R1())
        for name, content in (
            (
                "private",
                private.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                ),
            ),
            (
                "public",
                private.public_key().public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                ),
            ),
        ):
            folder = running.folder / f"jws-{name}"
            folder.mkdir(mode=0o700)
            (folder / f"{name}.pem").write_bytes(content)
        configuration = running.folder / "keystone.conf"
        text = configuration.read_text().replace("provider = fernet", "provider = jws")
        text += "".join(
            (
                "\n[jwt_tokens]\n",
                f"jws_private_key_repository = {running.folder}/jws-private\n",
                f"jws_public_key_repository = {running.folder}/jws-public\n",
            )
        )
        configuration.write_text(text)
        running.start()
        yield running


def test_tokens_of_the_jws_provider_count_as_fernet_tokens_do(jws_keystone: Keystone, start: Starter) -> None:
    project = jws_keystone.project("demo1")
    alice = jws_keystone.member("alice", project)
    service = start(keystone={"url": jws_keystone.url, "ca": str(jws_keystone.ca)}, token_cache_ttl=0.1)
    token = jws_keystone.token(alice, project)
    assert token.startswith("eyJ")
    user = service.review(token_review(token))["user"]
    assert (user["username"], user["uid"]) == ("keystone:alice", alice.id)
    assert f"keystone:project:{project.id}:role:member" in user["groups"]
    credential = jws_keystone.application_credential(alice, project)
    from_credential = jws_keystone.credential_token(credential)
    assert service.review(token_review(from_credential))["user"]["username"] == "keystone:alice"
    assert service.review(token_review(jws_keystone.token(alice, "unscoped"))) == REFUSED
    jws_keystone.forget_calls()
    # One with another signature is Keystone's to refuse.
    head, payload, signature = token.split(".")
    forged = f"{head}.{payload}.{signature[:-6]}{'A' * 5}{signature[-1]}"
    assert service.review(token_review(forged)) == REFUSED
    assert len(jws_keystone.calls()) == 1
    time.sleep(1.1)  # Keystone keeps no revocation apart from an issue within the same second
    jws_keystone.revoke_token(from_credential)
    assert service.review(token_review(from_credential)) == REFUSED
    assert token not in service.log


# -- federated users

ISSUER = "https://sso.example"


@pytest.fixture
def federated_keystone() -> Iterator[Keystone]:
    """A Keystone that believes what a web server's SSO module says of a user; it comes in headers here."""
    with Keystone() as running:
        running.stop()
        configuration = running.folder / "keystone.conf"
        configuration.write_text(
            configuration.read_text() + "\n[auth]\nmethods = password,token,application_credential,openid\n"
            "[federation]\nassertion_prefix = HTTP_OIDC_\nremote_id_attribute = HTTP_OIDC_ISS\n"
        )
        running.start()
        yield running


def federated_token(keystone: Keystone, name: str, project: Project) -> str:
    """Log a user in as the SSO module does, and take a token for the project."""
    place = "/OS-FEDERATION/identity_providers/sso/protocols/openid/auth"
    unscoped = keystone.send("POST", place, headers={"Oidc-Iss": ISSUER, "Oidc-Name": name})
    assert unscoped.status_code == 201, unscoped.text
    identity = {"methods": ["token"], "token": {"id": unscoped.headers["X-Subject-Token"]}}
    body = {"auth": {"identity": identity, "scope": {"project": {"id": project.id}}}}
    scoped = keystone.send("POST", "/auth/tokens", json=body)
    assert scoped.status_code == 201, scoped.text
    return scoped.headers["X-Subject-Token"]


@pytest.mark.parametrize("lasting", [True, False])
def test_a_federated_users_groups_are_those_that_keystone_lists(
    federated_keystone: Keystone, start: Starter, lasting: bool
) -> None:
    keystone = federated_keystone
    project, group = keystone.project("demo1"), keystone.group("feds")
    keystone.grant("member", group, project)
    provider = {"enabled": True, "remote_ids": [ISSUER], **({"authorization_ttl": 60} if lasting else {})}
    keystone.request("PUT", "/OS-FEDERATION/identity_providers/sso", {"identity_provider": provider})
    local = [{"user": {"name": "{0}"}}, {"group": {"id": group.id}}]
    rules = {"rules": [{"local": local, "remote": [{"type": "HTTP_OIDC_NAME"}]}]}
    keystone.request("PUT", "/OS-FEDERATION/mappings/sso", {"mapping": rules})
    protocol = "/OS-FEDERATION/identity_providers/sso/protocols/openid"
    keystone.request("PUT", protocol, {"protocol": {"mapping_id": "sso"}})
    token = federated_token(keystone, "fiona", project)
    service = start(keystone={"url": keystone.url, "ca": str(keystone.ca)})
    user = service.review(token_review(token))["user"]
    # The identity provider's users live in a domain of its own.
    assert user["username"].startswith("keystone:fiona@")
    assert ("keystone:group:feds" in user["groups"]) is lasting
    assert f"keystone:project:{project.id}:role:member" in user["groups"]
