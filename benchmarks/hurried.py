"""The authenticator with the times of its caches shortened (`SPEED`), for `soak`: as many of them pass as in a day.

Deadlines, patience and probes stay as they are, as Keystone is no faster than otherwise. The times that are settings
are the settings' (`soak.settings`).
"""

from __future__ import annotations

import sys

# A day in ten minutes.
SPEED = 144

if __name__ == "__main__":
    from keystone_authenticator import __main__, authentication, service

    authentication.REMEMBERED /= SPEED
    authentication.REFUSAL_TTL /= SPEED
    service.SWEEP_EVERY /= SPEED
    sys.exit(__main__.main())
