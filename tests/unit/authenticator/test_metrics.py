"""What `/metrics` tells: in Prometheus' own format, by what really happened, and never who."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from keystone_authenticator.metrics import BOUNDS, Histogram, Text
from tests.unit.authenticator.support import (
    Authority,
    KeystoneStandIn,
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

pytestmark = pytest.mark.slow  # outages take their time

PREFIX = "kubernetes_keystone_"


def scrape(service: Service) -> dict[str, float]:
    """All samples, by name and labels."""
    status, body = service.get("/metrics")
    assert status == 200
    samples = {}
    for family in text_string_to_metric_families(body.decode()):
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name.removeprefix(PREFIX)}{{{labels}}}"] = sample.value
    return samples


def changes(before: dict[str, float], after: dict[str, float], *families: str) -> dict[str, float]:
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if name.split("{")[0] in families and value != before.get(name, 0)
    }


def test_reviews_are_counted_by_kind_version_and_result(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn, webhook: StandIn
) -> None:
    webhook.behaviour = says(ADMIN)
    chain, policy = tmp_path / "chained", tmp_path / "policy.json"
    chain.write_bytes(chained_to(webhook, authority))
    policy.write_text(json.dumps([{"users": {"projects": ["demo"]}, "resource_permissions": {"*/pods": ["get"]}}]))
    settings: dict[str, Any] = {"keystone": {"url": keystone.url, "ca": None}, "policy": str(policy)}
    with serving(tmp_path, authority, chained=str(chain), **settings) as service:
        before = scrape(service)
        token, garbage = keystone.issue(name="somebody"), fernet_token()
        for review in (
            *(token_review(token), token_review(token), token_review(token, "v1beta1")),
            *(
                token_review(garbage),
                token_review(garbage),
                token_review(""),
                token_review("a::b"),
                token_review("a::b"),
            ),
            *(access_review(), access_review(version="v1beta1"), access_review(verb="delete")),
        ):
            service.review(review)
        assert service.post({"kind": "nonsense"})[0] == 400
        after = scrape(service)
        assert changes(before, after, "reviews_total") == {
            "reviews_total{kind=TokenReview,result=authenticated,version=v1}": 4,
            "reviews_total{kind=TokenReview,result=authenticated,version=v1beta1}": 1,
            "reviews_total{kind=TokenReview,result=refused,version=v1}": 2,
            "reviews_total{kind=TokenReview,result=error,version=v1}": 1,
            "reviews_total{kind=SubjectAccessReview,result=allowed,version=v1}": 1,
            "reviews_total{kind=SubjectAccessReview,result=allowed,version=v1beta1}": 1,
            "reviews_total{kind=SubjectAccessReview,result=no_opinion,version=v1}": 1,
            "reviews_total{kind=none,result=invalid,version=none}": 1,
        }
        assert changes(before, after, "token_cache_hits_total", "token_cache_misses_total") == {
            "token_cache_hits_total{tokens=keystone}": 3,
            "token_cache_hits_total{tokens=cluster}": 1,
            "token_cache_misses_total{tokens=keystone}": 2,
            "token_cache_misses_total{tokens=cluster}": 1,
        }
        assert changes(before, after, "calls_total") == {
            "calls_total{service=keystone,status=200}": 2,
            "calls_total{service=keystone,status=401}": 1,
            "calls_total{service=cluster_webhook,status=200}": 1,
        }
        assert after["review_duration_seconds_count{kind=TokenReview}"] == 8
        assert after["review_duration_seconds_bucket{kind=TokenReview,le=+Inf}"] == 8
        assert 0 < after["review_duration_seconds_sum{kind=TokenReview}"] < 8
        assert after["call_duration_seconds_count{service=keystone}"] == 3
        assert after["token_cache_entries{tokens=keystone,verdict=known}"] == 1
        assert after["token_cache_entries{tokens=keystone,verdict=refused}"] == 1
        assert after["token_cache_entries{tokens=cluster,verdict=any}"] == 1
        assert 500 < after["token_cache_bytes{tokens=keystone}"] < 10_000
        assert 500 < after["token_cache_bytes{tokens=cluster}"] < 10_000
        assert after["http_errors_total{status=400}"] == 1
        assert after["ready{}"] == 1
        assert after["process_resident_memory_bytes{}"] > 1e6
        page = service.get("/metrics")[1].decode()
        assert "somebody" not in page
        assert "gAAAA" not in page


def test_an_outage_shows(tmp_path: Path, authority: Authority, keystone: KeystoneStandIn) -> None:
    settings: dict[str, Any] = {"keystone": {"url": keystone.url, "ca": None}, "token_cache_ttl": 0.05}
    with serving(tmp_path, authority, **settings) as service:
        token = keystone.issue()
        service.review(token_review(token))
        assert scrape(service)["breaker_open{}"] == 0
        keystone.behaviour = lambda *_: (503, b"")
        for _ in range(3):
            assert "error" in service.review(token_review(fernet_token()))
        time.sleep(0.1)
        assert service.review(token_review(token))["authenticated"]
        seen = scrape(service)
        assert seen["breaker_open{}"] == 1
        assert seen["call_failures_total{service=keystone}"] == 3
        assert seen["token_cache_stale_answers_total{}"] == 1
        # Counters outlive the settings that they were counted under.
        service.configure(token_cache_ttl=60)
        eventually(lambda: scrape(service)["breaker_open{}"] == 0)
        assert scrape(service)["call_failures_total{service=keystone}"] == 3


def test_an_outage_says_how_long_it_has_lasted_and_for_how_long_known_users_go_on(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    settings: dict[str, Any] = {
        "keystone": {"url": keystone.url, "ca": None},
        "token_cache_ttl": 0.2,
        "outage_grace": 2,
    }
    with serving(tmp_path, authority, **settings) as service:
        before = scrape(service)
        assert (before["outage_seconds{}"], before["outage_grace_left_seconds{}"]) == (0, 2.2)
        token = keystone.issue()
        service.review(token_review(token))
        keystone.behaviour = lambda *_: (503, b"")
        for _ in range(3):
            service.review(token_review(fernet_token()))
        during = scrape(service)
        assert during["outage_seconds{}"] > 0
        assert 0 < during["outage_grace_left_seconds{}"] < 2.2
        outage = service.status["keystone"]["outage"]
        assert f"WARNING no answers about Keystone's tokens: {outage}" in service.log
        eventually(lambda: scrape(service)["outage_grace_left_seconds{}"] == 0, 10)
        assert "error" in service.review(token_review(token)), "and the last of them is told so, too"
        service.configure(outage_grace=0)
        eventually(lambda: scrape(service)["outage_grace_left_seconds{}"] == 0)


def test_without_anybody_known_there_is_no_grace(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    keystone.behaviour = lambda *_: (503, b"")
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}) as service:
        for _ in range(3):
            service.review(token_review(fernet_token()))
        assert scrape(service)["breaker_open{}"] == 1
        assert scrape(service)["outage_grace_left_seconds{}"] == 0


def test_it_shows_since_when_nobody_has_asked_and_the_watchdog_is_nobody(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    age = "last_review_age_seconds{{kind={}}}".format
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}) as service:
        eventually(lambda: scrape(service)[age("TokenReview")] > 0.5, 10)
        service.review(token_review(keystone.issue()))
        after = scrape(service)
        assert after[age("TokenReview")] < after[age("SubjectAccessReview")]
        service.review(access_review())
        later = scrape(service)
        assert later[age("SubjectAccessReview")] < later[age("TokenReview")]


def test_it_shows_when_each_certificate_ends(tmp_path: Path, authority: Authority) -> None:
    name = "certificate_end_timestamp_seconds{{certificate={}}}".format
    with serving(tmp_path, authority) as service:
        assert name("api_server") not in scrape(service), "it has shown none yet"
        service.review(token_review("a::b"))
        seen = scrape(service)
        for certificate, path in (
            ("endpoint", service.certificate[0]),
            ("client_ca", authority.ca),
            ("api_server", service.client[0]),
        ):
            ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
            assert seen[name(certificate)] == ends.timestamp()


def test_it_shows_whether_the_api_server_has_flags_by_which_it_asks_here(tmp_path: Path, authority: Authority) -> None:
    wanted, chain = tmp_path / "wanted", tmp_path / "chained"
    chain.write_text("chained 1\nnone\n")

    def states(service: Service) -> tuple[set[str], float]:
        seen = scrape(service)
        on = {name for name, value in seen.items() if name.startswith("api_server_flags{") and value}
        return {name.partition("=")[2].rstrip("}") for name in on}, seen["token_reviews_expected{}"]

    with serving(tmp_path, authority, chained=str(chain), flags=str(wanted)) as service:
        assert states(service) == ({"none"}, 0)
        for state, expected in (("trial", 0), ("confirmed", 1), ("bypassed", 0), ("nonsense", 0)):
            replace(wanted, f"wanted 1\nstate {state}\nstarts 3\nlife b 1\nretry -\ndigest d\nend\n")
            assert states(service) == ({"none" if state == "nonsense" else state}, expected)
        replace(wanted, "wanted 1\nstate confirmed\nstarts 0\nlife -\nend\n")
        assert states(service) == ({"left_out"}, 0)
        replace(wanted, "wanted 1\nstate confirmed\nstarts 3\nlife b 1\nend\n")
        service.configure(chained=None)
        eventually(lambda: states(service) == ({"confirmed"}, 0), 5)


@pytest.mark.slow
def test_load_that_is_too_much_is_shed_with_429_and_a_time(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    """The API server repeats a request on that, and gives up on a bare 503."""
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}) as service:
        keystone.hang()
        connections = [service.connect() for _ in range(40)]
        for connection in connections:
            body = json.dumps(token_review(fernet_token()))
            connection.request("POST", "/webhook", body, {"Content-Type": "application/json"})
        eventually(lambda: scrape(service)["reviews_shed_total{}"] == 16, 5)
        keystone.release()
        answers = [connection.getresponse() for connection in connections]
        shed = [answer for answer in answers if answer.status == 429]
        assert (len(shed), {answer.headers["Retry-After"] for answer in shed}) == (16, {"1"})
        assert {answer.status for answer in answers} == {200, 429}
        for connection in connections:
            connection.close()


def test_the_policy_in_force_shows_and_one_that_fails_too(tmp_path: Path, authority: Authority) -> None:
    policy = tmp_path / "policy.json"
    item = {"users": {"projects": ["demo"]}, "resource_permissions": {"*/pods": ["get"]}}
    policy.write_text(json.dumps([item]))
    with serving(tmp_path, authority, policy=str(policy)) as service:
        first = scrape(service)
        info = f"policy_info{{sha256={service.status['policy']['hash']}}}"
        assert (first[info], first["policy_items{}"], first["policy_failed{}"]) == (1, 1, 0)
        assert 0 <= first["policy_age_seconds{}"] < 10
        replace(policy, "[{}]")
        eventually(lambda: scrape(service)["policy_reload_failures_total{}"] == 1)
        assert scrape(service)["policy_failed{}"] == 1
        assert scrape(service)[info] == 1
        replace(policy, json.dumps([item, item]))
        eventually(lambda: scrape(service)["policy_items{}"] == 2)
        assert scrape(service)["policy_failed{}"] == 0
        assert info not in scrape(service)


def test_the_log_follows_an_audit_id_and_has_no_access_log_unless_asked(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    settings: dict[str, Any] = {"keystone": {"url": keystone.url, "ca": None}}

    def ask(service: Service, token: str, audit_id: str) -> None:
        connection = service.connect()
        body = json.dumps(token_review(token))
        connection.request("POST", "/webhook", body, {"Content-Type": "application/json", "Audit-ID": audit_id})
        assert connection.getresponse().status == 200
        connection.close()

    with serving(tmp_path, authority, **settings) as service:
        ask(service, keystone.issue(name="fine"), "id-of-fine")
        ask(service, keystone.issue(project=None, name="unscoped"), "id-of-refused")
        ask(service, fernet_token(), "forged\tid")
        lines = [line for line in service.log.splitlines() if "audit: refused" in line]
        assert "the token of the user id-of-unscoped-default is unscoped" in lines[0]
        assert lines[0].endswith("(audit ID 'id-of-refused')")
        assert lines[1].endswith(r"(audit ID 'forged\tid')")
        assert "id-of-fine" not in service.log
        assert "TokenReview" not in service.log
        service.configure(log_level="debug")
        eventually(lambda: "new settings" in service.log)
        ask(service, keystone.issue(name="fine"), "id-of-logged")
        line = next(line for line in service.log.splitlines() if "id-of-logged" in line)
        assert line.startswith("DEBUG TokenReview v1: authenticated in ")


def test_a_histogram_puts_each_duration_under_its_bound() -> None:
    histogram, page = Histogram(), Text()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, 9.9, 99.0):
        histogram.observe(seconds)
    page.histogram("test_seconds", "A test.", [({"a": 'b"\\\n'}, histogram)])
    (family,) = text_string_to_metric_families(page.render().decode())
    buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
    assert all(sample.labels["a"] == 'b"\\\n' for sample in buckets)
    assert [sample.value for sample in buckets] == [2, *[3] * 14, 4, 5]
