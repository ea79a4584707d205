"""Bounds: how long answers are stored, and how much space they may take, without anyone pruning."""

from __future__ import annotations

import os
import time
import warnings
from typing import Final

from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.state.leases import Clock
from pollux_flows.state.prune import prune
from pollux_flows.state.store import Store
from pollux_flows.state.units import parse_size

KEEP_DAYS: Final = "POLLUX_STATE_KEEP_DAYS"
MAX_SIZE: Final = "POLLUX_STATE_MAX_SIZE"

_DEFAULT_DAYS: Final = 90.0
_DEFAULT_MAX_SIZE: Final = 2_000_000_000
# So much is removed at once that the next runs need not prune again.
_TARGET: Final = 0.9
_CHECK_EVERY_S: Final = 60.0
_checked_at: Final[dict[str, float]] = {}


def retention_s() -> float:
    """Return for how many seconds an answer is stored."""
    setting = os.environ.get(KEEP_DAYS, "").strip()
    try:
        days = float(setting or _DEFAULT_DAYS)
    except ValueError:
        days = 0.0
    if not 0 < days <= 36_500:  # noqa: PLR2004 (a century)
        raise ConfigurationError(
            f"{KEEP_DAYS} is no number of days: {setting!r}.", hint="Set it to 30, say, or unset it."
        )
    return days * 86_400


def max_size_bytes() -> int:
    """Return how many bytes the state on this machine may take."""
    setting = os.environ.get(MAX_SIZE, "").strip()
    return parse_size(setting, MAX_SIZE) if setting else _DEFAULT_MAX_SIZE


async def enforce_max_size(store: Store, clock: Clock = time.time) -> None:
    """Prune the oldest answers of a store that has grown too large. Best effort: a failure is a warning.

    A Redis does not know which part of its memory is ours: there, only age bounds the state.
    """
    limit, now = max_size_bytes(), time.monotonic()
    if now - _checked_at.get(store.where, -_CHECK_EVERY_S) < _CHECK_EVERY_S:
        return
    _checked_at[store.where] = now
    try:
        size = await store.size()
        if size is not None and size > limit:
            await prune(store, max_size=_TARGET * limit, expired=False, clock=clock)
    except PolluxError as error:
        warnings.warn(f"The state could not be pruned to its maximum size. {error}", RuntimeWarning, stacklevel=2)
