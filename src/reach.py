"""Does anything answer at a newly set URL? Asked before the URL is put in force, never for one that is.

Not here: whether the answers are any good; the authenticator judges those, all the time.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import requests
import urllib3

from errors import ConfigError

TIMEOUT = (5.0, 10.0)
"""Seconds to connect and to wait for bytes."""
MOST_BYTES = 2**16
"""Of an answer; Keystone's version document has some hundred."""


class _Answer(NamedTuple):
    status: int
    body: bytes


def keystone(url: str, ca: str) -> None:
    """Ask an identity endpoint for its version.

    Args:
        url: it, ending in /v3.
        ca: PEM, or empty for the system's.

    Raises:
        ConfigError: it does not answer, its certificate does not verify, or it is no Keystone.
    """
    answer = _get("keystone-url", "keystone-ca", url, ca)
    try:
        version = str(json.loads(answer.body)["version"]["id"])
    except (ValueError, KeyError, TypeError):
        version = ""
    if answer.status != 200 or not version.startswith("v3"):
        raise ConfigError(
            "keystone-url",
            f"{url} answers {answer.status}, but not as Keystone's identity API v3 does:"
            " check host, port and path; nothing was changed",
        )


def service(option: str, url: str, ca: str) -> None:
    """Ask somebody else's webhook for anything at all: a status of any kind will do.

    Raises:
        ConfigError: it does not answer, or its certificate does not verify.
    """
    _get(option, "auth-server-ca", url, ca)


def authorities(file: str) -> str | bool:
    """Give what requests verifies a certificate by: a file, or if there is none, what the system trusts."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    return file or (str(bundle) if bundle.exists() else True)


def _get(option: str, ca_option: str, url: str, ca: str) -> _Answer:
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem, requests.Session() as session:
        # No proxy and no .netrc of the environment's: the authenticator uses none either.
        session.trust_env = False
        pem.write(ca)
        pem.flush()
        verify = authorities(pem.name if ca else "")
        try:
            with session.get(url, timeout=TIMEOUT, allow_redirects=False, verify=verify, stream=True) as answer:
                # Whoever answers may be anybody: of what does not end, or only trickles, the beginning is enough.
                body, deadline = b"", time.monotonic() + TIMEOUT[1]
                while (
                    len(body) < MOST_BYTES and time.monotonic() < deadline and (piece := answer.raw.read1(MOST_BYTES))
                ):
                    body += piece
                return _Answer(answer.status_code, body)
        except requests.exceptions.SSLError as error:
            raise ConfigError(
                option,
                f"the certificate of {url} does not verify ({_reason(error)}); is {ca_option} the CA"
                " that signed it? Nothing was changed",
            ) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise ConfigError(option, f"{url} does not answer ({_reason(error)}); nothing was changed") from error


def _reason(error: Exception) -> str:
    """Give the innermost reason in one line; requests wraps it several times over."""
    reason: object = error
    while True:
        inner = getattr(reason, "reason", None) or (
            reason.args[0] if isinstance(reason, Exception) and reason.args else None
        )
        if not isinstance(inner, Exception):
            return str(reason).partition("\n")[0]
        reason = inner
