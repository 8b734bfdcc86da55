"""Takes the token of a single sign-on from the browser: a web server for one login, on this machine's loopback alone.

Keystone ends its WebSSO with a page that posts the token to an `origin` which it trusts word for word (`[federation]
trusted_dashboard`). So nothing random travels along by which Keystone's page could be told from another that posts
somebody else's token; nor does a browser say who posts: from https to http it sends `Origin: null` and no Referer. What
tells them apart is the tab. The login begins at a page of ours, which leaves a secret in the tab's session storage, and
an answer counts once that tab has shown it again.

Nothing here says or keeps a token: no page, no URL, no log.
"""

from __future__ import annotations

import errno
import hmac
import html
import http.server
import json
import re
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubectl_keystone_auth.cache import MOST, WINDOWS, usable
from kubectl_keystone_auth.errors import BadInput, PluginError, Refused

PORT = 9990
PATH = "/auth/websso/"
"""Port and path of keystoneauth-websso, so that a cloud which trusts that one trusts this one."""
CONFIRM, END = "/confirm", "/end"
BODY = MOST + 4096
"""Bytes of a form: a token, and a little."""
TOGETHER = 16
"""Connections at once; a browser keeps six to a host."""
PATIENCE = 10.0
"""Seconds for each part of a request."""
PENDING = 8
"""Answers that wait for their tab at once."""
FAREWELL = 3.0
"""Seconds for the browser to fetch the last page."""

PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><h1 id="title">{title}</h1><p id="text">{text}</p>{script}</body></html>
"""
BEGIN = "sessionStorage.setItem({name}, {secret}); location.replace({url});"
SHOW = """\
const say = (text) => { document.getElementById("title").textContent = "Not logged in";
                        document.getElementById("text").textContent = text; };
const secret = sessionStorage.getItem(NAME);
sessionStorage.removeItem(NAME);
if (secret === null) {
  say("This login was not begun in this tab. Begin it in a new one, with the address that the terminal shows.");
} else {
  fetch(CONFIRM, {method: "POST", body: new URLSearchParams({secret, answer: ANSWER})}).then(
    (found) => found.ok ? location.replace(END) : say("This is not the login that the terminal waits for."),
    () => say("Nothing waits for this login any more: begin it anew."));
}
"""
NAME = "kubectl-keystone-auth"
NO_IPV6 = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


class Loopback:
    """Waits for a token.

    Args:
        port: where it listens; Keystone's `trusted_dashboard` has to name it.
        page: the address of Keystone's WebSSO page, made from the origin that is given to it.

    """

    def __init__(self, port: int, page: Callable[[str], str]) -> None:
        self._host = f"localhost:{port}"
        self.origin = f"http://{self._host}{PATH}"
        self._page = page(self.origin)
        begin = f"/{secrets.token_urlsafe(24)}"
        self.url = f"http://{self._host}{begin}"
        """Where the login begins, once."""
        self._begin = begin
        self._secret = secrets.token_urlsafe(32)
        self._lock = threading.Lock()
        self._begun = False
        self._pending: dict[str, str] = {}
        self._token = ""
        self._error: PluginError | None = None
        self._over, self._seen = threading.Event(), threading.Event()
        self._servers: list[_Server] = []
        self._port = port

    # --- its life

    def __enter__(self) -> Loopback:
        """Listen.

        Raises:
            BadInput: the port is taken.

        """
        # `localhost` may be either; nobody else is to have the other one.
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                server = _Server(family, address, self._port, self)
            except OSError as error:
                if family is socket.AF_INET6 and error.errno in NO_IPV6:
                    continue
                self.__exit__()
                raise BadInput(
                    f"port {self._port} of this machine cannot be had ({error.strerror or error}): another login may be"
                    " under way; --os-redirect-port takes another one, if Keystone trusts that"
                ) from None
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def token(self, patience: float) -> str:
        """Wait for the token, so many seconds.

        Raises:
            PluginError: none came, or none that may be used.

        """
        end = time.monotonic() + patience
        # In parts: Windows lets nobody interrupt a wait.
        while not self._over.wait(0.2):
            if time.monotonic() > end:
                raise Refused(
                    f"nobody logged in within {patience:g} s. If the browser shows 'is not a trusted dashboard host',"
                    f" the cloud's operator has to add it: trusted_dashboard = {self.origin} (docs/single-sign-on.md)"
                )
        if self._error is not None:
            raise self._error
        self._seen.wait(FAREWELL)
        return self._token

    # --- what it is asked

    def answer(self, request: _Request) -> None:
        """Answer a request."""
        # Whoever made a name of his own resolve to this machine (DNS rebinding) has the wrong host.
        if request.headers.get_all("Host") != [self._host]:
            request.page(HTTPStatus.MISDIRECTED_REQUEST, "Not here", f"This is {self._host} alone.")
        elif request.command == "GET" and request.path == self._begin:
            self._start(request)
        elif request.command == "GET" and request.path == END and self._over.is_set():
            request.page(HTTPStatus.OK, "Logged in", "You can close this tab and go back to the terminal.")
            self._seen.set()
        elif request.command == "POST" and request.path == PATH:
            self._take(request)
        elif request.command == "POST" and request.path == CONFIRM:
            self._confirm(request)
        else:
            request.page(HTTPStatus.NOT_FOUND, "Not found", "There is nothing here.")

    def _start(self, request: _Request) -> None:
        if "prefetch" in (request.headers.get("Sec-Purpose") or request.headers.get("Purpose") or ""):
            request.page(HTTPStatus.SERVICE_UNAVAILABLE, "Not yet", "This page is for people.")
            return
        with self._lock:
            first, self._begun = not self._begun, True
            if not first and not self._over.is_set():
                # The address is no secret to whoever sees this machine's processes.
                self._error = Refused("the address was opened twice, which may have been somebody else: log in anew")
                self._over.set()
        if not first:
            request.page(HTTPStatus.GONE, "Not again", "This address is good once. Begin the login anew.")
            return
        script = BEGIN.format(name=_quoted(NAME), secret=_quoted(self._secret), url=_quoted(self._page))
        request.page(HTTPStatus.OK, "One moment", "This takes you to the login, and needs JavaScript.", script)

    def _take(self, request: _Request) -> None:
        if not self._is_navigation(request):
            request.page(HTTPStatus.FORBIDDEN, "Not so", "This takes what Keystone's own page sends, and nothing else.")
            return
        tokens = request.form().get("token", [])
        if len(tokens) != 1 or not usable(tokens[0]):
            request.page(HTTPStatus.BAD_REQUEST, "Not so", "There is no token in this.")
            return
        answer = secrets.token_urlsafe(16)
        with self._lock:
            if not self._begun or self._over.is_set():
                request.page(HTTPStatus.CONFLICT, "Not now", "No login is under way.")
                return
            while len(self._pending) >= PENDING:
                del self._pending[next(iter(self._pending))]
            self._pending[answer] = tokens[0]
        script = "".join(f"const {name} = {_quoted(value)};\n" for name, value in _constants(answer)) + SHOW
        request.page(HTTPStatus.OK, "One moment", "Finishing the login …", script)

    def _is_navigation(self, request: _Request) -> bool:
        """Whether it is a form's doing, of no page but Keystone's, as far as the browser says."""
        sent = request.headers.get("Origin", "null")
        page = urlsplit(self._page)
        return (
            request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
            and request.headers.get("Sec-Fetch-Dest", "document") == "document"
            and sent in ("null", f"{page.scheme}://{page.netloc}")
        )

    def _confirm(self, request: _Request) -> None:
        form = request.form()
        secret, answer = form.get("secret", [""])[0], form.get("answer", [""])[0]
        mine = request.headers.get("Origin") == f"http://{self._host}"
        with self._lock:
            token = self._pending.get(answer, "")
            good = mine and bool(token) and hmac.compare_digest(secret.encode(), self._secret.encode())
            good = good and not self._over.is_set()
            if good:
                self._token, self._pending = token, {}
                self._over.set()
        if good:
            request.page(HTTPStatus.OK, "Good", "")
        else:
            request.page(HTTPStatus.FORBIDDEN, "Not so", "This is not the login that the terminal waits for.")


def _constants(answer: str) -> tuple[tuple[str, str], ...]:
    return ("NAME", NAME), ("CONFIRM", CONFIRM), ("END", END), ("ANSWER", answer)


def _quoted(text: str) -> str:
    """Write a text as JavaScript has it, also where that stands in HTML."""
    return json.dumps(text).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Listens on one address; a thread a connection, a few at once."""

    daemon_threads = True
    block_on_close = False
    # With it somebody else on Windows could listen as well; elsewhere it only lets a port be had again at once.
    allow_reuse_address = not WINDOWS

    def __init__(self, family: socket.AddressFamily, address: str, port: int, loopback: Loopback) -> None:
        self.address_family = family
        self.loopback = loopback
        self._free = threading.BoundedSemaphore(TOGETHER)
        super().__init__((address, port), _Request)

    def server_bind(self) -> None:
        """Take the address; no name is looked up for it."""
        if WINDOWS:
            self.socket.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE"), 1)  # noqa: B009
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin with a connection, if there are not too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that broke: there may be a token in it."""


class _Request(http.server.BaseHTTPRequestHandler):
    """One request, and its answer."""

    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = PATIENCE
    server_version, sys_version = NAME, ""

    def do_GET(self) -> None:
        """Answer it."""
        self.server.loopback.answer(self)

    def do_POST(self) -> None:
        """Answer it."""
        self.server.loopback.answer(self)

    def form(self) -> dict[str, list[str]]:
        """Give the fields of the form that was sent; none if it is no form, or too long."""
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get_content_type()
        if kind != "application/x-www-form-urlencoded" or "Transfer-Encoding" in self.headers:
            return {}
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > BODY:
            return {}
        try:
            return parse_qs(self.rfile.read(int(length)).decode("ascii"), max_num_fields=8)
        except ValueError:
            return {}

    def page(self, status: HTTPStatus, title: str, text: str, script: str = "") -> None:
        """Answer with a page, which may run this script and nothing else."""
        mark = secrets.token_urlsafe(16)
        code = f'<script nonce="{mark}">{script}</script>' if script else ""
        body = PAGE.format(title=html.escape(title), text=html.escape(text), script=code).encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(body))),
            (
                "Content-Security-Policy",
                f"default-src 'none'; script-src 'nonce-{mark}'; connect-src 'self'; base-uri 'none';"
                " form-action 'none'; frame-ancestors 'none'",
            ),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what was asked for may hold anything."""
