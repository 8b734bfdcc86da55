"""Which unit of the cluster makes the passes: whoever holds a Lease. Nobody compares the clocks of two machines.

A holder writes the Lease anew all the time. Another unit takes it when it has seen no new version of it for as long as
the Lease itself says, by its own clock, which does not go back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import msgspec

from keystone_authenticator import document
from keystone_authenticator.kubernetes import Kubernetes, Metadata, Refusal

NAMESPACE, NAME = "kube-system", "kubernetes-keystone-sync"
SECONDS = 60
_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    lease_transitions: int | None = None
    acquire_time: str | None = None


class _Lease(msgspec.Struct, frozen=True):
    metadata: Metadata
    spec: _Spec | None = None


_read = document.decoder(_Lease)


class Lease:
    """The Lease, as one that would hold it sees it."""

    def __init__(
        self, kube: Kubernetes, holder: str, seconds: int = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`holder` is a name that no other process has."""
        self._kube = kube
        self._holder = holder
        self._seconds = seconds
        self._clock = clock
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self.other = ""

    async def hold(self) -> bool:
        """Take the Lease or make it last; gives whether it is ours, and `other` is whose it is otherwise.

        Raises:
            Refusal, CannotTell: it is not known whose it is.

        """
        body = await self._kube.send("GET", f"{_LEASES}/{NAME}")
        if body is None:
            return await self._write("POST", _LEASES, None)
        found = _read(body)
        spec = found.spec or _Spec()
        if spec.holder_identity and spec.holder_identity != self._holder:
            version = found.metadata.uid, found.metadata.resource_version
            if version != self._seen:
                self._seen, self._seen_at = version, self._clock()
            if self._clock() - self._seen_at < (spec.lease_duration_seconds or self._seconds):
                self.other = spec.holder_identity
                return False
        return await self._write("PUT", f"{_LEASES}/{NAME}", found)

    async def _write(self, method: str, path: str, old: _Lease | None) -> bool:
        try:
            await self._kube.send(method, path, self._body(old, self._holder))
        except Refusal as error:
            if error.status not in (404, 409):
                raise
            return False  # somebody was quicker: the next attempt shows who
        self.other = ""
        return True

    def _body(self, old: _Lease | None, holder: str) -> dict[str, Any]:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata = {"name": NAME, "namespace": NAMESPACE}
        spec = (old.spec if old is not None else None) or _Spec()
        same = spec.holder_identity == holder
        if old is not None:
            metadata |= {"uid": old.metadata.uid, "resourceVersion": old.metadata.resource_version}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self._seconds,
                "acquireTime": spec.acquire_time if same and spec.acquire_time else now,
                "renewTime": now,
                "leaseTransitions": (spec.lease_transitions or 0) + (not same) if old is not None else 0,
            },
        }

    async def give_back(self) -> None:
        """Let another unit take it at once, if it is ours.

        Raises:
            Refusal, CannotTell: it could not be given back, and runs out.

        """
        body = await self._kube.send("GET", f"{_LEASES}/{NAME}")
        found = _read(body) if body is not None else None
        if found is not None and found.spec is not None and found.spec.holder_identity == self._holder:
            condition = {"uid": found.metadata.uid, "resourceVersion": found.metadata.resource_version}
            options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": condition}
            await self._kube.send("DELETE", f"{_LEASES}/{NAME}", options)
