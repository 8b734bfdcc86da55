"""Tokens at hand: whose they are, who can read them, and what is not taken for one."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubectl_keystone_auth import cache
from kubectl_keystone_auth.cache import Cache, Entry, usable
from kubectl_keystone_auth.store import Store
from tests.unit.authenticator.support import eventually, fernet_token
from tests.unit.plugin.support import UNHURRIED

LOGIN = "('https://keystone.example/v3', 'password', [('username', 'alice')], [])"
TOKEN = fernet_token()
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
FORKED = multiprocessing.get_context("fork")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "kube" / "cache" / "keystone-auth"


@pytest.fixture
def store(place: Path) -> Store:
    return Store(str(place), LOGIN)


def entry(token: str = TOKEN, age: float = 0, lifetime: float = 3600) -> Entry:
    return Entry(token, time.time() - age, time.time() - age + lifetime)


def token_of(found: Cache) -> str | None:
    kept = found.entry()
    return kept.token if kept else None


def test_a_token_is_found_again_by_its_login_alone(store, place):
    store.put(entry())
    assert token_of(Cache(str(place), LOGIN)) == TOKEN
    assert token_of(Cache(str(place), LOGIN.replace("alice", "bob"))) is None


def test_nobody_else_can_read_what_is_kept(store, place):
    previous = os.umask(0)
    try:
        store.put(entry())
        store.handed()
        store.fail(3, "no")
        with store.lock():
            pass
    finally:
        os.umask(previous)
    assert place.stat().st_mode & 0o777 == 0o700
    files = list(place.iterdir())
    assert {path.suffix for path in files} == {"", ".handed", ".failed"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_two_logins_of_one_file_name_do_not_get_each_others_token(store, place):
    other = Store(str(place), LOGIN.replace("alice", "bob"))
    other.path = store.path
    other.put(entry())
    assert store.entry() is None


def no_file(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def second_name(path: Path) -> None:
    path.with_name("second").hardlink_to(path)


def readable(path: Path) -> None:
    path.chmod(0o640)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def somebody_elses(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, 12345)


def folder_readable(path: Path) -> None:
    path.parent.chmod(0o755)


def folder_linked(path: Path) -> None:
    path.parent.rename(path.parent.with_name("real"))
    path.parent.symlink_to("real")


def folder_somebody_elses(path: Path) -> None:
    somebody_elses(path.parent)


DAMAGES = {
    "empty": lambda text: "",
    "cut off": lambda text: text[:-20],
    "another version": lambda text: text.replace("auth 1\n", "auth 2\n"),
    "another login": lambda text: text.replace("alice", "bob"),
    "no time": lambda text: text.replace(text.split("\n")[2], "soon"),
    "another line": lambda text: text + "more\n",
    "a token that needs quoting": lambda text: text.replace(TOKEN, 'a","b":"c'),
    "not ASCII": lambda text: text.replace(TOKEN, TOKEN + "\N{SNOWMAN}"),
    "too long": lambda text: text.replace(TOKEN, "a" * 200_000),
}


@pytest.mark.parametrize(
    "spoil",
    [
        *(no_file, link, second_name, readable, pipe, directory, somebody_elses),
        *(folder_readable, folder_linked, folder_somebody_elses),
    ],
)
def test_what_may_be_somebody_elses_is_no_token(store, spoil):
    store.put(entry())
    assert token_of(store) == TOKEN
    spoil(Path(store.path))
    assert store.entry() is None


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_damaged_is_no_token_and_gives_way_to_the_next(store, damage):
    store.put(entry())
    Path(store.path).write_text(damage(Path(store.path).read_text()), encoding="utf-8")
    assert store.entry() is None
    store.put(entry())
    assert token_of(store) == TOKEN


@settings(UNHURRIED, suppress_health_check=FIXTURES, max_examples=50)
@given(st.binary())
def test_no_content_of_a_file_is_an_error(store, content):
    store.put(entry())
    Path(store.path).write_bytes(content)
    Path(f"{store.path}.failed").write_bytes(content)
    Path(f"{store.path}.handed").write_bytes(content)
    assert (store.entry(), store.failure(0)) == (None, None)
    store.refused(entry(age=100))


def test_a_link_in_a_tokens_place_is_replaced_and_what_it_points_to_kept(store, tmp_path):
    store.put(entry())
    target = tmp_path / "target"
    target.write_text("mine")
    for name in (store.path, f"{store.path}.handed", f"{store.path}.{os.getpid()}.new"):
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to(target)
    store.put(entry())
    assert token_of(store) == TOKEN
    Path(f"{store.path}.handed").symlink_to(target)
    store.handed()
    assert target.read_text() == "mine"


@pytest.mark.parametrize("spoil", [folder_readable, folder_linked, folder_somebody_elses])
def test_nothing_is_written_where_others_may_read_or_write(store, spoil):
    store.put(entry())
    spoil(Path(store.path))
    Path(store.path).unlink()
    store.put(entry())
    store.fail(3, "no")
    store.handed()
    with store.lock():
        pass
    assert [path.name for path in Path(store.place).iterdir()] == []


def test_a_home_that_cannot_be_written_keeps_nothing_and_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(str(tmp_path / "file" / "cache"), LOGIN)
    store.put(entry())
    store.handed()
    with store.lock():
        assert store.entry() is None


def test_what_nobody_used_for_a_week_goes(store, place):
    store.put(entry())
    old = ("0123456789abcdef", "0123456789abcdef.handed", "0123456789abcdef.123.new", "lock", "letter", "0123.failed")
    for name in (*old, "fedcba9876543210"):
        (place / name).write_text("")
    for name in old:
        os.utime(place / name, (time.time() - 8 * 86400, time.time() - 8 * 86400))
    store.put(entry())
    # What is not of tokens stays: a user may have named a folder with more in it.
    assert {path.name for path in place.iterdir()} == {store.name, "fedcba9876543210", "lock", "letter", "0123.failed"}


# -- for how long


@pytest.mark.parametrize(
    ("age", "lifetime", "alive", "fresh"),
    [
        (0, 3600, True, True),
        (3400, 3600, True, True),
        (3500, 3600, True, False),
        (3601, 3600, False, False),
        (0, 200, True, True),
        (190, 200, True, False),
        (-100, 3600, False, False),  # the clock was set back since
    ],
)
def test_a_token_is_renewed_before_its_end(age, lifetime, alive, fresh):
    kept = entry(age=age, lifetime=lifetime)
    assert (kept.alive(), kept.fresh()) == (alive, fresh)


# -- who asks twice


def elsewhere(function) -> None:
    """Run it in a process with another parent than this one's."""
    process = FORKED.Process(target=function)
    process.start()
    process.join(20)
    assert process.exitcode == 0


def test_who_asks_twice_is_given_another_token_unless_it_is_young(store):
    store.put(entry(age=100))
    kept = store.entry()
    assert not store.refused(kept)
    store.handed()
    assert store.refused(kept)
    store.put(entry(age=10))
    store.handed()
    assert not store.refused(store.entry())


def test_others_who_were_handed_it_do_not_count(store):
    store.put(entry(age=100))
    elsewhere(store.handed)
    assert Path(f"{store.path}.handed").read_text() == f"{os.getpid()}\n"
    assert not store.refused(store.entry())


def test_where_callers_cannot_be_told_two_calls_at_once_count_as_ones(store, monkeypatch):
    monkeypatch.setattr(cache, "WINDOWS", True)
    store.put(entry(age=100))
    kept = store.entry()
    assert not store.refused(kept)
    store.handed()
    assert store.refused(kept)
    os.utime(f"{store.path}.handed", (time.time() - 60, time.time() - 60))
    assert not store.refused(kept)


def test_the_list_of_callers_does_not_grow_without_end(store):
    store.put(entry(age=100))
    path = Path(f"{store.path}.handed")
    path.write_text("1\n" * 50_000)
    path.chmod(0o600)
    store.handed()
    assert path.read_text() == f"{os.getppid()}\n"


# -- failures


def test_a_failure_is_told_again_to_the_same_caller_for_a_moment(store, monkeypatch):
    store.fail(3, "no\nway")
    now = time.time()
    assert store.failure(now + 1) == (3, "no way")
    monkeypatch.setattr(time, "time", lambda: now + 20)
    assert store.failure(now + 1) is None


def test_a_failure_is_told_to_whoever_waited_for_it(store):
    began = time.time()
    elsewhere(lambda: store.fail(3, "no"))
    assert store.failure(began) == (3, "no")
    assert store.failure(time.time() + 1) is None


def test_a_failure_of_the_kind_that_is_asked_for_is_told_to_anybody_for_a_moment(store, monkeypatch):
    elsewhere(lambda: store.fail(5, "away"))
    now = time.time()
    assert store.failure(None) is None
    assert store.failure(None, 3) is None
    assert store.failure(None, 5) == (5, "away")
    monkeypatch.setattr(time, "time", lambda: now + 20)
    assert store.failure(None, 5) is None


def test_a_token_ends_the_failure(store):
    store.fail(3, "no")
    store.put(entry())
    assert store.failure(0) is None


# -- at the same time


def test_the_lock_is_held_by_one_at_a_time_and_falls_with_its_holder(store, tmp_path):
    held = tmp_path / "held"

    def hold() -> None:
        with store.lock():
            held.write_text("")
            signal.pause()

    process = FORKED.Process(target=hold)
    process.start()
    eventually(held.exists, 20)
    taken: list[bool] = []

    def take() -> None:
        with store.lock():
            held.with_name("taken").write_text("")

    waiting = FORKED.Process(target=take)
    waiting.start()
    other = Store(store.place, "another login")
    with other.lock():
        taken.append(held.with_name("taken").exists())
    process.kill()
    waiting.join(20)
    assert (taken, waiting.exitcode, held.with_name("taken").exists()) == ([False], 0, True)


@pytest.mark.parametrize("why", [errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_where_a_home_has_no_locks_nobody_waits_for_one(store, monkeypatch, why):
    def lockf(*_: int) -> None:
        raise OSError(why, "as a network's filesystem says")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    began = time.monotonic()
    with store.lock():
        assert time.monotonic() - began < 30


def test_readers_never_see_half_a_token_while_others_write(store):
    store.put(entry("first"))
    end = time.monotonic() + 0.5

    def write(token: str) -> None:
        while time.monotonic() < end:
            store.put(entry(token))
            store.handed()

    writers = [FORKED.Process(target=write, args=(letter * 200,)) for letter in "ab"]
    for writer in writers:
        writer.start()
    seen: set[str | None] = set()
    while time.monotonic() < end:
        seen.add(token_of(store))
    for writer in writers:
        writer.join(20)
        assert writer.exitcode == 0
    assert seen <= {"first", "a" * 200, "b" * 200}
    assert token_of(store) in seen | {"a" * 200, "b" * 200}
    assert not list(Path(store.place).glob("*.new"))


@pytest.mark.parametrize("token", ["", 'a"', "a\\", "a b", "a\n", "a\x00", "\N{SNOWMAN}", "a" * 65537])
def test_what_would_need_quoting_is_no_token(token):
    assert usable(TOKEN)
    assert usable("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln-_~+/=")
    assert not usable(token)
