"""Passwords and application credentials at Keystone's own API, with what Python brings: one request a login.

keystoneauth1 would do it too, but takes half a second to load. Nothing else is done here: every other way to log in is
`others`'. No redirect is followed: the secret would go along.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from kubectl_keystone_auth import __version__
from kubectl_keystone_auth.conversation import Conversation
from kubectl_keystone_auth.errors import BadInput, ClockOff, NoProject, PluginError, Refused, Unreachable, Untrusted
from kubectl_keystone_auth.options import CREDENTIAL, Options, base_url
from kubectl_keystone_auth.tokens import Token, from_answer

DEADLINE = 30.0
"""Seconds for a connection, and for each part of an answer."""
MAX_ANSWER = 2 * 1024 * 1024
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Answer(NamedTuple):
    """An HTTP answer, whole; `skew` is how far this machine's clock is ahead of the server's, in seconds."""

    status: int
    headers: dict[str, str]
    body: bytes
    skew: float

    def json(self) -> dict[str, Any]:
        """Give the body's object; an empty one if it is none."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def message(self) -> str:
        """Give Keystone's own words in an error; empty where it is not Keystone's."""
        error = self.json().get("error")
        text = error.get("message") if isinstance(error, dict) else None
        return text.strip() if isinstance(text, str) else ""


class Keystone:
    """Keystone at the URL that the options give."""

    def __init__(self, options: Options, conversation: Conversation) -> None:
        """Check what can be checked without a connection.

        Raises:
            BadInput: the URL, or a certificate's file.

        """
        self.url = base_url(options.get("auth_url"))
        self._options = options
        self._conversation = conversation
        self._parts = check_url(self.url, options.insecure)
        self._context = _context(options) if self._parts.scheme == "https" else None

    # --- logging in

    def login(self) -> Token:
        """Log in.

        Raises:
            PluginError: its kind says what is wrong.

        """
        body = authentication(self._options)
        answer = self.call("POST", "/auth/tokens?nocatalog", body)
        if answer.status == 201:
            return self._token(answer)
        raise self._refusal(answer)

    def _token(self, answer: Answer) -> Token:
        token = from_answer(answer.headers.get("x-subject-token", ""), answer.json(), answer.skew)
        if token is None:
            raise Unreachable(f"{self.url} gave no token that can be used: is it Keystone?")
        return token

    def _refusal(self, answer: Answer) -> PluginError:
        words = self.words(answer)
        if not words:
            return self.no_keystone(answer)
        if answer.status == 401:
            return self._unauthorized(words)
        identifier = self._options.get("application_credential_id")
        if answer.status == 404 and self._options.auth_type == CREDENTIAL:
            return Refused(
                f"Keystone has no application credential {identifier!r}: it was deleted, or is another cloud's"
            )
        if answer.status == 403:
            return Refused(f"Keystone refuses the login: {words}")
        if answer.status < 500 and answer.status != 429:
            return BadInput(f"Keystone does not understand the login ({answer.status}): {words}")
        return Unreachable(f"Keystone at {self.url} cannot answer now ({answer.status}): {words}")

    def _unauthorized(self, words: str) -> PluginError:
        """Tell what a 401 means: Keystone says the same of a wrong password and of an unknown project."""
        told = "" if "requires authentication" in words else f": {words}"
        options = self._options
        if options.auth_type == CREDENTIAL:
            name = options.get("application_credential_id", "application_credential_name")
            why = ": its secret is wrong, it has expired, or its user is disabled or without a role in its project"
            return Refused(f"Keystone refuses the application credential {name!r}{told or why}")
        who = f"{options.get('username', 'user_id')!r} (domain {domain(options, 'user')})"
        if not told and self._knows_the_user():
            project = options.get("project_id", "project_name")
            where = "" if options.get("project_id") else f" (domain {domain(options, 'project')})"
            return NoProject(f"{who} has no role in the project {project!r}{where}, or there is no such project")
        return Refused(f"Keystone refuses {who}{told or ': user name, domain or password is wrong'}")

    def _knows_the_user(self) -> bool:
        try:
            body = authentication(self._options, scoped=False)
            return self.call("POST", "/auth/tokens?nocatalog", body).status == 201
        except PluginError:
            return False

    def words(self, answer: Answer) -> str:
        """Give what Keystone says in an error, short and without the secret, which it may repeat."""
        return self._conversation.masked(answer.message()).partition("\n")[0][:300]

    def no_keystone(self, answer: Answer) -> PluginError:
        """Tell what an answer means that is not Keystone's."""
        if 300 <= answer.status < 400 and answer.headers.get("location"):
            place = answer.headers["location"][:200]
            return Unreachable(
                f"{self.url} redirects to {place!r}, which no secret is sent to: give Keystone's own URL"
            )
        return Unreachable(f"{self.url} answers {answer.status}, not as Keystone does: is it Keystone's URL (.../v3)?")

    # --- one request

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, token: str = "", subject: str = ""
    ) -> Answer:
        """Send a request below the URL, with a token and about a token if there are any; give the answer of any status.

        Raises:
            Unreachable: there was none.
            Untrusted: the certificate is not trusted.
            ClockOff: it is not valid yet, by this machine's clock.

        """
        # Keystone tells of a credential's access rules only to who says that he understands them.
        headers = {"User-Agent": f"kubectl-keystone-auth/{__version__}", "OpenStack-Identity-Access-Rules": "1.0"}
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        if token:
            headers["X-Auth-Token"] = token
        if subject:
            headers["X-Subject-Token"] = subject
        self._conversation.request(method, f"{self.url}{path}", headers, body)
        try:
            answer = self._exchange(method, f"{self._parts.path}{path}", headers, data)
        except (ssl.SSLError, ssl.CertificateError) as error:
            raise self._tls_failure(error) from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise Unreachable(f"Keystone at {self.url} cannot be reached: {_reason(error)}") from None
        self._conversation.answer(answer.status, answer.headers, answer.json())
        return answer

    def _exchange(self, method: str, path: str, headers: dict[str, str], data: bytes | None) -> Answer:
        connection = self._connection()
        try:
            connection.request(method, path, data, {**headers, "Accept": "application/json", "Connection": "close"})
            response = connection.getresponse()
            parts, size, end = [], 0, time.monotonic() + DEADLINE
            while part := response.read1(65536):
                size += len(part)
                if size > MAX_ANSWER or time.monotonic() > end:
                    raise Unreachable(f"{self.url} answers without end: is it Keystone?")
                parts.append(part)
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, b"".join(parts), _skew(names.get("date", "")))
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        # Always with a port: http.client would look for one in an IPv6 address.
        host, port = self._parts.hostname or "", self._parts.port or (80 if self._context is None else 443)
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=DEADLINE)
        proxy = proxy_for(host, port, os.environ)
        if proxy is None:
            return http.client.HTTPSConnection(host, port, timeout=DEADLINE, context=self._context)
        # A tunnel: the proxy learns the host's name and nothing of what is said.
        by, number = proxy.hostname or "", proxy.port or 80
        through = http.client.HTTPSConnection(by, number, timeout=DEADLINE, context=self._context)
        through.set_tunnel(host, port, proxy_headers(proxy))
        return through

    def _tls_failure(self, error: Exception) -> PluginError:
        if not isinstance(error, ssl.SSLCertVerificationError):
            return Unreachable(f"Keystone at {self.url} does not speak TLS: {getattr(error, 'reason', None) or error}")
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        if error.verify_code == 9:  # X509_V_ERR_CERT_NOT_YET_VALID
            return ClockOff(f"the certificate of {self.url} is not valid yet by this machine's clock ({now}): set it")
        if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
            return Untrusted(f"the certificate of {self.url} has expired, unless this machine's clock is wrong ({now})")
        hint = "; --cacert or OS_CACERT names the CA" if error.verify_code in (2, 18, 19, 20, 21) else ""
        return Untrusted(f"the certificate of {self.url} is not trusted ({error.verify_message}){hint}")


# --- what is sent


def authentication(options: Options, *, scoped: bool = True) -> dict[str, Any]:
    """Give the body of a login (https://docs.openstack.org/api-ref/identity/v3/, "Authentication")."""
    if options.auth_type == CREDENTIAL:
        credential: dict[str, Any] = {"secret": options.get("application_credential_secret")}
        if options.get("application_credential_id"):
            credential["id"] = options.get("application_credential_id")
        else:
            credential["name"] = options.get("application_credential_name")
            credential["user"] = _user(options)
        return {"auth": {"identity": {"methods": ["application_credential"], "application_credential": credential}}}
    user = {**_user(options), "password": options.get("password")}
    auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": user}}}
    if not scoped:
        auth["scope"] = "unscoped"
    elif options.get("project_id"):
        auth["scope"] = {"project": {"id": options.get("project_id")}}
    else:
        name = options.get("project_name")
        auth["scope"] = {"project": {"name": name, "domain": domain_of(options, "project")}}
    return {"auth": auth}


def _user(options: Options) -> dict[str, Any]:
    if options.get("user_id"):
        return {"id": options.get("user_id")}
    return {"name": options.get("username"), "domain": domain_of(options, "user")}


def domain_of(options: Options, whose: str) -> dict[str, str]:
    """Give the domain of the user or the project; the one with the ID `default` where none is given."""
    for kind in ("id", "name"):
        if value := options.get(f"{whose}_domain_{kind}"):
            return {kind: value}
    for kind in ("id", "name"):
        if value := options.get(f"domain_{kind}", f"default_domain_{kind}"):
            return {kind: value}
    return {"id": options.get("default_domain") or "default"}


def domain(options: Options, whose: str) -> str:
    """Name that domain in a message."""
    return repr(next(iter(domain_of(options, whose).values())))


# --- where it is sent


def check_url(url: str, insecure: bool) -> SplitResult:
    """Take Keystone's URL apart.

    Raises:
        BadInput: it is none, or one that would carry a secret in the clear.

    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise BadInput("Keystone's URL (--keystone-url, OS_AUTH_URL) is none") from None
    if parts.username is not None or parts.password is not None:
        raise BadInput("Keystone's URL (--keystone-url, OS_AUTH_URL) holds a user name or a password: take them out")
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise BadInput(f"Keystone's URL (--keystone-url, OS_AUTH_URL) is no http(s) URL: {url!r}")
    if parts.query or parts.fragment:
        raise BadInput(f"Keystone's URL (--keystone-url, OS_AUTH_URL) ends in a path, without '?' and '#': {url!r}")
    if parts.scheme == "http" and not insecure and host not in LOOPBACK:
        raise BadInput(f"{url} would carry the secret unencrypted: use https, or allow it (--insecure, OS_INSECURE)")
    return parts


def _context(options: Options) -> ssl.SSLContext:
    ca, data = options.get("cacert"), options.get("ca_data")
    try:
        context = ssl.create_default_context(cafile=os.path.expanduser(ca) or None, cadata=data or None)  # noqa: PTH111
    except FileNotFoundError:
        raise BadInput(f"the CA file {ca!r} (--cacert, OS_CACERT) is not there") from None
    except (ssl.SSLError, OSError, ValueError) as error:
        if data:
            raise BadInput("KEYSTONE_CA is not PEM of certificates") from None
        raise BadInput(f"the CA file {ca!r} (--cacert, OS_CACERT) cannot be used: {_reason(error)}") from None
    if not (ca or data) and not _has_authorities():
        _load_certifi(context)
    # On by default from Python 3.13; private authorities made by older tools lack the extensions that it wants.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate := options.get("cert"):
        key = options.get("key")
        try:
            # A key with a password would have it asked on the terminal.
            context.load_cert_chain(certificate, key or None, password=lambda: b"")
        except (ssl.SSLError, OSError, ValueError) as error:
            files = " and ".join(ascii(name) for name in (certificate, key) if name)
            raise BadInput(f"the client certificate {files} (--cert, --key) cannot be used: {_reason(error)}") from None
    return context


def _has_authorities() -> bool:
    paths = ssl.get_default_verify_paths()
    return os.name == "nt" or bool(paths.cafile or (paths.capath and os.listdir(paths.capath)))  # noqa: PTH208


def _load_certifi(context: ssl.SSLContext) -> None:
    """Take the authorities that come with requests: some builds of Python for macOS know none of their own."""
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())


def proxy_for(host: str, port: int, environment: os._Environ[str] | dict[str, str]) -> SplitResult | None:
    """Give the proxy that HTTPS_PROXY names, unless NO_PROXY exempts the host, as kubectl understands them.

    Raises:
        BadInput: it is of a kind that is not supported.

    """
    proxy = environment.get("HTTPS_PROXY") or environment.get("https_proxy")
    if not proxy or host in LOOPBACK or host.startswith("127."):
        return None
    exempt = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    if any(_exempts(word.strip().lower(), host.lower(), port) for word in exempt.split(",") if word.strip()):
        return None
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if parts.scheme == "http" and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise BadInput("HTTPS_PROXY names no http:// proxy, and others are not supported; NO_PROXY exempts hosts from it")


def _exempts(word: str, host: str, port: int) -> bool:
    if word == "*":
        return True
    if "/" in word:
        import ipaddress

        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(word, strict=False)
        except ValueError:
            return False
    name, colon, number = word.rpartition(":")
    if colon and number.isdecimal() and ":" not in name:
        if int(number) != port:
            return False
        word = name
    word = word.removeprefix("*")
    return host == word or host.endswith(word if word.startswith(".") else f".{word}")


def proxy_headers(proxy: SplitResult) -> dict[str, str]:
    """Give the headers that the proxy itself is sent: its own user and password, if it has them."""
    if proxy.username is None:
        return {}
    import base64
    from urllib.parse import unquote

    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _skew(date: str) -> float:
    try:
        return time.time() - parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _reason(error: Exception) -> str:
    """Name a failure without what was sent: some messages of http.client hold a header or a line."""
    if isinstance(error, socket.gaierror):
        return "its name does not resolve"
    if isinstance(error, TimeoutError):
        return f"no answer within {DEADLINE:g} s"
    if isinstance(error, ssl.SSLError):
        return error.reason or "no PEM"
    if isinstance(error, OSError):
        # A proxy's refusal has no number, and says what the proxy said.
        return os.strerror(error.errno) if error.errno else str(error)[:200]
    return "the connection broke" if isinstance(error, http.client.RemoteDisconnected) else type(error).__name__
