"""The command line: `serve`, and the charm's two questions about policies, `validate-policy` and `explain`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keystone_authenticator import __version__, access_rules, document, policy, settings
from keystone_authenticator.identity import Naming, RoleMapping, Subject, by_id, by_name, is_reserved
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
    validate.add_argument("--upstream-compatible", action="store_true", help="check it for that mode")
    validate_sync = commands.add_parser("validate-sync", help="check a sync configuration in YAML or JSON")
    validate_sync.add_argument("file", metavar="FILE", help="the configuration, or - for standard input")
    validate_sync.add_argument("--upstream-compatible", action="store_true", help="check it for that mode")
    commands.add_parser("validate-credentials", help="check Keystone's account for sync, from standard input")
    explain = commands.add_parser(
        "explain", help="say which item of the policy decides a request (JSON on standard input)"
    )
    explain.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, in JSON")
    identify = commands.add_parser(
        "identify", help="ask Keystone itself whose a token is (on standard input), past all caches"
    )
    identify.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, in JSON")
    sync = commands.add_parser("sync", help="bring the cluster in step with Keystone, once; prints a summary in JSON")
    sync.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, in JSON")
    sync.add_argument("--dry-run", action="store_true", help="change nothing, say what would be changed")
    sync.add_argument("--report", type=Path, metavar="FILE", help="a table of all changes and problems, by tabs")
    options = parser.parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options.config)
        if options.command == "validate-policy":
            return _validate(options.file, options.upstream_compatible)
        if options.command == "identify":
            return _identify(options.config)
        if options.command == "validate-sync":
            return _validate_sync(options.file, options.upstream_compatible)
        if options.command == "validate-credentials":
            return _validate_credentials()
        if options.command == "sync":
            return _sync(options.config, options.dry_run, options.report)
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


def _writes_to_journal() -> bool:
    """Whether standard error is the journal's own (systemd.exec(5)), and not a file that it was turned to."""
    found = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _prioritised(record: logging.LogRecord) -> bool:
    """Give a record what tells the journal its priority: sd-daemon(3), so that `journalctl -p warning` finds it."""
    record.priority = next(f"<{number}>" for level, number in _PRIORITIES if record.levelno >= level)
    return True


_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))


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
    if _writes_to_journal():
        handler.setFormatter(_WithAuditId("%(priority)s%(levelname)s %(message)s"))
        handler.addFilter(_prioritised)
    metrics = Metrics()
    handler.addFilter(_Bounded(50, metrics))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # As many connections as the server allows need more than the usual 1024 descriptors. A hardened unit has that said
    # in the unit, and may forbid the system call.
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    service = Service(config, metrics)
    logging.getLogger("keystone_authenticator").setLevel(service.parts.settings.log_level.upper())

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
# sync


def _sync(config: Path, dry_run: bool, report: Path | None) -> int:
    from keystone_authenticator.sync import passes

    found, _ = settings.load(config)
    # Reviews come first, and memory that is short is to be taken from here.
    with contextlib.suppress(OSError):
        os.nice(10)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    try:
        with open(report, "w", encoding="utf-8") if report else contextlib.nullcontext() as table:  # noqa: PTH123
            summary = asyncio.run(passes.run(found, dry_run, table))
    except passes.PassError as error:
        summary = passes.Summary(error=str(error))
    except OSError as error:
        raise _UsageError(f"{report}: {error.strerror}") from None
    _print(summary)
    return 0 if summary.error is None else 1


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


def _validate(name: str, upstream_compatible: bool) -> int:
    checked = policy.check(_read_input(name), upstream_compatible)
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


def _validate_sync(name: str, upstream_compatible: bool) -> int:
    from keystone_authenticator.sync import config

    checked = config.check(_read_input(name), upstream_compatible)
    _print(
        {
            "valid": checked.config is not None,
            "errors": [vars(problem) for problem in checked.errors],
            "warnings": [vars(problem) for problem in checked.warnings],
        }
    )
    return 0 if checked.config is not None else 1


def _validate_credentials() -> int:
    from keystone_authenticator.sync.directory import CredentialsError, login

    try:
        login(sys.stdin.buffer.read())
    except CredentialsError as error:
        raise _UsageError(str(error)) from None
    return 0


_QUESTION_TEXTS = (
    *("user", "user_id", "domain", "project", "project_name", "project_domain", "verb", "namespace", "resource"),
    *("subresource", "api_group", "api_version", "name", "path"),
)


@dataclass(frozen=True)
class _Question:
    """Who wants to do what; `access_rules` None: by a token that may do all that its user may."""

    texts: Mapping[str, str]
    roles: Sequence[str]
    groups: Sequence[str]
    access_rules: Sequence[Mapping[str, Any]] | None

    @property
    def request(self) -> policy.Request:
        texts = self.texts
        if texts["path"]:
            return policy.Request(False, texts["verb"], path=texts["path"])
        return policy.Request(
            True,
            texts["verb"],
            texts["namespace"],
            texts["api_group"],
            texts["resource"],
            texts["subresource"],
            "",
            texts["name"],
            texts["api_version"],
        )


def _question() -> _Question:
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
    # An ID in the user's place is one: names of 32 or 64 hex digits are nobody's in a policy.
    if policy.is_id(texts["user"]) and not texts["user_id"]:
        texts["user_id"], texts["user"] = texts["user"], ""
    rules = question.pop("access_rules", None)
    if question:
        raise _UsageError(f"{next(iter(question))}: unknown key")
    if rules is not None and not (isinstance(rules, list) and all(map(_is_rule, rules))):
        raise _UsageError("access_rules: must be a list of objects with service, method and path, all texts")
    if not texts["verb"]:
        raise _UsageError("verb: is missing")
    if bool(texts["path"]) is bool(texts["resource"]):
        raise _UsageError("resource or path: one of them is needed, and not both")
    return _Question(texts, lists[0], lists[1], rules)


def _is_rule(rule: Any) -> bool:
    return isinstance(rule, dict) and all(isinstance(rule.get(key), str) for key in ("service", "method", "path"))


def _subject(naming: Naming, question: _Question) -> Subject:
    """The user of the question, as a review would name it; names and IDs are told apart as in a policy.

    Raises:
        _NoSuchUser: no token would be taken for this user's.

    """
    texts, roles = question.texts, question.roles
    user, user_id, project, project_name = (texts[key] for key in ("user", "user_id", "project", "project_name"))
    rules: tuple[str, ...] | None = None
    if question.access_rules is not None:
        try:
            rules = access_rules.about_kubernetes(question.access_rules)
        except access_rules.UnusableRulesError as error:
            raise _NoSuchUser(f"the application credential {error}: its tokens are refused") from None
    if naming.upstream_compatible:
        if rules is not None:
            raise _NoSuchUser("access rules are not honoured in upstream-compatible mode: such tokens are refused")
        if is_reserved(user):
            raise _NoSuchUser(f"the user name {user!r} is reserved: its tokens are refused")
        members = [group for group in question.groups if not is_reserved(group)]
        members += naming.mapped_groups(roles)
        name = naming.username(user, texts["domain"], roles) if user else ""
        return Subject(
            frozenset((name, user_id)) - {""},
            frozenset((*members, project, _AUTHENTICATED)) - {""},
            frozenset((project, project_name)) - {""},
            frozenset(roles),
        )
    domain = texts["domain"] or naming.default_domain
    users = {by_id(user_id)} if user_id else set()
    if user:
        users.add(naming.user(*policy.in_domain(user, domain)))
    projects = {by_id(project)} if project else set()
    if project_name:
        projects.add(by_name(*policy.in_domain(project_name, texts["project_domain"] or domain)))
    groups = {_AUTHENTICATED}
    if rules is None:
        groups |= {naming.group(*policy.in_domain(group, domain)) for group in question.groups}
    if project:
        groups |= {naming.project(project), *(naming.role(project, role) for role in roles)}
    return Subject(frozenset(users), frozenset(groups), frozenset(projects), frozenset(roles), rules)


# What every API server adds to the groups of whoever has a token.
_AUTHENTICATED = "system:authenticated"


class _NoSuchUser(Exception):
    """Nobody can have a token that makes this user; the message says why."""


def _left_out(items: Sequence[Mapping[str, Any]], question: _Question) -> str:
    """What the question does not tell, where the policy would look at it."""
    named: set[tuple[str, bool]] = set()
    for item in items:
        named |= {("project", policy.is_id(value)) for value in (item.get("users") or {}).get("projects") or ()}
        for entry in item.get("match") or ():
            named |= {(entry["type"], policy.is_id(value)) for value in entry["values"] if value != "*"}
    told = ""
    for kind, by_its_id, key in (
        ("project", False, "project_name"),
        ("project", True, "project"),
        ("user", False, "user"),
        ("user", True, "user_id"),
    ):
        if (kind, by_its_id) in named and not question.texts[key]:
            told += (
                f"; no {key.replace('_', '-')} was given, and an item names a {kind} by {'ID' if by_its_id else 'name'}"
            )
    return told


def _identify(config: Path) -> int:
    # Not needed, and dear, for the other commands.
    from keystone_authenticator.identify import identify

    found, _ = settings.load(config)
    token = sys.stdin.buffer.read().decode("ascii", "replace").strip()
    if not token:
        raise _UsageError("there is no token on standard input")
    _print(asyncio.run(identify(found, token)))
    return 0


def _explain(config: Path) -> int:
    found, _ = settings.load(config)
    question = _question()
    answer: dict[str, Any] = {
        "allowed": False,
        "item": None,
        "reason": "there is no policy; RBAC decides",
        "misses": [],
    }
    naming = Naming(found.default_domain, found.upstream_compatible, _mappings(found))
    if found.policy is not None:
        checked = policy.check(_read_input(str(found.policy)), naming.upstream_compatible)
        if checked.items is None:
            raise _UsageError(f"{found.policy}: {checked.errors[0]}")
        try:
            subject = _subject(naming, question)
        except _NoSuchUser as error:
            _print({**answer, "reason": str(error)})
            return 0
        explanation = policy.Policy(checked.items, naming).explain(subject, question.request)
        answer = {
            "allowed": explanation.allowed,
            "item": explanation.item,
            "reason": explanation.reason,
            "misses": [{"item": item, "reason": reason} for item, reason in explanation.misses],
        }
        if not explanation.allowed:
            answer["reason"] += _left_out(checked.items, question)
        elif subject.access_rules is not None:
            answer |= _by_rules(subject.access_rules, explanation.item, question.request)
    if found.authorization_backend is not None:
        answer["reason"] += f"; but it is {found.authorization_backend.url} that decides, by a policy of its own"
    _print(answer)
    return 0


def _mappings(found: settings.Settings) -> tuple[RoleMapping, ...]:
    if found.sync is None:
        return ()
    from keystone_authenticator.sync.config import SyncConfigError, load

    try:
        return load(_read_input(str(found.sync.config)), found.upstream_compatible).mappings
    except SyncConfigError as error:
        raise _UsageError(f"{found.sync.config}: {error}") from None


def _by_rules(texts: Sequence[str], item: int | None, request: policy.Request) -> dict[str, Any]:
    """What an application credential's rules say to a request that an item of the policy allows."""
    path = request.path if not request.resource_request else access_rules.api_path(request)
    for text in texts:
        if access_rules.AccessRules([text]).allow(request):
            return {"reason": f"item {item} allows it, and so does the access rule {text}"}
    asked = f"{request.verb} {path.replace(access_rules.UNKNOWN, '?')}" if path else "this, which is no single path"
    reason = f"item {item} would allow it, but no access rule of the application credential covers {asked}"
    return {"allowed": False, "item": None, "reason": reason}


if __name__ == "__main__":
    sys.exit(main())
