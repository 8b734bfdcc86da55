"""The settings file: every key is checked, and every error names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keystone_authenticator.settings import SettingsError, load, parse

GOOD: dict[str, Any] = {
    "listen": "127.0.0.1:8443",
    "private_listen": "[::1]:8444",
    "tls": {"certificate": "/c", "key": "/k", "client_ca": "/ca", "require_client_certificate": True},
    "keystone": {"url": "https://keystone:5000/v3/", "ca": None},
    "default_domain": "default",
    "upstream_compatible": False,
    "token_cache_ttl": 60,
    "outage_grace": 300,
    "policy": None,
    "chained": "/etc/kubernetes-keystone/chained",
    "flags": "/var/lib/kubernetes-keystone/wanted",
    "authentication_backend": None,
    "authorization_backend": {"url": "https://authz/webhook", "ca": "/ca"},
    "kubeconfig": None,
    "sync": None,
    "policy_configmap": None,
    "log_level": "info",
}


def changed(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_good_settings_are_read() -> None:
    settings = parse(changed())
    assert settings.listen.port == 8443
    assert settings.private_listen.host == "::1"
    assert settings.keystone.url == "https://keystone:5000/v3"
    assert settings.policy is None
    assert settings.authorization_backend is not None
    assert settings.authorization_backend.ca == Path("/ca")


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(SettingsError, match=f"{key}: missing"):
        parse(json.dumps({name: value for name, value in GOOD.items() if name != key}).encode())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "blue"}, "colour: unknown key"),
        ({"tls": {**GOOD["tls"], "colour": 1}}, "tls.colour: unknown key"),
        ({"keystone": {"url": "https://k"}}, "keystone.ca: missing"),
        ({"listen": "8443"}, "listen: expected host:port"),
        ({"listen": "127.0.0.1:99999"}, "listen: expected host:port"),
        ({"listen": 8443}, "listen: expected a text"),
        ({"upstream_compatible": "no"}, "upstream_compatible: expected true or false"),
        ({"token_cache_ttl": True}, "token_cache_ttl: expected a number"),
        ({"token_cache_ttl": -1}, "token_cache_ttl: expected 0 to"),
        ({"outage_grace": "300"}, "outage_grace: expected a number"),
        ({"policy": "policy.json"}, "policy: expected an absolute path"),
        ({"policy": False}, "policy: expected a text"),
        ({"keystone": {"url": "ftp://k", "ca": None}}, "keystone.url: expected an URL"),
        ({"keystone": {"url": "https://", "ca": None}}, "keystone.url: expected an URL"),
        ({"keystone": {"url": "https://k:x/", "ca": None}}, "keystone.url: expected an URL"),
        ({"authentication_backend": {"url": "http://a", "ca": None}}, "authentication_backend.url: expected an URL"),
        ({"log_level": "loud"}, "log_level: expected one of"),
        ({"default_domain": ""}, "default_domain: is empty"),
        ({"sync": {"config": "/s", "credentials": None, "prune": "some", "interval": 300}}, "sync.prune: expected one"),
        ({"sync": {"config": "/s", "credentials": None, "prune": "off"}}, "sync.interval: missing"),
        ({"sync": {"config": "/s", "credentials": None, "prune": "off", "interval": 9}}, "kubeconfig: is null"),
        ({"policy_configmap": "kube-system/p"}, "kubeconfig: is null"),
        ({"policy_configmap": "p", "kubeconfig": "/k"}, "policy_configmap: expected namespace/name"),
        ({"tls": {**GOOD["tls"], "client_ca": None}}, "tls.client_ca: missing"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse(changed(**changes))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null"])
def test_what_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(SettingsError):
        parse(content)


def test_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"settings\.json: No such file"):
        load(tmp_path / "settings.json")
