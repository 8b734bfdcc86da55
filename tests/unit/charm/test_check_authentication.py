"""Where check-authentication takes its token from, and that it is nowhere afterwards. Its way: functional tests."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import ops.testing
import pytest

import apiserver
from check_authentication import Stopped, _Way
from config import CharmConfig

TOKEN = "gAAAAABnotarealtoken"


def kept(unit, machine) -> str:
    """Everything that was said or written."""
    written = [path.read_bytes().decode("latin-1") for path in machine.places.root.rglob("*") if path.is_file()]
    return "\n".join([unit.log, json.dumps(unit.context.action_results), *unit.history, *written])


def put(path: Path, content: str = f"{TOKEN}\n", mode: int = 0o600) -> str:
    path.write_text(content)
    path.chmod(mode)
    return str(path)


def told(unit, **parameters: str) -> str:
    """The action's failure; the stand-in for the authenticator has Keystone refuse every token."""
    with pytest.raises(ops.testing.ActionFailed) as raised:
        unit.action("check-authentication", **parameters)
    assert TOKEN not in raised.value.message
    return raised.value.message


@pytest.fixture
def ready(unit):
    unit.run()
    return unit


def test_a_token_in_a_file_of_roots_is_taken_and_found_nowhere_afterwards(ready, machine, tmp_path):
    said = told(ready, token_file=put(tmp_path / "token"))

    assert said.startswith("stopped at keystone: Keystone, or what counts of its answer, says no: over: 20 … False.")
    assert set(ready.context.action_results) == {"keystone"}
    assert TOKEN not in kept(ready, machine)


def test_a_token_in_a_secret_is_taken_and_found_nowhere_afterwards(ready, machine):
    secret = ops.testing.Secret(tracked_content={"token": "old"}, latest_content={"token": f"{TOKEN}\n"})
    ready.state = dataclasses.replace(ready.state, secrets={secret})

    assert told(ready, token_secret=secret.id).startswith("stopped at keystone: ")
    assert TOKEN not in kept(ready, machine)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [({"tok": "x"}, "token-secret (its key token): holds no token"), (None, "cannot be read: juju grant-secret")],
)
def test_a_secret_that_is_of_no_use_is_named(ready, content, complaint):
    identifier = "secret:abcdefghijklmnopqrst"
    if content is not None:
        secret = ops.testing.Secret(tracked_content=content)
        ready.state = dataclasses.replace(ready.state, secrets={secret})
        identifier = secret.id

    assert complaint in told(ready, token_secret=identifier)


@pytest.mark.parametrize("juju", ["2.9.50", "3.1.10"])
def test_without_secrets_in_juju_a_file_is_asked_for(unit, juju):
    unit.run()
    unit.context.juju_version = juju
    with pytest.raises(ops.testing.ActionFailed, match=r"this Juju has no secrets \(3\.3 has\): name a file"):
        unit.action("check-authentication", token_secret="secret:abc")


@pytest.mark.parametrize("parameters", [{}, {"token_file": "/x", "token_secret": "secret:x"}])
def test_one_source_is_needed(ready, parameters):
    assert "give either token-secret" in told(ready, **parameters)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o611])
def test_a_file_that_others_can_use_is_refused(ready, tmp_path, mode):
    said = told(ready, token_file=put(tmp_path / "token", mode=mode))
    assert f"is not root's alone (its mode is {mode:04o})" in said


def test_a_file_of_somebody_elses_is_refused(ready, tmp_path, monkeypatch):
    path = put(tmp_path / "token")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ops.testing.ActionFailed, match="is not root's alone"):
        ready.action("check-authentication", token_file=path)


def test_what_is_no_file_is_refused_and_not_waited_for(ready, tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    put(tmp_path / "token")
    (tmp_path / "link").symlink_to(tmp_path / "token")
    (tmp_path / "to").symlink_to(tmp_path)
    for name, complaint in (
        ("pipe", "is no regular file"),
        (".", "is no regular file"),
        ("link", "link is a link, or no regular file; only a file that no link leads to is taken"),
        ("to/token", "to is a link, or no folder; only a file that no link leads to is taken"),
        ("nowhere", "is not on this unit's machine"),
        ("n" * 300, "cannot be read: File name too long"),
        ("to\0ken", "can be no file's name"),
    ):
        assert complaint in told(ready, token_file=str(tmp_path / name))
    assert "does not begin at the root" in told(ready, token_file="token")


@pytest.mark.parametrize("content", ["", "\n", "two words", "t\x00k", "t\u00f6k", "x" * 70_000])
def test_what_is_no_token_is_refused(ready, tmp_path, content):
    assert "holds no token" in told(ready, token_file=put(tmp_path / "token", content))


def test_a_namespace_that_is_none_is_named(ready, tmp_path):
    assert "namespace: 'A/b' is not" in told(ready, token_file=put(tmp_path / "token"), namespace="A/b")


def test_before_anything_is_installed_it_says_so(unit, tmp_path):
    assert "is not installed yet" in told(unit, token_file=put(tmp_path / "token"))


@pytest.fixture
def answers(tmp_path) -> Iterator[tuple[_Way, list[bytes]]]:
    """A token's way to a server that answers every question with the first of a list."""
    given: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(201)
            self.send_header("Content-Length", str(len(given[0])))
            self.end_headers()
            self.wfile.write(given[0])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        config = CharmConfig(keystone_url="https://keystone.example", api_server="manual")
        config = config.model_copy(update={"kubernetes_url": f"http://127.0.0.1:{server.server_address[1]}"})
        place = apiserver.Place(tmp_path)
        yield _Way(None, place, config, TOKEN, "default"), given  # pyright: ignore[reportArgumentType]
        server.shutdown()


@pytest.mark.parametrize(
    "answer",
    [
        "", "null", "[]", pytest.param("[" * 100_000, id="deep"), '{"status": []}', '{"status": "x"}',
        '{"status": {"userInfo": ["alice"], "allowed": "perhaps"}}',
        '{"status": {"userInfo": {"username": ["alice"], "groups": 3}, "resourceRules": 3}}',
        '{"status": {"userInfo": {"username": "a", "groups": "b"}, "resourceRules": ["x", {"verbs": 3}]}}',
    ],
)  # fmt: skip
def test_whatever_stands_in_the_api_servers_place_the_action_says_where_the_way_ends(answers, answer):
    way, given = answers
    given.append(answer.encode())
    for step in (way.api_server, way.access):
        with pytest.raises(Stopped, match="is not understood"):
            step()


def test_what_an_api_server_leaves_out_is_nothing(answers):
    way, given = answers
    given.append(b'{"kind": "x", "status": {"userInfo": {}, "resourceRules": null, "more": 1}}')
    assert way.api_server() == ""
    assert way.access().startswith("nothing of what was asked")
    given[0] = (
        b'{"status": {"allowed": true, "resourceRules": [{"verbs": ["get"]}, {"verbs": null, "resources": ["pods"]}]}}'
    )
    assert way.access() == "see what it may do in the namespace default"
    assert way.found["rbac-rules"] == ": pods"
