"""Plain data: values that JSON can carry.

Input of a caller that JSON cannot represent is refused; in text from a provider, lone surrogates are replaced.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Strict

# Deeper than any schema or conversation, and below the limits of JSON parsers.
_DEEPEST: Final = 100
# Python refuses to parse longer numbers.
_LARGEST: Final = 10**4000
# JSON can spell a lone surrogate; UTF-8, and with it every request and database, cannot.
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


canonical: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
"""Encodes a value as canonical JSON: equal values give equal text."""


def plain(value: Any) -> Any:
    """Return a copy of `value` made of JSON types only. Raises a ValueError that names the first other value."""
    return _plain(value, "", 0)


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep, or contains itself")
    match value:
        case None | bool():
            return value
        # Subclasses, such as the members of an enum, become plain JSON values.
        case str():
            return _reject_surrogates(str.__str__(value), where)
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
    return _reject_surrogates(str.__str__(key), where)


def _reject_surrogates(text: str, where: str = "") -> str:
    if not text.isascii() and _LONE_SURROGATE.search(text):
        raise ValueError(f"{_place(where)} holds half a character (a lone surrogate), which cannot be sent or stored")
    return text


def _place(where: str) -> str:
    return where.lstrip(".") or "it"


def replace_surrogates(value: Any, depth: int = 0) -> Any:
    """Return `value` with each lone surrogate replaced by `\N{REPLACEMENT CHARACTER}`, so that it can be stored."""
    # Called for every streamed piece of an answer: comparing types takes a third of the time of `match`.
    kind = type(value)
    if kind is str:
        return value if value.isascii() or not _LONE_SURROGATE.search(value) else _replace_surrogates(value)
    if kind is int or kind is float or kind is bool or value is None:
        return value
    if isinstance(value, str):
        return replace_surrogates(str.__str__(value))
    if not isinstance(value, dict | list | tuple):
        return value
    if depth > _DEEPEST:
        return "(nested too deep to be stored)"
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item, depth + 1) for key, item in value.items()}
    return [replace_surrogates(item, depth + 1) for item in value]


def _replace_surrogates(text: str) -> str:
    # A valid surrogate pair becomes the character that it encodes.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


Text = Annotated[str, Strict(), AfterValidator(_reject_surrogates)]
"""Text that can be sent and stored."""

JsonObject = Annotated[dict[str, Any], BeforeValidator(plain)]
"""A JSON object; validation copies it."""
