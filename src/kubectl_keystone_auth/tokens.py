"""What Keystone says with a token: until when it holds, and whose it is."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any, NamedTuple

from kubectl_keystone_auth.cache import Entry, usable

SKEWED = 60.0
"""So many seconds between this machine's clock and Keystone's are not looked at: the header has whole seconds only, and
takes its time."""


class Token(NamedTuple):
    """A token; texts are empty where Keystone does not say. `skew`: how far this machine's clock is ahead (seconds)."""

    value: str
    expires: float
    skew: float = 0.0
    user: str = ""
    user_id: str = ""
    user_domain: str = ""
    project: str = ""
    project_id: str = ""
    project_domain: str = ""
    roles: tuple[str, ...] = ()
    credential: str = ""
    credential_id: str = ""
    project_domain_id: str = ""

    def entry(self) -> Entry:
        """Give what is kept of it: its times by this machine's clock, right or wrong."""
        shift = self.skew if abs(self.skew) > SKEWED else 0.0
        return Entry(self.value, time.time(), self.expires + shift)


def parse_time(text: Any) -> float:
    """Read Keystone's time, such as `2026-01-01T00:00:00.000000Z`, into seconds since the epoch.

    Raises:
        ValueError: it is none.

    """
    if not isinstance(text, str):
        raise ValueError("no time")
    moment = datetime.fromisoformat(text.removesuffix("Z"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def from_answer(value: str, answer: dict[str, Any], skew: float) -> Token | None:
    """Read Keystone's answer to a login; None if it is not one."""
    body = answer.get("token")
    if not usable(value) or not isinstance(body, dict):
        return None
    try:
        expires = parse_time(body.get("expires_at"))
    except (ValueError, OverflowError):
        return None
    user, project, credential = (_part(body, name) for name in ("user", "project", "application_credential"))
    roles = body.get("roles")
    return Token(
        value,
        expires,
        skew,
        user=_text(user, "name"),
        user_id=_text(user, "id"),
        user_domain=_text(_part(user, "domain"), "name"),
        project=_text(project, "name"),
        project_id=_text(project, "id"),
        project_domain=_text(_part(project, "domain"), "name"),
        roles=tuple(_text(role, "name") for role in roles if isinstance(role, dict)) if isinstance(roles, list) else (),
        credential=_text(credential, "name"),
        credential_id=_text(credential, "id"),
        project_domain_id=_text(_part(project, "domain"), "id"),
    )


def _part(body: dict[str, Any], name: str) -> dict[str, Any]:
    found = body.get(name)
    return found if isinstance(found, dict) else {}


def _text(body: dict[str, Any], name: str) -> str:
    found = body.get(name)
    return found if isinstance(found, str) else ""
