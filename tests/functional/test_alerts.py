"""Each alert, by Prometheus' own tool: where it fires, and where what looks like it does not make it fire.

The series are written here. That the metrics are there and have these labels is another test's matter
(test_dashboard.py asks a running authenticator), what each rule is for docs/observing.md's.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import observability
from testbed import setup

LABELS = {
    "juju_model": "k8s",
    "juju_model_uuid": "5f0d8c1e-2b6a-4a3f-9d7e-0123456789ab",
    "juju_application": "kubernetes-keystone",
    "juju_charm": "kubernetes-keystone",
}
SCRAPED = {**{k: v for k, v in LABELS.items() if k != "juju_charm"}, "juju_unit": "kubernetes-keystone/0"}
ELSE = {**SCRAPED, "juju_application": "something-else"}
DAY = 86400
PROJECT = Path(__file__).parents[2]
P = "kubernetes_keystone_"


def series(name: str, values: str, **labels: str) -> tuple[str, str]:
    """A series of the unit's; a minute a value."""
    return _named(name, {**SCRAPED, **labels}), values


def _named(name: str, labels: dict[str, str]) -> str:
    return name + "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


def outage(grace: str, breaker: str = "1x30") -> list[tuple[str, str]]:
    return [series(f"{P}outage_grace_left_seconds", grace), series(f"{P}breaker_open", breaker)]


def refused(values: str, **labels: str) -> tuple[str, str]:
    about = {"kind": "TokenReview", "version": "v1", "result": "refused"}
    return series(f"{P}reviews_total", values, **{**about, **labels})


def silent(age: str, expected: str = "1x30", kind: str = "TokenReview") -> list[tuple[str, str]]:
    return [series(f"{P}last_review_age_seconds", age, kind=kind), series(f"{P}token_reviews_expected", expected)]


def flags(state: str) -> list[tuple[str, str]]:
    states = ("none", "trial", "confirmed", "pending", "bypassed", "acquitted", "left_out")
    return [series(f"{P}api_server_flags", f"{int(name == state)}x30", state=name) for name in states]


def certificate(days: float, name: str = "endpoint", before: float | None = None) -> list[tuple[str, str]]:
    # Time is 0 where a test of rules begins.
    values = f"{days * DAY:.0f}x120" if before is None else f"{before * DAY:.0f}x10 {days * DAY:.0f}x110"
    return [series(f"{P}certificate_end_timestamp_seconds", values, certificate=name)]


@dataclass(frozen=True)
class Case:
    """What is scraped up to a moment (in minutes), and the labels that the alert has then beside the unit's."""

    series: list[tuple[str, str]]
    minute: int = 15
    labels: dict[str, str] = field(default_factory=dict)


# Four hours of one refusal every five minutes, then one a second.
GUESSING = "0+0.2x240 108+60x30"
FIRES: dict[str, list[Case]] = {
    "KeystoneAuthenticatorDown": [Case([series("up", "1x5 0x10")])],
    "KeystoneAuthenticatorRestarts": [Case([series("process_start_time_seconds", "1 1 2 2 3 3 4 5 6 6 6 6 6 6 6 6")])],
    "KeystoneUnreachable": [Case(outage("350-10x30"))],
    "KeystoneGraceOver": [Case(outage("60 0x30")), Case(outage("0x30"))],
    "KeystoneCannotTell": [Case([refused("0+30x30", result="error")])],
    "KeystoneRefusalsAboveUsual": [Case([refused(GUESSING)], 265)],
    "KeystonePolicyReloadFailed": [Case([series(f"{P}policy_failed", "0 1x30")])],
    "KeystoneFileNotInForce": [
        Case([series(f"{P}tls_failed", "1x30")]),
        Case([series(f"{P}tls_failed", "0x30"), series(f"{P}settings_failed", "1x30")]),
        Case([series(f"{P}chained_failed", "1x30")]),
    ],
    "KeystoneCertificateEnds": [
        Case(certificate(6), 90, {"certificate": "endpoint"}),
        *(Case(certificate(59, name), 90, {"certificate": name}) for name in ("client_ca", "api_server")),
    ],
    "KeystoneNotAsked": [Case(silent("1500+60x30"), 25, {"kind": "TokenReview"})],
    "KeystoneFlagsBypassed": [
        Case(flags(state), labels={"state": state}) for state in ("pending", "bypassed", "acquitted", "left_out")
    ],
}
QUIET: dict[str, list[Case]] = {
    "KeystoneAuthenticatorDown": [
        Case([series("up", "1 0 0 1 0 0 1 1 0 0 1 0 0 1 0 0")]),
        Case([(_named("up", ELSE), "0x15")]),
    ],
    "KeystoneAuthenticatorRestarts": [Case([series("process_start_time_seconds", "1 1 1 1 1 2 2 2 2 2 3 3 3 3 3 3")])],
    "KeystoneUnreachable": [
        Case(outage("360x30", "0x30")),
        Case(outage("350-10x30", "1 0 1 0 0 0 1 0 0 1 0 0 1 0 0 0")),
    ],
    "KeystoneGraceOver": [Case(outage("350-10x30")), Case(outage("0x30", "0x30"))],
    "KeystoneCannotTell": [
        Case([refused("0+1x30", result="error")]),
        Case([refused("0+30x30")]),
        Case([refused("0+30x30", result="error", kind="SubjectAccessReview")]),
    ],
    "KeystoneRefusalsAboveUsual": [
        Case([refused("0+60x300")], 295),
        Case([refused("0+0.2x240 48+3x30")], 265),
        Case([refused(GUESSING, result="authenticated")], 265),
    ],
    "KeystonePolicyReloadFailed": [Case([series(f"{P}policy_failed", "0x13 1x3")])],
    "KeystoneFileNotInForce": [Case([series(f"{P}tls_failed", "0x10 1x5"), series(f"{P}policy_failed", "1x30")])],
    "KeystoneCertificateEnds": [
        Case(certificate(8), 90),
        Case(certificate(5, before=2), 90),  # one that lives for a week, renewed
        *(Case(certificate(61, name), 90) for name in ("client_ca", "api_server")),
    ],
    "KeystoneNotAsked": [
        Case(silent("10x30")),
        Case(silent("7200+60x30", "0x30")),
        Case(silent("7200+60x30", kind="SubjectAccessReview")),
    ],
    "KeystoneFlagsBypassed": [Case(flags("confirmed")), Case(flags("none")), Case(flags("trial"))],
}


@pytest.fixture(scope="module")
def rules() -> dict[str, Any]:
    return observability.alert_rules(LABELS)


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [setup.prometheus() / "promtool", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def run(folder: Path, rules: dict[str, Any], case: Case, alert: str, expected: list[dict[str, Any]]) -> str:
    """What promtool has to say against it; empty if it is as expected."""
    tests = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in case.series],
                "alert_rule_test": [{"eval_time": f"{case.minute}m", "alertname": alert, "exp_alerts": expected}],
            }
        ],
    }
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    (folder / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = promtool(folder, "test", "rules", "tests.yaml")
    return "" if done.returncode == 0 else done.stdout + done.stderr


def by_name(rules: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


def without_texts(rules: dict[str, Any]) -> dict[str, Any]:
    groups = [
        {**group, "rules": [{k: v for k, v in rule.items() if k != "annotations"} for rule in group["rules"]]}
        for group in rules["groups"]
    ]
    return {"groups": groups}


def test_the_rules_are_in_order(tmp_path: Path, rules: dict[str, Any]) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    done = promtool(tmp_path, "check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_in_order_for_a_prometheus_without_juju_as_well(tmp_path: Path) -> None:
    (line,) = [line for line in (PROJECT / "docs/observing.md").read_text().splitlines() if line.startswith("    sed ")]
    subprocess.run(["sh", "-c", line.replace("> ", f"> {tmp_path}/")], cwd=PROJECT, check=True)
    done = promtool(tmp_path, "check", "rules", "kubernetes-keystone-rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_cases_in_which_it_fires_and_in_which_it_does_not(rules: dict[str, Any]) -> None:
    assert set(by_name(rules)) == set(FIRES) == set(QUIET)


@pytest.mark.parametrize(
    ("alert", "case"), [pytest.param(alert, case, id=alert) for alert, cases in FIRES.items() for case in cases]
)
def test_it_fires(tmp_path: Path, rules: dict[str, Any], alert: str, case: Case) -> None:
    labels = {**SCRAPED, **by_name(rules)[alert]["labels"], **case.labels}
    if alert == "KeystoneRefusalsAboveUsual":
        labels |= {"kind": "TokenReview", "result": "refused"}
    if alert == "KeystoneCannotTell":
        labels |= {"kind": "TokenReview", "result": "error", "version": "v1"}
    assert not run(tmp_path, without_texts(rules), case, alert, [{"exp_labels": labels}])


@pytest.mark.parametrize(
    ("alert", "case"), [pytest.param(alert, case, id=alert) for alert, cases in QUIET.items() for case in cases]
)
def test_it_does_not_fire(tmp_path: Path, rules: dict[str, Any], alert: str, case: Case) -> None:
    assert not run(tmp_path, without_texts(rules), case, alert, [])


def test_an_outage_says_for_how_long_known_users_go_on(tmp_path: Path, rules: dict[str, Any]) -> None:
    rule = by_name(rules)["KeystoneUnreachable"]
    expected = {
        "exp_labels": {**SCRAPED, **rule["labels"]},
        "exp_annotations": {
            "summary": "kubernetes-keystone/0: no answers about Keystone's tokens.",
            "description": "Users who were known before go on for 3m 20s at the most; new logins fail.",
        },
    }
    assert not run(tmp_path, rules, Case(outage("350-10x30")), "KeystoneUnreachable", [expected])


def test_an_end_of_a_certificate_is_told_in_days(tmp_path: Path, rules: dict[str, Any]) -> None:
    rule = by_name(rules)["KeystoneCertificateEnds"]
    expected = {
        "exp_labels": {**SCRAPED, **rule["labels"], "certificate": "endpoint"},
        "exp_annotations": {
            "summary": "A certificate of kubernetes-keystone/0 ends in 5d 22h 30m 0s.",
            "description": "It is that of the endpoint. It should have been renewed by now: do the unit's hooks run, "
            "and what does its status say?",
        },
    }
    assert not run(tmp_path, rules, Case(certificate(6), 90), "KeystoneCertificateEnds", [expected])
