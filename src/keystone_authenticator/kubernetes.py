"""The cluster's own API, asked: objects one by one, lists in pages, watches. What objects mean is for the caller.

A client of its own on the connections that Keystone is called over (`outbound`): what a kubeconfig may say is read as
for the displaced webhook, certificates' names included, keys stay in memory, and the program that the API server
trusts with everybody's names takes in no second HTTP client for a dozen kinds of request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from keystone_authenticator import document
from keystone_authenticator.chain import ChainError, read_kubeconfig
from keystone_authenticator.metrics import Calls
from keystone_authenticator.outbound import Answer, CannotTell, Client

NAME = "the API server"
DEADLINE = 15.0
PAGE = 500
# A page of large objects; etcd takes no object of more than 1.5 MiB.
_MOST_BYTES = 32 * 1024 * 1024
# Longer than a bookmark takes to come, which an API server sends about once a minute.
_WATCH_SILENCE = 180.0
_WATCH_SECONDS = 1800

_T = TypeVar("_T")


class KubeconfigError(Exception):
    """The kubeconfig cannot be used; the message names the file and what is wrong with it."""


class Refusal(Exception):
    """The API server's no: `status` and `reason` are its own words, the message adds what was asked."""

    def __init__(self, status: int, reason: str, about: str) -> None:
        super().__init__(f"the API server answered {status} to {about}: {reason}")
        self.status = status
        self.reason = reason


class Metadata(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What is read of any object's metadata."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: Mapping[str, str] | None = None


class _ListMetadata(msgspec.Struct, rename={"more": "continue", "resource_version": "resourceVersion"}):
    more: str = ""
    resource_version: str = ""


class _Page(msgspec.Struct):
    metadata: _ListMetadata
    # Decoded on their own, as what they are.
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""
    code: int = 0


_page = document.decoder(_Page)
_event = document.decoder(_Event)
_status = document.decoder(_Status)


class Kubernetes:
    """One API server, as one of its users."""

    def __init__(self, kubeconfig: Path, calls: Calls | None = None, limit: int = 8) -> None:
        """Read the kubeconfig; at most `limit` calls are made at once.

        Raises:
            KubeconfigError: it cannot be used.

        """
        try:
            found = read_kubeconfig(kubeconfig)
        except OSError as error:
            raise KubeconfigError(f"{kubeconfig}: {error.strerror}") from None
        except ChainError as error:
            raise KubeconfigError(str(error)) from None
        self._url = found.url.rstrip("/")
        self._headers = {"Accept": "application/json", **found.headers}
        self.calls = 0
        self._client = Client(
            NAME, found.context, DEADLINE, limit=limit, server_name=found.server_name, calls=calls, most=_MOST_BYTES
        )

    async def send(
        self, method: str, path: str, body: Any = None, *, good: tuple[int, ...] = (200, 201), content_type: str = ""
    ) -> bytes | None:
        """Send a request; gives the answer's body, or None for a 404 that is not among the `good`.

        Raises:
            Refusal: the API server says no.
            CannotTell: it gives no answer, is not ready to, or has too much to do: the same again may be answered.

        """
        answer = await self._call(method, path, body, content_type)
        if answer.status in good:
            return answer.body
        if answer.status == 404 and method in ("GET", "DELETE"):
            return None
        raise _refusal(answer, f"{method} {path.partition('?')[0]}")

    async def patch(self, path: str, body: Any) -> bytes | None:
        """Merge something into an object."""
        return await self.send("PATCH", path, body, content_type="application/merge-patch+json")

    async def _call(self, method: str, path: str, body: Any, content_type: str) -> Answer:
        self.calls += 1
        content = None if body is None else document.encode(body)
        headers = self._headers
        if content is not None:
            headers = {**headers, "Content-Type": content_type or "application/json"}
        # Whatever is sent twice is the same again: names are given, and what is there already is a 409.
        answer = await self._client.call(method, self._url + path, headers, content, attempts=3)
        if answer.status == 429 or answer.status >= 500:
            raise CannotTell(f"the API server answered with status {answer.status}")
        if answer.status == 401:
            # Just after its start it may not know yet who we are; and a token that is over is renewed by the charm.
            raise CannotTell("the API server does not know the user of the kubeconfig (401)")
        return answer

    async def pages(self, path: str, decode: Callable[[bytes | str], _T], labels: str = "") -> AsyncIterator[list[_T]]:
        """All objects of a list, page by page.

        Raises:
            Refusal, CannotTell: as `send`; it took so long that the list had to begin anew, too (410).

        """
        more = ""
        while True:
            query = {"limit": str(PAGE), **({"labelSelector": labels} if labels else {})}
            body = await self.send("GET", f"{path}?{urlencode({**query, **({'continue': more} if more else {})})}")
            if body is None:
                raise Refusal(404, "there is no such resource", f"GET {path}")
            page = _understood(_page, body)
            yield [_understood(decode, bytes(item)) for item in page.items or ()]
            more = page.metadata.more
            if not more:
                return

    async def watch(self, path: str, name: str, decode: Callable[[bytes | str], _T]) -> AsyncIterator[_T | None]:
        """One object of a list, first as it is and then at each change, until the watch ends; None while it is away.

        Raises:
            Refusal, CannotTell: as `send`.

        """
        one = {"fieldSelector": f"metadata.name={name}"}
        body = await self.send("GET", f"{path}?{urlencode(one)}")
        if body is None:
            raise Refusal(404, "there is no such resource", f"GET {path}")
        page = _understood(_page, body)
        yield _understood(decode, bytes(page.items[0])) if page.items else None
        query = {
            **one,
            "watch": "1",
            "allowWatchBookmarks": "1",
            "resourceVersion": page.metadata.resource_version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        self.calls += 1
        async for line in self._client.lines(f"{self._url}{path}?{urlencode(query)}", self._headers, _WATCH_SILENCE):
            event = _understood(_event, line)
            if event.type == "ERROR":
                return  # what was watched from is too old: the caller begins anew
            if event.type == "DELETED":
                yield None
            elif event.type in ("ADDED", "MODIFIED"):
                yield _understood(decode, bytes(event.object))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def at(*parts: str) -> str:
    """A path from its parts, each of them quoted: names of RoleBindings may have any characters but `/` and `%`."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _understood(decode: Callable[[bytes | str], _T], body: bytes) -> _T:
    try:
        return decode(body)
    except (document.NotJson, document.NotOfType) as error:
        raise CannotTell(f"the API server's answer was not understood: {error}") from None


def _refusal(answer: Answer, about: str) -> Refusal:
    try:
        status = _status(answer.body)
    except (document.NotJson, document.NotOfType):
        return Refusal(answer.status, "without a reason", about)
    return Refusal(answer.status, (status.message or status.reason or "without a reason")[:300], about)
