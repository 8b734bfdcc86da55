"""Look for known vulnerabilities in what is pinned: pip-audit over the requirements files, with what it leaves open.

    python -m testbed.audit            look, once a day for the same pins; exit code 1 for a finding in what is shipped

What is shipped (requirements.txt, requirements-authenticator.txt) must have no known vulnerability but those in
`audit-ignored.yaml`, each with a reason and the day until which that reason holds. What only the work needs
(requirements-dev.txt) is told and fails nothing.

Where no vulnerability service answers (no network, or an index that is a mirror: mirrors have the packages alone),
nothing was audited, and that is said loudly. It is no failure: work goes on without a network. pip-audit by itself
would call it "No known vulnerabilities found".

Not here: what the test bed's own builds pin (testbed/builds), which is never shipped.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from testbed import cache

PROJECT = Path(__file__).resolve().parent.parent
SHIPPED = ("requirements.txt", "requirements-authenticator.txt")
WORK = ("requirements-dev.txt",)
IGNORED = PROJECT / "audit-ignored.yaml"
SERVICES = ("pypi", "osv")
"""Both have the same advisories (PyPI's come from OSV); the second is asked where the first is a mirror."""
LIMIT = 40.0
"""Seconds for one service: `make check` has a minute, and the audit runs beside its tests."""


class AuditError(Exception):
    """The audit cannot be made because of something in this checkout; the message says what and where."""


@dataclass(frozen=True, order=True)
class Pin:
    """One package in one version, whatever Python or machine it is pinned for."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, order=True)
class Finding:
    """A known vulnerability of a pin: the advisory's names, and the versions without it."""

    pin: Pin
    names: tuple[str, ...]
    fixed: tuple[str, ...]

    def __str__(self) -> str:
        fixed = f"fixed in {', '.join(self.fixed)}" if self.fixed else "no fixed version yet"
        return f"{self.pin}: {', '.join(self.names)}, {fixed}"


@dataclass(frozen=True)
class Exemption:
    """An advisory that does not touch this project: why, and until when somebody believes so."""

    advisory: str
    reason: str
    until: datetime.date


@dataclass(frozen=True)
class Report:
    """What was found among pins, and what could not be looked up, with the reason for the first of it."""

    findings: tuple[Finding, ...]
    open: tuple[Pin, ...]
    reason: str = ""


def pins(files: Iterable[str]) -> list[Pin]:
    """Give all that the requirements files pin, for any Python and machine."""
    found: set[Pin] = set()
    for name in files:
        for line in (PROJECT / name).read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if text:
                requirement = Requirement(text)
                (only,) = requirement.specifier
                found.add(_pin(requirement.name, only.version))
    return sorted(found)


def _pin(name: str, version: str) -> Pin:
    return Pin(canonicalize_name(name), str(Version(version)))


def exemptions(path: Path = IGNORED) -> list[Exemption]:
    """Read the list of what does not touch this project.

    Raises:
        AuditError: an entry is not whole, with the entry.
    """
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    found = []
    for entry in entries:
        match entry:
            case {"advisory": str(advisory), "reason": str(reason), "until": datetime.date() as until} if (
                reason.strip()
            ):
                found.append(Exemption(advisory, reason, until))
            case _:
                raise AuditError(f"{path.name}: not an advisory with a reason and a day until: {entry}")
    return found


def audit(wanted: Sequence[Pin], services: Sequence[str] = SERVICES, more: Sequence[str] = ()) -> Report:
    """Ask for known vulnerabilities of pins; services that answer nothing leave all of them open.

    Args:
        wanted: what to look up.
        services: pip-audit's names of whom to ask, one after the other.
        more: further arguments for pip-audit.
    """
    reasons = []
    for service in services:
        arguments = [f"--vulnerability-service={service}", *more]
        first = _ask(wanted[:1], arguments)  # so that a mirror is not asked two hundred times for what it has not
        if not first.open:
            answers = [first, *(_ask(group, arguments) for group in _apart(wanted[1:]))]
            findings = sorted(finding for answer in answers for finding in answer.findings)
            still = [pin for answer in answers for pin in answer.open]
            return Report(tuple(findings), tuple(still), "; ".join(filter(None, (one.reason for one in answers))))
        reasons.append(first.reason)
    return Report((), tuple(wanted), "; ".join(reasons))


def _ask(wanted: Sequence[Pin], arguments: Sequence[str]) -> Report:
    with tempfile.NamedTemporaryFile("w", prefix="audit-", suffix=".txt", encoding="utf-8") as file:
        file.writelines(f"{pin.name}=={pin.version}\n" for pin in wanted)
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps", "--disable-pip"]
        command += ["--format=json", "--aliases=on", "--desc=off", "--progress-spinner=off", "--timeout=5", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return Report((), tuple(wanted), f"no answer within {LIMIT:.0f} s")
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return Report((), tuple(wanted), done.stderr.strip().rpartition("\n")[2] or f"ended with {done.returncode}")
    return _report(wanted, answer)


def _apart(wanted: Iterable[Pin]) -> list[list[Pin]]:
    """Put the pins into groups without a name twice: pip-audit takes a package once."""
    groups: list[list[Pin]] = []
    for pin in wanted:
        free = next((group for group in groups if all(other.name != pin.name for other in group)), None)
        if free is None:
            groups.append([pin])
        else:
            free.append(pin)
    return groups


def _report(wanted: Sequence[Pin], answer: dict[str, Any]) -> Report:
    looked_up = {_pin(one["name"], one["version"]): one["vulns"] for one in answer["dependencies"] if "vulns" in one}
    findings = [
        Finding(pin, (one["id"], *one["aliases"]), tuple(one["fix_versions"]))
        for pin, found in looked_up.items()
        for one in found
    ]
    skipped = [one["skip_reason"] for one in answer["dependencies"] if "skip_reason" in one]
    return Report(tuple(findings), tuple(pin for pin in wanted if pin not in looked_up), skipped[0] if skipped else "")


def verdict(report: Report, shipped: Sequence[Pin], known: Sequence[Exemption], today: datetime.date) -> list[str]:
    """Say what has to be done before this may be shipped; an empty list is nothing."""
    ended = {one.advisory: one for one in known if one.until < today}
    exempt = {one.advisory for one in known} - set(ended)
    wrong = []
    for finding in report.findings:
        if finding.pin in shipped and exempt.isdisjoint(finding.names):
            again = [f" ({IGNORED.name} had it until {ended[name].until})" for name in finding.names if name in ended]
            wrong.append(f"{finding}{''.join(again)}")
    return wrong


def _say(text: str) -> None:
    print(f"audit: {text}", file=sys.stderr, flush=True)


def _tell(report: Report, wrong: Sequence[str], shipped: Sequence[Pin], known: Sequence[Exemption]) -> None:
    for line in wrong:
        _say(f"VULNERABLE, and shipped: {line}")
    for finding in report.findings:
        if finding.pin not in shipped:
            _say(f"vulnerable, not shipped: {finding}")
    found = {name for finding in report.findings for name in finding.names}
    for one in known:
        if not report.open and one.advisory not in found:
            _say(f"{IGNORED.name}: {one.advisory} is found no more, take it out")
    if report.open:
        which = "none of the pins" if len(report.open) > 5 else ", ".join(map(str, report.open))
        _say(f"NOT AUDITED: {which} could be looked up for known vulnerabilities. The service said: {report.reason}")
    elif not wrong:
        _say("no known vulnerability in what is shipped")


def _note(everything: Sequence[Pin]) -> Path:
    """Give the file that says on which day these pins were found good, with this list of exemptions."""
    digest = hashlib.sha256("\n".join(map(str, everything)).encode() + IGNORED.read_bytes()).hexdigest()[:16]
    folder = cache.root() / "audit"
    folder.mkdir(exist_ok=True)
    return folder / digest


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m testbed.audit", description=(__doc__ or "").partition("\n")[0])
    parser.parse_args()
    today = datetime.datetime.now(tz=datetime.timezone.utc).date()
    shipped, everything = pins(SHIPPED), pins((*SHIPPED, *WORK))
    note = _note(everything)
    if note.exists() and note.read_text(encoding="utf-8") == today.isoformat():
        _say("no known vulnerability in what is shipped, as of today")
        return 0
    try:
        known = exemptions()
    except AuditError as error:
        _say(str(error))
        return 1
    report = audit(everything)
    wrong = verdict(report, shipped, known, today)
    _tell(report, wrong, shipped, known)
    if not wrong and not report.open:
        note.write_text(today.isoformat(), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
