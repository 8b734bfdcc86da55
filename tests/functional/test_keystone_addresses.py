"""Keystone by name: name servers that fail or do not answer, and several addresses of which one is dead.

The authenticator runs with files of its own in place of the system's `/etc/hosts` and resolver settings (a mount
namespace), so that names mean what a test says, and no name server but the test's own is ever asked.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.keystone import Keystone
from tests.unit.authenticator.support import Authority, Service, ask, eventually, together

pytestmark = pytest.mark.functional

# The names in the test bed's certificate are its addresses and this one.
NAME = "localhost"
DEAD = "127.0.0.9"
NAME_SERVER = "127.0.0.77"
MOUNT = "for file in hosts resolv.conf nsswitch.conf; do mount --bind $0/$file /etc/$file || exit 90; done"


class Names:
    """The files that say what names mean, changed in place as they are mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\n")
        self.say(hosts="", sources="files")

    def say(self, hosts: str, sources: str = "files") -> None:
        """`sources`: of host names, in the words of nsswitch.conf(5)."""
        (self.folder / "hosts").write_text(hosts)
        (self.folder / "nsswitch.conf").write_text(f"passwd: files\ngroup: files\nhosts: {sources}\n")


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(tmp_path / "names")


@pytest.fixture
def service(tmp_path: Path, authority: Authority, keystone: Keystone, names: Names) -> Iterator[Service]:
    """An authenticator that is not started yet."""
    url = f"https://{NAME}:{keystone.port}/v3"
    made = Service(tmp_path, authority, keystone={"url": url, "ca": str(keystone.ca)}, token_cache_ttl=0.3)
    made.inside = ["unshare", "--mount", "--propagation=private", "sh", "-c", f'{MOUNT}; exec "$@"', str(names.folder)]
    yield made
    made.kill()
    assert "Traceback" not in made.log


@pytest.fixture(scope="module")
def token(keystone: Keystone) -> Callable[[], str]:
    project = keystone.project("addresses")
    user = keystone.member("ada", project)
    return lambda: keystone.token(user, project)


@pytest.fixture
def silent_name_server() -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((NAME_SERVER, 53))
        yield


@contextlib.contextmanager
def swallowing(port: int) -> Iterator[None]:
    """An address on which connections neither come about nor are refused: the queue is full and nobody accepts."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((DEAD, port))
        listening.listen(0)
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex((DEAD, port))
        with pytest.raises(TimeoutError):
            socket.create_connection((DEAD, port), 0.5)
        yield


def test_a_name_that_does_not_resolve_is_said_and_found_when_it_does(
    service: Service, names: Names, token: Callable[[], str]
) -> None:
    service.start()
    for _ in range(3):
        answer = ask(service, token())
        assert answer.seconds < 5
        assert "its name does not resolve" in answer.status["error"]
    names.say(f"127.0.0.1 {NAME}\n")
    eventually(lambda: ask(service, token()).status["authenticated"], 2)


def test_a_name_server_that_does_not_answer_keeps_nobody_waiting(
    service: Service, names: Names, token: Callable[[], str], silent_name_server: None
) -> None:
    names.say("", sources="dns")
    service.start()
    answers = together(service, [token() for _ in range(8)])
    assert all(answer.seconds < 5 and answer.status["error"] for answer in answers), answers
    assert service.stop(20) == 0


@pytest.mark.parametrize("sources", ["files", "dns"])
def test_while_names_fail_the_address_that_was_good_last_is_used(
    service: Service, names: Names, token: Callable[[], str], sources: str, silent_name_server: None
) -> None:
    names.say(f"127.0.0.1 {NAME}\n")
    service.start()
    assert ask(service, token()).status["authenticated"]
    names.say("", sources)
    time.sleep(11)  # the HTTP client remembers addresses for 10 s
    # At once, so that most of them need a new connection.
    answers = together(service, [token() for _ in range(8)])
    assert all(answer.status["authenticated"] for answer in answers), answers
    assert max(answer.seconds for answer in answers) < 5


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("silent", [True, False])
def test_of_several_addresses_one_may_be_dead(
    service: Service, names: Names, keystone: Keystone, token: Callable[[], str], silent: bool, first: bool
) -> None:
    addresses = (DEAD, "127.0.0.1") if first else ("127.0.0.1", DEAD)
    names.say("".join(f"{address} {NAME}\n" for address in addresses))
    with swallowing(keystone.port) if silent else contextlib.nullcontext():
        service.start()
        # At once, so that each takes a connection of its own.
        answers = together(service, [token() for _ in range(12)])
        assert all(answer.status.get("authenticated") for answer in answers), answers
        assert max(answer.seconds for answer in answers) < 5
