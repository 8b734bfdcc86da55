"""Keys and certificates as such: issue one, tell whether it is due, who signed it, and whether TLS would take it.

Not here: which of them this unit needs, and where they lie (webhook.py).
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_LONGEST = 10
"""Certificates from a leaf to its CA; nobody has so many."""


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, and those above it that its holder shows as well."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @property
    def shown(self) -> bytes:
        """What its holder shows, as PEM: the certificate first."""
        return b"".join(map(pem, (self.certificate, *self.above)))

    @property
    def key_pem(self) -> bytes:
        """The key, in clear."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a key, of the kind that all certificates of ours have."""
    return ec.generate_private_key(ec.SECP256R1())


def load(certificates: bytes, key: bytes) -> Issued | None:
    """Read a certificate, with those above it, and its key; None unless they belong together."""
    try:
        chain = parse(certificates)
        loaded = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError):
        return None
    if not chain or not isinstance(loaded, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        return None
    if loaded.public_key() != chain[0].public_key():
        return None
    return Issued(chain[0], loaded, tuple(chain[1:]))


def parse(text: bytes) -> list[x509.Certificate]:
    """Read all certificates of a PEM text.

    Raises:
        ValueError: one is none.
    """
    return [x509.load_pem_x509_certificate(block) for block in _BLOCK.findall(text)]


def pem(certificate: x509.Certificate) -> bytes:
    """Write a certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def part_left(certificate: x509.Certificate, now: datetime.datetime) -> float:
    """Give the part of a certificate's life that is left: 1 at its beginning, nothing or less at its end."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return (certificate.not_valid_after_utc - now) / max(life, datetime.timedelta(seconds=1))


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Tell whether one certificate is signed with the other's key."""
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # ValueError, TypeError or InvalidSignature: not signed by it in any case
        return False
    return True


def path(leaf: x509.Certificate, among: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """Give the certificates above a leaf, in order and as far as they are known: the last one is its anchor.

    The order in which they are given does not matter; providers differ in it.
    """
    pool, found = list(among), [leaf]
    while len(found) < _LONGEST and not signed_by(found[-1], found[-1]):
        above = next((one for one in pool if one not in found and signed_by(found[-1], one)), None)
        if above is None:
            break
        found.append(above)
    return found[1:]


def is_address(host: str) -> bool:
    """Tell an IP address from a name."""
    return isinstance(_general_name(host), x509.IPAddress)


def names(certificate: x509.Certificate, hosts: Iterable[str]) -> bool:
    """Tell whether a certificate names all of these hosts."""
    try:
        has = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        has = x509.SubjectAlternativeName([])
    return {_general_name(host) for host in hosts} <= set(has)


def is_common(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate has a key of a kind that every client knows; Go's has no other curves than these."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name in ("secp256r1", "secp384r1", "secp521r1")
    return isinstance(key, (rsa.RSAPublicKey, ed25519.Ed25519PublicKey))


def refusal(server: Issued, anchors: Sequence[x509.Certificate], host: str) -> str:
    """Say why a client that trusts these anchors would not take this server for `host`; empty if it would.

    Not worked out but tried, by a handshake in memory: names, time, chain, usage and key are all in it.
    """
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        accepting, asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), client_context(b"".join(map(pem, anchors)))
        with _in_memory(server.shown) as shown, _in_memory(server.key_pem) as key:
            accepting.load_cert_chain(shown, key)
        sides = [
            asking.wrap_bio(ours, theirs, server_hostname=host),
            accepting.wrap_bio(theirs, ours, server_side=True),
        ]
        for _ in range(_LONGEST):  # messages to and fro: three are enough
            for side in list(sides):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                    sides.remove(side)
            if not sides:
                return ""
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (ssl.SSLError, ValueError) as error:
        return getattr(error, "reason", None) or str(error)
    return "no handshake comes about"


def client_context(anchors: bytes) -> ssl.SSLContext:
    """Make the context of a client that trusts these certificates (PEM) and no others, as Go's does.

    Raises:
        ssl.SSLError: there is none among them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Go takes any certificate of its pool for an anchor, one that is signed by another as well.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.hostname_checks_common_name = False
    context.load_verify_locations(cadata=anchors.decode("ascii"))
    return context


def issue_authority(subject: str, life: datetime.timedelta, now: datetime.datetime) -> Issued:
    """Make a CA with its key."""
    return _issue(subject, None, (), now + life, now)


def issue(
    subject: str, authority: Issued, hosts: tuple[str, ...], life: datetime.timedelta, now: datetime.datetime
) -> Issued:
    """Make a certificate with its key: with hosts a server's, else a client's. None outlives its CA."""
    return _issue(subject, authority, hosts, min(now + life, authority.certificate.not_valid_after_utc), now)


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Give the path of a file without a disk, which no other user can open: the standard library takes files alone."""
    descriptor = os.memfd_create("pki")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            stream.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _issue(
    subject: str, authority: Issued | None, hosts: tuple[str, ...], end: datetime.datetime, now: datetime.datetime
) -> Issued:
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    is_ca = authority is None
    signer = key if authority is None else authority.key
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if authority is None else authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of one machine do not run apart, but they are set back now and then.
        .not_valid_before(now - datetime.timedelta(hours=24))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not is_ca:
        role = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([role]), critical=False)
    if hosts:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
        )
    return Issued(builder.sign(signer, hashes.SHA256()), key)
