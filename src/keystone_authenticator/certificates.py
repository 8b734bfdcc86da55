"""When certificates end, for `/metrics`: that is all that is read from them here. Whether they are good, TLS judges.

The standard library tells the end of a peer's certificate and of CAs, but not of one's own; a library that reads
certificates would be the largest part of the service.
"""

from __future__ import annotations

import binascii
import ssl
from datetime import datetime, timezone

_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17


def ends(pem: bytes) -> float | None:
    """When the first certificate of a PEM file ends, in seconds of the epoch; None if that cannot be told."""
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    try:
        der = binascii.a2b_base64(pem[pem.index(begin) + len(begin) : pem.index(end)])
        return _not_after(der)
    except (ValueError, IndexError, UnicodeDecodeError):
        return None


def last_authority_ends(context: ssl.SSLContext) -> float | None:
    """When the last of the CAs that a context trusts ends; None if it trusts none."""
    all_ends = [ssl.cert_time_to_seconds(str(authority["notAfter"])) for authority in context.get_ca_certs()]
    return max(all_ends, default=None)


def _not_after(der: bytes) -> float:
    # RFC 5280, 4.1: Certificate{tbsCertificate{[0] version, serialNumber, signature, issuer, validity{notBefore,
    # notAfter} …}}
    _, at, _ = _element(der, 0)
    _, at, _ = _element(der, at)
    tag, start, after = _element(der, at)
    for _ in range(4 if tag == _VERSION else 3):
        at = after
        tag, start, after = _element(der, at)
    if tag != _SEQUENCE:
        raise ValueError("no validity where it should be")
    _, _, at = _element(der, start)
    tag, start, after = _element(der, at)
    text = der[start:after].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the element at this place, where its content begins, and where what follows it does."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        digits = length & 0x7F
        length, start = int.from_bytes(der[start : start + digits], "big"), start + digits
    if start + length > len(der):
        raise ValueError("cut short")
    return tag, start, start + length
