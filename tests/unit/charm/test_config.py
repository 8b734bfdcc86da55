"""What each option takes, and what it says about what it does not take."""

from __future__ import annotations

import base64
import datetime

import ops.testing
import pytest
from cryptography import x509

import webhook
from charm import KubernetesKeystoneCharm
from config import INCOMING, CharmConfig, Listen, load
from errors import ConfigError
from files import Places

URL = "https://keystone.example:5000/v3"


@pytest.fixture(scope="module")
def context():
    return ops.testing.Context(KubernetesKeystoneCharm)


@pytest.fixture
def options(context):
    def make(**values) -> CharmConfig:
        config = {name.replace("_", "-"): value for name, value in ({"keystone_url": URL} | values).items()}
        with context(context.on.update_status(), ops.testing.State(config=config)) as manager:
            return load(manager.charm).with_resource(None)

    return make


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> str:
    places = Places(tmp_path_factory.mktemp("root"))
    places.tls.mkdir(parents=True)
    tls = webhook.ensure_tls(places, Listen(host="127.0.0.1", port=1), places.tls.stat().st_gid)
    return tls.ca.read_text()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://keystone.example:5000", URL),
        ("https://keystone.example:5000/", URL),
        ("https://keystone.example:5000/v3/", URL),
        (" https://keystone.example:5000/v3\n", URL),
        ("https://keystone.example/identity", "https://keystone.example/identity/v3"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/v3"),
        ("http://[::1]:5000", "http://[::1]:5000/v3"),
        ("http://localhost:5000/v3", "http://localhost:5000/v3"),
    ],
)
def test_the_keystone_url_gets_its_v3(options, given, used):
    assert options(keystone_url=given).keystone_url == used


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("", "is not set; juju config kubernetes-keystone keystone-url="),
        ("http://keystone.example:5000/v3", "use https://, or set keystone-insecure=true"),
        ("keystone.example:5000", "is not a URL"),
        ("ftp://keystone.example", "is not a URL"),
        ("https://keystone.example:port", "is not a URL"),
        ("https://user:secret@keystone.example/v3", "must not hold a user name or password"),
        ("https://user:secret@keystone.example:port/v3", "is not a URL"),
        ("https://user:se/secret@keystone.example/v3", "is not a URL"),
        ("https://user:se@cret secret@keystone.example/v3", "is not a URL"),
        ("user:secret@keystone.example", "is not a URL"),
        (f"https://keystone.example/{'x' * 999}?x", "has more than a path"),
        ("https://keystone.example/v2.0", "use the v3 one"),
        ("https://keystone.example/v3?x=1", "has more than a path"),
        ('https://keystone.example/"; rm', "is not a URL"),
    ],
)
def test_a_keystone_url_that_cannot_be_used_is_refused_with_the_fix(options, given, complaint):
    with pytest.raises(ConfigError, match="keystone-url") as raised:
        options(keystone_url=given)
    assert complaint in str(raised.value)
    assert "secret" not in str(raised.value)
    # It is handed to Juju as an argument of a command, which the system bounds.
    assert len(str(raised.value)) < 400


def test_http_to_keystone_is_taken_when_it_is_asked_for_and_remembered(options):
    config = options(keystone_url="http://keystone.example:5000", keystone_insecure=True)

    assert config.keystone_in_clear
    assert not options(keystone_url="http://127.0.0.1:5000").keystone_in_clear


@pytest.mark.parametrize("option", ["keystone_ca", "auth_server_ca", "kubernetes_ca"])
def test_a_ca_is_taken_as_pem_and_as_base64_of_pem(options, pem, option):
    encoded = base64.encodebytes(pem.encode()).decode()

    assert getattr(options(**{option: pem}), option) == pem
    assert getattr(options(**{option: encoded}), option) == pem


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("nonsense", "neither PEM"),
        ("Zm9vYmFy", "neither PEM"),
        ("-----BEGIN CERTIFICATE-----\nnope\n-----END CERTIFICATE-----\n", "cannot be read"),
        ("-----BEGIN PRIVATE KEY-----\nnope\n-----END PRIVATE KEY-----\n", "holds a private key"),
    ],
)
def test_a_ca_that_is_none_is_refused(options, given, complaint):
    with pytest.raises(ConfigError, match=f"keystone-ca: .*{complaint}"):
        options(keystone_ca=given)


@pytest.mark.parametrize(
    ("authn", "authz", "address"),
    [
        ("", "", "127.0.0.1:8443"),
        ("https://127.0.0.1:9443/webhook", "", "127.0.0.1:9443"),
        ("", "https://localhost:9443", "127.0.0.1:9443"),
        ("https://localhost:9443", "https://127.0.0.1:9443/webhook", "127.0.0.1:9443"),
        ("https://[::1]:9443/webhook", "", "[::1]:9443"),
        ("https://other.example/x", "https://127.0.0.1:9443/webhook", "127.0.0.1:9443"),
    ],
)
def test_a_loopback_server_url_moves_the_endpoint(options, authn, authz, address):
    config = options(authn_server_url=authn, authz_server_url=authz)

    assert config.listen.address == address
    assert config.listen.url == f"https://{address}/webhook"


def test_any_other_server_url_stands_behind_the_endpoint(options):
    config = options(authn_server_url="https://other.example/n")

    assert config.authentication_service == "https://other.example/n"
    assert config.authorization_service is None
    assert config.listen.address == "127.0.0.1:8443"
    assert config.names_upstream_way
    assert not config.authorization


def test_a_service_for_access_reviews_is_asked_without_a_policy(options):
    assert options(authz_server_url="https://other.example/z").authorization


@pytest.mark.parametrize(
    ("given", "option", "complaint"),
    [
        ({"authn_server_url": "http://127.0.0.1:8443/webhook"}, "authn-server-url", "begins with https://"),
        ({"authn_server_url": "https://127.0.0.1:8443/other"}, "authn-server-url", "use https://127.0.0.1:8443/webhook"),
        ({"authn_server_url": "https://127.0.0.1/webhook"}, "authn-server-url", "names no port"),
        ({"authz_server_url": "https://127.0.0.1:8444/webhook"}, "authz-server-url", "port 8444 is used"),
        ({"authz_server_url": "https://127.0.0.1:8445/webhook"}, "authz-server-url", "port 8445 is used"),
        ({"authz_server_url": "https://127.0.0.1:8446/webhook"}, "authz-server-url", "port 8446 is used"),
        ({"authn_server_url": "https://127.0.0.1:1", "authz_server_url": "https://127.0.0.1:2"},
         "authz-server-url", "names another host or port"),
        ({"authn_server_url": "https://a.example", "authz_server_url": "https://b.example",
          "k8s_keystone_auth_url": "https://c.example/x"}, "k8s-keystone-auth-url", "would never be asked"),
        ({"k8s_keystone_auth_url": "http://c.example/x"}, "k8s-keystone-auth-url", "begins with https://"),
        ({"k8s_keystone_auth_url": "oci://c.example/x"}, "k8s-keystone-auth-url", "add @sha256:…"),
        ({"k8s_keystone_auth_url": "oci://c.example/X@sha256:" + "a" * 64}, "k8s-keystone-auth-url", "lower case"),
        ({"k8s_keystone_auth_url": "oci://c.example/x@sha256:" + "A" * 64}, "k8s-keystone-auth-url", "lower case"),
        ({"k8s_keystone_auth_url": "oci://me:secret@c.example/x:1"}, "k8s-keystone-auth-url", "is no image"),
        ({"k8s_keystone_auth_url": "oci://c.example/x:1"}, "k8s-keystone-auth-sha256", "as a tag says nothing"),
        ({"k8s_keystone_auth_url": "oci://c.example/x@sha256:" + "a" * 64, "k8s_keystone_auth_sha256": "b" * 64},
         "k8s-keystone-auth-sha256", "contradicts"),
        ({"k8s_keystone_auth_url": "file:///x"}, "k8s-keystone-auth-url", "not in the one folder for it"),
        ({"k8s_keystone_auth_url": f"file://{INCOMING}/a/b"}, "k8s-keystone-auth-url", "not in the one folder for it"),
        ({"k8s_keystone_auth_url": f"file://{INCOMING}/.."}, "k8s-keystone-auth-url", "not in the one folder for it"),
        ({"k8s_keystone_auth_url": f"file://h{INCOMING}/x"}, "k8s-keystone-auth-url", "not in the one folder for it"),
        ({"k8s_keystone_auth_url": f"file://{INCOMING}/x"}, "k8s-keystone-auth-sha256", "is required"),
        ({"k8s_keystone_auth_credentials": "hunter2"}, "k8s-keystone-auth-credentials", "neither a Juju secret"),
        ({"k8s_keystone_auth_sha256": "abc"}, "k8s-keystone-auth-sha256", "64 hexadecimal digits"),
        ({"k8s_keystone_auth_sha256": "a" * 64}, "k8s-keystone-auth-sha256", "set both or neither"),
        ({"default_domain": " "}, "default-domain", "is empty"),
        ({"default_domain": "x" * 65}, "default-domain", "longer"),
        ({"default_domain": "default\u200b"}, "default-domain", "'default\\u200b' can be no domain's ID"),
        ({"default_domain": "Our Domain"}, "default-domain", "can be no domain's ID"),
        ({"token_cache_ttl": -1}, "token-cache-ttl", "greater than or equal to 0"),
        ({"token_cache_ttl": 3601}, "token-cache-ttl", "less than or equal to 3600"),
        ({"outage_grace": -1}, "outage-grace", "greater than or equal to 0"),
        ({"outage_grace": 86401}, "outage-grace", "less than or equal to 86400"),
        ({"kubernetes_url": "http://k.example:6443"}, "kubernetes-url", "begins with https://"),
        ({"kubernetes_url": "https://127.0.0.1:6443"}, "kubernetes-url", "no user's kubectl reaches"),
        ({"kubernetes_url": "https://k.example:6443/?a=b"}, "kubernetes-url", "has more than a path"),
        ({"log_level": "loud"}, "log-level", "'debug', 'info', 'warning' or 'error'"),
        ({"api_server": "k3s"}, "api-server", "use auto, charmed, canonical, microk8s, static-pod or manual"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name_with_the_fix(options, given, option, complaint):
    with pytest.raises(ConfigError) as raised:
        options(**given)
    assert str(raised.value).startswith(f"{option}: ")
    assert complaint in str(raised.value)
    for secret in ("secret@", "hunter2"):
        assert secret not in str(raised.value)


def test_what_a_file_has_around_a_word_is_no_part_of_it(options):
    given = {"api_server": "manual", "log_level": "debug", "sync_prune": "off", "default_domain": "default"}
    config = options(**{name: f" {value}\r\n" for name, value in given.items()})
    assert {name: getattr(config, name) for name in given} == given


def test_several_bad_values_are_all_named(options):
    with pytest.raises(ConfigError, match=r"and 2 more: default-domain, log-level"):
        options(keystone_url="", default_domain="", log_level="loud")


def test_every_option_of_the_charm_is_a_field_and_every_field_an_option(context):
    options = {name.replace("-", "_") for name in context.charm_spec.config["options"]}
    assert options == set(CharmConfig.model_fields) - {"related_keystone", "attached"}


def test_the_defaults_are_the_same_in_both_places(context):
    for name, option in context.charm_spec.config["options"].items():
        assert CharmConfig.model_fields[name.replace("-", "_")].default == option["default"], name


def _certificate(path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.fixture
def tls_places(tmp_path) -> Places:
    places = Places(tmp_path)
    places.tls.mkdir(parents=True)
    return places


def test_certificates_name_the_endpoint_and_are_kept(tls_places):
    group = tls_places.tls.stat().st_gid
    here = Listen(host="127.0.0.1", port=8443)
    tls = webhook.ensure_tls(tls_places, here, group)
    before = {path.name: path.read_bytes() for path in tls_places.tls.iterdir()}
    webhook.ensure_tls(tls_places, here, group)
    assert {path.name: path.read_bytes() for path in tls_places.tls.iterdir()} == before

    names = _certificate(tls.server.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["127.0.0.1", "localhost"]
    _certificate(tls.client.certificate).verify_directly_issued_by(_certificate(tls.ca))


def test_another_address_gets_another_server_certificate_and_nothing_else(tls_places):
    group = tls_places.tls.stat().st_gid
    tls = webhook.ensure_tls(tls_places, Listen(host="127.0.0.1", port=8443), group)
    before = {path.name: path.read_bytes() for path in tls_places.tls.iterdir()}
    webhook.ensure_tls(tls_places, Listen(host="127.0.0.2", port=8443), group)
    changed = {path.name for path in tls_places.tls.iterdir() if path.read_bytes() != before[path.name]}

    assert changed == {"server.crt", "server.key"}
    names = _certificate(tls.server.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "127.0.0.2" in [str(name.value) for name in names]


@pytest.mark.parametrize(("days", "renewed"), [
    (0, set()), (480, set()), (490, {"server", "upstream"}), (3280, {"server", "upstream"}),
    (3290, {"ca", "authorities", "server", "upstream", "client"}),
])  # fmt: skip
def test_certificates_are_made_anew_well_before_they_end_the_api_servers_with_its_ca(tls_places, days, renewed):
    group = tls_places.tls.stat().st_gid
    here = Listen(host="127.0.0.1", port=8443)
    now = datetime.datetime.now(datetime.timezone.utc)
    webhook.ensure_tls(tls_places, here, group, now)
    before = {path.name: path.read_bytes() for path in tls_places.tls.glob("*.crt")}
    webhook.ensure_tls(tls_places, here, group, now + datetime.timedelta(days=days))

    changed = {path.stem for path in tls_places.tls.glob("*.crt") if path.read_bytes() != before[path.name]}
    assert changed == renewed


@pytest.mark.parametrize("damaged", ["server.key", "server.crt", "client.key", "ca.key"])
def test_what_is_damaged_is_made_anew(tls_places, damaged):
    group = tls_places.tls.stat().st_gid
    here = Listen(host="127.0.0.1", port=8443)
    webhook.ensure_tls(tls_places, here, group)
    (tls_places.tls / damaged).write_text("damaged")
    tls = webhook.ensure_tls(tls_places, here, group)

    for pair in (tls.server, tls.client, tls.upstream):
        _certificate(pair.certificate).verify_directly_issued_by(_certificate(tls.ca))
    assert "damaged" not in (tls_places.tls / damaged).read_text()
