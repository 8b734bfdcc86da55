"""A CA behind the other side of the relation `certificates`: charmlibs' own provider answers, in Scenario.

What a requirer has said goes in, what the provider's application says comes out, both as Juju hands them over.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ops
import ops.testing
from charmlibs.interfaces import tls_certificates
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

APPLICATION = "issuer"
ENDPOINT = "certificates"
_META = {"name": APPLICATION, "provides": {ENDPOINT: {"interface": "tls-certificates"}}}
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Signer:
    """A CA with its key, and those above it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @classmethod
    def make(cls, name: str = "a CA", by: Signer | None = None, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> Signer:
        """Make one, signed by itself or by another."""
        key = ec.generate_private_key(curve())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject if by is None else by.certificate.subject, key.public_key(), 3650 * _DAY)
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        above = () if by is None else (by.certificate, *by.above)
        return cls(builder.sign(key if by is None else by.key, hashes.SHA256()), key, above)


@dataclass
class Issuer:
    """What signs, and how; the fields may be changed between two answers.

    Args:
        authority: signs.
        life: of what is signed.
        age: how much of that is over.
        hosts: to be named in place of those that were asked for.
        other_key: whether the certificate is for another key than the one that was asked for.
        shuffled: whether the chain is told in another order than from the leaf up.

    """

    authority: Signer = field(default_factory=Signer.make)
    life: datetime.timedelta = 365 * _DAY
    age: datetime.timedelta = datetime.timedelta()
    hosts: Sequence[x509.GeneralName] | None = None
    other_key: bool = False
    shuffled: bool = False

    def answer(self, said: Mapping[str, str], before: Mapping[str, str] | None = None, **how: bool) -> dict[str, str]:
        """Give what the provider's application says.

        Args:
            said: by a unit of the requirer.
            before: by the provider's application, until now.
            how: `revoke` takes all back, `deny` gives nothing, `again` signs what has a certificate already.

        """
        issuer = self

        class Charm(ops.CharmBase):
            def __init__(self, framework: ops.Framework):
                super().__init__(framework)
                self.provider = tls_certificates.TLSCertificatesProvidesV4(self, ENDPOINT)
                framework.observe(self.on[ENDPOINT].relation_changed, self._on_changed)

            def _on_changed(self, event: ops.RelationChangedEvent) -> None:
                issuer._settle(self.provider, event.relation.id, **how)

        relation = ops.testing.Relation(
            ENDPOINT, remote_units_data={0: dict(said)}, local_app_data=dict(before or {}), remote_app_name="requirer"
        )
        context = ops.testing.Context(Charm, meta=_META)
        state = ops.testing.State(relations={relation}, leader=True)
        after = context.run(context.on.relation_changed(relation), state)
        return dict(after.get_relation(relation.id).local_app_data)

    def _settle(
        self,
        provider: tls_certificates.TLSCertificatesProvidesV4,
        relation: int,
        revoke: bool = False,
        deny: bool = False,
        again: bool = False,
    ) -> None:
        if revoke:
            provider.revoke_all_certificates()
            return
        for request in (
            provider.get_certificate_requests() if again else provider.get_outstanding_certificate_requests()
        ):
            csr = request.certificate_signing_request
            if deny:
                error = tls_certificates.CertificateError(code=101, name="IP_NOT_ALLOWED", message="no addresses here")
                provider.set_relation_error(tls_certificates.ProviderCertificateError(relation, csr, error))
                continue
            leaf = self.sign(x509.load_pem_x509_csr(str(csr).encode()))
            chain = [leaf, self.authority.certificate, *self.authority.above]
            told = [_told(one) for one in (chain[::-1] if self.shuffled else chain)]
            given = tls_certificates.ProviderCertificate(
                relation, _told(leaf), csr, _told(self.authority.certificate), told
            )
            provider.set_relation_certificate(given)

    def sign(self, csr: x509.CertificateSigningRequest) -> x509.Certificate:
        """Sign a request."""
        key = ec.generate_private_key(ec.SECP256R1()).public_key() if self.other_key else csr.public_key()
        builder = _builder(csr.subject, self.authority.certificate.subject, key, self.life, self.age)
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        builder = builder.add_extension(
            names if self.hosts is None else x509.SubjectAlternativeName(self.hosts), critical=False
        )
        return builder.sign(self.authority.key, hashes.SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: object,
    life: datetime.timedelta,
    age: datetime.timedelta = datetime.timedelta(),
) -> x509.CertificateBuilder:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    begins = datetime.datetime.now(datetime.timezone.utc) - age - datetime.timedelta(minutes=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + life)
    )


def _told(certificate: x509.Certificate) -> tls_certificates.Certificate:
    return tls_certificates.Certificate(x509_object=certificate)
