"""Cells: convert the values of a table to text and to JSON."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from datetime import date, time, timedelta
from math import isfinite
from typing import Any, Final


def is_null(value: Any) -> bool:
    """Return whether a cell is null: None or NaN."""
    return value is None or (isinstance(value, float) and value != value)  # noqa: PLR0124 (NaN alone differs from itself)


def to_json(value: Any) -> Any:
    """Return a cell as JSON: dates as ISO text, decimals as text, bytes as base64, NaN as null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if isfinite(value) else None if is_null(value) else f"{'-' if value < 0 else ''}Infinity"
        case date() | time():
            return value.isoformat()
        case timedelta():
            return f"PT{value / timedelta(seconds=1):.6f}".rstrip("0").rstrip(".") + "S"
        case bytes() | bytearray() | memoryview():
            return b64encode(value).decode()
        case Mapping():
            return {str(to_json(key)): to_json(item) for key, item in value.items()}
        case list() | tuple():
            return [to_json(item) for item in value]
        case _:
            return str(value)  # a decimal, a UUID


_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=to_json).encode


def to_text(value: Any) -> str:
    """Return a cell as text: a text unchanged, any other value as JSON, without quotes around a date."""
    if type(value) is str:
        return value
    found = to_json(value)
    return found if isinstance(found, str) else to_json_text(found)


def to_json_text(value: Any) -> str:
    """Return a cell as the text of its JSON."""
    try:
        return _encode(value)
    except (TypeError, ValueError):  # a key that is not a text, or a number that JSON does not have
        return _encode(to_json(value))
