"""The local endpoint's certificates, the kubeconfigs by which an API server reaches it, and a review over one of them.

A CA of this unit's own signs the endpoint's certificate, one for an upstream authenticator behind it, and the API
server's client certificate. Whatever is missing, broken, about to expire or made for another address is made anew.

Not here: which flags name the kubeconfigs (apiserver), and who serves the endpoint (authenticator.py).
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import re
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import files
from apiserver.byhand import Endpoint
from config import Listen
from errors import Waiting
from files import Places

CA_DAYS = 3653
LEAF_DAYS = 731
RENEW_DAYS = 30
"""A certificate with less life left than this is made anew."""
_NAMES = ("127.0.0.1", "localhost")
_CHAINED_SAYS = "the cluster's own token webhook says: "
"""How the authenticator begins an error that is the displaced webhook's own answer (`chain.SAYS`; a test compares)."""
_CANNOT_TELL = "the authenticator cannot tell about the cluster's own token: "


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Tls:
    """The TLS material of this unit.

    Args:
        ca: the CA's certificate (its key stays with root).
        server: of the endpoint, readable by the service.
        upstream: of an upstream authenticator behind it, readable by the service.
        client: of the API server, root's alone.
    """

    ca: Path
    server: Pair
    upstream: Pair
    client: Pair


def ensure_tls(places: Places, listen: Listen, group: int, now: datetime.datetime | None = None) -> Tls:
    """Make what is missing or no longer good of the certificates; do nothing where all is well.

    Args:
        places: where; the folder `places.tls` must exist.
        listen: the endpoint's address, which its certificate must name.
        group: the ID of the service's group.
        now: the time, for tests.
    """
    now = now or datetime.datetime.now(datetime.timezone.utc)
    authority = _load(_pair(places, "ca"))
    if authority is None or _expires(authority, now):
        authority = _issue("kubernetes-keystone CA", None, (), now)
        _save(_pair(places, "ca"), authority, key_mode=0o600, group=group)
    names = tuple(dict.fromkeys((*_NAMES, listen.host)))
    for name, subject, hosts, mode in (
        ("server", "kubernetes-keystone", names, 0o640),
        ("upstream", "k8s-keystone-auth", _NAMES, 0o640),
        ("client", "kubernetes-keystone:kube-apiserver", (), 0o600),
    ):
        have = _load(_pair(places, name))
        if have is None or _expires(have, now) or not _signed_by(have, authority) or not _covers(have, hosts):
            have = _issue(subject, authority, hosts, now)
        _save(_pair(places, name), have, key_mode=mode, group=group)
    return tls(places)


def tls(places: Places) -> Tls:
    """Say where the material lies; make nothing. A new CA is for the reconcile alone: the API server has to know it."""
    return Tls(
        _pair(places, "ca").certificate, _pair(places, "server"), _pair(places, "upstream"), _pair(places, "client")
    )


def has_authority(places: Places) -> bool:
    """Tell whether the CA that an API server may know already is there and stays; a new one has to reach it first."""
    authority = _load(_pair(places, "ca"))
    return authority is not None and not _expires(authority, datetime.datetime.now(datetime.timezone.utc))


def kubeconfig(places: Places, tls: Tls, listen: Listen, *, with_client: bool) -> bytes:
    """Render the kubeconfig of the webhook, everything inline; the same material gives the same bytes.

    Args:
        places: where the templates are.
        tls: from `ensure_tls`.
        listen: the endpoint.
        with_client: whether the API server shows a client certificate; not where the text passes through other hands.
    """
    values = {
        "server": listen.url,
        "ca": _base64(tls.ca),
        "certificate": _base64(tls.client.certificate) if with_client else "",
        "key": _base64(tls.client.key) if with_client else "",
    }
    return files.render(places.templates, "webhook-kubeconfig.yaml", values).encode()


def endpoint(tls: Tls, listen: Listen) -> Endpoint:
    """Say what an API server that somebody sets by hand should ask, and by which certificates."""
    return Endpoint(listen.url, tls.ca.read_bytes(), tls.client.certificate.read_bytes())


def without_key(text: str) -> str:
    """Give a kubeconfig's text with the private key left out, to be shown."""
    return re.sub(r'(client-key-data: )"[^"]*"', r"\1<not shown>", text)


class NoAnswer(Exception):
    """The endpoint does not answer a review as it should; the text says how that showed."""


def ask(kubeconfig: bytes, token: str) -> dict[str, Any]:
    """Have a token reviewed over a kubeconfig as an API server would; give the review's `status`.

    Raises:
        NoAnswer: there is none.
    """
    document = yaml.safe_load(kubeconfig)
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    with tempfile.TemporaryDirectory() as scratch, requests.Session() as session:
        session.trust_env = False
        for name, data in (
            ("ca", cluster["certificate-authority-data"]),
            ("certificate", user["client-certificate-data"]),
            ("key", user["client-key-data"]),
        ):
            Path(scratch, name).write_bytes(base64.b64decode(data))
        session.verify, session.cert = f"{scratch}/ca", (f"{scratch}/certificate", f"{scratch}/key")
        try:
            answer = session.post(cluster["server"], json=body, timeout=30, allow_redirects=False)
            status = answer.json()["status"]
            if not isinstance(status, dict):
                raise TypeError("no status")
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            # The message of requests names the URL; the token is in the body, which no message shows.
            raise NoAnswer(f"{type(error).__name__}: {error}") from None
    return status


def probe(kubeconfig: bytes, admin_kubeconfig: Path, *, chained: bool, seconds: float = 30) -> None:
    """Have the cluster's own token reviewed over the very kubeconfig that an API server is about to be given.

    Args:
        kubeconfig: from `kubeconfig`.
        admin_kubeconfig: the machine's administrator. One who logs in with a certificate has no token to lose, so a
            token that nobody has is reviewed: the answer shows that the webhook that we displace can be asked by us.
        chained: whether there is a token webhook that we displace and that knows this token.
        seconds: how long to try: Charmed Kubernetes' own webhook says "no" until its secrets are loaded.

    Raises:
        Waiting: no answer, or one that would lock the cluster's token out.
    """
    token = _token(admin_kubeconfig)
    nobodys = f"kubernetes-keystone-{secrets.token_urlsafe(24)}"
    deadline = time.monotonic() + seconds
    while True:
        problem = _review(kubeconfig, token or nobodys, chained, known=token is not None)
        if not problem:
            return
        if time.monotonic() >= deadline:
            raise Waiting(f"the API server's flags are not set yet: {problem}")
        time.sleep(1)


def in_the_way(kubeconfig: bytes, admin_kubeconfig: Path) -> str:
    """Say why the endpoint cannot tell about the cluster's own token; an API server only says that it is not good.

    Returns:
        nothing where it can tell, where there is no such token, or where it does not answer at all.
    """
    try:
        token = _token(admin_kubeconfig)
        error = ask(kubeconfig, token).get("error") if token else None
    except (NoAnswer, Waiting):
        return ""
    return f"{_CANNOT_TELL}{error}" if error else ""


@dataclass(frozen=True)
class _Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _review(kubeconfig: bytes, token: str, chained: bool, known: bool) -> str:
    """Ask about a token as an API server would; give what stands in the way, nothing if all is well."""
    try:
        status = ask(kubeconfig, token)
    except NoAnswer as error:
        return f"the authenticator does not answer a review of the cluster's own token ({error})"
    if status.get("error") and not known and status["error"].startswith(_CHAINED_SAYS):
        return ""  # it was asked, and has not heard of a token that nobody has
    if status.get("error"):
        return f"{_CANNOT_TELL}{status['error']}"
    # `uid::token` is what Charmed Kubernetes' token webhook knows; another kind may be known to the API server itself
    # (--token-auth-file), which goes on without us. Whether it does is verified after the restart in any case.
    if not status.get("authenticated") and chained and known and "::" in token:
        return "the token webhook that the API server asks now does not know the cluster's own token (yet)"
    return ""


def _token(kubeconfig: Path) -> str | None:
    """Give the token of a kubeconfig's current user, if that is how it logs in."""
    try:
        document = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        contexts = {item["name"]: item["context"] for item in document["contexts"]}
        users = {item["name"]: item.get("user") or {} for item in document["users"]}
        token = users[contexts[document["current-context"]]["user"]].get("token")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise Waiting(
            f"the cluster's own kubeconfig {kubeconfig} cannot be used yet ({type(error).__name__})"
        ) from error
    return token or None


def _pair(places: Places, name: str) -> Pair:
    return Pair(places.tls / f"{name}.crt", places.tls / f"{name}.key")


def _load(pair: Pair) -> _Issued | None:
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    return _Issued(certificate, key)


def _save(pair: Pair, issued: _Issued, key_mode: int, group: int) -> None:
    key = issued.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # The key first: who reads the two while they change sees a pair that does not fit, and reads again.
    files.write(pair.key, key, key_mode, group if key_mode & 0o070 else None)
    files.write(pair.certificate, issued.certificate.public_bytes(serialization.Encoding.PEM), 0o640, group)


def _expires(issued: _Issued, now: datetime.datetime) -> bool:
    return (
        issued.certificate.not_valid_after_utc - now
    ).days < RENEW_DAYS or issued.certificate.not_valid_before_utc > now


def _signed_by(issued: _Issued, authority: _Issued) -> bool:
    try:
        issued.certificate.verify_directly_issued_by(authority.certificate)
    except Exception:  # ValueError, TypeError or InvalidSignature: not ours in any case
        return False
    return True


def _covers(issued: _Issued, hosts: tuple[str, ...]) -> bool:
    try:
        names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return not hosts
    return {_general_name(host) for host in hosts} <= set(names)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _issue(subject: str, authority: _Issued | None, hosts: tuple[str, ...], now: datetime.datetime) -> _Issued:
    """Make a key and a certificate: a CA where no authority is given, a server's with hosts, else a client's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    is_ca = authority is None
    days = CA_DAYS if is_ca else LEAF_DAYS
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
        .not_valid_after(now + datetime.timedelta(days=days))
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
    return _Issued(builder.sign(signer, hashes.SHA256()), key)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
