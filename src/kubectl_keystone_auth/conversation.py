"""What `-v` shows: the conversation with Keystone, with secrets masked; and the mask for all else that is said."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, quote_plus

from kubectl_keystone_auth.errors import printable
from kubectl_keystone_auth.options import secret

MASK = "***"
HEADERS = ("x-auth-token", "x-subject-token", "authorization", "proxy-authorization", "set-cookie", "cookie")


class Conversation:
    """Shows requests and answers on standard error, if that was asked for, and masks secrets in any text."""

    def __init__(self, verbose: bool, secrets: Iterable[str] = ()) -> None:
        self.verbose = verbose
        self._secrets: set[str] = set()
        for text in secrets:
            self.hide(text)

    def hide(self, text: str) -> None:
        """Mask this text from now on, also as JSON, as Python shows it, in a URL and in base64."""
        # Less than four characters are in half the words there are; the places for secrets are masked without this.
        if len(text) >= 4:
            raw = text.encode("utf-8", "surrogateescape")
            quoted = (
                json.dumps(text)[1:-1],
                json.dumps(text, ensure_ascii=False)[1:-1],
                ascii(text)[1:-1],
                repr(text)[1:-1],
            )
            self._secrets |= {text, *quoted, quote(raw, safe=""), quote(raw), quote_plus(raw)}
            self._secrets |= {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()}

    def masked(self, text: str) -> str:
        """Give a text without secrets."""
        for hidden in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(hidden, MASK)
        return text

    def say(self, text: str) -> None:
        """Show a line, if lines are to be shown."""
        if self.verbose:
            print(printable(self.masked(text)), file=sys.stderr, flush=True)

    def request(self, method: str, url: str, headers: dict[str, str], body: Any) -> None:
        """Show a request."""
        if self.verbose:
            self.say(f"> {method} {url}")
            self._headers(">", headers)
            if body is not None:
                self.say(f"> {json.dumps(_hidden(body))}")

    def answer(self, status: int, headers: dict[str, str], body: Any) -> None:
        """Show an answer."""
        if self.verbose:
            self.say(f"< {status}")
            self._headers("<", headers)
            if body:
                self.say(f"< {json.dumps(_hidden(body))}")

    def _headers(self, mark: str, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.say(f"{mark} {name}: {MASK if name.lower() in HEADERS else value}")


def _hidden(body: Any) -> Any:
    """Give a JSON value with masks in the place of secrets."""
    if isinstance(body, dict):
        return {
            name: MASK if secret(str(name)) and isinstance(value, str) else _hidden(value)
            for name, value in body.items()
        }
    return [_hidden(item) for item in body] if isinstance(body, list) else body
