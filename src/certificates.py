"""The endpoint's certificate by another charm's word, over the relation `certificates` (interface `tls-certificates`).

Keys, requests and the provider's answers are those of charmlibs' library. Its requirer is not used: that one keeps
what it gets in Juju's secrets, which Juju 2.9 has not, at events of its own, and ends the hook with a traceback at what
is no certificate. Here the request lies in the unit's data and its key on this machine alone, with every version of
Juju, and each reconcile looks at both. What is said over the relation is the interface's version 1
(canonical/charmlibs, interfaces/tls-certificates); a test has the library's provider answer.

Not here: which certificate is put in force, and when (webhook.py).
"""

from __future__ import annotations

import datetime
import json
import logging
from dataclasses import dataclass
from typing import Any

import ops
import pydantic
from charmlibs.interfaces.tls_certificates import (
    CertificateRequestAttributes,
    CertificateSigningRequest,
    PrivateKey,
    TLSCertificatesError,
)

import files
import pki
from config import Listen
from files import Places

logger = logging.getLogger(__name__)

RELATION = "certificates"
RENEW_AT = 1 / 3
"""The part of a certificate's life that is left when another one is asked for."""
NEARLY_OVER = 1 / 20
"""The part of its life that is left when a certificate is no longer relied on."""
ASK_AGAIN = datetime.timedelta(hours=1)
"""From one request to the next at the earliest: a provider may give the same old certificate again and again."""
_KEY = "certificate_signing_requests"
_MOST = 200


@dataclass(frozen=True)
class Offer:
    """What the provider has to offer.

    Args:
        related: whether there is a provider. Then what it gave before stays in force while it is good.
        server: a certificate that can be put in force now.
        revoked: certificates (PEM) that the provider has taken back.
        problem: for the status; empty where all is well.
    """

    related: bool = False
    server: pki.Issued | None = None
    revoked: frozenset[bytes] = frozenset()
    problem: str = ""


NO_OFFER = Offer()


class _Certificate(pydantic.BaseModel, frozen=True):
    certificate_signing_request: str
    certificate: str
    ca: str
    chain: tuple[str, ...] | None = None
    revoked: bool | None = None


class _Error(pydantic.BaseModel, frozen=True):
    message: str = ""
    reason: str | None = None


class _RequestError(pydantic.BaseModel, frozen=True):
    csr: str
    error: _Error


class _Provider(pydantic.BaseModel, frozen=True):
    certificates: tuple[_Certificate, ...] = ()
    request_errors: tuple[_RequestError, ...] = ()


def offered(model: ops.Model, places: Places, listen: Listen, now: datetime.datetime | None = None) -> Offer:
    """Ask the provider for a certificate of the endpoint, unless that has been done, and say what it has given.

    Args:
        model: with the relation, if there is one.
        places: where; the folder `places.tls` must exist.
        listen: the endpoint's address, which the certificate has to name.
        now: the time, for tests.
    """
    now = now or datetime.datetime.now(datetime.timezone.utc)
    relation = next((one for one in model.relations[RELATION] if one.active), None)
    if relation is None:
        files.remove(places.requested_key)
        return Offer()
    try:
        ours, theirs = relation.data[model.unit], dict(relation.data[relation.app])
    except ops.ModelError as error:
        # The relation is there for the application before it is for the unit; its own event comes yet.
        logger.info("a certificate is asked for later: %s", error)
        return Offer(related=True)
    who = relation.app.name
    try:
        told = _Provider.model_validate(
            {name: json.loads(theirs[name]) for name in _Provider.model_fields if name in theirs}
        )
    except ValueError as error:
        logger.debug("what %s says: %s", who, error)
        return Offer(related=True, problem=f"what {who} says is not this interface's; what was in force still is")
    request = _request(places, listen, ours.get(_KEY, ""))
    if request is None:
        request = _ask(places, listen, ours)
    found = [one for one in told.certificates if _same(one.certificate_signing_request, str(request.csr))]
    revoked = frozenset(_pem(one.certificate) for one in found if one.revoked)
    good = next((one for one in found if not one.revoked), None)
    if good is None:
        denied = next((one.error for one in told.request_errors if _same(one.csr, str(request.csr))), None)
        if denied is not None:
            why = " ".join(f"{denied.message} {denied.reason or ''}".split())[:_MOST]
            return Offer(True, None, revoked, f"{who} gives none: {why}; what was in force still is")
        if revoked and _may_ask_again(places, now):
            _ask(places, listen, ours)
        return Offer(True, None, revoked, "" if revoked else f"{who} has given none yet; what was in force still is")
    try:
        server, problem = _checked(good, request.key, listen, now), ""
    except _NotUsed as error:
        server, problem = None, f"what {who} gives is not used ({error}); what was in force still is"
    if _part_left(good, now) < RENEW_AT and _may_ask_again(places, now):
        logger.info("%s is asked for another certificate: this one comes to its end", who)
        _ask(places, listen, ours)
    return Offer(True, server, revoked, problem)


@dataclass(frozen=True)
class _Request:
    csr: CertificateSigningRequest
    key: PrivateKey


def _attributes(listen: Listen) -> CertificateRequestAttributes:
    # The common name is one that Vault allows by itself. No other host is ever asked for, so none is to be named.
    hosts = {"127.0.0.1", "localhost", listen.host}
    addresses = {host for host in hosts if pki.is_address(host)}
    return CertificateRequestAttributes(common_name="localhost", sans_dns=hosts - addresses, sans_ip=addresses)


def _request(places: Places, listen: Listen, said: str) -> _Request | None:
    """Give the request that has been made; None if there is none for this address, or its key is not there."""
    try:
        key = PrivateKey.from_string(places.requested_key.read_text(encoding="ascii"))
        requests: Any = json.loads(said)
        for one in requests:
            csr = CertificateSigningRequest.from_string(one["certificate_signing_request"])
            if csr.matches_private_key(key) and CertificateRequestAttributes.from_csr(csr, False) == _attributes(
                listen
            ):
                return _Request(csr, key)
    except (OSError, ValueError, KeyError, TypeError, TLSCertificatesError):
        return None
    return None


def _ask(places: Places, listen: Listen, ours: ops.RelationDataContent) -> _Request:
    """Ask for a certificate with a key of its own; only one is ever asked for."""
    key = PrivateKey(x509_object=pki.new_key())
    csr = _attributes(listen).generate_csr(key)
    # The key first: if this hook fails later, Juju forgets what was said, and the next one asks again.
    files.write(places.requested_key, str(key).encode("ascii") + b"\n", 0o600)
    ours[_KEY] = json.dumps([{"certificate_signing_request": str(csr), "ca": False}])
    return _Request(csr, key)


def _may_ask_again(places: Places, now: datetime.datetime) -> bool:
    asked = datetime.datetime.fromtimestamp(places.requested_key.stat().st_mtime, datetime.timezone.utc)
    return abs(now - asked) >= ASK_AGAIN


class _NotUsed(Exception):
    """A certificate cannot be put in force; the text says why."""


def _checked(given: _Certificate, key: PrivateKey, listen: Listen, now: datetime.datetime) -> pki.Issued:
    """Give what can be put in force: tried as a client would that trusts nothing but its CA.

    Raises:
        _NotUsed: it cannot.
    """
    try:
        leaf, *_ = pki.parse(given.certificate.encode())
        among = [one for text in (given.ca, *(given.chain or ())) for one in pki.parse(text.encode())]
    except ValueError as error:
        raise _NotUsed(f"no certificate: {str(error)[:_MOST]}") from None
    above = pki.path(leaf, among)
    if not above:
        raise _NotUsed("its CA has not signed it")
    if not all(map(pki.is_common, above)):
        raise _NotUsed("its CA has a key of a kind that an API server does not know")
    server = pki.load(b"".join(map(pki.pem, (leaf, *above))), str(key).encode("ascii"))
    if server is None:
        raise _NotUsed("it is for another key than the one that was asked for")
    problem = pki.refusal(server, above[-1:], listen.host)
    if problem:
        raise _NotUsed(problem)
    if pki.part_left(leaf, now) <= NEARLY_OVER:
        raise _NotUsed("it has come to its end")
    return server


def _part_left(given: _Certificate, now: datetime.datetime) -> float:
    try:
        return pki.part_left(pki.parse(given.certificate.encode())[0], now)
    except (ValueError, IndexError):
        return 1.0  # whatever it is, it does not end


def _same(one: str, other: str) -> bool:
    return one.split() == other.split()


def _pem(text: str) -> bytes:
    try:
        return b"".join(map(pki.pem, pki.parse(text.encode())[:1]))
    except ValueError:
        return b""
