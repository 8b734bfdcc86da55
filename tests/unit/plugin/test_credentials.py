"""The rules of credentials for Kubernetes alone, read as the authenticator reads them."""

from __future__ import annotations

import datetime

import pytest

from keystone_authenticator.access_rules import MOST_RULES, SERVICE, AccessRules
from keystone_authenticator.policy import Request
from kubectl_keystone_auth import credentials
from kubectl_keystone_auth.credentials import MOST, Rule, expiry, rules
from kubectl_keystone_auth.errors import BadInput


def allows(found: tuple[Rule, ...], verb: str, resource: str, namespace: str = "dev", **more: str) -> bool:
    """What the authenticator makes of them."""
    resource, _, subresource = resource.partition("/")
    name = "" if verb in ("list", "create", "deletecollection") and not subresource else "web"
    asked = {"api_group": "", "version": "v1", "name": name, **more}
    request = Request(
        True, verb, namespace, asked["api_group"], resource, subresource, "", asked["name"], asked["version"]
    )
    return AccessRules(f"{rule.method} {rule.path}" for rule in found).allow(request)


READING = [("get", "pods"), ("list", "pods"), ("watch", "pods"), ("get", "pods/log"), ("list", "secrets")]
WRITING = [("create", "pods"), ("update", "pods"), ("patch", "pods"), ("delete", "pods"), ("deletecollection", "pods")]
DOORS = [(verb, f"pods/{door}") for verb in ("get", "create") for door in ("exec", "attach", "portforward")]


@pytest.mark.parametrize("namespace", ["dev", "kube-system", ""])
@pytest.mark.parametrize("group", ["", "apps"])
@pytest.mark.parametrize("version", ["v1", ""])
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("doors", [True, False])
def test_rules_mean_to_a_cluster_what_was_asked_for(namespace, group, version, read_only, limited, doors):
    found = rules(["dev", "test"] if limited else [], read_only=read_only, doors=doors)
    inside = not limited or namespace == "dev"
    about = {"namespace": namespace, "api_group": group, "version": version}
    assert all(allows(found, *asked, **about) == inside for asked in READING)
    assert all(allows(found, *asked, **about) == (inside and not read_only) for asked in WRITING)
    # Doors are in pods, which are in namespaces.
    real = bool(namespace) and not group
    assert all(allows(found, *asked, **about) == (inside and doors) for asked in DOORS if real)
    assert not allows(found, "impersonate", "users", **about)


def test_a_namespace_is_seen_from_inside_and_its_siblings_are_not():
    found = rules(["dev"], read_only=False)
    assert allows(found, "get", "namespaces", name="dev")
    assert not allows(found, "delete", "namespaces", name="dev")
    assert not allows(found, "get", "namespaces", "developers", name="developers")
    assert not allows(found, "list", "pods", "developers")
    assert not allows(found, "get", "nodes", "")


def test_rules_of_ones_own_stand_alone():
    found = rules([], read_only=False, more=["PATCH /apis/apps/v1/namespaces/dev/deployments/web"])
    assert found == (Rule("PATCH", "/apis/apps/v1/namespaces/dev/deployments/web"),)
    assert allows(found, "patch", "deployments", api_group="apps")


@pytest.mark.parametrize("rule", ["", "GET", "get /", "GET pods", "GET /a b", "FLY /", "GET /\n/a", "GET /\x1b"])
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(BadInput, match="is no rule"):
        rules([], read_only=False, more=[rule])


@pytest.mark.parametrize("namespace", ["", "Dev", "a/b", "*", "{x}", "a" * 64, "-a"])
def test_what_is_no_namespace_is_refused(namespace):
    with pytest.raises(BadInput, match="is no name of a namespace"):
        rules([namespace], read_only=True)


def test_more_rules_than_a_cluster_takes_are_refused_here():
    assert (MOST, credentials.SERVICE) == (MOST_RULES, SERVICE)
    assert len(rules([f"n{number}" for number in range(21)], read_only=True)) == 63
    with pytest.raises(BadInput, match=r"takes 66 rules, .* more than 64"):
        rules([f"n{number}" for number in range(22)], read_only=True)


@pytest.mark.parametrize(("text", "seconds"), [("12h", 43_200), ("30d", 2_592_000), ("2w", 1_209_600)])
def test_an_end_is_a_span_from_now(text, seconds):
    end = datetime.datetime.fromisoformat(f"{expiry(text)}+00:00")
    left = (end - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    assert seconds - 60 < left <= seconds


def test_an_end_is_a_time_in_utc():
    assert expiry("2099-01-31") == "2099-01-31T00:00:00.000000"
    assert expiry("2099-01-31T12:00:00Z") == "2099-01-31T12:00:00.000000"
    assert expiry("2099-01-31T12:00:00+02:00") == "2099-01-31T10:00:00.000000"
    assert expiry("") is None


@pytest.mark.parametrize(
    ("text", "word"), [("soon", "neither"), ("3m", "neither"), ("2020-01-01", "over"), ("0d", "over")]
)
def test_what_is_no_end_to_come_is_refused(text, word):
    with pytest.raises(BadInput, match=word):
        expiry(text)
