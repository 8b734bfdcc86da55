"""Whatever comes, it is a review or it is refused; whatever goes is one in the version that was asked."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone_authenticator import reviews
from keystone_authenticator.identity import Identity, Marks
from keystone_authenticator.reviews import AccessReview, NotAReview, TokenReview, parse
from tests.unit.authenticator.support import access_review, token_review

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def encoded(data: Any) -> bytes:
    return json.dumps(data).encode()


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_token_review_is_read(version: str) -> None:
    review = parse(encoded(token_review("t", version, audiences=["a", "b"])))
    assert review == TokenReview(version, "t", ("a", "b"))


def test_groups_are_where_each_version_has_them() -> None:
    new = parse(encoded(access_review(groups=("ops",), version="v1")))
    old = parse(encoded(access_review(groups=("ops",), version="v1beta1")))
    assert isinstance(new, AccessReview)
    assert isinstance(old, AccessReview)
    assert list(new.groups) == list(old.groups) == ["ops", "system:authenticated"]


def test_missing_parts_are_empty() -> None:
    bare = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
    for review in (
        bare,
        {**bare, "spec": None},
        {**bare, "spec": {}},
        {**bare, "spec": {"groups": None, "extra": None}},
        {**bare, "spec": {"extra": {"alpha.kubernetes.io/identity/roles": None}}},
    ):
        parsed = parse(encoded(review))
        assert isinstance(parsed, AccessReview)
        assert (parsed.username, list(parsed.groups), parsed.marks, parsed.request) == ("", [], Marks(), None)


def test_selectors_do_not_disturb() -> None:
    review = access_review()
    review["spec"]["resourceAttributes"]["fieldSelector"] = {"rawSelector": "a=b"}
    review["spec"]["resourceAttributes"]["labelSelector"] = {"requirements": [{"key": "a", "operator": "Exists"}]}
    parsed = parse(encoded(review))
    assert isinstance(parsed, AccessReview)
    assert parsed.request is not None
    assert parsed.request.resource == "pods"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"{",
        b'{"kind": "TokenReview"}',
        encoded({**token_review("t"), "apiVersion": "authentication.k8s.io/v2"}),
        encoded({**token_review("t"), "apiVersion": "authorization.k8s.io/v1"}),
        encoded({**token_review("t"), "apiVersion": "v1"}),
        encoded({**token_review("t"), "kind": "SelfSubjectReview"}),
        encoded({**token_review("t"), "kind": 3}),
        encoded({**token_review("t"), "spec": []}),
        encoded(token_review(3)),
        encoded(token_review("t", audiences="a")),
        encoded(token_review("t", audiences=[1])),
        b'{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":"\\ud800"}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_review_is_refused(body: bytes) -> None:
    with pytest.raises(NotAReview):
        parse(body)


@given(JSON, JSON, JSON)
def test_nothing_else_ever_happens(one: Any, two: Any, three: Any) -> None:
    for base in (token_review("t"), access_review(), access_review(version="v1beta1")):
        for data in (
            one,
            {**base, "spec": one},
            {**base, "spec": {**base["spec"], "resourceAttributes": one, "extra": two, "groups": three}},
            {**base, "spec": {**base["spec"], "nonResourceAttributes": one, "token": two, "audiences": three}},
            {**base, "apiVersion": one, "kind": two},
        ):
            with contextlib.suppress(NotAReview):
                parse(encoded(data))


WHO = Identity("keystone:a", "u1", ("g",), (("k", ("v",)),))


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_answers_are_reviews_in_the_version_asked(version: str) -> None:
    answer = json.loads(reviews.authenticated(version, WHO))
    assert answer == {
        "apiVersion": f"authentication.k8s.io/{version}",
        "kind": "TokenReview",
        "status": {
            "authenticated": True,
            "user": {"username": "keystone:a", "uid": "u1", "groups": ["g"], "extra": {"k": ["v"]}},
        },
    }
    assert json.loads(reviews.refused(version))["status"] == {"authenticated": False}
    assert json.loads(reviews.cannot_tell(version, "why"))["status"] == {"authenticated": False, "error": "why"}
    assert json.loads(reviews.allowed(version))["status"] == {"allowed": True}
    assert json.loads(reviews.no_opinion(version))["status"] == {"allowed": False}
    assert json.loads(reviews.allowed(version))["apiVersion"] == f"authorization.k8s.io/{version}"


def test_an_answer_with_audiences_is_not_kept_as_the_one_without() -> None:
    with_audience = json.loads(reviews.authenticated("v1", WHO, ["a"]))
    assert with_audience["status"]["audiences"] == ["a"]
    assert "audiences" not in json.loads(reviews.authenticated("v1", WHO))["status"]


def test_a_review_for_upstream_is_v1beta1_and_always_has_groups_and_extra() -> None:
    review = access_review(groups=("ops",))
    del review["spec"]["extra"]
    del review["spec"]["groups"]
    parsed = parse(encoded(review))
    assert isinstance(parsed, AccessReview)
    sent = json.loads(reviews.access_review_v1beta1(parsed))
    assert sent["apiVersion"] == "authorization.k8s.io/v1beta1"
    assert sent["spec"]["group"] == []
    assert sent["spec"]["extra"] == {}
    assert "groups" not in sent["spec"]


@given(JSON)
def test_another_webhooks_answer_is_read_or_refused(status: Any) -> None:
    for answer in (
        status,
        {"kind": "TokenReview", "status": status},
        {"kind": "TokenReview", "status": {"user": status}},
    ):
        with contextlib.suppress(NotAReview):
            verdict = reviews.read_verdict(encoded(answer))
            assert verdict.identity is None or verdict.identity.username
