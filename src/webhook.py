"""The local endpoint's certificates, the kubeconfigs by which an API server reaches it, and a review over one of them.

A CA of this unit's own signs the endpoint's certificate, unless somebody else gives one (certificates.py), one for an
upstream authenticator behind it, and the API server's client certificate. Whatever is missing, broken, comes to its end
or is made for another address is made anew. No CA is relied on before those who are to know it do; which these are is
seen in the kubeconfigs that they have, and nothing else is remembered.

Not here: which flags name the kubeconfigs (apiserver), and who serves the endpoint (authenticator.py).
"""

from __future__ import annotations

import base64
import datetime
import re
import secrets
import ssl
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import requests.adapters
import yaml
from cryptography import x509

import certificates
import files
import pki
from apiserver import Knows
from apiserver.byhand import Endpoint
from certificates import Offer
from config import Listen
from errors import Waiting
from files import Places

CA_LIFE = datetime.timedelta(days=3653)
LEAF_LIFE = datetime.timedelta(days=731)
NEW_LEAF_AT = 1 / 3
"""The part of its life that is left when a server's certificate of our own is made anew, which restarts nothing."""
NEW_CA_AT = 1 / 10
"""The same of the CA, a year, and the API server's certificate: a restart each, and what delays that has time."""
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
        ca: this unit's CA (its key stays with root), and behind it those before it that an API server may still need.
        authorities: by which the endpoint is known to API servers; among them always this unit's CA.
        server: of the endpoint, readable by the service.
        coming: what takes its place once the API server knows its CA; mostly not there.
        upstream: of an upstream authenticator behind it, readable by the service.
        client: of the API server, root's alone.
    """

    ca: Path
    authorities: Path
    server: Pair
    coming: Pair
    upstream: Pair
    client: Pair


def ensure_tls(
    places: Places,
    listen: Listen,
    group: int,
    now: datetime.datetime | None = None,
    *,
    offer: Offer = certificates.NO_OFFER,
    asked_by: Sequence[Knows] | None = None,
) -> Tls:
    """Bring the certificates to what they should be, as far as the API servers that ask us know them.

    A certificate that they do not know the CA of waits (`Tls.coming`), and its CA goes into their kubeconfig; a call
    after they have been given that puts it in force. What is known and not needed any more stays in the kubeconfig
    until something else changes there. Does nothing where all is well.

    Args:
        places: where; the folder `places.tls` must exist.
        listen: the endpoint's address, which its certificate must name.
        group: the ID of the service's group.
        now: the time, for tests.
        offer: a certificate of somebody else's for the endpoint.
        asked_by: what the API servers that ask us know. None: nobody asks.
    """
    now = now or datetime.datetime.now(datetime.timezone.utc)
    known = None if asked_by is None else _Known.of(asked_by)
    made = tls(places)
    authority, before = _load(made.ca, _pair(places, "ca").key), _certificates(made.ca)
    if authority is None or _is_old(authority, NEW_CA_AT, now):
        authority = pki.issue_authority("kubernetes-keystone CA", CA_LIFE, now)
    for pair, subject, hosts, mode in (
        (made.upstream, "k8s-keystone-auth", _NAMES, 0o640),
        (made.client, "kubernetes-keystone:kube-apiserver", (), 0o600),
    ):
        have, at = _load(pair.certificate, pair.key), NEW_LEAF_AT if hosts else NEW_CA_AT
        if have is None or not _is_own(have, authority, hosts) or _is_old(have, at, now):
            # A client's lives as long as its CA: another one would be a restart of the API server, and who can read
            # its key can read the CA's.
            have = pki.issue(subject, authority, hosts, LEAF_LIFE if hosts else CA_LIFE, now)
        _save(pair, have, mode, group)
    # Those before it are trusted as long as somebody may still show a certificate of theirs: an API server, or for the
    # rest of the hook that makes a new one, a k8s-keystone-auth behind the endpoint.
    done = known is None or known.shows_only(made.client.certificate.read_bytes())
    earlier = [one for one in before if one != authority.certificate and pki.part_left(one, now) > 0]
    kept = [] if done and authority.certificate in before else earlier
    files.write(_pair(places, "ca").key, authority.key_pem, 0o600)
    files.write(made.ca, b"".join(map(pki.pem, (authority.certificate, *kept))), 0o640, group)
    _Endpoint(made, listen, group, now, authority, before, offer, known).settle()
    return made


def tls(places: Places) -> Tls:
    """Say where the material lies; make nothing. A new CA is for the reconcile alone: the API server has to know it."""
    return Tls(
        places.tls / "ca.crt",
        places.tls / "authorities.crt",
        *(_pair(places, name) for name in ("server", "coming", "upstream", "client")),
    )


def is_complete(places: Places) -> bool:
    """Tell whether there is all that a kubeconfig is made from, and its CA is not over."""
    made, now = tls(places), datetime.datetime.now(datetime.timezone.utc)
    authority = _load(made.ca, _pair(places, "ca").key)
    there = made.authorities.exists() and made.client.certificate.exists() and made.client.key.exists()
    return there and authority is not None and not _is_old(authority, 0, now)


def goes_on(places: Places, listen: Listen, asked_by: Sequence[Knows]) -> bool:
    """Tell whether API servers that know this can go on asking us, whatever has become of our certificates.

    So it is while the endpoint's is good, and while another one can be made with a CA that they know.
    """
    now, made, known = datetime.datetime.now(datetime.timezone.utc), tls(places), _Known.of(asked_by)
    authority = _load(made.ca, _pair(places, "ca").key)
    if authority is not None and authority.certificate in known.common:
        return not _is_old(authority, 0, now)
    server = _load(made.server.certificate, made.server.key)
    return server is not None and _taken(server, [*_certificates(made.ca), *_certificates(made.authorities)], listen)


def waits(tls: Tls) -> bool:
    """Tell whether a certificate waits until the API server knows its CA."""
    return tls.coming.certificate.exists()


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
        "ca": _base64(tls.authorities),
        "certificate": _base64(tls.client.certificate) if with_client else "",
        "key": _base64(tls.client.key) if with_client else "",
    }
    return files.render(places.templates, "webhook-kubeconfig.yaml", values).encode()


def endpoint(tls: Tls, listen: Listen) -> Endpoint:
    """Say what an API server that somebody sets by hand should ask, and by which certificates."""
    server, known = _certificates(tls.server.certificate), _certificates(tls.authorities)
    anchor = (pki.path(server[0], [*server, *known]) or server)[-1]
    return Endpoint(listen.url, pki.pem(anchor), tls.client.certificate.read_bytes())


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
        shown = Path(scratch, "client")
        shown.write_bytes(b"".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))
        try:
            context = pki.client_context(base64.b64decode(cluster["certificate-authority-data"]))
            context.load_cert_chain(shown)
        except (ssl.SSLError, ValueError) as error:
            raise NoAnswer(f"the kubeconfig's certificates cannot be used: {error}") from None
        session.mount("https://", _Adapter(context))
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


class _Adapter(requests.adapters.HTTPAdapter):
    """Connections with a TLS context of ours."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, ssl_context=self._context)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave it to the context, which has the CAs and the certificate that is shown."""


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


@dataclass(frozen=True)
class _Known:
    """What API servers know of us.

    Args:
        common: the CAs that all of them know the endpoint by.
        all: those that any of them does.
        bundle: the CAs in the very bytes that all of them have; None where those differ, or cannot be told.
        clients: what each of them shows, as `Knows` has it.
    """

    common: frozenset[x509.Certificate]
    all: frozenset[x509.Certificate]
    bundle: bytes | None
    clients: tuple[bytes | None, ...]

    @classmethod
    def of(cls, servers: Sequence[Knows]) -> _Known:
        """Put together what each of them knows."""
        sets = [frozenset(_parsed(one.authorities)) for one in servers] or [frozenset()]
        bundles = {one.authorities for one in servers}
        bundle = bundles.pop() if len(bundles) == 1 else None
        clients = tuple(one.client for one in servers)
        return cls(sets[0].intersection(*sets), sets[0].union(*sets), bundle or None, clients)

    def shows_only(self, client: bytes) -> bool:
        """Tell whether nobody shows another certificate than this one."""
        return all(one is not None and one.split() in ([], client.split()) for one in self.clients)


@dataclass(frozen=True)
class _Endpoint:
    """One look at the endpoint's certificate, and what is done about it; see `ensure_tls`."""

    made: Tls
    listen: Listen
    group: int
    now: datetime.datetime
    authority: pki.Issued
    before: Sequence[x509.Certificate]
    offer: Offer
    known: _Known | None

    def settle(self) -> None:
        made, own = self.made, self.authority.certificate
        now = _load(made.server.certificate, made.server.key)
        coming = _load(made.coming.certificate, made.coming.key)
        works = now is not None and self._taken(now)
        wanted = self._choose(now if works else None, coming)
        common = frozenset() if self.known is None else self.known.common
        anchor = self._anchor(wanted) or own
        kept = self._anchor(now) if works else None
        self._make_known([own, *([kept] if kept else []), anchor])
        stays = now is not None and now.shown == wanted.shown
        if stays or self.known is None or anchor in common or not (works or own in common):
            self._put(made.server, wanted)
            self._drop_coming()
        else:
            self._put(made.coming, wanted)
            if not works:  # what is known of us does for one of our own
                self._put(made.server, self._issue())

    def _choose(self, now: pki.Issued | None, coming: pki.Issued | None) -> pki.Issued:
        """Give the certificate that should be in force: the provider's while it is good, else one of our own."""
        if self.offer.related:
            for one in (self.offer.server, coming, now):
                if one is not None and not self._is_ours(one) and self._may_stay(one):
                    return one
        for one in (now, coming):
            if (
                one is not None
                and _is_own(one, self.authority, self._hosts)
                and not _is_old(one, NEW_LEAF_AT, self.now)
            ):
                return one
        return self._issue()

    def _may_stay(self, given: pki.Issued) -> bool:
        left = pki.part_left(given.certificate, self.now)
        return (
            left > certificates.NEARLY_OVER
            and pki.pem(given.certificate) not in self.offer.revoked
            and self._taken(given)
        )

    def _is_ours(self, server: pki.Issued) -> bool:
        return any(pki.signed_by(server.certificate, one) for one in (self.authority.certificate, *self.before))

    def _make_known(self, needed: Sequence[x509.Certificate]) -> None:
        """Say by which CAs the endpoint is to be known; what is known goes on as it is if it is enough."""
        known, client = self.known, self.made.client.certificate.read_bytes()
        if known is not None and known.bundle is None and set(needed) <= set(_certificates(self.made.authorities)):
            return  # it cannot be told, so what was said last counts
        bundle = b"".join(map(pki.pem, dict.fromkeys(needed)))
        # Another client certificate changes the kubeconfig in any case.
        if known is not None and known.bundle and known.common.issuperset(needed) and known.shows_only(client):
            bundle = known.bundle
        files.write(self.made.authorities, bundle, 0o640, self.group)

    @property
    def _hosts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*_NAMES, self.listen.host)))

    def _issue(self) -> pki.Issued:
        return pki.issue("kubernetes-keystone", self.authority, self._hosts, LEAF_LIFE, self.now)

    def _pool(self) -> list[x509.Certificate]:
        known = self.known.all if self.known is not None else ()
        return [self.authority.certificate, *self.before, *_certificates(self.made.authorities), *known]

    def _anchor(self, server: pki.Issued | None) -> x509.Certificate | None:
        path = pki.path(server.certificate, [*server.above, *self._pool()]) if server is not None else []
        return path[-1] if path else None

    def _taken(self, server: pki.Issued) -> bool:
        return _taken(server, self._pool(), self.listen)

    def _put(self, pair: Pair, issued: pki.Issued) -> None:
        _save(pair, issued, 0o640, self.group)

    def _drop_coming(self) -> None:
        for path in (self.made.coming.certificate, self.made.coming.key):
            files.remove(path)


def _taken(server: pki.Issued, pool: Sequence[x509.Certificate], listen: Listen) -> bool:
    """Tell whether a client that knows the CA of the endpoint's certificate would take it."""
    path = pki.path(server.certificate, [*server.above, *pool])
    return bool(path) and not pki.refusal(server, path[-1:], listen.host)


def _is_own(issued: pki.Issued, authority: pki.Issued, hosts: tuple[str, ...]) -> bool:
    return pki.signed_by(issued.certificate, authority.certificate) and pki.names(issued.certificate, hosts)


def _is_old(issued: pki.Issued, at: float, now: datetime.datetime) -> bool:
    return pki.part_left(issued.certificate, now) < at or issued.certificate.not_valid_before_utc > now


def _pair(places: Places, name: str) -> Pair:
    return Pair(places.tls / f"{name}.crt", places.tls / f"{name}.key")


def _load(certificate: Path, key: Path) -> pki.Issued | None:
    try:
        return pki.load(certificate.read_bytes(), key.read_bytes())
    except FileNotFoundError:
        return None


def _certificates(path: Path) -> list[x509.Certificate]:
    """Read all of a file; what is missing or damaged has none."""
    try:
        return _parsed(path.read_bytes())
    except FileNotFoundError:
        return []


def _parsed(text: bytes) -> list[x509.Certificate]:
    try:
        return pki.parse(text)
    except ValueError:
        return []


def _save(pair: Pair, issued: pki.Issued, key_mode: int, group: int) -> None:
    # The key first: who reads the two while they change sees a pair that does not fit, and reads again.
    files.write(pair.key, issued.key_pem, key_mode, group if key_mode & 0o070 else None)
    files.write(pair.certificate, issued.shown, 0o640, group)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
