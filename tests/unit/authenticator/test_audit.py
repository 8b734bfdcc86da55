"""Who was refused, and why: one line a verdict, with what there is to follow it by, and never the token."""

from __future__ import annotations

import logging
import os
import re
import uuid
from pathlib import Path

import pytest

from keystone_authenticator.__main__ import _Bounded
from keystone_authenticator.metrics import Metrics
from tests.documents import table
from tests.unit.authenticator.support import (
    Authority,
    KeystoneStandIn,
    Service,
    ask,
    eventually,
    fernet_token,
    keystone_error,
    serving,
)
from tests.unit.authenticator.test_metrics import PREFIX, scrape


def refusals(service: Service) -> list[str]:
    return [line for line in service.log.splitlines() if "audit: refused" in line]


def label(line: str) -> str:
    found = re.search(r"\(token ([0-9a-f]{8})\)", line)
    assert found
    return found.group(1)


def test_a_refusal_names_the_user_who_was_known_and_keystones_own_request(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    request = f"req-{uuid.uuid4()}"
    keystone.headers = {"X-Openstack-Request-Id": request}
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}, token_cache_ttl=0) as service:
        token = keystone.issue(name="alice")
        assert ask(service, token).status["authenticated"]
        assert refusals(service) == []
        keystone.tokens.clear()
        assert not ask(service, token).status["authenticated"]
        (line,) = refusals(service)
        assert "keystone:alice (until now): Keystone answered 401" in line
        assert f"({request})" in line
        assert token not in service.log
        # Another service's idea of such a header has no place in a log.
        keystone.headers = {"X-Openstack-Request-Id": "forged\tvalue"}
        ask(service, fernet_token())
        assert "forged" not in service.log


def test_an_outage_names_keystones_own_request_too(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    request = f"req-{uuid.uuid4()}"
    keystone.headers = {"X-Openstack-Request-Id": request}
    keystone.behaviour = lambda *_: (500, keystone_error(500))
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}) as service:
        assert request in ask(service, fernet_token()).status["error"]


def test_a_client_that_goes_on_with_a_dead_token_makes_one_line(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}) as service:
        one, two = fernet_token(), fernet_token()
        for _ in range(20):
            assert ask(service, one).status == {"authenticated": False}
        assert ask(service, two).status == {"authenticated": False}
        first, second = refusals(service)
        assert label(first) != label(second)
        assert not any(label(line) in token for line in (first, second) for token in (one, two))
        assert scrape(service)["reviews_total{kind=TokenReview,result=refused,version=v1}"] == 21


def test_the_same_token_has_another_label_in_another_process(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn
) -> None:
    token, labels = fernet_token(), set()
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        with serving(folder, authority, keystone={"url": keystone.url, "ca": None}) as service:
            ask(service, token)
            labels.add(label(refusals(service)[0]))
    assert len(labels) == 2


def test_the_journal_is_told_each_lines_priority(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = (tmp_path / "log").open("a")
    found = os.fstat(log.fileno())
    log.close()
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    settings = {"keystone": {"url": keystone.url, "ca": None}, "policy": str(tmp_path / "none")}
    with serving(tmp_path, authority, **settings) as service:
        ask(service, fernet_token())
        keystone.behaviour = lambda *_: (500, keystone_error(500))
        for _ in range(3):
            ask(service, fernet_token())
        lines = service.log.splitlines()
    for priority, said in (("<6>INFO ", "audit: refused"), ("<4>WARNING ", "no answers"), ("<3>ERROR ", "the policy")):
        assert any(line.startswith(priority + said) for line in lines), lines


def test_lines_that_are_too_many_are_counted_and_said() -> None:
    metrics = Metrics()
    bounded = _Bounded(3, metrics)

    def line(second: float) -> logging.LogRecord | None:
        record = logging.LogRecord("n", logging.INFO, "", 0, "about %s", ("it",), None)
        record.created = second
        return record if bounded.filter(record) else None

    assert [line(10.0 + part / 10) is not None for part in range(6)] == [True, True, True, False, False, False]
    assert metrics.log_lines_left_out == 3
    following = line(11.0)
    assert following is not None
    assert following.getMessage() == "about it (3 lines before this one were left out)"
    quiet = line(12.0)
    assert quiet is not None
    assert quiet.getMessage() == "about it"


@pytest.mark.slow
def test_a_flood_of_guesses_fills_no_log(tmp_path: Path, authority: Authority, keystone: KeystoneStandIn) -> None:
    with serving(tmp_path, authority, keystone={"url": keystone.url, "ca": None}) as service:
        connection = service.connect()
        for _ in range(400):
            service.post({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                          "spec": {"token": fernet_token()}}, connection=connection)  # fmt: skip
        connection.close()
        if len(refusals(service)) < 400:  # a slow machine may not come to 50 in a second
            assert eventually(lambda: scrape(service)["log_lines_left_out_total{}"])


@pytest.mark.parametrize("direction", ["documented", "there"])
def test_all_metrics_are_documented_and_all_documented_ones_are_there(
    tmp_path: Path, authority: Authority, keystone: KeystoneStandIn, direction: str
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text("[]")
    with serving(
        tmp_path, authority, keystone={"url": keystone.url, "ca": None}, policy=str(policy), log_level="debug"
    ) as service:
        assert service.post({"kind": "nonsense"})[0] == 400
        ask(service, keystone.issue())
        page = service.get("/metrics")[1].decode()
    there = {line.split()[2].removeprefix(PREFIX) for line in page.splitlines() if line.startswith("# TYPE")}
    documented = {
        name.strip(" `") for row in table("observing.md", "| Metric") for name in row[0].replace("`", "").split(",")
    }
    if direction == "documented":
        assert there <= documented
    else:
        assert documented <= there
