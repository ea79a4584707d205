"""Bounds: how long answers are kept, and how much room they may take, without anybody doing anything."""

from __future__ import annotations

import os
import time
import warnings
from typing import Final

from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.state.claims import Clock
from pollux_flows.state.measures import size_in_bytes
from pollux_flows.state.prune import prune
from pollux_flows.state.store import Store

KEEP_DAYS: Final = "POLLUX_STATE_KEEP_DAYS"
MAX_SIZE: Final = "POLLUX_STATE_MAX_SIZE"

_KEPT_DAYS: Final = 90.0
_LARGEST: Final = 2_000_000_000
# Enough goes at once that it need not be done at the next run again.
_DOWN_TO: Final = 0.9
_LOOK_EVERY_S: Final = 60.0
_looked: Final[dict[str, float]] = {}


def kept_s() -> float:
    """For how many seconds an answer is kept."""
    said = os.environ.get(KEEP_DAYS, "").strip()
    try:
        days = float(said or _KEPT_DAYS)
    except ValueError:
        days = 0.0
    if not 0 < days <= 36_500:  # noqa: PLR2004 (a century)
        raise ConfigurationError(f"{KEEP_DAYS} is no number of days: {said!r}.", hint="Set it to 30, say, or unset it.")
    return days * 86_400


def max_size() -> int:
    """How many bytes the state on this machine may take."""
    said = os.environ.get(MAX_SIZE, "").strip()
    return size_in_bytes(said, MAX_SIZE) if said else _LARGEST


async def keep_within_bounds(store: Store, clock: Clock = time.time) -> None:
    """Where the store knows its size, and that is too large, the oldest answers go. A failure costs nobody anything.

    A Redis does not know what is ours in it: there only age bounds it, and how much memory it has is for its keeper.
    """
    most, now = max_size(), time.monotonic()
    if now - _looked.get(store.where, -_LOOK_EVERY_S) < _LOOK_EVERY_S:
        return
    _looked[store.where] = now
    try:
        size = await store.size()
        if size is not None and size > most:
            await prune(store, max_size=_DOWN_TO * most, expired=False, clock=clock)
    except PolluxError as error:
        warnings.warn(f"The state was not kept within its size. {error}", RuntimeWarning, stacklevel=2)
