"""Worth: what a cache costs, and from how many prompts on it is cheaper than sending its contents with each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from pollux_flows.config import Target
from pollux_flows.pricing import input_prices

# US dollars for a million tokens an hour, from Gemini's price list. genai-prices has no prices of storage.
_STORAGE: Final = {
    "gemini-3.1-pro": 4.50,
    "gemini-3.1-pro-preview": 4.50,
    "gemini-2.5-pro": 4.50,
    "gemini-2.5-flash": 1.00,
    "gemini-3-flash-preview": 1.00,
}
_MILLION: Final = 1_000_000
_HOUR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class CachePrices:
    """Prices of the contents of one cache, in US dollars."""

    created: float
    """Once, to create it: they are input as any other."""
    read: float
    """For each prompt that reads them from the cache."""
    sent: float
    """For each prompt that sends them along instead."""
    stored_per_hour: float | None
    """None where the price of storage is not known."""

    def total(self, prompts: int, seconds: float) -> float:
        """Return what so many prompts cost on a cache that is stored so long; unknown storage counts as none."""
        return self.created + prompts * self.read + (self.stored_per_hour or 0.0) * seconds / _HOUR_S

    def break_even(self, seconds: float) -> int | None:
        """Return from how many prompts on a cache that lives so long is cheaper; None if it never is, or unknown."""
        if self.stored_per_hour is None or self.sent <= self.read:
            return None
        stored = self.stored_per_hour * seconds / _HOUR_S
        return math.floor((self.created + stored) / (self.sent - self.read)) + 1


def price_prefix(target: Target, tokens: int, *, for_an_hour: bool = False) -> CachePrices | None:
    """Return what a prefix costs that a first prompt writes and others read; None where a price is not listed."""
    prices = input_prices(target, tokens)
    written = None if prices is None else prices.written_1h if for_an_hour else prices.written
    if prices is None or prices.cached is None or written is None:
        return None
    millions = tokens / _MILLION
    read = prices.cached * millions
    # The first prompt writes and does not read.
    return CachePrices(created=written * millions - read, read=read, sent=prices.plain * millions, stored_per_hour=0.0)


def price_cache(target: Target, tokens: int) -> CachePrices | None:
    """Return what a cache with so many tokens costs; None where the model has no listed price for reads."""
    prices = input_prices(target, tokens)
    if prices is None or prices.cached is None:
        return None
    storage = _STORAGE.get(target.model.removeprefix("models/"))
    millions = tokens / _MILLION
    return CachePrices(
        created=prices.plain * millions,
        read=prices.cached * millions,
        sent=prices.plain * millions,
        stored_per_hour=None if storage is None else storage * millions,
    )
