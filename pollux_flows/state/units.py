"""Units: durations and sizes as people write them, such as 30d and 500MB."""

from __future__ import annotations

import re
from typing import Final

from pollux_flows.errors import ConfigurationError

_KILO: Final = 1000
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_BYTES: Final = {
    "b": 1,
    **{f"{letter}{b}": _KILO**power for power, letter in enumerate("kmgt", 1) for b in ("", "b")},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_QUANTITY: Final = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([a-z]+)", re.IGNORECASE)


def parse_duration(text: str, option: str) -> float:
    """Return the seconds of a duration such as 30d. `option` is named in the error if it is none."""
    value = _parse(text, _SECONDS)
    if value is None:
        raise ConfigurationError(f"{option} is no age: {text!r}.", hint="Write it as 90m, 12h, 30d or 8w.")
    return value


def parse_size(text: str, option: str) -> int:
    """Return the bytes of a size such as 500MB or 2GiB. `option` is named in the error if it is none."""
    value = _parse(text, _BYTES)
    if value is None:
        raise ConfigurationError(f"{option} is no size: {text!r}.", hint="Write it as 500MB or 2GiB.")
    return int(value)


def format_size(size: float) -> str:
    """Return a number of bytes with a unit, such as 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < _KILO:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KILO
    return f"{size:.1f} TB"


def _parse(text: str, units: dict[str, int]) -> float | None:
    match = _QUANTITY.fullmatch(text.strip())
    unit = units.get(match[2].lower()) if match else None
    return None if match is None or unit is None else float(match[1]) * unit
