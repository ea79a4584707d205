"""Retention: the settings for how long answers are stored, and how much space they may take."""

from __future__ import annotations

import os
from typing import Final

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.units import parse_size

KEEP_DAYS: Final = "POLLUX_STATE_KEEP_DAYS"
MAX_SIZE: Final = "POLLUX_STATE_MAX_SIZE"

_DEFAULT_DAYS: Final = 90.0
_DEFAULT_MAX_SIZE: Final = 2_000_000_000


def retention_s() -> float:
    """Return for how many seconds an answer is stored."""
    setting = os.environ.get(KEEP_DAYS, "").strip()
    try:
        days = float(setting or _DEFAULT_DAYS)
    except ValueError:
        days = 0.0
    if not 0 < days <= 36_500:  # noqa: PLR2004 (a century)
        raise ConfigurationError(
            f"{KEEP_DAYS} is not a number of days: {setting!r}.", hint="Set it to a number such as 30, or unset it."
        )
    return days * 86_400


def max_size_bytes() -> int:
    """Return how many bytes the state on this machine may take."""
    setting = os.environ.get(MAX_SIZE, "").strip()
    return parse_size(setting, MAX_SIZE) if setting else _DEFAULT_MAX_SIZE
