"""What one good token tells: this user has these roles in this project. Written into the cluster behind the review.

A review only leaves a note here and goes its way. One worker takes the notes, one at a time; of several about one user
and project the last one counts. It waits while the API server does not answer, and a note that is no use (a conflict,
a refusal) is told and dropped: the user's next review leaves another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

from keystone_authenticator.identity import (
    ACCESS_RULES,
    PROJECT_DOMAIN_ID,
    PROJECT_ID,
    PROJECT_NAME,
    ROLES,
    USER_DOMAIN_ID,
    Identity,
)
from keystone_authenticator.kubernetes import Kubernetes, Refusal
from keystone_authenticator.outbound import CannotTell
from keystone_authenticator.sync import cluster, names
from keystone_authenticator.sync.config import SyncConfig
from keystone_authenticator.sync.plan import (
    DELETE,
    ROLE_BINDING,
    Change,
    Plan,
    Problem,
    Project,
    compare_binding,
    place,
    wanted_bindings,
)

logger = logging.getLogger("keystone_authenticator.sync")

MOST_WAITING = 10_000
# What was written is not looked at again so soon: a token's holder is reviewed once a minute.
AGAIN_AFTER = 600.0
_MOST_REMEMBERED = 50_000
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


class Login(NamedTuple):
    """A user with roles in a project; `partial`: there may be more of them than are told."""

    project: Project
    user_id: str
    subject: str
    roles: tuple[str, ...]
    partial: bool

    @property
    def key(self) -> tuple[str, str]:
        """Which user, in which project."""
        return self.user_id, self.project.id


def login_of(identity: Identity) -> Login | None:
    """What an identity tells; None for one that is nobody's own (a credential with access rules)."""
    extra: Mapping[str, tuple[str, ...]] = dict(identity.extra)
    if ACCESS_RULES in extra:
        return None
    project_id, name = extra[PROJECT_ID][0], next(iter(extra.get(PROJECT_NAME, ())), "")
    # Another authenticator behind ours does not tell the project's domain; upstream takes the user's for it.
    domain = next(iter(extra.get(PROJECT_DOMAIN_ID) or extra.get(USER_DOMAIN_ID) or ()), "")
    roles = tuple(sorted(extra.get(ROLES, ())))
    return Login(Project(project_id, name, domain), identity.uid, identity.username, roles, identity.partial)


class Counts:
    """What became of the notes; outlives the worker."""

    def __init__(self) -> None:
        self.done = self.failed = self.dropped = 0
        self.changes: dict[str, int] = {}
        self.last_error: str | None = None


class Logins:
    """The notes, and the worker that takes them."""

    def __init__(self, kube: Kubernetes, config: SyncConfig, counts: Counts, before: Logins | None = None) -> None:
        """`before` is whose place this takes: its notes are not lost."""
        self._kube = kube
        self._config = config
        self._counts = counts
        self._waiting: dict[tuple[str, str], Login] = {}
        self._written: dict[tuple[str, str], tuple[Login, float]] = {}
        self._something = asyncio.Event()
        if before is not None and before.waiting:
            self._waiting.update(before._waiting)
            self._something.set()
        self._task = asyncio.get_running_loop().create_task(self._work())

    @property
    def waiting(self) -> int:
        """How many notes wait."""
        return len(self._waiting)

    def note(self, identity: Identity) -> None:
        """Leave a note; returns at once, and never fails."""
        login = login_of(identity)
        if login is None or self._config.excludes(login.project.id, login.project.name):
            return
        before = self._written.get(login.key)
        if before is not None and before[0] == login and time.monotonic() - before[1] < AGAIN_AFTER:
            return
        if len(self._waiting) >= MOST_WAITING and login.key not in self._waiting:
            self._counts.dropped += 1
            return
        self._waiting[login.key] = login
        self._something.set()

    async def _work(self) -> None:
        wait = _FIRST_WAIT
        while True:
            await self._something.wait()
            while self._waiting:
                login = next(iter(self._waiting.values()))
                try:
                    excluded = self._config.excludes(login.project.id, login.project.name)
                    problems = [] if excluded else await self._write(login)
                except CannotTell as error:
                    self._told(str(error))
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, _LONGEST_WAIT)
                    continue
                except Exception as error:
                    logger.exception("a fault of ours while a login was written into the cluster")
                    problems = [Problem("", "", "", f"an internal fault ({type(error).__name__})")]
                wait = _FIRST_WAIT
                # Another one of the same may have come meanwhile: that one stays.
                if self._waiting.get(login.key) is login:
                    del self._waiting[login.key]
                self._ended(login, problems)
            self._something.clear()

    def _ended(self, login: Login, problems: list[Problem]) -> None:
        if problems:
            self._counts.failed += 1
            first = problems[0]
            where = f"{first.kind} {f'{first.namespace}/' if first.namespace else ''}{first.name}"
            self._told(f"of the user {login.user_id} in the project {login.project.id}: {where} {first.why}")
        else:
            self._counts.done += 1
            self._counts.last_error = None
        # What is in the way stays there for a while, too.
        self._written.pop(login.key, None)
        self._written[login.key] = login, time.monotonic()
        while len(self._written) > _MOST_REMEMBERED:
            del self._written[next(iter(self._written))]

    def _told(self, error: str) -> None:
        if error != self._counts.last_error:
            logger.warning("sync: %s", error)
        self._counts.last_error = error

    async def _write(self, login: Login) -> list[Problem]:
        made = Plan()
        try:
            namespace = await self._place(login, made)
            await self._do(made)
            if namespace is None or made.problems or not self._config.assignments:
                return made.problems
            await self._plan_bindings(login, namespace, made)
            await self._do(made)
        except Refusal as error:
            made.problems.append(Problem("", "", "", str(error)))
        return made.problems

    async def _do(self, made: Plan) -> None:
        for change in made.changes:
            problem = await cluster.do(self._kube, change)
            if problem is not None:
                made.problems.append(problem)
            else:
                key = f"{change.verb} {change.kind}"
                self._counts.changes[key] = self._counts.changes.get(key, 0) + 1
                logger.info("sync: %s %s %s: %s", key, change.namespace, change.name, change.why)
        made.changes.clear()

    async def _place(self, login: Login, made: Plan) -> str | None:
        project = login.project
        wanted = names.namespace(self._config.namespace_format, project.id, project.name, project.domain_id)
        found = await cluster.namespace(self._kube, wanted)
        if not self._config.projects:
            return wanted if found is not None and not found.terminating else None
        key = names.label(project.id)
        if found is not None and found.ours and found.project == key:
            owned = [found]
        else:
            owned = await cluster.owned(self._kube, key)
        return place(project, self._config.namespace_format, {found.name: found} if found else {}, owned, made)

    async def _plan_bindings(self, login: Login, namespace: str, made: Plan) -> None:
        project, user = names.label(login.project.id), names.label(login.user_id)
        found = {binding.name: binding for binding in await cluster.bound(self._kube, namespace, user)}
        wanted = list(wanted_bindings(namespace, login.subject, login.user_id, login.roles, made))
        for one in wanted:
            compare_binding(one, found.get(one.name), project, made)
        if login.partial:
            return  # the user may well have more roles than this token
        kept = {one.name for one in wanted}
        for name, binding in found.items():
            if name not in kept and binding.ours and binding.project == project:
                why = "the role is not held in Keystone any more"
                made.changes.append(Change(DELETE, ROLE_BINDING, namespace, name, project, why, binding.uid))

    async def close(self) -> None:
        """Leave the notes as they are, and close the connections."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        await self._kube.close()
