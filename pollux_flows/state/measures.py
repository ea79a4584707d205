"""Measures: ages and sizes as people write them, such as 30d and 500MB."""

from __future__ import annotations

import re
from typing import Final

from pollux_flows.errors import ConfigurationError

_KILO: Final = 1000
_TIMES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SIZES: Final = {
    "b": 1,
    **{f"{letter}{b}": _KILO**power for power, letter in enumerate("kmgt", 1) for b in ("", "b")},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_MEASURE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([a-z]+)", re.IGNORECASE)


def seconds(text: str, of: str) -> float:
    """An age, such as 30d. `of` says what is wrong if it is none."""
    value = _measured(text, _TIMES)
    if value is None:
        raise ConfigurationError(f"{of} is no age: {text!r}.", hint="Write it as 90m, 12h, 30d or 8w.")
    return value


def size_in_bytes(text: str, of: str) -> int:
    """A size, such as 500MB or 2GiB. The same."""
    value = _measured(text, _SIZES)
    if value is None:
        raise ConfigurationError(f"{of} is no size: {text!r}.", hint="Write it as 500MB or 2GiB.")
    return int(value)


def in_words(size: float) -> str:
    """A size for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < _KILO:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KILO
    return f"{size:.1f} TB"


def _measured(text: str, units: dict[str, int]) -> float | None:
    match = _MEASURE.fullmatch(text.strip())
    unit = units.get(match[2].lower()) if match else None
    return None if match is None or unit is None else float(match[1]) * unit
