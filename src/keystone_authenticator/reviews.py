"""TokenReview and SubjectAccessReview at the edge: JSON in, small typed values inside, JSON out, in `v1` and `v1beta1`.

Answers are given in the version that was asked in. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from keystone_authenticator import document
from keystone_authenticator.identity import Identity, Marks
from keystone_authenticator.policy import Request

AUTHENTICATION = "authentication.k8s.io/"
AUTHORIZATION = "authorization.k8s.io/"
VERSIONS = ("v1", "v1beta1")
_LONGEST_ERROR = 300


class NotAReview(Exception):
    """The body is no review that can be answered; the message goes to the caller with a 400."""


class TokenReview(NamedTuple):
    """Who is the holder of this token? `audiences` is empty where none were asked for."""

    version: str
    token: str
    audiences: tuple[str, ...]


class AccessReview(NamedTuple):
    """May this user do this? `request` is None where the review does not say what; `body` is the review as it came."""

    version: str
    username: str
    uid: str
    groups: Sequence[str]
    marks: Marks
    request: Request | None
    body: bytes


@dataclass(frozen=True)
class Verdict:
    """What another webhook answered to a TokenReview: an identity, or none; `error` is its own `status.error`."""

    identity: Identity | None
    audiences: tuple[str, ...] | None
    error: str | None


# What is read of a review; Go writes null for what it has nothing of. Fields that are not here are passed over.


class _ResourceAttributes(msgspec.Struct, gc=False):
    verb: str | None = None
    namespace: str | None = None
    group: str | None = None
    resource: str | None = None
    subresource: str | None = None
    name: str | None = None
    version: str | None = None


class _NonResourceAttributes(msgspec.Struct, gc=False):
    verb: str | None = None
    path: str | None = None


class _Spec(msgspec.Struct, rename="camel", gc=False):
    token: str | None = None
    audiences: tuple[str, ...] | None = None
    user: str | None = None
    uid: str | None = None
    groups: tuple[str, ...] | None = None
    group: tuple[str, ...] | None = None  # what `v1beta1` calls them
    extra: Marks | None = None
    resource_attributes: _ResourceAttributes | None = None
    non_resource_attributes: _NonResourceAttributes | None = None


class _Review(msgspec.Struct, rename="camel", gc=False):
    kind: str
    api_version: str
    spec: _Spec | None = None


_read = document.decoder(_Review)
_UNMARKED = Marks()
_TOKEN_REVIEWS = {AUTHENTICATION + version: version for version in VERSIONS}
_ACCESS_REVIEWS = {AUTHORIZATION + version: version for version in VERSIONS}


def parse(body: bytes) -> TokenReview | AccessReview:
    """Read a review.

    Raises:
        NotAReview: anything else.

    """
    try:
        review = _read(body)
    except document.NotOfType as error:
        raise NotAReview(f"not a review: {error}") from None
    except document.NotJson as error:
        raise NotAReview(f"the body is not JSON: {error}") from None
    kind, api_version, spec = review.kind, review.api_version, review.spec or _Spec()
    if kind == "SubjectAccessReview" and api_version in _ACCESS_REVIEWS:
        version = _ACCESS_REVIEWS[api_version]
        return AccessReview(
            version,
            spec.user or "",
            spec.uid or "",
            (spec.groups if version == "v1" else spec.group) or (),
            spec.extra or _UNMARKED,
            _request(spec),
            body,
        )
    if kind == "TokenReview" and api_version in _TOKEN_REVIEWS:
        return TokenReview(_TOKEN_REVIEWS[api_version], spec.token or "", spec.audiences or ())
    raise NotAReview("expected a TokenReview or SubjectAccessReview of its own API group, v1 or v1beta1")


def _request(spec: _Spec) -> Request | None:
    asked = spec.resource_attributes
    if asked is not None:
        return Request(
            True,
            asked.verb or "",
            asked.namespace or "",
            asked.group or "",
            asked.resource or "",
            asked.subresource or "",
            "",
            asked.name or "",
            asked.version or "",
        )
    path = spec.non_resource_attributes
    return None if path is None else Request(False, path.verb or "", path=path.path or "")


# ----------------------------------------------------------------------------------------------------------------
# answers


def _token_review(version: str, status: dict[str, Any]) -> bytes:
    return document.encode({"apiVersion": AUTHENTICATION + version, "kind": "TokenReview", "status": status})


def _access_review(version: str, status: dict[str, Any]) -> bytes:
    return document.encode({"apiVersion": AUTHORIZATION + version, "kind": "SubjectAccessReview", "status": status})


def authenticated(version: str, identity: Identity, audiences: Sequence[str] = ()) -> bytes:
    """Who it is; without `audiences` the API server takes the token for its own, which Keystone's are good for."""
    if not audiences:
        answer = identity.answers.get(version)
        if answer is not None:
            return answer
    user: dict[str, Any] = {"username": identity.username, "groups": identity.groups, "extra": dict(identity.extra)}
    if identity.uid:
        user["uid"] = identity.uid
    status: dict[str, Any] = {"authenticated": True, "user": user}
    if audiences:
        return _token_review(version, {**status, "audiences": audiences})
    identity.answers[version] = answer = _token_review(version, status)
    return answer


_REFUSED = {version: _token_review(version, {"authenticated": False}) for version in VERSIONS}
_ALLOWED = {version: _access_review(version, {"allowed": True}) for version in VERSIONS}
_NO_OPINION = {version: _access_review(version, {"allowed": False}) for version in VERSIONS}


_YES = {version: _token_review(version, {"authenticated": True}).removesuffix(b"}}") for version in VERSIONS}


def token_result(version: str, answer: bytes) -> int:
    """What an answer to a TokenReview says: 0 who it is, 1 no, 2 cannot tell."""
    if answer.startswith(_YES[version]):
        return 0
    return 1 if answer is _REFUSED[version] else 2


def access_result(version: str, answer: bytes) -> int:
    """What an answer to an access review says: 0 yes, 1 no opinion, 2 cannot tell."""
    if answer is _NO_OPINION[version]:
        return 1
    return 0 if answer is _ALLOWED[version] else 2


def refused(version: str) -> bytes:
    """A final no: the API server caches it."""
    return _REFUSED[version]


def cannot_tell(version: str, reason: str) -> bytes:
    """Neither yes nor no: `status.error` keeps the API server from caching it."""
    return _token_review(version, {"authenticated": False, "error": reason[:_LONGEST_ERROR]})


def allowed(version: str) -> bytes:
    """Yes."""
    return _ALLOWED[version]


def no_opinion(version: str, error: str | None = None) -> bytes:
    """Not allowed here, and not denied: the API server asks its next authorizer."""
    if error is None:
        return _NO_OPINION[version]
    return _access_review(version, {"allowed": False, "evaluationError": error[:_LONGEST_ERROR]})


# -------------------------------------------------------------------------------- reviews passed on to other webhooks


def token_review(version: str, token: str, audiences: Sequence[str]) -> bytes:
    """A TokenReview to be sent to another webhook."""
    spec: dict[str, Any] = {"token": token}
    if audiences:
        spec["audiences"] = audiences
    return document.encode({"apiVersion": AUTHENTICATION + version, "kind": "TokenReview", "spec": spec})


def access_review_v1beta1(review: AccessReview) -> bytes:
    """An access review to be sent to k8s-keystone-auth, which knows `v1beta1` only and needs the groups to be there."""
    asked = document.decode(review.body)["spec"]
    spec = {key: value for key, value in asked.items() if key not in ("groups", "group")}
    spec["group"] = review.groups
    spec.setdefault("extra", {})
    return document.encode({"apiVersion": f"{AUTHORIZATION}v1beta1", "kind": "SubjectAccessReview", "spec": spec})


class _User(msgspec.Struct):
    username: str = ""
    uid: str | None = None
    groups: tuple[str, ...] | None = None
    extra: dict[str, tuple[str, ...] | None] | None = None


class _Status(msgspec.Struct):
    authenticated: bool | None = None
    user: _User | None = None
    audiences: tuple[str, ...] | None = None
    allowed: bool | None = None
    error: str | None = None


class _Answer(msgspec.Struct):
    kind: str
    status: _Status


_read_answer = document.decoder(_Answer)


def read_verdict(body: bytes) -> Verdict:
    """Read another webhook's answer to a TokenReview.

    Raises:
        NotAReview: it is none, or its user is not one that Kubernetes could use.

    """
    status = _status(body, "TokenReview")
    error, user = status.error or None, status.user
    if not status.authenticated:
        return Verdict(None, None, error)
    if user is None or not user.username:
        raise NotAReview("authenticated, but without a user name")
    extra = tuple((key, values or ()) for key, values in (user.extra or {}).items())
    identity = Identity(user.username, user.uid or "", user.groups or (), extra)
    return Verdict(identity, status.audiences or None, error)


def read_allowed(body: bytes) -> bool:
    """Read another webhook's answer to an access review: whether it allows.

    Raises:
        NotAReview: it is none.

    """
    return _status(body, "SubjectAccessReview").allowed is True


def _status(body: bytes, kind: str) -> _Status:
    try:
        answer = _read_answer(body)
    except document.NotOfType as error:
        raise NotAReview(f"not a {kind} with a status: {error}") from None
    except document.NotJson as error:
        raise NotAReview(f"not JSON: {error}") from None
    if answer.kind != kind:
        raise NotAReview(f"not a {kind} with a status")
    return answer.status
