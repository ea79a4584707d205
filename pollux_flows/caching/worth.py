"""Worth: the cost of a cache, and the number of prompts from which it is cheaper than sending its contents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from pollux_flows.config import Target
from pollux_flows.pricing import input_prices, storage_price

_MILLION: Final = 1_000_000
_HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class CachePrices:
    """Prices of the contents of one cache, in US dollars."""

    created: float
    """To create the cache, once, at the price of input."""
    read: float
    """For each prompt that reads the contents from the cache."""
    sent: float
    """For each prompt that sends the contents instead."""
    stored_per_hour: float | None
    """For an hour of storage; None if the price is unknown."""

    def total(self, prompts: int, seconds: float) -> float:
        """Return the cost of a cache for a number of prompts and a storage time. Unknown storage prices count as 0."""
        return self.created + prompts * self.read + (self.stored_per_hour or 0.0) * seconds / _HOUR_S

    def break_even(self, seconds: float) -> int | None:
        """Return the fewest prompts for which a cache of that lifetime is cheaper; None if never, or if unknown."""
        if self.stored_per_hour is None or self.sent <= self.read:
            return None
        stored = self.stored_per_hour * seconds / _HOUR_S
        return math.floor((self.created + stored) / (self.sent - self.read)) + 1


def price_prefix(target: Target, tokens: int, *, for_an_hour: bool = False) -> CachePrices | None:
    """Return the prices of a prefix that a first prompt caches and others read; None if a price is not listed."""
    prices = input_prices(target, tokens)
    written = None if prices is None else prices.written_1h if for_an_hour else prices.written
    if prices is None or prices.cached is None or written is None:
        return None
    millions = tokens / _MILLION
    read = prices.cached * millions
    # The first prompt writes and does not read.
    return CachePrices(created=written * millions - read, read=read, sent=prices.plain * millions, stored_per_hour=0.0)


def price_cache(target: Target, tokens: int) -> CachePrices | None:
    """Return the prices of a cache with this many tokens; None if the price of reads is not listed."""
    prices = input_prices(target, tokens)
    if prices is None or prices.cached is None:
        return None
    storage = storage_price(target)
    millions = tokens / _MILLION
    return CachePrices(
        created=prices.plain * millions,
        read=prices.cached * millions,
        sent=prices.plain * millions,
        stored_per_hour=None if storage is None else storage * millions,
    )
