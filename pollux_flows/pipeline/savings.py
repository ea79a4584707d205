"""Savings: the tokens and the money that caching saved a run, by the usage that the provider reported.

The baseline ("naive") sends the entire input with each call. The tokens sent are the input of each call that was not
read from a cache, its output, and the contents of the caches that the run created. A cache that existed before the run
was paid for elsewhere, so only the price of its storage is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import Field

from pollux_flows.config import Target
from pollux_flows.document import Record
from pollux_flows.pricing import Cost, cost_uncached, input_prices, storage_price, total
from pollux_flows.result import Answer, Outcome

_MILLION: Final = 1_000_000
_HOUR_S: Final = 3600.0
_CACHE_COUNTS: Final = ("cached_tokens", "cache_write_tokens")


class UsedCache(Record):
    """A registered cache that a run used."""

    name: str = Field(description="The provider's name for it.")
    source: int | None = Field(default=None, description="The source that its calls are about; empty: all of them.")
    tokens: int | None = Field(default=None, description="How many it holds; empty where the provider did not say.")
    created_at: float | None = Field(default=None, description="When the run created it; empty: it was there before.")
    ends_at: float = Field(description="When it expires or was deleted, in seconds since 1970.")


def measure_savings(
    target: Target,
    outcomes: Sequence[Outcome],
    caches: Sequence[UsedCache] = (),
    *,
    spent: Cost,
    has_handle: bool = False,
    batch: bool = False,
) -> dict[str, Any]:
    """Return the tokens and dollars of a run with its caches, compared with the baseline without caches.

    `spent` is its `run_cost`, and `has_handle` says that the caller's own handle was used. An unknown number is None,
    with the reason under `unknown`; a number that does not apply is absent.
    """
    answered = [outcome for outcome in outcomes if outcome.answer is not None]
    created = [cache for cache in caches if cache.created_at is not None]
    answers = [outcome.answer for outcome in answered if outcome.answer is not None]
    tokens = _count_tokens(answers, created)
    storage = _add([_storage_cost(target, cache) for cache in created])
    an_hour = _hourly_cost(target, answers, caches)
    naive = _add([_naive_cost(target, outcome, batch) for outcome in answered])
    saved = None if naive.usd is None or spent.usd is None else round(naive.usd - spent.usd, 12)
    unknown = [tokens.pop("unknown", None), spent.unknown, naive.unknown, an_hour.unknown if has_handle else None]
    return {
        **tokens,
        **({"storage_usd_per_hour": an_hour.usd} if caches or has_handle else {}),
        **({"storage_usd": storage.usd} if created else {}),
        "naive_usd": naive.usd,
        "saved_usd": saved,
        **({"unknown": reasons} if (reasons := " ".join(dict.fromkeys(filter(None, unknown)))) else {}),
    }


def run_cost(target: Target, outcomes: Sequence[Outcome], caches: Sequence[UsedCache] = ()) -> Cost:
    """Return the cost of the answers of a run and of the caches that it created."""
    answered = [outcome for outcome in outcomes if outcome.answer is not None]
    return _add([total(map(_answer_cost, answered)), *(cache_cost(target, cache) for cache in caches)])


def cache_cost(target: Target, cache: UsedCache) -> Cost:
    """Return what a run pays for a cache: its contents and storage if the run created it, otherwise nothing."""
    if cache.created_at is None:
        return Cost(0.0)
    return _add([_creation_cost(target, cache), _storage_cost(target, cache)])


def _count_tokens(answers: Sequence[Answer], created: Sequence[UsedCache]) -> dict[str, Any]:
    names = ("sent_tokens", "naive_tokens", "saved_tokens")
    held = [cache.tokens for cache in created if cache.tokens is not None]
    written = sum(held) if len(held) == len(created) else None
    if written is None:
        why = "The provider did not report the size of a cache."
        return dict.fromkeys((*names, "created_tokens")) | {"unknown": why}
    if any(not answer.usage.keys() >= {"input_tokens", "output_tokens"} for answer in answers):
        why = "The provider did not report the tokens of each answer."
        return dict.fromkeys(names) | {"created_tokens": written, "unknown": why}
    naive = sum(answer.usage["input_tokens"] + answer.usage["output_tokens"] for answer in answers)
    saved = sum(answer.usage.get("cached_tokens", 0) for answer in answers) - written
    return dict(zip(names, (naive - saved, naive, saved), strict=True)) | {"created_tokens": written}


def _answer_cost(outcome: Outcome) -> Cost:
    return Cost(outcome.cost_usd, outcome.cost_unknown)


def _naive_cost(target: Target, outcome: Outcome, batch: bool) -> Cost:
    """Return the cost of an answer without a cache, at today's prices if a cache made a difference."""
    answer = outcome.answer
    if answer is None or not any(answer.usage.get(name) for name in _CACHE_COUNTS):
        return _answer_cost(outcome)
    return cost_uncached(target, answer, batch=batch)


def _creation_cost(target: Target, cache: UsedCache) -> Cost:
    """Return the cost of creating a cache, whose contents are billed like any input."""
    prices = None if cache.tokens is None else input_prices(target, cache.tokens)
    if cache.tokens is None or prices is None:
        return Cost(None, f"The cost of creating the cache {cache.name} is unknown.")
    return Cost(prices.plain * cache.tokens / _MILLION)


def _storage_cost(target: Target, cache: UsedCache) -> Cost:
    """Return the cost of storing a cache until it ends."""
    an_hour = _price_storage(target, cache.tokens)
    if an_hour.usd is None or cache.created_at is None:
        return an_hour
    return Cost(an_hour.usd * max(0.0, cache.ends_at - cache.created_at) / _HOUR_S)


def _hourly_cost(target: Target, answers: Sequence[Answer], caches: Sequence[UsedCache]) -> Cost:
    """Return the price of storing the caches for an hour. The caller's own is as large as the most read from it."""
    if caches:
        return _add([_price_storage(target, cache.tokens) for cache in caches])
    read = max((answer.usage.get("cached_tokens", 0) for answer in answers), default=0)
    return _price_storage(target, read or None)


def _price_storage(target: Target, tokens: int | None) -> Cost:
    price = storage_price(target)
    if price is None:
        return Cost(None, f"The price of cache storage for {target.model} is unknown.")
    return Cost(None, "The size of the cache is unknown.") if tokens is None else Cost(price * tokens / _MILLION)


def _add(costs: Sequence[Cost]) -> Cost:
    """Return the sum of the costs; unknown, with the first reason, if one of them is."""
    unknown = next((cost.unknown or "" for cost in costs if cost.usd is None), None)
    return total(costs) if unknown is None else Cost(None, unknown)
