"""Keystone as a WSGI application under gunicorn, with a record of every request it gets.

Runs in Keystone's own virtual environment, so it imports nothing of the test bed. The record is a line of JSON a
request, written before its answer leaves; tokens appear as digests. A file `delay` beside it makes every answer wait
that many seconds.
"""

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path

sys.argv = sys.argv[:1]  # Keystone parses them, and these are gunicorn's

from keystone.server import wsgi  # noqa: E402 # pyright: ignore[reportMissingImports]

FOLDER = Path(os.environ["TESTBED_KEYSTONE"])


def _digest(token):
    return hashlib.sha256(token.encode("latin-1")).hexdigest() if token else None


class Recorded:
    """Hands requests on to Keystone and writes each down."""

    def __init__(self, application):
        self.application = application
        self.writing = threading.Lock()
        self.record = os.open(FOLDER / "requests", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, environ, start_response):
        """Answer a request, as WSGI has it."""
        arrived = time.time()
        with contextlib.suppress(FileNotFoundError, ValueError):
            time.sleep(float((FOLDER / "delay").read_text()))

        def recorded(status, headers, exc_info=None):
            line = {
                "at": arrived,
                "method": environ["REQUEST_METHOD"],
                "path": environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
                "query": environ.get("QUERY_STRING", ""),
                "status": int(status.split()[0]),
                "agent": environ.get("HTTP_USER_AGENT", ""),
                "subject": _digest(environ.get("HTTP_X_SUBJECT_TOKEN")),
                "token": _digest(environ.get("HTTP_X_AUTH_TOKEN")),
            }
            os.write(self.record, json.dumps(line).encode() + b"\n")
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        # SQLite takes one writer at a time, and tells a second one "database is locked" at once: Keystone answers 500.
        with contextlib.nullcontext() if environ["REQUEST_METHOD"] in ("GET", "HEAD") else self.writing:
            return self.application(environ, recorded)


application = Recorded(wsgi.initialize_public_application())
