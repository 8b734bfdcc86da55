"""A pass over everything: Keystone and the cluster are read whole, compared, and what differs is changed.

It runs as a process of its own (`keystone_authenticator sync`), be it for the service or for people: what it takes of
memory is gone with it, and no review waits while it reckons.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import msgspec

from keystone_authenticator import document
from keystone_authenticator.identity import Naming
from keystone_authenticator.kubernetes import KubeconfigError, Kubernetes, Refusal
from keystone_authenticator.outbound import CannotTell, TlsMaterialError
from keystone_authenticator.settings import Settings
from keystone_authenticator.sync import cluster
from keystone_authenticator.sync.config import SyncConfig, SyncConfigError, load
from keystone_authenticator.sync.directory import Account, CredentialsError
from keystone_authenticator.sync.plan import Plan, Problem, plan, unaccounted

MOST_TOLD = 20


class PassError(Exception):
    """The pass could not be made, or not to its end; the message says why."""


class Summary(msgspec.Struct, frozen=True):
    """What a pass found and did. Of a dry run `changes` are what would be done, else what was."""

    dry_run: bool = False
    projects: int = 0
    users: int = 0
    assignments: int = 0
    changes: dict[str, int] = {}
    problems: int = 0
    first_problems: list[str] = []
    keystone_calls: int = 0
    kubernetes_calls: int = 0
    seconds: float = 0.0
    memory_mb: int = 0
    error: str | None = None


def read_config(path: Path, upstream_compatible: bool) -> SyncConfig:
    """Read the sync configuration.

    Raises:
        SyncConfigError: it cannot be read or used.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SyncConfigError(f"{path}: {error.strerror}") from None
    return load(content, upstream_compatible)


async def run(settings: Settings, dry_run: bool, report: TextIO | None) -> Summary:
    """Make a pass.

    Args:
        settings: as the service has them.
        dry_run: change nothing.
        report: where a table of all changes and problems is written to, tabs between the columns.

    Raises:
        PassError: it could not be made.

    """
    began = time.monotonic()
    if settings.sync is None or settings.kubeconfig is None:
        raise PassError("sync is not set: there is no sync-config")
    if settings.sync.credentials is None:
        raise PassError("sync-credentials is not set, so that Keystone cannot be asked who may do what")
    try:
        config = read_config(settings.sync.config, settings.upstream_compatible)
        kube = Kubernetes(settings.kubeconfig)
        account = Account(settings.keystone, settings.sync.credentials)
    except (SyncConfigError, KubeconfigError, CredentialsError, TlsMaterialError) as error:
        raise PassError(str(error)) from None
    naming = Naming(settings.default_domain, settings.upstream_compatible, config.mappings)
    try:
        await account.log_in()
        directory, found = await asyncio.gather(account.directory(), cluster.everything(kube))
        missing = unaccounted(directory, found, config)
        # A label that stands for an ID and is none tells of no project that could be asked about.
        gone = [project for project in missing if not project.startswith("sha256-") and await account.is_gone(project)]
        made = plan(directory, found, config, naming, gone, settings.sync.prune)
        held = sum(map(len, directory.holders.values()))
        sizes = (len(directory.projects), len(directory.users), held)
        del directory, found
        problems = made.problems
        changes = made.counts()
        if report is not None:
            report.writelines(table(made))
        if not dry_run:
            changes, failed = await cluster.do_all(kube, made.changes)
            problems = [*problems, *failed]
            if report is not None:
                report.writelines(_line("problem", problem) for problem in failed)
    except (CannotTell, Refusal, document.NotJson, document.NotOfType) as error:
        raise PassError(str(error)) from None
    finally:
        await account.close()
        await kube.close()
    return Summary(
        dry_run,
        *sizes,
        changes,
        len(problems),
        [_told(problem) for problem in problems[:MOST_TOLD]],
        account.calls,
        kube.calls,
        round(time.monotonic() - began, 1),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def table(made: Plan) -> Iterable[str]:
    """The lines of a report: verb, kind, namespace, name, role, user name, why."""
    yield "\t".join(("what", "kind", "namespace", "name", "role", "user", "why")) + "\n"
    for change in made.changes:
        columns = (change.verb, change.kind, change.namespace, change.name, change.role, change.subject, change.why)
        yield "\t".join(map(_cell, columns)) + "\n"
    for problem in made.problems:
        yield _line("problem", problem)


def _line(what: str, problem: Problem) -> str:
    columns: tuple[Any, ...] = (what, problem.kind, problem.namespace, problem.name, "", "", problem.why)
    return "\t".join(map(_cell, columns)) + "\n"


def _cell(text: str) -> str:
    # What users can choose may hold tabs and line breaks.
    return text if text.isprintable() else ascii(text)[1:-1]


def _told(problem: Problem) -> str:
    where = f"{problem.namespace}/{problem.name}" if problem.namespace else problem.name
    return _cell(f"{problem.kind} {where}: {problem.why}")
