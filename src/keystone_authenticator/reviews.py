"""TokenReview and SubjectAccessReview at the edge: JSON in, small typed values inside, JSON out, in `v1` and `v1beta1`.

Answers are given in the version that was asked in. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from keystone_authenticator.identity import Identity
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
    """May this user do this? `request` is None where the review does not say what."""

    version: str
    username: str
    uid: str
    groups: Sequence[str]
    extra: Mapping[str, Sequence[str]]
    request: Request | None
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What another webhook answered to a TokenReview: an identity, or none; `error` is its own `status.error`."""

    identity: Identity | None
    audiences: tuple[str, ...] | None
    error: str | None


def parse(body: bytes) -> TokenReview | AccessReview:
    """Read a review.

    Raises:
        NotAReview: anything else.

    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise NotAReview("the body is not JSON") from None
    if not isinstance(data, dict):
        raise NotAReview("the body is not a JSON object")
    kind, api_version = data.get("kind"), data.get("apiVersion")
    if not isinstance(api_version, str) or not isinstance(kind, str):
        raise NotAReview("kind and apiVersion must be texts")
    group, version = api_version.rpartition("/")[::2]
    group += "/"
    if version not in VERSIONS:
        raise NotAReview("unknown apiVersion, expected v1 or v1beta1 of authentication.k8s.io or authorization.k8s.io")
    spec = data.get("spec", {})
    if spec is None:
        spec = {}
    if not isinstance(spec, dict):
        raise NotAReview("spec must be an object")
    if kind == "TokenReview" and group == AUTHENTICATION:
        return TokenReview(version, _text(spec, "token"), tuple(_texts(spec, "audiences")))
    if kind == "SubjectAccessReview" and group == AUTHORIZATION:
        return AccessReview(
            version,
            _text(spec, "user"),
            _text(spec, "uid"),
            _texts(spec, "groups" if version == "v1" else "group"),
            _extra(spec),
            _request(spec),
            spec,
        )
    raise NotAReview("unknown kind, expected TokenReview or SubjectAccessReview in its own API group")


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise NotAReview(f"{key} must be a text")
    return value


def _texts(data: Mapping[str, Any], key: str) -> Sequence[str]:
    values = data.get(key)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise NotAReview(f"{key} must be a list of texts")
    for value in values:
        if not isinstance(value, str):
            raise NotAReview(f"{key} must be a list of texts")
    return values


def _extra(data: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    extra = data.get("extra")
    if extra is None:
        return {}
    if not isinstance(extra, dict):
        raise NotAReview("extra must be an object")
    return {key: _texts(extra, key) for key in extra}


def _request(spec: Mapping[str, Any]) -> Request | None:
    attributes = spec.get("resourceAttributes")
    if attributes is not None:
        if not isinstance(attributes, dict):
            raise NotAReview("resourceAttributes must be an object")
        return Request(
            True,
            _text(attributes, "verb"),
            _text(attributes, "namespace"),
            _text(attributes, "group"),
            _text(attributes, "resource"),
            _text(attributes, "subresource"),
            "",
            _text(attributes, "name"),
            _text(attributes, "version"),
        )
    attributes = spec.get("nonResourceAttributes")
    if attributes is not None:
        if not isinstance(attributes, dict):
            raise NotAReview("nonResourceAttributes must be an object")
        return Request(False, _text(attributes, "verb"), path=_text(attributes, "path"))
    return None


# ----------------------------------------------------------------------------------------------------------------
# answers


def _token_review(version: str, status: dict[str, Any]) -> bytes:
    return orjson.dumps({"apiVersion": AUTHENTICATION + version, "kind": "TokenReview", "status": status})


def _access_review(version: str, status: dict[str, Any]) -> bytes:
    return orjson.dumps({"apiVersion": AUTHORIZATION + version, "kind": "SubjectAccessReview", "status": status})


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
    return orjson.dumps({"apiVersion": AUTHENTICATION + version, "kind": "TokenReview", "spec": spec})


def access_review_v1beta1(review: AccessReview) -> bytes:
    """An access review to be sent to k8s-keystone-auth, which knows `v1beta1` only and needs the groups to be there."""
    spec = {key: value for key, value in review.spec.items() if key not in ("groups", "group")}
    spec["group"] = review.groups
    spec.setdefault("extra", {})
    return orjson.dumps({"apiVersion": f"{AUTHORIZATION}v1beta1", "kind": "SubjectAccessReview", "spec": spec})


def read_verdict(body: bytes) -> Verdict:
    """Read another webhook's answer to a TokenReview.

    Raises:
        NotAReview: it is none, or its user is not one that Kubernetes could use.

    """
    status = _status(body, "TokenReview")
    error = _text(status, "error") or None
    if status.get("authenticated") is not True:
        return Verdict(None, None, error)
    user = status.get("user")
    if not isinstance(user, dict) or not _text(user, "username"):
        raise NotAReview("authenticated, but without a user name")
    extra = tuple((key, tuple(values)) for key, values in _extra(user).items())
    identity = Identity(_text(user, "username"), _text(user, "uid"), tuple(_texts(user, "groups")), extra)
    audiences = tuple(_texts(status, "audiences")) if status.get("audiences") else None
    return Verdict(identity, audiences, error)


def read_allowed(body: bytes) -> bool:
    """Read another webhook's answer to an access review: whether it allows.

    Raises:
        NotAReview: it is none.

    """
    return _status(body, "SubjectAccessReview").get("allowed") is True


def _status(body: bytes, kind: str) -> Mapping[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise NotAReview("not JSON") from None
    if not isinstance(data, dict) or data.get("kind") != kind or not isinstance(data.get("status"), dict):
        raise NotAReview(f"not a {kind} with a status")
    return data["status"]
