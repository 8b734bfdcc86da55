"""The command line: `serve`, and the charm's two questions about policies, `validate-policy` and `explain`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
import sys
from pathlib import Path
from typing import Any

from keystone_authenticator import __version__, document, policy, settings
from keystone_authenticator.identity import Naming, Subject, by_id, by_name
from keystone_authenticator.metrics import Metrics
from keystone_authenticator.settings import SettingsError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="keystone-authenticator", description="Keystone tokens and access policies for a Kubernetes API server."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="answer the API server's reviews")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, in JSON")
    validate = commands.add_parser("validate-policy", help="check a policy in YAML or JSON")
    validate.add_argument("file", metavar="FILE", help="the policy, or - for standard input")
    explain = commands.add_parser(
        "explain", help="say which item of the policy decides a request (JSON on standard input)"
    )
    explain.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, in JSON")
    options = parser.parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options.config)
        if options.command == "validate-policy":
            return _validate(options.file)
        return _explain(options.config)
    except (SettingsError, _UsageError) as error:
        print(f"keystone-authenticator: {error}", file=sys.stderr)
        return 2


class _UsageError(Exception):
    """The command was not given what it needs."""


# ------------------------------------------------------------------------------------------------------------------
# serve


class _Bounded(logging.Filter):
    """Lets so many lines a second through, so that nobody fills the journal by asking; says how many it did not."""

    def __init__(self, lines: int, metrics: Metrics) -> None:
        super().__init__()
        self._lines = lines
        self._metrics = metrics
        self._second = 0
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if int(record.created) != self._second:
            left_out = self._count - self._lines
            self._second, self._count = int(record.created), 0
            if left_out > 0:
                record.msg, record.args = f"{record.getMessage()} ({left_out} lines before this one were left out)", ()
        self._count += 1
        if self._count <= self._lines:
            return True
        self._metrics.log_lines_left_out += 1
        return False


def _serve(config: Path) -> int:
    # Not needed, and dear, for the other commands.
    import uvloop

    from keystone_authenticator.service import AUDIT_ID, Service, StartError, inherited_sockets

    class _WithAuditId(_OneLine):
        def format(self, record: logging.LogRecord) -> str:
            audit_id = AUDIT_ID.get()
            return super().format(record) + (f" (audit ID {audit_id!a})" if audit_id else "")

    handler = logging.StreamHandler()
    # The journal has the time. One line a record: what users can choose may hold line breaks.
    handler.setFormatter(_WithAuditId("%(levelname)s %(message)s"))
    metrics = Metrics()
    handler.addFilter(_Bounded(50, metrics))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # As many connections as the server allows need more than the usual 1024 descriptors. A hardened unit has that said
    # in the unit, and may forbid the system call.
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    service = Service(config, metrics)
    logging.getLogger("keystone_authenticator").setLevel(service.settings.log_level.upper())

    async def run() -> None:
        await service.run(inherited_sockets())

    try:
        if sys.version_info >= (3, 11):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run())
        else:
            uvloop.install()
            asyncio.run(run())
    except StartError as error:
        print(f"keystone-authenticator: {error}", file=sys.stderr)
        return 1
    return 0


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


# ------------------------------------------------------------------------------------------------------------------
# policy


def _print(data: Any) -> None:
    sys.stdout.buffer.write(document.encode(data) + b"\n")
    sys.stdout.flush()


def _read_input(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise _UsageError(f"{name}: {error.strerror}") from None


def _validate(name: str) -> int:
    checked = policy.check(_read_input(name))
    _print(
        {
            "valid": checked.items is not None,
            "rules": len(checked.items or ()),
            "errors": [vars(problem) for problem in checked.errors],
            "warnings": [vars(problem) for problem in checked.warnings],
            "policy": checked.items,
        }
    )
    return 0 if checked.items is not None else 1


_QUESTION_TEXTS = (
    "user",
    "domain",
    "project",
    "project_name",
    "verb",
    "namespace",
    "resource",
    "subresource",
    "api_group",
    "name",
    "path",
)


def _question() -> tuple[dict[str, str], list[str], list[str]]:
    try:
        question = document.decode(sys.stdin.buffer.read())
    except document.NotJson as error:
        raise _UsageError(f"the question is not JSON: {error}") from None
    if not isinstance(question, dict):
        raise _UsageError("the question is not a JSON object")
    texts: dict[str, str] = {}
    for key in _QUESTION_TEXTS:
        value = question.pop(key, None)
        if value is not None and not isinstance(value, str):
            raise _UsageError(f"{key}: must be a text or null")
        texts[key] = value or ""
    lists = []
    for key in ("roles", "groups"):
        values = question.pop(key, None) or []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise _UsageError(f"{key}: must be a list of texts")
        lists.append(values)
    if question:
        raise _UsageError(f"{next(iter(question))}: unknown key")
    if not texts["verb"]:
        raise _UsageError("verb: is missing")
    if not texts["path"] and not texts["resource"]:
        raise _UsageError("resource or path: one of them is needed")
    return texts, lists[0], lists[1]


def _subject(naming: Naming, texts: dict[str, str], roles: list[str], groups: list[str]) -> Subject:
    """The user of the question, as a review would name it; names and IDs are told apart as in a policy."""
    domain = texts["domain"] or naming.default_domain
    user, project, project_name = texts["user"], texts["project"], texts["project_name"]
    if naming.upstream_compatible:
        return Subject(
            frozenset((user,)),
            frozenset((*groups, project)) - {""},
            frozenset((project, project_name)) - {""},
            frozenset(roles),
        )
    users = {by_id(user)} if policy.is_id(user) else {naming.user(user, domain)}
    projects = ({by_id(project)} if project else set()) | ({by_name(project_name, domain)} if project_name else set())
    members = {naming.group(group, domain) for group in groups}
    if project:
        members |= {naming.project(project), *(naming.role(project, role) for role in roles)}
    return Subject(frozenset(users), frozenset(members), frozenset(projects), frozenset(roles))


def _explain(config: Path) -> int:
    found, _ = settings.load(config)
    texts, roles, groups = _question()
    if found.policy is None:
        _print({"allowed": False, "item": None, "reason": "there is no policy; RBAC decides", "misses": []})
        return 0
    naming = Naming(found.default_domain, found.upstream_compatible)
    checked = policy.check(_read_input(str(found.policy)), naming.upstream_compatible)
    if checked.items is None:
        raise _UsageError(f"{found.policy}: {checked.errors[0]}")
    if texts["path"]:
        request = policy.Request(False, texts["verb"], path=texts["path"])
    else:
        request = policy.Request(
            True,
            texts["verb"],
            texts["namespace"],
            texts["api_group"],
            texts["resource"],
            texts["subresource"],
        )
    explanation = policy.Policy(checked.items, naming).explain(_subject(naming, texts, roles, groups), request)
    _print(
        {
            "allowed": explanation.allowed,
            "item": explanation.item,
            "reason": explanation.reason,
            "misses": [{"item": item, "reason": reason} for item, reason in explanation.misses],
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
