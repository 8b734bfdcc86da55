"""JSON in and out, by msgspec: one error for whatever is no JSON, and decoders that read straight into types.

What a document means is the business of whoever reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")


class NotJson(ValueError):
    """Not JSON in UTF-8, or nested too deeply; the message says what is wrong with it, and holds nothing of it."""


class NotOfType(ValueError):
    """JSON, but of another shape than was expected; the message names the place and the types."""


encode = msgspec.json.encode


def decoder(kind: type[_T]) -> Callable[[bytes | str], _T]:
    """A function that reads JSON into this type and passes over what there is no field for.

    It raises `NotJson` or `NotOfType`.
    """
    read = msgspec.json.Decoder(kind).decode

    def decode(text: bytes | str) -> _T:
        try:
            return read(text)
        except msgspec.ValidationError as error:
            raise NotOfType(str(error)) from None
        except msgspec.DecodeError as error:
            raise NotJson(str(error)) from None
        except UnicodeDecodeError:
            raise NotJson("not a text in UTF-8") from None
        except RecursionError:
            raise NotJson("nested too deeply") from None

    return decode


_decode_any = decoder(object)


def decode(text: bytes | str) -> Any:
    """Read any JSON.

    Raises:
        NotJson: it is none.

    """
    try:
        return _decode_any(text)
    except NotOfType as error:  # a number that is out of range
        raise NotJson(str(error)) from None
