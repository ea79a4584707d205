"""Units: parses and formats durations and sizes, such as 30d and 500MB."""

from __future__ import annotations

import re
from typing import Final

from pydantic import ByteSize, TypeAdapter

from pollux_flows.errors import ConfigurationError

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION: Final = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([smhdw])", re.ASCII)


def parse_duration(text: str, option: str) -> float:
    """Return the seconds of a duration such as 30d. If it is not valid, the error names `option`."""
    if (match := _DURATION.fullmatch(text.strip().lower())) is None:
        raise ConfigurationError(f"{option} is not an age: {text!r}.", hint="Write it as 90m, 12h, 30d or 8w.")
    return float(match[1]) * _SECONDS[match[2]]


def parse_size(text: str, option: str) -> int:
    """Return the bytes of a size such as 500MB or 2GiB. If it is not valid, the error names `option`."""
    try:
        if text.strip()[-1:].isdigit():  # a number without a unit is ambiguous
            raise ValueError  # noqa: TRY301
        return int(TypeAdapter(ByteSize).validate_python(text))
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{option} is not a size: {text!r}.", hint="Write it as 500MB or 2GiB.") from None


def format_size(size: float) -> str:
    """Return a number of bytes with a unit, such as 1.5 MB."""
    return ByteSize(size).human_readable(decimal=True, separator=" ")
