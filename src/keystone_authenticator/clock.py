"""The time of day, as far as verdicts depend on it: it does not go back while the process runs.

Caches and deadlines go by the monotonic clock. The time of day counts where Keystone names one: when a token was issued
and when it ends. A clock that is set back would make every new token one from the future, and would lengthen the life
of those that are known; what it said before, and the time since, is better.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone

# What to add to the monotonic clock.
START = time.time() - time.monotonic()


def now() -> float:
    """Seconds of the epoch: the system's, or what it would be had it not been set back since the start."""
    return max(time.time(), START + time.monotonic())


def rfc3339(seconds: float) -> str:
    """A time as Kubernetes writes it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
