"""Does the right thing answer at a newly set URL? Asked before the URL is put in force, never for one that is.

Not here: whether its answers are true; and what the authenticator judges, all the time.
"""

from __future__ import annotations

import json
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import requests
import requests.utils
import urllib3

from errors import ConfigError

TIMEOUT = (5.0, 10.0)
"""Seconds to connect and to wait for bytes."""
MOST_BYTES = 2**16
"""Of an answer; Keystone's version document has some hundred."""
KINDS = ("TokenReview", "SubjectAccessReview")
NOBODYS = "kubernetes-keystone-asks-whether-somebody-answers"
"""A token, and a user's name: no token that anybody has goes to a service that nobody has tried yet."""


class Session(requests.Session):
    """Nothing is done that was not asked for: no proxy, `.netrc` or CA of the environment's, and no redirect.

    requests prepares the next request even where it is not to follow, and reads all of an answer that may not end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Give none."""


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
    except (ValueError, KeyError, TypeError, RecursionError):
        version = ""
    if answer.status != 200 or not version.startswith("v3"):
        raise ConfigError(
            "keystone-url",
            f"{url} answers {answer.status}, but not as Keystone's identity API v3 does:"
            " check host, port and path; nothing was changed",
        )


def service(option: str, url: str, ca: str, kind: str) -> None:
    """Ask somebody else's webhook what it will be asked all the time.

    Args:
        option: whose URL it is.
        url: it.
        ca: PEM, or empty for the system's.
        kind: TokenReview or SubjectAccessReview.

    Raises:
        ConfigError: it does not answer, its certificate does not verify, or its answer is no such review.
    """
    problem = _problem(_get(option, "auth-server-ca", url, ca, _review(kind)), kind)
    if problem:
        raise ConfigError(option, f"{url} {problem}; nothing was changed")


def program(url: str, ca: str) -> str:
    """Ask a k8s-keystone-auth of our own starting both kinds of review, and give what is wrong; empty if nothing is."""
    for kind in KINDS:
        try:
            problem = _problem(_get("", "our own CA", url, ca, _review(kind)), kind)
        except ConfigError as error:
            return error.problem.partition("; nothing was changed")[0]
        if problem:
            return problem
    return ""


def _review(kind: str) -> dict[str, Any]:
    """Give a question in the only version that k8s-keystone-auth knows, about a token and a user that nobody has."""
    if kind == "TokenReview":
        return {"apiVersion": "authentication.k8s.io/v1beta1", "kind": kind, "spec": {"token": NOBODYS}}
    about = {"verb": "get", "resource": "pods", "namespace": "default", "group": "", "version": "v1", "name": ""}
    # Without group or extra it drops the connection.
    spec = {"user": NOBODYS, "group": [], "extra": {}, "resourceAttributes": about}
    return {"apiVersion": "authorization.k8s.io/v1beta1", "kind": kind, "spec": spec}


def _problem(answer: _Answer, kind: str) -> str:
    """Say what is wrong with an answer to `_review`: what the authenticator would not take either."""
    try:
        found = json.loads(answer.body)
        status = found["status"] if found["kind"] == kind else None
    except (ValueError, KeyError, TypeError, RecursionError):
        status = None
    # A no to a token may come with 401, as k8s-keystone-auth's does.
    known = (200, 201, 401) if kind == "TokenReview" else (200, 201)
    if answer.status not in known or not isinstance(status, dict):
        return f"answers {answer.status}, but not as a {kind}'s webhook does: check host, port and path"
    if status.get("authenticated"):
        return "lets in a token that nobody has"
    return ""


def system_ca() -> str:
    """Give the file of the CAs that the machine trusts; requests' own list is another one, for where there is none."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    return str(bundle) if bundle.exists() else requests.utils.DEFAULT_CA_BUNDLE_PATH


def _get(option: str, ca_option: str, url: str, ca: str, body: dict[str, Any] | None = None) -> _Answer:
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem, Session() as session:
        pem.write(ca)
        pem.flush()
        verify = pem.name if ca else system_ca()
        method = "GET" if body is None else "POST"
        try:
            with session.request(
                method, url, json=body, timeout=TIMEOUT, allow_redirects=False, verify=verify, stream=True
            ) as answer:
                # Whoever answers may be anybody: of what does not end, or only trickles, the beginning is enough.
                content, deadline = b"", time.monotonic() + TIMEOUT[1]
                while (
                    len(content) < MOST_BYTES
                    and time.monotonic() < deadline
                    and (piece := answer.raw.read1(MOST_BYTES))
                ):
                    content += piece
                return _Answer(answer.status_code, content)
        except requests.exceptions.SSLError as error:
            raise ConfigError(
                option,
                f"{url} cannot be reached: its certificate is not trusted ({reason(error)}); is {ca_option} the CA"
                " that signed it? Nothing was changed",
            ) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise ConfigError(option, f"{url} does not answer ({reason(error)}); nothing was changed") from error


def reason(error: Exception) -> str:
    """Give the innermost reason in one line, in the system's own words; requests wraps it several times over."""
    found: object = error
    while True:
        inner = getattr(found, "reason", None) or (
            found.args[0] if isinstance(found, Exception) and found.args else None
        )
        if not isinstance(inner, Exception):
            if isinstance(found, ssl.SSLCertVerificationError):
                return found.verify_message
            cause = getattr(found, "__cause__", None)
            told = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(found)
            return told.partition("\n")[0]
        found = inner
