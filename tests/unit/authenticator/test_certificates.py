"""When a certificate ends, read from its file; the library that reads all of it says the same."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from keystone_authenticator import certificates
from tests.unit.authenticator.support import Authority

UTC = datetime.timezone.utc


def made(after: datetime.datetime, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n" * 60)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(datetime.datetime(1990, 1, 1, tzinfo=UTC)).not_valid_after(after)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("year", [1999, 2027, 2049, 2050, 2100])
def test_both_ways_to_write_a_time_are_read(year: int) -> None:
    after = datetime.datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert certificates.ends(made(after)) == after.timestamp()


def test_the_first_of_a_chain_counts_whatever_its_key_and_the_text_around_it(authority: Authority) -> None:
    after = datetime.datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
    leaf = made(after, rsa.generate_private_key(65537, 2048))
    assert certificates.ends(b"subject: x\n" + leaf + authority.ca.read_bytes()) == after.timestamp()


def test_what_is_no_certificate_has_no_end(tmp_path: Path) -> None:
    pem = made(datetime.datetime(2031, 1, 1, tzinfo=UTC))
    lines = pem.splitlines(keepends=True)
    assert certificates.ends(b"") is None
    assert certificates.ends(b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n") is None
    assert certificates.ends(b"".join([*lines[:2], lines[-1]])) is None, "cut short"
    assert certificates.ends(pem.replace(b"MII", b"AAA", 1)) is None
