"""Who is the holder of this token? Routes tokens by their shape, remembers verdicts, and asks whoever is to be asked.

A token with Keystone's shape goes to Keystone (or the backend in its place) and nowhere else; any other goes to the
token webhook that our flag displaced, if the request came with the API server's client certificate, and to nobody
otherwise. "No" and "cannot tell" are different answers. Tokens are kept nowhere: caches are keyed by a hash under a
key that lives as long as the process. A new source of identities is one class with `cached`, `claims` and `answer`,
and one line where `Authenticator` is put together.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from keystone_authenticator import clock, document, reviews
from keystone_authenticator.backend import Backend
from keystone_authenticator.chain import SAYS, ChainedWebhook, claims_to_be_ours
from keystone_authenticator.identity import Identity, Naming, UnusableIdentityError
from keystone_authenticator.keystone import DEADLINE, Keystone, Memberships, Refused
from keystone_authenticator.metrics import Metrics
from keystone_authenticator.outbound import CannotTell
from keystone_authenticator.reviews import TokenReview, Verdict

logger = logging.getLogger("keystone_authenticator.authentication")

LONGEST_TOKEN = 16 * 1024
# What the displaced webhook took before us it takes behind us: tokens with many claims are long.
LONGEST_CLUSTER_TOKEN = 128 * 1024
# A million tokens of ten thousand users fit; the unit's MemoryMax is well above.
MOST_TOKENS = 1_000_000
MOST_BYTES = 320 * 1024 * 1024
MOST_USERS = 50_000
MOST_USER_BYTES = 64 * 1024 * 1024
MOST_REFUSALS = 50_000
# Calls to Keystone at once, the part of them that is kept for tokens known before, and how many of each sort may wait.
MOST_CALLS = 32
KEPT_CALLS = 8
MOST_WAITING = 256
# With the deadline of the call that follows, an answer comes within 5 s.
SLOT_PATIENCE = 0.8
# A token is remembered as known before for this long at least, whatever the grace.
REMEMBERED = 300.0
# A refusal of Keystone's is believed this long: garbage costs one call, and who was locked out by mistake is back soon.
REFUSAL_TTL = 10.0
# Who was known waits no longer for a slow Keystone than this, if the grace covers it.
PATIENCE = 1.5
# While Keystone gives no answers, one call in so many seconds finds out whether it does again.
PROBE_EVERY = 1.0
_FAILURES_TO_OPEN = 3

_CLOCK_SKEW = 300
_OLDEST_TOKEN = 5 * 366 * 86400

# One object: a million of them take 24 MB.
_FOREVER = float("inf")

Value = TypeVar("Value")


# ------------------------------------------------------------------------------------------------------- the shape of
# tokens


def has_keystone_shape(token: str, now: float | None = None) -> bool:
    """Whether Keystone could have made this token, as far as its outside tells: a Fernet token, or a JWS."""
    if len(token) > LONGEST_TOKEN:
        return False
    return _is_fernet(token, clock.now() if now is None else now) or _is_jws(token)


def _decode(text: str) -> bytes | None:
    """Strict url-safe base64: one spelling, with its padding or without (Keystone cuts it off)."""
    bare = text.rstrip("=")
    padded = bare + "=" * (-len(bare) % 4)
    if text not in (bare, padded):
        return None
    try:
        raw = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.urlsafe_b64encode(raw) == padded.encode() else None


def _is_fernet(token: str, now: float) -> bool:
    # version 0x80, 8 bytes of time, 16 of initial vector, blocks of 16, 32 of HMAC (github.com/fernet/spec)
    if not token.startswith("gA"):
        return False
    raw = _decode(token)
    if raw is None or len(raw) < 73 or (len(raw) - 57) % 16 or raw[0] != 0x80:
        return False
    issued = int.from_bytes(raw[1:9], "big")
    return now - _OLDEST_TOKEN <= issued <= now + _CLOCK_SKEW


def _is_jws(token: str) -> bool:
    if not token.startswith("eyJ") or token.count(".") != 2:
        return False
    parts = [_decode(part) for part in token.split(".")]
    if parts[0] is None or parts[1] is None or parts[2] is None or len(parts[2]) != 64 or "=" in token:
        return False
    try:
        header, payload = document.decode(parts[0]), document.decode(parts[1])
    except document.NotJson:
        return False
    if not isinstance(header, dict) or not isinstance(payload, dict) or header.get("alg") != "ES256":
        return False
    methods = payload.get("openstack_methods")
    return isinstance(methods, list) and all(isinstance(method, str) for method in methods)


# ------------------------------------------------------------------------------------------------------------- caches


class Cache(Generic[Value]):
    """A dictionary bounded in entries and bytes: its oldest entries go first.

    `weigh` says how many bytes a value takes, always the same for the same value; `weight` is what all take together.
    """

    def __init__(
        self, most: int, most_bytes: float = float("inf"), weigh: Callable[[Value], int] = lambda _: _ENTRY
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._weigh = weigh
        # A dictionary finds its first key by walking over what was deleted there: so that is done for many at once.
        self._batch = max(1, most // 64)
        self._entries: dict[Any, Value] = {}
        self.get = self._entries.get
        self.weight = 0

    def put(self, key: object, value: Value) -> None:
        """Add or renew an entry."""
        self.drop(key)
        self._entries[key] = value
        self.weight += self._weight_of(value, 1)
        if len(self._entries) > self._most:
            self._forget(self._batch)
        while self.weight > self._most_bytes and self._entries:
            self._forget(max(1, len(self._entries) // 64))

    def drop(self, key: object) -> None:
        """Remove an entry if it is there."""
        value = self._entries.pop(key, None)
        if value is not None:
            self.weight -= self._weight_of(value, -1)

    def _forget(self, number: int) -> None:
        for key in list(islice(self._entries, number)):
            self.drop(key)

    def _weight_of(self, value: Value, holders: int) -> int:  # noqa: ARG002  for caches that share values
        return self._weigh(value)

    def sweep(self, useless: Callable[[Value], bool]) -> None:
        """Remove entries that are of no use any more, from the oldest on, up to the first that is."""
        keys = []
        for key, value in self._entries.items():
            if not useless(value):
                break
            keys.append(key)
        for key in keys:
            self.drop(key)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)


# What an entry takes with its key, its value's own object and its place in the dictionary: 255 bytes, measured
# with a million.
_ENTRY = 260


def _identity_bytes(identity: Identity) -> int:
    """About what an identity takes, with the answers in both versions that are kept with it."""
    texts = [identity.username, identity.uid, *identity.groups]
    for key, values in identity.extra:
        texts += [key, *values]
    return 2000 + sum(3 * len(text) + 140 for text in texts)


@dataclass(frozen=True, slots=True)
class Known:
    """A verdict in the user's favour. `checked_at` and `until` are of the monotonic clock, `expires_at` of the epoch's.

    `until` ends it whatever comes (a group membership that ends); `lasts` says whether grace is possible, as its
    expiry is known.
    """

    identity: Identity
    checked_at: float
    until: float
    expires_at: float
    lasts: bool = True


class KnownTokens(Cache[Known]):
    """Tokens and whose they are. Many tokens share an identity, which weighs once."""

    def __init__(self) -> None:
        super().__init__(MOST_TOKENS, MOST_BYTES)
        self._holders: dict[int, int] = {}

    def _weight_of(self, value: Known, holders: int) -> int:
        key = id(value.identity)
        before = self._holders.pop(key, 0)
        if before + holders:
            self._holders[key] = before + holders
        alone = before == 0 or before + holders == 0
        return _ENTRY + (_identity_bytes(value.identity) if alone else 0)


class Overloaded(CannotTell):
    """There is no free slot for this call: whoever asks should ask again in a moment."""


class Slots:
    """So many calls to Keystone at once, some of them only for tokens that were known before.

    A review names no client that could be limited: whoever floods with guesses takes turns with everybody whose token
    is new, but never with those who were there before.
    """

    def __init__(self, most: int, kept: int, waiting: int) -> None:
        self._most = {True: most, False: most - kept}
        self._waiting: dict[bool, deque[asyncio.Future[None]]] = {True: deque(), False: deque()}
        self._most_waiting = waiting
        self._used = 0

    def admits(self, known: bool) -> bool:
        """Whether a call may be made, if need be after some waiting."""
        return len(self._waiting[known]) < self._most_waiting

    async def take(self, known: bool) -> None:
        """Wait for a slot.

        Raises:
            Overloaded: none became free in time.

        """
        if self._used < self._most[known] and not self._waiting[known]:
            self._used += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[known].append(turn)
        done, _ = await asyncio.wait((turn,), timeout=SLOT_PATIENCE)
        if not done:
            turn.cancel()
            self._waiting[known].remove(turn)
            raise Overloaded("too many calls to Keystone at once")

    def give_back(self) -> None:
        """Free a slot, and hand it to whoever waits."""
        self._used -= 1
        for known in (True, False):
            while self._waiting[known] and self._used < self._most[known]:
                self._waiting[known].popleft().set_result(None)
                self._used += 1


class Breaker:
    """Stops calls to a service that gives no answers, but for one a second that finds out whether it does again.

    One unreachable address opens it, other failures three in a row, as a single request may be what is wrong.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._open = False
        self._next_probe = 0.0
        self._opened = 0.0
        self.reason = ""

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._open

    @property
    def open_for(self) -> float:
        """For how many seconds calls have been held back."""
        return time.monotonic() - self._opened if self._open else 0.0

    def admits(self) -> bool:
        """Whether a call may be made now."""
        if not self._open:
            return True
        now = time.monotonic()
        if now < self._next_probe:
            return False
        self._next_probe = now + PROBE_EVERY
        return True

    def succeeded(self) -> None:
        """A verdict came."""
        if self._open:
            logger.info("answers about Keystone's tokens come again")
        self._failures = 0
        self._open = False

    def failed(self, error: CannotTell) -> None:
        """None came."""
        self._failures += 1
        self.reason = str(error)
        if not self._open and (error.unreachable or self._failures >= _FAILURES_TO_OPEN):
            self._open = True
            self._opened = time.monotonic()
            self._next_probe = self._opened + PROBE_EVERY
            logger.warning("no answers about Keystone's tokens: %s", error)


# --------------------------------------------------------------------------------------------------------- Keystone's
# tokens


class Validator(Protocol):
    """Somebody who can say whose a Keystone token is."""

    async def known(self, token: str) -> Known:
        """Whose token it is; raises `Refused` or `CannotTell`."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class KeystoneValidator:
    """Asks Keystone, once a token where the groups of its holder are known already."""

    def __init__(self, keystone: Keystone, naming: Naming, ttl: float, grace: float) -> None:
        self._keystone = keystone
        self._naming = naming
        self._ttl = ttl
        self._grace = grace
        self._memberships: Cache[tuple[float, Memberships]] = Cache(
            MOST_USERS, MOST_USER_BYTES, lambda found: _ENTRY + 300 * len(found[1].groups)
        )
        # One object for all tokens of a user and project: its serialised answers are what takes the room.
        self._identities: Cache[Identity] = Cache(MOST_USERS, MOST_USER_BYTES, _identity_bytes)

    async def known(self, token: str) -> Known:
        """Validate the token and look its holder's groups up; together within the deadline."""
        try:
            return await asyncio.wait_for(self._known(token), DEADLINE)
        except asyncio.TimeoutError:
            raise CannotTell(f"Keystone did not answer within {DEADLINE:g} s") from None

    async def _known(self, token: str) -> Known:
        asked_at = time.monotonic()
        valid = await self._keystone.validate(token)
        account = valid.account
        if account.access_rules is None:
            listed_at, memberships = await self._groups(token, account.user_id)
        else:
            # Keystone does not tell such a token its user's groups, and it is to have none.
            listed_at, memberships = asked_at, Memberships((), None)
        try:
            identity = self._naming.identity(account, memberships.groups)
        except UnusableIdentityError as error:
            raise Refused(str(error)) from None
        until = _FOREVER
        if memberships.until is not None:
            until = time.monotonic() + memberships.until - clock.now()
        key = (account.user_id, account.project_id, account.application_credential_id)
        same = self._identities.get(key)
        if same is not None and same == identity:
            identity = same
        else:
            self._identities.put(key, identity)
        return Known(identity, min(asked_at, listed_at), until, valid.expires_at)

    async def _groups(self, token: str, user_id: str) -> tuple[float, Memberships]:
        found = self._memberships.get(user_id)
        now = time.monotonic()
        lasts = found is not None and (found[1].until is None or clock.now() < found[1].until)
        if found is not None and lasts and now - found[0] < self._ttl:
            return found
        try:
            memberships = await self._keystone.memberships(token, user_id)
        except CannotTell:
            if found is not None and lasts and now - found[0] < self._ttl + self._grace:
                return found
            raise
        self._memberships.put(user_id, (now, memberships))
        return now, memberships

    async def close(self) -> None:
        """Close the connections to Keystone."""
        await self._keystone.close()


class BackendValidator:
    """Asks the service that stands in Keystone's place. It names no expiry, so that there can be no grace."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def known(self, token: str) -> Known:
        """Ask the backend."""
        asked_at = time.monotonic()
        identity = await self._backend.identity(token)
        return Known(identity, asked_at, _FOREVER, _FOREVER, lasts=False)

    async def close(self) -> None:
        """Close the connections to the backend."""
        await self._backend.close()


class KeystoneTokens:
    """The source for tokens of Keystone's shape, with cache, single flight and grace."""

    def __init__(
        self,
        validator: Validator,
        ttl: float,
        grace: float,
        metrics: Metrics | None = None,
        noted: Callable[[Identity], None] = lambda _: None,
    ) -> None:
        """`noted` is told whose each token is that Keystone has just vouched for; it may not wait, nor fail."""
        self._validator = validator
        self._noted = noted
        self._ttl = ttl
        self._grace = grace
        self._metrics = metrics or Metrics()
        self._known = KnownTokens()
        # The last time that somebody was found to be good: nobody is in grace for longer than from then on.
        self._checked_at = float("-inf")
        self._refused: Cache[float] = Cache(MOST_REFUSALS)
        self._flights: dict[bytes, asyncio.Task[Known | Refused | CannotTell]] = {}
        self._breaker = Breaker()
        self._slots = Slots(MOST_CALLS, KEPT_CALLS, MOST_WAITING)

    def cached(self, review: TokenReview, digest: bytes) -> bytes | None:
        """The answer, if it is known and fresh."""
        known = self._known.get(digest)
        if known is not None:
            now = time.monotonic()
            ends = known.expires_at
            # clock.now() < ends, without two calls on the way of every review
            lives = time.time() < ends and clock.START + now < ends
            if now - known.checked_at < self._ttl and now < known.until and lives:
                return reviews.authenticated(review.version, known.identity)
            return None
        refused_until = self._refused.get(digest)
        if refused_until is not None and time.monotonic() < refused_until:
            return reviews.refused(review.version)
        return None

    def claims(self, review: TokenReview) -> bool:
        """Whether this source is the one to ask."""
        return has_keystone_shape(review.token)

    async def answer(self, review: TokenReview, digest: bytes) -> bytes:
        """Ask, or fall back on what was known within the grace.

        Raises:
            Overloaded: there is no slot for the call.

        """
        outcome = await self._verdict(review.token, digest)
        if isinstance(outcome, Known):
            return reviews.authenticated(review.version, outcome.identity)
        if isinstance(outcome, Refused):
            return reviews.refused(review.version)
        if isinstance(outcome, Overloaded):
            self._metrics.shed += 1
            raise outcome
        return reviews.cannot_tell(review.version, str(outcome))

    def _in_grace(self, digest: bytes) -> Known | None:
        known = self._known.get(digest)
        if known is None or not known.lasts or not self._grace:
            return None
        now = time.monotonic()
        age = now - known.checked_at
        good = age < self._ttl + self._grace and now < known.until and clock.now() < known.expires_at
        return known if good else None

    async def _verdict(self, token: str, digest: bytes) -> Known | Refused | CannotTell:
        stale = self._in_grace(digest)
        outcome = await self._asked(token, digest, stale)
        if outcome is stale:
            self._metrics.stale += 1
        return outcome

    async def _asked(self, token: str, digest: bytes, stale: Known | None) -> Known | Refused | CannotTell:
        flight = self._flights.get(digest)
        if flight is None:
            if not self._slots.admits(digest in self._known):
                return stale or Overloaded("too many calls to Keystone at once")
            if not self._breaker.admits():
                return stale or CannotTell(self._breaker.reason)
            flight = asyncio.get_running_loop().create_task(self._ask(token, digest))
            self._flights[digest] = flight
            flight.add_done_callback(lambda _: self._flights.pop(digest, None))
        # Shielded: whoever waits may go away, the verdict is for all who wait.
        if stale is None:
            return await asyncio.shield(flight)
        done, _ = await asyncio.wait((flight,), timeout=PATIENCE)
        if not done:
            return stale
        outcome = flight.result()
        return stale if isinstance(outcome, CannotTell) else outcome

    async def _ask(self, token: str, digest: bytes) -> Known | Refused | CannotTell:
        try:
            await self._slots.take(digest in self._known)
        except Overloaded as error:
            return error
        try:
            known = await self._validator.known(token)
        except Refused as refusal:
            self._breaker.succeeded()
            # One line a verdict: answers from memory, for `REFUSAL_TTL`, are counted and not told again. The digest is
            # under a key of this process, and tells no more than that it is the same token.
            known = self._known.get(digest)
            who = f"{known.identity.username} (until now): " if known is not None else ""
            logger.info("audit: refused: %s%s (token %s)", who, refusal, digest.hex()[:8])
            self._known.drop(digest)
            self._refused.put(digest, time.monotonic() + REFUSAL_TTL)
            return refusal
        except CannotTell as error:
            if error.single:
                # Counted as an outage, one odd user could keep all others out.
                self._breaker.succeeded()
                logger.warning("%s", error)
            else:
                self._breaker.failed(error)
            return error
        except Exception as error:
            logger.exception("a fault of ours while a Keystone token was checked")
            return CannotTell(f"an internal fault ({type(error).__name__})")
        finally:
            self._slots.give_back()
        self._breaker.succeeded()
        self._refused.drop(digest)
        self._known.put(digest, known)
        self._checked_at = max(self._checked_at, known.checked_at)
        self._noted(known.identity)
        return known

    def sweep(self) -> None:
        """Forget what is of no use any more."""
        now = time.monotonic()
        oldest = now - self._ttl - max(self._grace, REMEMBERED)
        self._known.sweep(lambda known: known.checked_at < oldest)
        self._refused.sweep(lambda until: until < now)

    def _grace_left(self) -> float:
        """For how long the last of those who were known before goes on while there are no answers; 0 without grace."""
        if not self._grace:
            return 0.0
        whole = self._ttl + self._grace
        if not self._breaker.is_open:
            return whole
        return max(0.0, self._checked_at + whole - time.monotonic())

    @property
    def outage(self) -> str | None:
        """Why calls are held back; None if they are not."""
        return self._breaker.reason if self._breaker.is_open else None

    def gauges(self) -> dict[str, float]:
        """What it holds: tokens known and refused, whether its breaker is open, and what that means for users."""
        return {
            "known": len(self._known),
            "refused": len(self._refused),
            "bytes": self._known.weight + self._refused.weight,
            "breaker_open": int(self._breaker.is_open),
            "outage": self._breaker.open_for,
            "grace_left": self._grace_left(),
        }

    async def close(self) -> None:
        """Close the validator's connections."""
        await self._validator.close()


# -------------------------------------------------------------------------------------------------- the cluster's own
# tokens


class ClusterTokens:
    """The source for all other tokens: the displaced webhook; its verdicts are kept as long as they were before us."""

    def __init__(self, webhook: ChainedWebhook | None, problem: str | None = None) -> None:
        """Without `webhook` everything is refused; with a `problem` nothing can be told."""
        self._webhook = webhook
        self._problem = problem
        self.outage: str | None = None
        """Why the webhook gave no verdict when it was asked last; None if it did."""
        self._verdicts: Cache[tuple[float, Verdict]] = Cache(
            MOST_USERS,
            MOST_USER_BYTES,
            lambda entry: _ENTRY + (_identity_bytes(entry[1].identity) if entry[1].identity else 0),
        )
        self._flights: dict[bytes, asyncio.Task[Verdict | CannotTell]] = {}

    @staticmethod
    def _key(review: TokenReview, digest: bytes) -> bytes:
        if not review.audiences:
            return digest
        return hashlib.blake2b(document.encode(review.audiences), key=digest, digest_size=16).digest()

    def cached(self, review: TokenReview, digest: bytes) -> bytes | None:
        """The answer, if it is known and fresh."""
        found = self._verdicts.get(self._key(review, digest))
        if found is None or time.monotonic() >= found[0]:
            return None
        return _passed_on(review, found[1])

    def claims(self, review: TokenReview) -> bool:  # noqa: ARG002  the last source looks at nothing
        """Whatever no other source claims."""
        return True

    async def answer(self, review: TokenReview, digest: bytes) -> bytes:
        """Ask the displaced webhook."""
        if self._problem is not None:
            return reviews.cannot_tell(review.version, self._problem)
        if self._webhook is None:
            return reviews.refused(review.version)
        key = self._key(review, digest)
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._ask(self._webhook, review, key))
            self._flights[key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        outcome = await asyncio.shield(flight)
        if isinstance(outcome, CannotTell):
            return reviews.cannot_tell(review.version, str(outcome))
        return _passed_on(review, outcome)

    async def _ask(self, webhook: ChainedWebhook, review: TokenReview, key: bytes) -> Verdict | CannotTell:
        try:
            verdict = await webhook.review(review)
        except CannotTell as error:
            logger.warning("%s", error)
            # What it says itself may be about this one token alone.
            self.outage = None if str(error).startswith(SAYS) else str(error)
            return error
        except Exception as error:
            logger.exception("a fault of ours while the cluster's own token webhook was asked")
            return CannotTell(f"an internal fault ({type(error).__name__})")
        self.outage = None
        if verdict.identity is None and verdict.error:
            return CannotTell(verdict.error)
        reason = claims_to_be_ours(verdict)
        if reason is not None:
            logger.warning("an answer of the cluster's own token webhook was refused: %s", reason)
            verdict = Verdict(None, None, None)
        if webhook.displaced.ttl > 0:
            self._verdicts.put(key, (time.monotonic() + webhook.displaced.ttl, verdict))
        return verdict

    def sweep(self) -> None:
        """Forget what is of no use any more."""
        now = time.monotonic()
        self._verdicts.sweep(lambda entry: entry[0] < now)

    def gauges(self) -> dict[str, int]:
        """What it holds."""
        return {"verdicts": len(self._verdicts), "bytes": self._verdicts.weight}

    async def close(self) -> None:
        """Close the connections to the webhook."""
        if self._webhook is not None:
            await self._webhook.close()


def _passed_on(review: TokenReview, verdict: Verdict) -> bytes:
    if verdict.identity is None:
        return reviews.refused(review.version)
    audiences: Sequence[str] = ()
    if verdict.audiences is not None and review.audiences:
        audiences = [audience for audience in verdict.audiences if audience in review.audiences]
        # Without audiences the API server would take the token for its own.
        if not audiences:
            return reviews.refused(review.version)
    return reviews.authenticated(review.version, verdict.identity, audiences)


# ------------------------------------------------------------------------------------------------------------- all of
# them


class Authenticator:
    """Answers TokenReviews from the first source that claims the token."""

    def __init__(self, keystone: KeystoneTokens, cluster: ClusterTokens, metrics: Metrics | None = None) -> None:
        self._key = secrets.token_bytes(32)
        self._metrics = metrics or Metrics()
        self.keystone = keystone
        self.cluster = cluster

    def answer(self, review: TokenReview, certified: bool) -> bytes | Coroutine[Any, Any, bytes]:
        """The answer's JSON at once, or a coroutine for it; `certified`: it came with the API server's certificate."""
        token = review.token
        if not token:
            return reviews.cannot_tell(review.version, "the review has no token")
        digest = hashlib.blake2b(token.encode(), key=self._key, digest_size=16).digest()
        cached = self.keystone.cached(review, digest)
        if cached is not None:
            self._metrics.keystone_hits += 1
            return cached
        if certified:
            cached = self.cluster.cached(review, digest)
            if cached is not None:
                self._metrics.cluster_hits += 1
                return cached
        if self.keystone.claims(review):
            self._metrics.keystone_misses += 1
            return self.keystone.answer(review, digest)
        # Without the certificate it is somebody else's webhook that calls us: to call back would be a loop.
        if certified and len(token) <= LONGEST_CLUSTER_TOKEN:
            self._metrics.cluster_misses += 1
            return self.cluster.answer(review, digest)
        return reviews.refused(review.version)

    def sweep(self) -> None:
        """Forget what is of no use any more."""
        self.keystone.sweep()
        self.cluster.sweep()
