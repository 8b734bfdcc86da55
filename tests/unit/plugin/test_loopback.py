"""The listener that takes a single sign-on's token: what it takes, and from whom it takes nothing."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from kubectl_keystone_auth.errors import BadInput, Refused
from kubectl_keystone_auth.loopback import BODY, CONFIRM, END, PATH, TOGETHER, Loopback, _Request
from testbed.processes import free_port

pytestmark = pytest.mark.slow  # it waits for connections that say nothing

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TOKEN = "gAAAAABtoken-_=="
KEYSTONE = "https://keystone.example:5000/v3/websso?origin="


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def loopback(port: int) -> Iterator[Loopback]:
    with Loopback(port, lambda origin: KEYSTONE + origin) as found:
        yield found


class Answer:
    """What the listener said."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()


def ask(port: int, method: str, path: str, body: str | None = None, *, host: str = "", **headers: str) -> Answer:
    """Ask as a browser does, but for what a test says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, body, {"Host": host or f"localhost:{port}", **FORM, **named})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def begin(loopback: Loopback, port: int) -> str:
    """Open the address as the user's tab does; gives the secret that it is left."""
    found = ask(port, "GET", loopback.url.partition(str(port))[2])
    assert found.status == 200
    match = re.search(r'setItem\("[^"]+", "([^"]+)"\)', found.text)
    assert match
    return match[1]


def bring(port: int, token: str = TOKEN, **headers: str) -> Answer:
    """Post a token, as Keystone's page does."""
    return ask(port, "POST", PATH, urlencode({"token": token}), **{"Origin": "null", **headers})


def handle(found: Answer) -> str:
    """What the page that takes a token is to confirm."""
    match = re.search(r'ANSWER = "([^"]+)"', found.text)
    assert match
    return match[1]


def confirm(port: int, secret: str, answer: str, **headers: str) -> Answer:
    named = {"Origin": f"http://localhost:{port}", **headers}
    return ask(port, "POST", CONFIRM, urlencode({"secret": secret, "answer": answer}), **named)


def end(port: int) -> None:
    """Let the browser fetch the last page."""
    assert ask(port, "GET", END).status == 200


def test_the_tab_that_began_the_login_ends_it(loopback: Loopback, port: int) -> None:
    secret = begin(loopback, port)
    found = bring(port)
    assert confirm(port, secret, handle(found)).status == 200
    end(port)
    assert loopback.token(30) == TOKEN
    assert TOKEN not in found.text


def test_pages_run_no_script_but_ours_stay_nowhere_and_say_nothing_on(loopback: Loopback, port: int) -> None:
    begin(loopback, port)
    for found in (bring(port), bring(port, "not one"), ask(port, "GET", "/")):
        policy = found.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'nonce-" in policy
        assert "frame-ancestors 'none'" in policy
        assert (found.headers["Cache-Control"], found.headers["Referrer-Policy"]) == ("no-store", "no-referrer")
        assert "Python" not in found.headers["Server"]


def test_the_page_that_begins_leads_to_keystone_whatever_its_address_holds(port: int) -> None:
    hostile = "https://keystone.example/'\"</script><b>&x="
    with Loopback(port, lambda origin: hostile + origin) as loopback:
        found = ask(port, "GET", loopback.url.partition(str(port))[2])
    assert found.text.count("</script>") == 1
    assert 'location.replace("https://keystone.example/\'\\"\\u003c/script\\u003e' in found.text


def test_a_token_counts_only_with_the_secret_of_the_tab(loopback: Loopback, port: int) -> None:
    secret = begin(loopback, port)
    theirs, mine = handle(bring(port, "gAAAAABtheirs")), handle(bring(port))
    for found in (
        confirm(port, "guessed", theirs),
        confirm(port, "", theirs),
        confirm(port, secret, "guessed"),
        confirm(port, secret, ""),
        confirm(port, secret, theirs, Origin="https://evil.example"),
        confirm(port, secret, theirs, Origin="null"),
        ask(port, "GET", f"{CONFIRM}?secret={secret}&answer={theirs}"),
    ):
        assert found.status in (403, 404)
    assert confirm(port, secret, mine).status == 200
    # Once is enough.
    assert confirm(port, secret, theirs).status == 403
    assert bring(port, "gAAAAABtheirs").status == 409
    end(port)
    assert loopback.token(30) == TOKEN


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1:{port}"}, 421),
        ({"host": "localhost"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "https://keystone.example"}, 403),
        ({"Origin": "https://keystone.example:5000"}, 200),
        ({"Origin": "null"}, 200),
        ({"Sec_Fetch_Mode": "cors"}, 403),
        ({"Sec_Fetch_Mode": "no-cors"}, 403),
        ({"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}, 403),
        ({"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}, 200),
        ({"Content_Type": "text/plain"}, 400),
        ({"Content_Type": "application/json"}, 400),
    ],
)
def test_a_token_comes_by_a_form_of_a_page_that_may_be_keystones(
    loopback: Loopback, port: int, headers: dict[str, str], status: int
) -> None:
    begin(loopback, port)
    assert bring(port, **{name: value.format(port=port) for name, value in headers.items()}).status == status


@pytest.mark.parametrize(
    "body",
    ["", "token=", "token=a&token=b", "other=a", "token=a%20b", "token=a%00b", "token=%C3%A9", "\u00e9", "&" * 99],
)
def test_a_form_without_one_token_is_none(loopback: Loopback, port: int, body: str) -> None:
    begin(loopback, port)
    assert ask(port, "POST", PATH, body).status == 400


def test_no_token_is_taken_from_an_address_or_before_the_login_began(loopback: Loopback, port: int) -> None:
    assert ask(port, "GET", f"{PATH}?token={TOKEN}").status == 404
    assert ask(port, "POST", f"{PATH}?token={TOKEN}").status == 404
    assert bring(port).status == 409


def test_an_address_that_was_opened_twice_ends_the_login(loopback: Loopback, port: int) -> None:
    secret = begin(loopback, port)
    assert ask(port, "GET", loopback.url.partition(str(port))[2]).status == 410
    with pytest.raises(Refused, match="opened twice"):
        loopback.token(30)
    assert bring(port).status == 409
    assert confirm(port, secret, "any").status == 403


def test_a_browser_that_looks_ahead_begins_nothing(loopback: Loopback, port: int) -> None:
    path = loopback.url.partition(str(port))[2]
    assert ask(port, "GET", path, Sec_Purpose="prefetch;prerender").status == 503
    assert ask(port, "GET", path).status == 200


def test_no_request_is_read_without_end(loopback: Loopback, port: int) -> None:
    begin(loopback, port)
    for length in (str(BODY + 1), "9" * 30, "-1", "1e3", "x"):
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            head = f"POST {PATH} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: {FORM['Content-Type']}\r\n"
            connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.0 400")
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.0 400")


def test_connections_that_say_nothing_are_few_and_do_not_stop_a_login(
    loopback: Loopback, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those that are few are not ended while this runs.
    monkeypatch.setattr(_Request, "timeout", 600.0)
    idle = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(TOGETHER - 2)]
    secret = begin(loopback, port)
    idle += [socket.create_connection(("127.0.0.1", port), 30) for _ in range(10)]
    # Those that are too many are closed at once.
    assert idle[-1].recv(1) == b""
    for one in idle:
        one.close()
    deadline = time.monotonic() + 30
    while True:
        try:
            answer = handle(bring(port))
            break
        except OSError:  # until it has seen that they are closed
            assert time.monotonic() < deadline
    assert confirm(port, secret, answer).status == 200


def test_answers_that_nobody_confirms_do_not_pile_up(loopback: Loopback, port: int) -> None:
    secret = begin(loopback, port)
    found = [handle(bring(port, f"token{number}")) for number in range(20)]
    assert confirm(port, secret, found[0]).status == 403
    assert confirm(port, secret, found[-1]).status == 200


def test_it_listens_on_this_machine_alone_and_not_for_longer_than_the_login(port: int) -> None:
    with Loopback(port, lambda origin: origin):
        with pytest.raises(OSError, match=r"refused|unreachable|assign"):
            socket.create_connection(("127.0.0.2", port), 5).close()
        ask(port, "GET", "/")
    with pytest.raises(ConnectionRefusedError):
        ask(port, "GET", "/")
    # And the port can be had again at once.
    with Loopback(port, lambda origin: origin):
        ask(port, "GET", "/")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_that_somebody_else_has_is_not_shared(port: int, family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as other:
        try:
            other.bind((address, port))
        except OSError:
            pytest.skip(f"this machine has no {address}")
        other.listen()
        with pytest.raises(BadInput, match=f"port {port} of this machine cannot be had"), Loopback(port, str):
            pass
    with Loopback(port, str):
        pass


def test_nobody_who_comes_is_waited_for_only_so_long(loopback: Loopback, port: int) -> None:
    begin(loopback, port)
    with pytest.raises(Refused, match=rf"within 0.1 s.*trusted_dashboard = http://localhost:{port}/auth/websso/ "):
        loopback.token(0.1)


@pytest.mark.slow
def test_whoever_closes_the_tab_too_early_is_logged_in_all_the_same(loopback: Loopback, port: int) -> None:
    secret = begin(loopback, port)
    assert confirm(port, secret, handle(bring(port))).status == 200
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(loopback.token(30)))
    waiting.start()
    waiting.join(30)
    assert found == [TOKEN]
