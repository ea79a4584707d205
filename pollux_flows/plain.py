"""Plain: what JSON can carry. What a person gives us and is more is refused; what came back from afar is mended."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Strict

# Far more than any schema or conversation has, and less than what readers of JSON give up at.
_DEEPEST: Final = 100
# Python does not read longer numbers back.
_LARGEST: Final = 10**4000
# Half of a character: JSON can spell it, UTF-8 and with it every request and database cannot.
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


canonical: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
"""A value as JSON, in the one way that makes equal texts of equal values."""


def plain(value: Any) -> Any:
    """A copy of `value` made of nothing but what JSON has, or a ValueError that says where there is more."""
    return _plain(value, "", 0)


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep, or holds itself")
    match value:
        case None | bool():
            return value
        # Subclasses, such as the members of an enum, become what they are in JSON.
        case str():
            return _whole(str.__str__(value), where)
        case int() if abs(value) < _LARGEST:
            return int.__int__(value)
        case float() if isfinite(value):
            return float.__float__(value)
        case int() | float():
            raise ValueError(f"{_place(where)} is a number that JSON does not have")
        case list() | tuple():
            return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
        case dict():
            return {_name(key, where): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
        case _:
            raise ValueError(f"{_place(where)} is of type {type(value).__name__}, which JSON does not have")


def _name(key: Any, where: str) -> str:
    if not isinstance(key, str):
        kind = type(key).__name__
        raise ValueError(f"{_place(where)} has a key of type {kind}; in JSON keys are strings")  # noqa: TRY004 (Pydantic's)
    return _whole(str.__str__(key), where)


def _whole(text: str, where: str = "") -> str:
    if not text.isascii() and _LONE_SURROGATE.search(text):
        raise ValueError(f"{_place(where)} holds half a character (a lone surrogate), which cannot be sent or stored")
    return text


def _place(where: str) -> str:
    return where.lstrip(".") or "it"


def mended(value: Any, depth: int = 0) -> Any:
    """`value` with `\N{REPLACEMENT CHARACTER}` for each half character, so that what was paid for can be stored."""
    # Every answer comes through here, piece by piece: asking for the type itself takes a third of what `match` does.
    kind = type(value)
    if kind is str:
        return value if value.isascii() or not _LONE_SURROGATE.search(value) else _whole_again(value)
    if kind is int or kind is float or kind is bool or value is None:
        return value
    if isinstance(value, str):
        return mended(str.__str__(value))
    if not isinstance(value, dict | list | tuple):
        return value
    if depth > _DEEPEST:
        return "(nested too deep to be kept)"
    if isinstance(value, dict):
        return {mended(key): mended(item, depth + 1) for key, item in value.items()}
    return [mended(item, depth + 1) for item in value]


def _whole_again(text: str) -> str:
    # Two halves that belong together become the character they are.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


Text = Annotated[str, Strict(), AfterValidator(_whole)]
"""Text that can be sent and stored."""

JsonObject = Annotated[dict[str, Any], BeforeValidator(plain)]
"""A JSON object, as a copy of what was given."""
