"""Does anything answer at a newly set URL? Asked before the URL is put in force, never for one that is.

Not here: whether the answers are any good; the authenticator judges those, all the time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import requests

from errors import ConfigError

TIMEOUT = (5.0, 10.0)
"""Seconds to connect and to wait for bytes."""


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
        version = str(answer.json()["version"]["id"])
    except (ValueError, KeyError, TypeError):
        version = ""
    if answer.status_code != 200 or not version.startswith("v3"):
        raise ConfigError(
            "keystone-url",
            f"{url} answers {answer.status_code}, but not as Keystone's identity API v3 does:"
            " check host, port and path; nothing was changed",
        )


def service(option: str, url: str, ca: str) -> None:
    """Ask somebody else's webhook for anything at all: a status of any kind will do.

    Raises:
        ConfigError: it does not answer, or its certificate does not verify.
    """
    _get(option, "auth-server-ca", url, ca)


def _get(option: str, ca_option: str, url: str, ca: str) -> requests.Response:
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem, requests.Session() as session:
        # No proxy and no .netrc of the environment's: the authenticator uses none either.
        session.trust_env = False
        pem.write(ca)
        pem.flush()
        verify = pem.name if ca else str(bundle) if bundle.exists() else True
        try:
            return session.get(url, timeout=TIMEOUT, allow_redirects=False, verify=verify)
        except requests.exceptions.SSLError as error:
            raise ConfigError(
                option,
                f"the certificate of {url} does not verify ({_reason(error)}); is {ca_option} the CA"
                " that signed it? Nothing was changed",
            ) from error
        except requests.RequestException as error:
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
