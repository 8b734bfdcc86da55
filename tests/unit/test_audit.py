"""What the audit makes of known vulnerabilities, and of nobody to ask."""

from __future__ import annotations

import datetime
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from testbed import audit
from testbed.audit import Exemption, Finding, Pin, Report

TODAY = datetime.date(2026, 11, 24)
OLD = Pin("jinja2", "2.11.2")
HOLE = Finding(OLD, ("PYSEC-2021-66", "CVE-2020-28493"), ("2.11.3",))


def exempt(advisory: str, days: int) -> Exemption:
    return Exemption(advisory, "templates are never a user's", TODAY + datetime.timedelta(days=days))


def test_a_vulnerability_of_what_is_shipped_is_told_with_advisory_and_fixed_version():
    assert audit.verdict(Report((HOLE,), ()), [OLD], [], TODAY) == [
        "jinja2 2.11.2: PYSEC-2021-66, CVE-2020-28493, fixed in 2.11.3"
    ]


def test_a_vulnerability_of_what_only_the_work_needs_fails_nothing():
    assert audit.verdict(Report((HOLE,), ()), [], [], TODAY) == []


@pytest.mark.parametrize("name", HOLE.names)
def test_an_exemption_counts_by_any_name_of_the_advisory_up_to_its_last_day(name):
    assert audit.verdict(Report((HOLE,), ()), [OLD], [exempt(name, 0)], TODAY) == []


def test_an_exemption_that_ended_is_named_with_what_it_was_for():
    (line,) = audit.verdict(Report((HOLE,), ()), [OLD], [exempt("CVE-2020-28493", -1)], TODAY)

    assert line.endswith("fixed in 2.11.3 (audit-ignored.yaml had it until 2026-11-23)")


@pytest.mark.parametrize(
    "entry",
    [
        "advisory: PYSEC-1, until: 2027-01-01",
        "advisory: PYSEC-1, until: 2027-01-01, reason: ''",
        "advisory: PYSEC-1, reason: out of reach",
        "advisory: PYSEC-1, reason: out of reach, until: some day",
    ],
)
def test_an_exemption_needs_a_reason_and_a_day(tmp_path, entry):
    path = tmp_path / "ignored.yaml"
    path.write_text(f"[{{{entry}}}]")

    with pytest.raises(audit.AuditError, match=r"ignored\.yaml.*PYSEC-1"):
        audit.exemptions(path)


def test_the_committed_exemptions_are_whole():
    assert all(one.reason for one in audit.exemptions())


def test_every_pin_is_looked_up_whatever_python_it_is_for():
    found = audit.pins(audit.SHIPPED)

    assert [one.version for one in found if one.name == "pycparser"] == ["3.11", "3.12"]
    assert {"aiohttp", "cryptography"} <= {one.name for one in found}


@pytest.fixture
def service() -> Iterator[str]:
    """Run a service that knows one vulnerability, in the words of https://google.github.io/osv.dev/post-v1-query/."""
    known = {
        "id": HOLE.names[0],
        "aliases": list(HOLE.names[1:]),
        "affected": [
            {
                "package": {"name": OLD.name, "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.11.3"}]}],
            }
        ],
    }

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            old = (asked["package"]["name"], asked["version"]) == (OLD.name, OLD.version)
            body = json.dumps({"vulns": [known]} if old else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


@pytest.mark.slow
def test_pip_audit_finds_the_one_old_pin_among_others_in_two_versions_of_one_package(service):
    wanted = [Pin("idna", "3.20"), OLD, Pin("jinja2", "3.1.6")]

    report = audit.audit(wanted, ["osv"], [f"--osv-url={service}"])

    assert report == Report((HOLE,), ())


@pytest.mark.slow
def test_where_nobody_answers_everything_is_left_open_and_the_reason_told(service):
    wanted = [Pin("idna", "3.20"), OLD]

    report = audit.audit(wanted, ["osv"], [f"--osv-url={service.replace('http:', 'gone:')}"])

    assert report.findings == ()
    assert report.open == tuple(wanted)
    assert report.reason


@pytest.mark.slow
def test_the_index_knows_what_is_wrong_with_an_old_jinja2():
    report = audit.audit([OLD])
    if report.open:
        pytest.skip(f"NOT AUDITED: no vulnerability service answers here: {report.reason}")

    assert any("CVE-2020-28493" in finding.names and "2.11.3" in finding.fixed for finding in report.findings)
