"""Whatever is sent to the running program, by whomever: a review, a 4xx, and never a fault or somebody else's name."""

from __future__ import annotations

import base64
import contextlib
import copy
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.authenticator.support import (
    OTHER,
    Authority,
    KeystoneStandIn,
    Service,
    StandIn,
    access_review,
    fernet_token,
    replace,
    serving,
    token_body,
    token_review,
)
from tests.unit.authenticator.test_chain import chain_file, kubeconfig

pytestmark = pytest.mark.slow

POLICY = [
    {"users": {"projects": ["demo"], "roles": ["member"]}, "resource_permissions": {"*/*": ["*"], "*/*/*": ["get"]}},
    {"resource": {"verbs": ["*"], "resources": ["*"], "version": "*", "namespace": "*"}, "match": []},
    {"nonresource": {"verbs": ["*"], "path": "*"}, "match": [{"type": "user", "values": ["alice"]}]},
]


class Fuzzed:
    """The program with everything around it, and one connection."""

    def __init__(self, service: Service, keystone: KeystoneStandIn, webhook: StandIn) -> None:
        self.service, self.keystone, self.webhook = service, keystone, webhook
        self._connection = service.connect()

    def post(self, body: bytes, content_type: str = "application/json") -> tuple[int, bytes]:
        with contextlib.suppress(UnicodeError):
            self._connection.request("POST", "/webhook", body, {"Content-Type": content_type})
            response = self._connection.getresponse()
            return response.status, response.read()
        return 400, b""

    def checked(self, body: bytes) -> dict[str, Any] | None:
        """Post a body; gives the status of the review that comes back, of the kind and version asked, or None."""
        code, content = self.post(body)
        assert code in (200, 400), (code, content, body)
        if code == 400:
            assert len(content) < 1000
            return None
        asked, answer = json.loads(body), json.loads(content)
        assert (answer["kind"], answer["apiVersion"]) == (asked["kind"], asked["apiVersion"])
        status = answer["status"]
        if answer["kind"] == "TokenReview":
            assert status["authenticated"] in (True, False)
            assert ("user" in status) is status["authenticated"]
        else:
            assert status["allowed"] in (True, False)
            assert "denied" not in status
        return status


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Fuzzed]:
    folder = tmp_path_factory.mktemp("fuzzed")
    keystone, webhook = KeystoneStandIn(), StandIn(authority.server_context())
    replace(folder / "policy.json", json.dumps(POLICY))
    ca = base64.b64encode(authority.ca.read_bytes()).decode()
    chained = chain_file(kubeconfig(server=webhook.url, **{"certificate-authority-data": ca}), "ttl 0s")
    replace(folder / "chained", chained)
    changes = {"policy": str(folder / "policy.json"), "chained": str(folder / "chained"), "token_cache_ttl": 0}
    with serving(folder, authority, keystone={"url": keystone.url, "ca": None}, outage_grace=0, **changes) as service:
        yield Fuzzed(service, keystone, webhook)
    keystone.close()
    webhook.close()


TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", "v1", "alice", "keystone:alice", "system:masters", "*", "\0", "\u202e", "😀", "a" * 3000]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, base: Callable[[], Any], most: int = 3) -> Any:
    """A value of which some parts are others, gone, or there beside what was there."""
    value = copy.deepcopy(base())
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from([*places(value)]))
        if not path:
            value = draw(JSON) if draw(st.integers(0, 20)) == 0 else value
            continue
        parent: Any = value
        for key in path[:-1]:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "replace", "delete", "add"]))
        if what == "replace":
            parent[path[-1]] = draw(JSON)
        elif what == "delete":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(TEXTS)] = draw(JSON)
        else:
            parent.append(draw(JSON))
    return value


REVIEWS = st.sampled_from(
    [
        lambda: token_review("admin::token", audiences=["a"]),
        lambda: token_review(fernet_token(), "v1beta1"),
        access_review,
        lambda: access_review(version="v1beta1", groups=("keystone:group:ops",), subresource="exec"),
        lambda: access_review(path="/healthz"),
    ]
)
HEALTHY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
FUZZ = settings(max_examples=400, suppress_health_check=HEALTHY)
FUZZ_SLOWLY = settings(max_examples=150, suppress_health_check=HEALTHY)


@FUZZ
@given(st.data())
def test_a_review_of_which_parts_are_changed_is_answered_or_refused(fuzzed: Fuzzed, data: st.DataObject) -> None:
    review = data.draw(mutated(data.draw(REVIEWS)))
    fuzzed.checked(json.dumps(review).encode())


@FUZZ
@given(st.data(), st.integers(0, 900), st.binary(max_size=5), st.integers(0, 3))
def test_a_review_of_which_bytes_are_changed_is_answered_or_refused(
    fuzzed: Fuzzed, data: st.DataObject, position: int, noise: bytes, cut: int
) -> None:
    body = json.dumps(data.draw(REVIEWS)()).encode()
    position %= len(body)
    code, content = fuzzed.post(body[:position] + noise + body[position + cut :])
    assert code in (200, 400), content


@FUZZ_SLOWLY
@given(st.data())
def test_no_bytes_on_the_wire_end_the_program(fuzzed: Fuzzed, data: st.DataObject) -> None:
    """With the API server's certificate, as nobody else comes so far."""
    body = json.dumps(data.draw(REVIEWS)()).encode()
    request = (
        b"POST /webhook HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    whole = request + body
    position = data.draw(st.integers(0, len(whole)))
    service = fuzzed.service
    context = service.authority.client_context(service.client)
    with (
        socket.create_connection(("127.0.0.1", service.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(whole[:position] + data.draw(st.binary(max_size=30)) + whole[position:])
        # What is not a whole request gets no answer yet.
        sock.settimeout(0.1)
        with contextlib.suppress(OSError):
            answer = sock.recv(65536)
            assert not answer or answer.startswith(b"HTTP/1.1 ")
            assert not answer.startswith(b"HTTP/1.1 5")
    assert fuzzed.checked(json.dumps(access_review()).encode()) == {"allowed": True}


@FUZZ_SLOWLY
@given(st.data(), st.sampled_from([200, 201, 401, 500]))
def test_whatever_the_clusters_own_webhook_answers_it_cannot_claim_what_is_ours(
    fuzzed: Fuzzed, data: st.DataObject, code: int
) -> None:
    user = {"username": "admin", "uid": "1", "groups": ["keystone:project:x"], "extra": {"a": ["b"]}}
    status = {"authenticated": True, "user": user, "audiences": ["a"]}
    review = {"apiVersion": "authentication.k8s.io/v1beta1", "kind": "TokenReview", "status": status}
    answer = data.draw(mutated(lambda: review))
    fuzzed.webhook.behaviour = lambda *_: (code, answer)
    found = fuzzed.checked(json.dumps(token_review("admin::token", audiences=["a"])).encode())
    assert found is not None
    if found["authenticated"]:
        seen = found["user"]
        assert not any(name.startswith("keystone:") for name in (seen["username"], *seen["groups"]))
        assert not any(key.startswith("alpha.kubernetes.io/identity/") for key in seen["extra"])
        assert set(found.get("audiences", ())) <= {"a"}


@FUZZ
@given(st.data(), st.sampled_from([200, 200, 200, 401, 404, 500]), st.booleans())
def test_whatever_keystone_answers_its_users_are_keystones(
    fuzzed: Fuzzed, data: st.DataObject, code: int, about_groups: bool
) -> None:
    token = fernet_token()
    rules = [{"id": "r", "service": "kubernetes", "method": "GET", "path": "/**"}]
    credential = data.draw(st.sampled_from([None, {"id": "c", "name": "c", "access_rules": rules}]))
    body = {"token": token_body(domain=OTHER, application_credential=credential)}
    groups = {"groups": [{"id": "g", "name": "ops", "domain_id": OTHER}], "links": {"next": None}}
    changed = data.draw(mutated(lambda: groups if about_groups else body))

    def keystone(method: str, path: str, headers: dict[str, str], _: bytes) -> tuple[int, Any]:
        if ("/groups" in path) is about_groups:
            return code, changed
        return 200, groups if "/groups" in path else body

    fuzzed.keystone.behaviour = keystone
    found = fuzzed.checked(json.dumps(token_review(token)).encode())
    assert found is not None
    assert token not in json.dumps(found)
    if found["authenticated"]:
        for name in (found["user"]["username"], *found["user"]["groups"]):
            assert name.startswith("keystone:")
            assert name.isascii()
            assert not any(character.isspace() for character in name)


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
        ("", 200),
        ("application/vnd.kubernetes.protobuf", 415),
        ("application/yaml", 415),
        ("text/plain", 415),
        ("application/json-patch+json", 415),
    ],
)
def test_other_content_types_are_refused(fuzzed: Fuzzed, content_type: str, code: int) -> None:
    assert fuzzed.post(json.dumps(access_review()).encode(), content_type)[0] == code


@pytest.mark.parametrize("token", ["", None])
def test_a_review_without_a_token_is_told_so(fuzzed: Fuzzed, token: Any) -> None:
    for spec in ({"token": token}, {}, None):
        status = fuzzed.checked(json.dumps({**token_review(""), "spec": spec}).encode())
        assert status == {"authenticated": False, "error": "the review has no token"}


def test_a_body_that_is_too_long_is_a_413_and_the_longest_is_answered(fuzzed: Fuzzed) -> None:
    padding = "x" * (1024 * 1024 - len(json.dumps(token_review(""))))
    assert fuzzed.checked(json.dumps(token_review(padding)).encode()) == {"authenticated": False}
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        assert fuzzed.post(json.dumps(token_review(padding + "x")).encode())[0] == 413
    fresh = Fuzzed(fuzzed.service, fuzzed.keystone, fuzzed.webhook)
    assert fresh.checked(json.dumps(access_review()).encode()) == {"allowed": True}


@pytest.mark.parametrize("selector", [None, {}, {"rawSelector": "a=b"}, {"requirements": [{"key": 1}]}, "x", [1]])
def test_selectors_change_no_verdict(fuzzed: Fuzzed, selector: Any) -> None:
    """A list with selectors is a part of the list: whoever may list all may list it, and nobody else."""
    for review, allowed in ((access_review(verb="list"), True), (access_review("keystone:bob@x", verb="list"), False)):
        for key in ("fieldSelector", "labelSelector"):
            review["spec"]["resourceAttributes"][key] = selector
        assert fuzzed.checked(json.dumps(review).encode()) == {"allowed": allowed}
