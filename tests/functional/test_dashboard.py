"""The dashboard and the alert rules: a real Prometheus that scrapes a real authenticator has what they ask for.

Grafana itself is not there: its own schema says whether it would know every field of the dashboard, and Prometheus
whether every panel would show something. How it looks is `python3 -m testbed dashboard`'s.
"""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import observability
from testbed.dashboard import filled
from testbed.keystone import Keystone
from testbed.prometheus import Prometheus
from tests.functional.test_alerts import LABELS, SCRAPED
from tests.unit.authenticator.support import (
    Authority,
    Service,
    StandIn,
    access_review,
    eventually,
    fernet_token,
    replace,
    serving,
    token_review,
)
from tests.unit.authenticator.test_authentication import ADMIN, says
from tests.unit.authenticator.test_service import chained_to

FILE = observability.DASHBOARDS / "kubernetes-keystone.json"
CONTENT: dict[str, Any] = json.loads(FILE.read_text())
TARGETS = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in CONTENT["panels"]
    for target in panel["targets"]
]
RULES = [rule for group in observability.alert_rules(LABELS)["groups"] for rule in group["rules"]]


POLICY = json.dumps([{"users": {"projects": ["watched"]}, "resource_permissions": {"*/pods": ["get"]}}])
WANTED = "wanted 1\nstate confirmed\nstarts 3\nlife boot 1\nretry -\nend\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files are that the authenticator follows."""
    return tmp_path_factory.mktemp("monitored")


@pytest.fixture(scope="module")
def prometheus(folder: Path, authority: Authority, keystone: Keystone) -> Iterator[Prometheus]:
    """One that has scraped an authenticator for a while, of which everybody wants something meanwhile."""
    webhook = StandIn(authority.server_context())
    webhook.behaviour = says(ADMIN)
    policy, chain, flags = folder / "policy.json", folder / "chained", folder / "wanted"
    policy.write_text(POLICY)
    chain.write_bytes(chained_to(webhook, authority))
    flags.write_text(WANTED)
    settings = {"policy": str(policy), "chained": str(chain), "flags": str(flags), "token_cache_ttl": 1}
    project = keystone.project("watched")
    token = keystone.token(keystone.member("watched", project), project)
    with serving(
        folder, authority, **{"keystone": {"url": keystone.url, "ca": str(keystone.ca)}, **settings}
    ) as service:
        over = threading.Event()
        load = threading.Thread(target=_everybody, args=(service, token, over))
        with Prometheus([(service.private, {"juju_charm": "", **SCRAPED})]) as running:
            load.start()
            try:
                eventually(lambda: running.query("count_over_time(up[1m]) >= 10"), 60)
                yield running
            finally:
                over.set()
                load.join()
    webhook.close()


def _everybody(service: Service, token: str, over: threading.Event) -> None:
    while not over.wait(0.05):
        for review in (
            *(token_review(token), token_review(fernet_token()), token_review("cluster::token")),
            *(access_review(), access_review(verb="delete")),
        ):
            service.review(review)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Grafana's schema is published for Python 3.11 and newer")
def test_grafanas_schema_has_every_field_that_the_dashboard_uses() -> None:
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    understood = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(CONTENT)))
    assert list(_lost(CONTENT, understood, "")) == []


def _lost(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    """What is in ours and not in theirs, which may have more."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            yield from _lost(value, theirs.get(key) if isinstance(theirs, dict) else None, f"{where}/{key}")
    elif isinstance(ours, list):
        for number, value in enumerate(ours):
            yield from _lost(value, theirs[number] if len(theirs) > number else None, f"{where}/{number}")
    elif ours != theirs:
        yield f"{where}: {ours!r}, understood as {theirs!r}"


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = CONTENT["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (column, row)
        for place in (panel["gridPos"] for panel in panels)
        for column in range(place["x"], place["x"] + place["w"])
        for row in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24


def test_each_variable_of_the_dashboard_finds_something(prometheus: Prometheus) -> None:
    for variable in CONTENT["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert found, variable
            values = {series["metric"].get(found[2]) for series in prometheus.query(_asked(found[1]))}
            assert values == {SCRAPED[variable["name"]]}


def _asked(expression: str) -> str:
    return filled(expression, "10s")


@pytest.mark.parametrize("expression", TARGETS)
def test_each_panel_shows_something(prometheus: Prometheus, expression: str) -> None:
    def numbers() -> list[float]:
        found = [float(series["value"][1]) for series in prometheus.query(_asked(expression))]
        return [number for number in found if not math.isnan(number)]  # of a service that nobody calls there is no time

    assert eventually(numbers, 30)


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_each_series_that_an_alert_looks_at_is_there(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    selectors = re.findall(r"\w*\{[^}]*\}", rule["expr"])
    assert selectors
    for selector in selectors:
        assert prometheus.query(selector), selector


def test_nothing_is_alarming_about_an_authenticator_that_is_well(prometheus: Prometheus) -> None:
    alarming = {rule["alert"] for rule in RULES if prometheus.query(rule["expr"])}
    # The certificates of the tests last for a day, and somebody guesses all the time.
    assert alarming <= {"KeystoneCertificateEnds", "KeystoneRefusalsAboveUsual"}


def test_what_goes_wrong_is_alarming_and_is_no_more_when_it_is_over(
    prometheus: Prometheus, folder: Path, keystone: Keystone
) -> None:
    expressions = {rule["alert"]: rule["expr"] for rule in RULES}
    policy, flags = folder / "policy.json", folder / "wanted"
    faults = {
        "KeystonePolicyReloadFailed": (lambda: replace(policy, "[{}]"), lambda: replace(policy, POLICY)),
        "KeystoneFlagsBypassed": (
            lambda: replace(flags, WANTED.replace("confirmed", "bypassed")),
            lambda: replace(flags, WANTED),
        ),
        "KeystoneUnreachable": (keystone.stop, keystone.start),
    }
    for alert, (begin, end) in faults.items():
        assert not prometheus.query(expressions[alert])
        begin()
        try:
            (seen,) = eventually(lambda alert=alert: prometheus.query(expressions[alert]), 30)
        finally:
            end()
        assert seen["metric"]["juju_unit"] == SCRAPED["juju_unit"]
        if alert == "KeystoneUnreachable":
            assert 0 < float(seen["value"][1]) < 301, "what is left of the grace"
        eventually(lambda alert=alert: not prometheus.query(expressions[alert]), 30)
