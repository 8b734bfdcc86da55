"""One API server at a time: a Lease of the cluster's, which a unit holds while it restarts its own.

Juju runs the hooks of several units side by side, and a peer relation is no lock where units come and go. The cluster
has one that all control planes share: `coordination.k8s.io/v1`, asked at this machine's own API server, as its
administrator. It is for the restart of a server that works, to put flags in or to take them out. A server that does not
work serves nobody: taking our flags out of it asks for nothing, and nothing else would be possible.

    nobody holds it    there is no Lease. Taking it is making it, which works for one unit only (409 for the others)
    one holds it       until it is deleted in order, on condition of `uid` and `resourceVersion`; nothing of it stays
    that one died      who has seen the same `resourceVersion` for as long as `leaseDurationSeconds` says takes it over
                       by an update on condition of it: one unit wins, and a holder that was only slow has lost it

Nobody compares clocks: `renewTime` is for people, and how long a version has been seen is measured by this machine's
time since its boot. That is written down (`Place.lease`), so that it goes on from one hook to the next. The same file
says whether the Lease may be ours: written before it is taken, so that a charm that is killed at any step gives back
what it still holds at its next hook. A unit knows its own Lease by the name in it and goes on with it at once.

Its time is longer than a restart with all its deadlines, for the one API server that this unit asks is down meanwhile;
it is renewed before each restart, and kept for a moment after it, in which a balancer sees that this one is back. What
no lock can do: a machine that stands still between the renewal and its restart, for longer than the Lease's time, has a
restart that the others do not know of.

If the Lease cannot be asked for although the server is ready (403, an admission webhook, a time-out), then nothing
is added, and a later hook tries again. Taking our flags out goes on without it after a few attempts: a server whose
webhook is about to go must not keep leading to it, and two restarts at once are the smaller harm.

Three plain requests, in the session that `verify.py` has: a client library would be a second reader of kubeconfigs,
which has to be taught the local address and the name in the certificate, and brings a second HTTP client.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from apiserver import files
from apiserver.model import Layout, NotOurTurn, NotReady, Patience
from apiserver.verify import Unverified, as_admin, wait_until_ready

logger = logging.getLogger(__name__)

NAMESPACE = "kube-system"
NAME = "kubernetes-keystone-restart"
"""One for the cluster, whatever the application is called: it is about API servers."""

_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
_SECONDS = 10  # for one request


class Unasked(NotReady):
    """The API server cannot be asked for the Lease."""


@dataclass(frozen=True)
class Held:
    """A Lease as it is in the cluster. `seconds` is its time; 0 where its holder gave none."""

    uid: str
    version: str
    holder: str
    seconds: int
    acquired: str
    transitions: int

    @classmethod
    def parse(cls, answer: Any) -> Held:
        """Read an API server's answer.

        Raises:
            Unasked: it is not a Lease.

        """
        try:
            metadata, spec = answer["metadata"], answer.get("spec") or {}
            return cls(
                uid=str(metadata["uid"]),
                version=str(metadata["resourceVersion"]),
                holder=str(spec.get("holderIdentity") or ""),
                seconds=int(spec.get("leaseDurationSeconds") or 0),
                acquired=str(spec.get("acquireTime") or ""),
                transitions=int(spec.get("leaseTransitions") or 0),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Unasked(f"what the API server gives as Lease {NAMESPACE}/{NAME} is none") from None


class Turn:
    """This unit's turn to restart its API server; given back when the context ends.

    Args:
        layout: whose API server.
        announce: told, once, whom is waited for.
        patience: how long to wait.

    """

    def __init__(self, layout: Layout, announce: Callable[[str], None], patience: Patience):
        self._layout = layout
        self._announce = announce
        self._patience = patience
        self._record = _Record(layout.place.lease)
        self._told = self._taken = False
        unit, host = layout.place.unit, socket.gethostname()
        self.name = f"{unit} on {host}" if unit else host

    def __enter__(self) -> Turn:
        """Ask for nothing yet."""
        return self

    def __exit__(self, failure: type[BaseException] | None = None, *_: object) -> None:
        """Give back what is ours, be it from a call before this one that was killed."""
        if not self.held:
            return
        if self._taken and failure is None:
            time.sleep(self._patience.settled)
        try:
            self._give_back()
        except Unasked as error:
            # The next hook tries again, and in its time the Lease is over.
            logger.warning("the Lease %s/%s is not given back: %s", NAMESPACE, NAME, error)

    @property
    def held(self) -> bool:
        """Whether the Lease may be ours."""
        return self._record.ours

    def take(self) -> bool:
        """Wait until it is our turn; if it is already, make it last.

        Returns:
            Whether it had to be waited for.

        Raises:
            NotOurTurn: another unit restarts its API server, and is not done within the time that a hook may wait.
            Unasked: the API server cannot be asked.

        """
        patience = self._patience
        began = asked = changed = _now()
        seen: Held | None = None
        while True:
            try:
                other = self._attempt()
                asked = _now()
                if other is None:
                    self._taken = True
                    return seen is not None
                if seen is None or (seen.uid, seen.version) != (other.uid, other.version):
                    seen, changed = other, asked
            except Unasked:
                if _now() - asked > patience.already:
                    raise
            now = _now()
            if seen is not None and (now - changed > patience.turn or now - began > patience.turns):
                raise NotOurTurn(f"another unit restarts its API server: {seen.holder or 'it is not known which'}")
            if seen is not None and seen.holder and not self._told:
                self._told = True
                self._announce(f"waiting: another unit restarts its API server: {seen.holder}")
            time.sleep(patience.between)

    def take_if_in_order(self) -> None:
        """Wait until it is our turn to take flags out; a server that does not work is not waited for.

        Raises:
            NotOurTurn: as `take`.

        """
        try:
            wait_until_ready(self._layout, self._patience.already, self._patience.between)
            self.take()
        except Unverified as error:
            logger.info("no Lease is needed to take Keystone's flags out of a server that is not ready: %s", error)
        except Unasked as error:
            logger.warning("taking Keystone's flags out of the API server without the Lease: %s", error)

    def renew(self) -> None:
        """Make our turn last, if that is possible: after a failure, when nothing better is left to do than to go on."""
        if not self.held:
            return
        try:
            other = self._attempt()
        except Unasked as error:
            logger.info("the Lease %s/%s cannot be renewed now: %s", NAMESPACE, NAME, error)
        else:
            if other is not None:
                logger.warning("the Lease %s/%s is now %s's: this took too long", NAMESPACE, NAME, other.holder)

    def _attempt(self) -> Held | None:
        """Try once. Gives None when the Lease is ours, else what is in the way: another's, or one that just changed."""
        found = self._find()
        if found is None:
            self._record.write_ours()
            made = self._send("POST", _LEASES, 201, 409, body=self._body(None))
            # Somebody was quicker; who it is will be seen the next time.
            return None if made is not None else Held("", "", "", 0, "", 0)
        if found.holder not in ("", self.name):
            seconds = self._record.seen_for(found)
            if seconds < (found.seconds or self._patience.lease):
                return found
            logger.warning("the Lease %s/%s was %s's, who has not been heard of for %.0f s", NAMESPACE, NAME,
                           found.holder, seconds)  # fmt: skip
        self._record.write_ours()
        taken = self._send("PUT", f"{_LEASES}/{NAME}", 200, 404, 409, body=self._body(found))
        return None if taken is not None else found

    def _give_back(self) -> None:
        for _ in range(3):  # somebody may have touched it in between
            found = self._find()
            if found is None or found.holder != self.name:
                break
            condition = {"uid": found.uid, "resourceVersion": found.version}
            options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": condition}
            if self._send("DELETE", f"{_LEASES}/{NAME}", 200, 404, 409, body=options) is not None:
                break
        self._record.forget()

    def _find(self) -> Held | None:
        answer = self._send("GET", f"{_LEASES}/{NAME}", 200, 404)
        return None if answer is None else Held.parse(answer)

    def _body(self, old: Held | None) -> dict[str, Any]:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata = {"name": NAME, "namespace": NAMESPACE}
        if old is not None:
            metadata |= {"uid": old.uid, "resourceVersion": old.version}
        ours = old is not None and old.holder == self.name
        spec = {
            "holderIdentity": self.name,
            "leaseDurationSeconds": max(1, round(self._patience.lease)),
            "acquireTime": (old.acquired if old is not None and ours else "") or now,
            "renewTime": now,
            "leaseTransitions": 0 if old is None else old.transitions + (not ours),
        }
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}

    def _send(self, method: str, path: str, good: int, *others: int, body: object = None) -> Any:
        """Give the answer's JSON where it is the good one, None where it is one of the others.

        Raises:
            Unasked: it is none of them.

        """
        try:
            with as_admin(self._layout) as (session, url):
                answer = session.request(method, url + path, json=body, timeout=_SECONDS)
        except Unverified as error:
            raise Unasked(f"the API server cannot be asked for the Lease {NAMESPACE}/{NAME}: {error}") from None
        if answer.status_code in others:
            return None
        try:
            if answer.status_code == good:
                return answer.json()
            message = str(answer.json()["message"])[:300]
        except (ValueError, KeyError, TypeError):
            message = "no reason is given"
        raise Unasked(
            f"the API server answers {answer.status_code} to {method} of the Lease {NAMESPACE}/{NAME}: {message}"
        )


@dataclass(frozen=True)
class _Record:
    """What is to be known at the next hook: that the Lease may be ours, or since when another's has been seen."""

    path: Path

    @property
    def ours(self) -> bool:
        return self._read().get("ours") is True

    def write_ours(self) -> None:
        self._write({"ours": True})

    def seen_for(self, lease: Held) -> float:
        """Give for how many seconds this version has been seen, from now on if it is another one than before."""
        now = _now()
        key = {"uid": lease.uid, "version": lease.version, "boot": _boot()}
        old = self._read()
        since = old.get("since")
        if {name: old.get(name) for name in key} != key or not isinstance(since, (int, float)) or since > now:
            self._write({**key, "since": now})
            return 0
        return now - since

    def forget(self) -> None:
        files.remove(self.path)

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(files.read(self.path) or b"{}")
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def _write(self, value: dict[str, Any]) -> None:
        files.write(self.path, json.dumps(value).encode(), 0o600)


def _now() -> float:
    """Seconds since the machine's boot: no change of the clock moves it, and another process goes on with it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
