"""Every kind of token that Keystone gives out, and what becomes of it: who it makes, or the reason why nobody."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from testbed.keystone import ApplicationCredential, Domain, Keystone, Project, User
from tests.functional.conftest import Starter
from tests.unit.authenticator.support import Service, eventually, token_review

pytestmark = pytest.mark.functional

REFUSED = {"authenticated": False}


def soon(seconds: float) -> str:
    """A moment from now as Keystone writes it."""
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def who(service: Service, token: str) -> str:
    return service.review(token_review(token))["user"]["username"]


# -- tokens of this and that login


def test_a_token_made_from_another_one_counts_by_its_own_scope(keystone: Keystone, start: Starter) -> None:
    project = keystone.project("rescoped")
    rita = keystone.member("rescoper", project)
    unscoped = keystone.token(rita, "unscoped")
    body = {"identity": {"methods": ["token"], "token": {"id": unscoped}}, "scope": {"project": {"id": project.id}}}
    response = keystone.send("POST", "/auth/tokens", json={"auth": body})
    service = start()
    assert who(service, response.headers["X-Subject-Token"]) == "keystone:rescoper"
    assert service.review(token_review(unscoped)) == REFUSED


def test_restricted_and_unrestricted_credentials_are_the_same_user(keystone: Keystone, start: Starter) -> None:
    project = keystone.project("restrictions")
    uma = keystone.member("uma", project)
    service = start()
    users = []
    for unrestricted in (False, True):
        credential = keystone.application_credential(uma, project, unrestricted=unrestricted)
        user = service.review(token_review(keystone.credential_token(credential)))["user"]
        assert user["extra"].pop("alpha.kubernetes.io/identity/application-credential/id") == [credential.id]
        users.append(user)
    assert users[0] == users[1]
    assert users[0]["username"] == "keystone:uma"


def test_a_trust_with_impersonation_is_refused_with_the_reason(keystone: Keystone, start: Starter) -> None:
    """Keystone lets nobody but an administrator validate such a token; its holder would pass for the trustor."""
    project = keystone.project("trusts")
    trustor, trustee = keystone.member("poser", project), keystone.user("posed")
    service = start()
    posing = keystone.trust_token(trustor, trustee, project, ["member"], impersonation=True)
    assert service.review(token_review(posing)) == REFUSED
    assert re.search(r"audit: refused: Keystone answered 403 \(req-\S+\): You are not authorized", service.log)
    plain = keystone.trust_token(trustor, trustee, project, ["member"], impersonation=False)
    assert who(service, plain) == "keystone:posed"


# -- what ends a token


def project_disabled(keystone: Keystone, user: User, project: Project, home: Domain) -> str:
    keystone.update(project, enabled=False)
    return rf"Keystone answered 404 \(req-\S+\): Unable to validate token because project {project.id} is disabled"


def projects_domain_disabled(keystone: Keystone, user: User, project: Project, home: Domain) -> str:
    domain = Domain(project.domain_id, "")
    keystone.update(domain, enabled=False)
    return rf"Keystone answered 404 \(req-\S+\): Unable to validate token because domain {domain.id} is disabled"


def users_domain_disabled(keystone: Keystone, user: User, project: Project, home: Domain) -> str:
    keystone.update(home, enabled=False)
    return "Keystone answered 40"


def user_disabled(keystone: Keystone, user: User, project: Project, home: Domain) -> str:
    keystone.update(user, enabled=False)
    return "Keystone answered 401"


def user_deleted(keystone: Keystone, user: User, project: Project, home: Domain) -> str:
    keystone.delete(user)
    # With its own cache Keystone still finds the user at times, and says 401.
    return "Keystone answered 40"


def password_changed(keystone: Keystone, user: User, project: Project, home: Domain) -> str:
    keystone.update(user, password="another one, long enough")
    return "Keystone answered 401"


def role_taken(keystone: Keystone, user: User, project: Project, home: Domain) -> str:
    """Either it keeps a revocation, or it validates a token that has no roles any more."""
    keystone.revoke("member", user, project)
    return r"(Keystone answered 401|the user \w+ has no role in the project \w+ any more)"


def project_deleted(keystone: Keystone, user: User, project: Project, home: Domain) -> str:
    keystone.delete(project)
    return "Keystone answered 404"


@pytest.mark.parametrize(
    "change",
    [
        *(project_disabled, projects_domain_disabled, users_domain_disabled, user_disabled, user_deleted),
        *(password_changed, role_taken, project_deleted),
    ],
)
@pytest.mark.parametrize("kind", ["password", "credential"])
def test_what_ends_a_token_is_a_refusal_with_the_reason_once_the_cache_ends(
    keystone: Keystone, start: Starter, change: Callable[..., str], kind: str
) -> None:
    name = f"{change.__name__}-{kind}"
    home, away = keystone.domain(f"home-{name}"), keystone.domain(f"away-{name}")
    project = keystone.project(name, away)
    user = keystone.member(name, project, domain=home)
    service = start(token_cache_ttl=0.2)
    credential = keystone.application_credential(user, project) if kind == "credential" else None
    token = keystone.credential_token(credential) if credential else keystone.token(user, project)
    assert who(service, token) == f"keystone:{name.replace(' ', '%20')}@{home.id}"
    time.sleep(1.1)  # Keystone keeps no revocation apart from an issue within the same second
    if change is user_deleted and credential:
        # This Keystone's database (SQLite) leaves the credential's roles behind, and gives its number to the next one.
        keystone.delete(credential)
    reason = change(keystone, user, project, home)
    eventually(lambda: service.review(token_review(token)) == REFUSED, 10)
    assert re.search(rf"audit: refused: {re.escape(f'keystone:{name}@{home.id}')} \(until now\): {reason}", service.log)
    if change is password_changed and credential:
        # The credential itself outlives the password; tokens of the same second do not.
        eventually(lambda: "user" in service.review(token_review(keystone.credential_token(credential))), 10)


def test_a_token_ends_when_it_expires_whatever_the_cache_and_the_grace(keystone: Keystone, start: Starter) -> None:
    project = keystone.project("expiring")
    ella = keystone.member("ella", project)
    service, alone = start(token_cache_ttl=3600), start(token_cache_ttl=0.2, outage_grace=3600)
    credential = keystone.application_credential(ella, project, expires_at=soon(8))
    token = keystone.credential_token(credential)
    keystone.forget_calls()
    for one in (service, alone):
        assert who(one, token) == "keystone:ella"
    assert who(service, token) == "keystone:ella"
    assert len(keystone.calls("GET", "/v3/auth/tokens")) == 2, "it is in the cache"
    eventually(lambda: service.review(token_review(token)) == REFUSED, 15)
    keystone.stop()
    try:
        assert "user" not in alone.review(token_review(token))
    finally:
        keystone.start()
    eventually(lambda: alone.review(token_review(token)) == REFUSED, 15)


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
    domain = jws_keystone.domain("jws")
    jws_keystone.grant("member", alice, domain)
    jws_keystone.grant("reader", alice, None)
    for scope, reason in (("unscoped", "unscoped"), (domain, "scoped to a domain"), ("system", "scoped to a system")):
        assert service.review(token_review(jws_keystone.token(alice, scope))) == REFUSED
        assert f"the token of the user {alice.id} is {reason}, only project scope counts" in service.log
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
    settings = "\n[auth]\nmethods = password,token,application_credential,openid\n"
    settings += "[federation]\nassertion_prefix = HTTP_OIDC_\nremote_id_attribute = HTTP_OIDC_ISS\n"
    with Keystone(settings=settings) as running:
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
    # Roles from groups that do not last are good for no credential; from those that do, it is the same user's.
    holder = User(user["uid"], "fiona", user["username"].partition("@")[2], "")
    body = {"application_credential": {"name": "ci"}}
    made = keystone.send("POST", f"/users/{holder.id}/application_credentials", token=token, json=body)
    assert made.status_code == (201 if lasting else 400), made.text
    if lasting:
        found = made.json()["application_credential"]
        credential = ApplicationCredential(found["id"], "ci", found["secret"], holder.id)
        again = service.review(token_review(keystone.credential_token(credential)))["user"]
        assert (again["username"], again["uid"], again["groups"]) == (user["username"], user["uid"], user["groups"])
    # The group loses its role, and Keystone still validates the token: without any.
    keystone.revoke("member", group, project)
    fresh = start(keystone={"url": keystone.url, "ca": str(keystone.ca)})
    assert fresh.review(token_review(token)) == REFUSED
