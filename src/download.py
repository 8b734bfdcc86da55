"""From elsewhere onto this disk: over https alone, within bounds, by the model's proxy, continued where it broke off.

A download that was cut, by the network or with the hook, is continued by the next attempt if the server says that it
still has the same (`If-Range`). Who downloads compares checksums: nothing here judges content.

Not here: what is downloaded, and registries of images (image.py).
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3

from errors import ConfigError
from reach import Session, reason, system_ca

OPTION = "k8s-keystone-auth-url"
MOST_BYTES = 256 * 2**20
"""The official binary has 60 MB."""
SECONDS = 300.0
"""For all that one reconcile downloads."""
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
REDIRECTS = 5
ATTEMPTS = 3
"""So many in a row that brought nothing new, and it is left to the next hook."""


class Answered(Exception):
    """The server answered with a status that brings no content."""

    def __init__(self, url: str, answer: requests.Response):
        super().__init__(f"{shown(url)} was answered with {answer.status_code} {answer.reason}")
        self.status = answer.status_code
        self.challenge = answer.headers.get("WWW-Authenticate", "")


class _Cut(Exception):
    """The connection ended before the content did."""


class Web:
    """Connections to the outside; a context.

    Args:
        ca: PEM of CAs to believe beside the system's; empty for none.

    The proxy is Juju's (`juju-https-proxy` and `juju-no-proxy` of the model), never one that merely lies in the
    environment.
    """

    def __init__(self, ca: str):
        self._ca = ca
        self._stack = contextlib.ExitStack()
        self._deadline = time.monotonic() + SECONDS

    def __enter__(self) -> Web:
        with contextlib.ExitStack() as stack:
            self._session = stack.enter_context(Session())
            self._verify = system_ca()
            if self._ca:
                bundle = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".pem"))
                bundle.write(f"{Path(self._verify).read_text(encoding='utf-8')}\n{self._ca}")
                bundle.flush()
                self._verify = bundle.name
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, url: str, most: int, headers: Mapping[str, str], *, redirects: int = REDIRECTS) -> bytes:
        """Give a small answer.

        Args:
            url: https.
            most: bytes; more is an error.
            headers: to send. Authorization goes to this very server alone, wherever it leads to.
            redirects: how many to follow.

        Raises:
            Answered: with another status than 200.
            ConfigError: it cannot be had.
        """
        with self._told(url), self._follow(url, headers, redirects) as answer:
            if answer.status_code != 200:
                raise Answered(url, answer)
            return b"".join(self._pieces(url, answer, most))

    def fetch(self, url: str, target: Path, most: int, headers: Mapping[str, str] | None = None) -> None:
        """Have the whole content in a file; what a former attempt left there is continued.

        Args:
            url: https.
            target: beside it lies a `.json` with what the server calls this state of the content.
            most: bytes; more is an error.
            headers: as for `read`.

        Raises:
            Answered: with a status that brings no content.
            ConfigError: it has not come; what came lies in `target`, for the next attempt.
            OSError: the disk is full, or the like.
        """
        failures = 0
        with self._told(url):
            while True:
                before = _size(target)
                try:
                    return self._attempt(url, target, most, headers or {})
                except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError, _Cut) as error:
                    failures = 0 if _size(target) > before else failures + 1
                    # A certificate does not come right by asking again.
                    if failures == ATTEMPTS or isinstance(error, requests.exceptions.SSLError):
                        raise
                    self._in_time(url)
                    time.sleep(0.2 * failures)

    def _attempt(self, url: str, target: Path, most: int, headers: Mapping[str, str]) -> None:
        note = target.with_suffix(".json")
        have, validator = _size(target), _noted(note, url)
        asked = dict(headers)
        if have and validator:
            asked |= {"Range": f"bytes={have}-", "If-Range": validator}
        with self._follow(url, asked, REDIRECTS) as answer:
            if answer.status_code == 416 and "Range" in asked:
                if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                    return None  # it came whole already, and was not wanted then
                target.unlink()
                return self._attempt(url, target, most, headers)
            if answer.status_code not in (200, 206):
                raise Answered(url, answer)
            going_on = answer.status_code == 206
            if going_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                target.unlink()
                raise _Cut("the server gives another part than was asked for")
            length = answer.headers.get("Content-Length", "")
            known = re.fullmatch("[0-9]{1,15}", length)
            total = int(length) + (have if going_on else 0) if known else None
            if total is not None and total > most:
                raise _too_much(url, most)
            with target.open("ab" if going_on else "wb") as output:
                if not going_on:
                    note.write_text(json.dumps({"url": url, "validator": _validator(answer)}), encoding="utf-8")
                for piece in self._pieces(url, answer, most - (have if going_on else 0)):
                    output.write(piece)
            if total is not None and _size(target) < total:
                raise _Cut("the connection ended too soon")
            return None

    def _pieces(self, url: str, answer: requests.Response, most: int) -> Iterator[bytes]:
        size = 0
        # Not iter_content: it waits for a whole chunk, and a server that trickles would outlast any limit.
        while piece := answer.raw.read1(2**16):
            size += len(piece)
            if size > most:
                raise _too_much(url, most)
            self._in_time(url)
            yield piece

    def _in_time(self, url: str) -> None:
        if time.monotonic() > self._deadline:
            raise ConfigError(
                OPTION, f"{shown(url)} has not come within {SECONDS:.0f} s; the next hook goes on where this one ended"
            )

    def _follow(self, url: str, headers: Mapping[str, str], redirects: int) -> requests.Response:
        """Get a URL and where it leads to, as long as that is https."""
        at = url
        for _ in range(redirects + 1):
            parts = urlsplit(at)
            own = _origin(parts) == _origin(urlsplit(url))
            answer = self._session.get(
                at,
                stream=True,
                allow_redirects=False,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                verify=self._verify,
                proxies=_proxies(parts),
                headers={
                    **{name: value for name, value in headers.items() if own or name != "Authorization"},
                    "Accept-Encoding": "identity",
                },
            )
            if not answer.is_redirect:
                return answer
            answer.close()
            try:
                at = urljoin(at, answer.headers["Location"])
                host = f"{urlsplit(at).hostname or ''}:{urlsplit(at).port or ''}".rstrip(":")
            except ValueError:
                raise ConfigError(OPTION, f"{shown(url)} leads to what is no URL") from None
            if urlsplit(at).scheme != "https" or not host:
                where = f"{urlsplit(at).scheme}://{host}"
                raise ConfigError(OPTION, f"{shown(url)} leads to {where}, and only https is followed")
        raise ConfigError(OPTION, f"{shown(url)} leads from one place to another more than {redirects} times")

    @contextlib.contextmanager
    def _told(self, url: str) -> Iterator[None]:
        """Say what went wrong in one line, which names no place that a redirect led to: its address may be a key."""
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise ConfigError(
                OPTION,
                f"{shown(url)} cannot be downloaded: the certificate does not verify ({reason(error)}). Is"
                " k8s-keystone-auth-ca, or what the machine trusts, the CA that signed it?",
            ) from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, _Cut) as error:
            by = " by the model's juju-https-proxy" if _proxies(urlsplit(url)) else ""
            raise ConfigError(OPTION, f"{shown(url)} cannot be downloaded{by}: {reason(error)}") from error


def shown(url: str) -> str:
    """Give a URL for a message: without its query, which may be a signature that lets anybody download."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def bypassed(host: str, port: int, no_proxy: str) -> bool:
    """Tell whether a host is one of those to be reached without the proxy.

    Not requests' own: there `ample.org` in the list means example.org, too, and networks of IPv6 are not known.

    Args:
        host: a name or an address.
        port: of the connection.
        no_proxy: a comma-separated list of names (with all below them), addresses, networks (`10.0.0.0/8`), any of
            them with a port, or `*`.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for entry in filter(None, map(str.strip, no_proxy.split(","))):
        if entry == "*":
            return True
        bare = re.fullmatch(r"(?:\[(.+)\]|([^:]+)):(\d+)", entry)
        name = (bare[1] or bare[2] if bare else entry).strip("[]")
        if bare and int(bare[3]) != port:
            continue
        if address is not None:
            with contextlib.suppress(ValueError):
                network = ipaddress.ip_network(name, strict=False)
                if address.version == network.version and address in network:
                    return True
        elif f".{host.lower()}".endswith(f".{name.lower().lstrip('*').lstrip('.')}"):
            return True
    return False


def _proxies(url: SplitResult) -> dict[str, str]:
    proxy = os.environ.get("JUJU_CHARM_HTTPS_PROXY", "")
    if not proxy or bypassed(url.hostname or "", url.port or 443, os.environ.get("JUJU_CHARM_NO_PROXY", "")):
        return {}
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        # Not shown: it may hold a password.
        raise ConfigError("juju-https-proxy", "the model's is no URL such as http://proxy.example:3128")
    return {"https": proxy}


def _origin(url: SplitResult) -> tuple[str, str | None, int]:
    return url.scheme, url.hostname, url.port or 443


def _validator(answer: requests.Response) -> str:
    """What tells this state of the content from another; empty where the server says nothing that is good enough."""
    tag = answer.headers.get("ETag", "")
    # A weak one says that content is as good, not that it is the same; it may not stand in If-Range (RFC 9110, 13.1.5).
    return tag if tag.startswith('"') else "" if tag else answer.headers.get("Last-Modified", "")


def _noted(note: Path, url: str) -> str:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return str(found["validator"]) if found["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _too_much(url: str, most: int) -> ConfigError:
    return ConfigError(OPTION, f"{shown(url)} gives more than {most // 2**20} MiB, which is no k8s-keystone-auth")
