"""Pricing: the cost of an answer, as charged by the provider or by list price."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import ROUND_CEILING, Decimal
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from pollux_flows.config import ProviderName, Target
from pollux_flows.result import Answer, Billing

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, TieredPrices

    _Price = Decimal | TieredPrices

# The providers that bill by a price list, and their ids in the table.
_LISTS: Final[dict[ProviderName, str]] = {"gemini": "google", "openai": "openai", "anthropic": "anthropic"}
# A route of OpenRouter may cost more than the list price of the model, so the list is used only for estimates.
_ESTIMATES: Final[dict[ProviderName, str]] = {**_LISTS, "openrouter": "openrouter"}
# The values by which providers report a request at the usual price.
_USUAL_TIERS: Final = {None, "standard", "default"}
_USUAL_SPEEDS: Final = {None, "standard"}
_USUAL_REGIONS: Final = {None, "", "global", "not_available"}
# The prices of a model that turns tokens into text. A model with other prices (per generated image, per hour of audio)
# is billed by units that our usage does not count.
_TOKENS: Final = {
    "input_mtok": "input",
    "cache_read_mtok": "cached input",
    "cache_write_mtok": "cache writes",
    "cache_write_1h_mtok": "cache writes with a longer lifetime",
    "input_audio_mtok": "sound",
    "cache_audio_read_mtok": "cached sound",
    "output_mtok": "output",
}
_TOOLS: Final = {"web_searches_kcount", "storage_searches_kcount"}
IMPOSSIBLE_TOKENS: Final = 10**12
"""More tokens than any call can take."""
_MILLION: Final = 1_000_000
# US dollars for a million tokens an hour, from Gemini's price list. genai-prices has no prices of storage.
_STORAGE: Final = {
    "gemini-3.1-pro": 4.50,
    "gemini-3.1-pro-preview": 4.50,
    "gemini-2.5-pro": 4.50,
    "gemini-2.5-flash": 1.00,
    "gemini-3-flash-preview": 1.00,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """An amount in US dollars, or the reason why it is unknown. Unknown is None, never 0."""

    usd: float | None
    unknown: str | None = None


def cost_of(target: Target, answer: Answer, *, batch: bool = False, at: datetime | None = None) -> Cost:
    """Return the cost of one answer: the provider's reported charge or, without one, the list price at that time.

    Price answers one by one and add up their costs, as some prices depend on the length of the prompt.

    The list is `price_table()`. It has prices for cached tokens, cache writes, audio, long prompts, service tiers and
    batches. The cost is unknown if the list lacks the model, or its price in a batch or a tier, and if the answer used
    something that is billed in another way (a search, a region). No cost includes taxes, an account's discounts and
    free quotas, the charges of a gateway at another `base_url`, or the storage hours of a persistent cache.

    The simulator's answers are priced like the provider's, so that a rehearsal shows what the real run may cost.
    """
    try:
        return Cost(_usd(target, answer, batch, at or datetime.now(UTC)))
    except _UnknownError as reason:
        return Cost(None, str(reason))


def cost_uncached(target: Target, answer: Answer, *, batch: bool = False, at: datetime | None = None) -> Cost:
    """Return the cost of an answer at list prices if no cache had been read or written."""
    if target.provider == "openrouter":
        return Cost(None, "OpenRouter does not report the price without a cache.")
    usage = {**answer.usage, "cached_tokens": 0, "cache_write_tokens": 0}
    billing = answer.billing.model_copy(update={"cached_audio_tokens": 0, "long_cache_write_tokens": 0})
    return cost_of(target, answer.model_copy(update={"usage": usage, "billing": billing}), batch=batch, at=at)


def storage_price(target: Target) -> float | None:
    """Return the price of storing a million cached tokens for an hour, in US dollars; None if unknown."""
    return _STORAGE.get(target.model.removeprefix("models/")) if target.provider == "gemini" else None


@dataclass(frozen=True, slots=True)
class InputPrices:
    """Prices of a million tokens of input, in US dollars."""

    plain: float
    cached: float | None
    """Read from a cache; None if the list has no such price."""
    written: float | None = None
    """Written to a cache for five minutes."""
    written_1h: float | None = None
    """Written to a cache for an hour."""


def input_prices(target: Target, prompt_tokens: int) -> InputPrices | None:
    """Return today's list prices of input, for prompts of that length; None if the list lacks them."""
    if target.provider not in _LISTS:
        return None
    prices = _prices(_LISTS[target.provider], _names(target.model, None), (), datetime.now(UTC).date())
    if isinstance(prices, str):
        return None
    names = ("cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok")
    others = [float(_usd_for(prices[name], _MILLION, prompt_tokens)) if name in prices else None for name in names]
    return InputPrices(float(_usd_for(prices["input_mtok"], _MILLION, prompt_tokens)), *others)


def cost_at_most(
    target: Target,
    input_tokens: int,
    output_tokens: int,
    *,
    kinds: Collection[str] = ("input_mtok",),
    every_tier: bool = False,
    batch: bool = False,
) -> Cost:
    """Return the list price of a call if all its tokens are of the most expensive of the `kinds` of input.

    With `every_tier`, the most expensive service tier or speed is assumed.
    """
    if target.provider not in _ESTIMATES:
        return Cost(None, "The cost of an answer from a local server is unknown.")
    table, names, day = _ESTIMATES[target.provider], _names(target.model, None), datetime.now(UTC).date()
    terms: list[tuple[tuple[str, str], ...]] = [(("processing", "batch"),) if batch else ()]
    if every_tier and not batch:
        terms += _tiers(table, names[0])
    most = Decimal(0)
    for each in terms:
        prices = _prices(table, names, each, day)
        if isinstance(prices, str):
            return Cost(None, prices)
        written = [_usd_for(prices[kind], input_tokens, input_tokens) for kind in kinds if kind in prices]
        most = max(most, max(written) + _usd_for(prices["output_mtok"], output_tokens, input_tokens))
    return Cost(float(most))


def context_window(target: Target) -> int | None:
    """Return the size of the model's context in tokens; None if the list lacks it."""
    table = _ESTIMATES.get(target.provider)
    model = None if table is None else _model(table, target.model.removeprefix("models/"))
    return None if model is None else model.context_window


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of the costs; unknown if any of them is."""
    costs = list(costs)
    if reasons := [cost.unknown for cost in costs if cost.usd is None]:
        return unknown_total(len(reasons), len(costs), str(reasons[0]))
    # A token costs at least a billionth of a dollar: anything far below that is floating-point error.
    return Cost(round(math.fsum(cost.usd or 0.0 for cost in costs), 12))


def unknown_total(count: int, of: int, first_reason: str) -> Cost:
    """Return the unknown sum of `of` costs, of which `count` are unknown."""
    return Cost(None, f"The cost of {count} of {of} answers is unknown. The first: {first_reason}")


def dollars(usd: float) -> str:
    """Format an amount for people: to the cent from a dollar up, below that with two significant digits."""
    sign, usd = "-" if usd < 0 else "", abs(usd)
    if usd >= 1 or usd == 0:
        return f"{sign}${usd:,.2f}"
    few = Decimal(f"{usd:.2g}")
    return f"{sign}${few:.2f}" if few >= Decimal("0.1") else f"{sign}${few:f}"


def dollars_up(usd: float) -> str:
    """Format an amount for people, rounded up, so that it can be used as a limit."""
    exact = Decimal(usd)
    digits = Decimal(1).scaleb(exact.adjusted() - 1) if exact else Decimal(1)
    return dollars(float(exact.quantize(min(digits, Decimal("0.01")), ROUND_CEILING)))


def price_table() -> str:
    """Return the name and version of this process's price list, which may be out of date."""
    return f"genai-prices {_version()}"


class _UnknownError(Exception):
    """The price is unknown; the message says why."""


def _usd(target: Target, answer: Answer, batch: bool, at: datetime) -> float:
    billing = answer.billing
    if target.provider == "local":
        raise _UnknownError("The cost of an answer from a local server is unknown.")
    if target.provider == "openrouter":
        # The price depends on the route of the call, which no list contains.
        if billing.cost_usd is None:
            raise _UnknownError("OpenRouter did not report what it charged for this answer.")
        return billing.cost_usd
    if billing.server_tools:
        raise _UnknownError("The answer used tools of the provider, such as a search, which are billed separately.")
    if billing.region not in _USUAL_REGIONS:
        raise _UnknownError(f"The answer was made in region {billing.region!r}, which may have a different price.")
    prices = _prices(
        _LISTS[target.provider], _names(target.model, answer.model), _terms(billing, batch), at.astimezone(UTC).date()
    )
    if isinstance(prices, str):
        raise _UnknownError(prices)
    return _bill(prices, target, answer)


def _names(asked: str, answered: str | None) -> tuple[str, ...]:
    """Return the names to look the model up by: that of the answer and, if it is a dated form, the requested one."""
    asked = asked.removeprefix("models/")
    if answered is None:
        return (asked,)
    answered = answered.removeprefix("models/")
    return (answered, asked) if re.fullmatch(re.escape(asked) + r"[-@]\d{3}[\d-]*", answered) else (answered,)


def _terms(billing: Billing, batch: bool) -> tuple[tuple[str, str], ...]:
    """Return the conditions under which a price differs from the usual one, in the terms of the list."""
    terms = []
    # A batch is a way to submit requests, not a tier: OpenAI reports it as "default", Anthropic as "batch".
    if batch or billing.service_tier == "batch":
        terms.append(("processing", "batch"))
    elif billing.service_tier not in _USUAL_TIERS:
        terms.append(("service_tier", str(billing.service_tier)))
    if billing.speed not in _USUAL_SPEEDS:
        terms.append(("speed", str(billing.speed)))
    return tuple(terms)


# A lookup takes 50 µs, and so does a failed one: both are cached.
@lru_cache(maxsize=1024)
def _prices(
    table: str, names: tuple[str, ...], terms: tuple[tuple[str, str], ...], day: date
) -> dict[str, _Price] | str:
    """Return the model's list prices on that day, or a reason why there are none."""
    noon = datetime.combine(day, time(12), UTC)
    model = next((model for name in names if (model := _model(table, name))), None)
    if model is None:
        return f"{price_table()} has no price for the model {names[0]!r}."
    if terms:  # without a price for exactly these, the library would return the usual one
        variants = [variant for variant in model.price_variants or () if variant.when == dict(terms)]
        if not any(variant.constraint is None or variant.constraint.active(noon) for variant in variants):
            asked = " and ".join(f"{name} {value!r}" for name, value in terms)
            return f"{price_table()} has no price for the model {names[0]!r} with {asked}."
    listed = vars(model.get_prices(noon, dict(terms)))
    prices = {name: price for name, price in listed.items() if price is not None and name not in _TOOLS}
    if prices.keys() - _TOKENS.keys() or not prices.keys() >= {"input_mtok", "output_mtok"}:
        # This includes free models: the list leaves out both a free price and an unknown one.
        return f"{price_table()} has no price per token of text for the model {names[0]!r}."
    return prices


@lru_cache(maxsize=64)
def _tiers(table: str, name: str) -> list[tuple[tuple[str, str], ...]]:
    """Return the conditions, apart from batches, under which the model's prices differ from the usual ones."""
    model = _model(table, name)
    variants = (model and model.price_variants) or ()
    return [tuple(variant.when.items()) for variant in variants if "processing" not in variant.when]


def _model(table: str, name: str) -> ModelInfo | None:
    # Takes 0.15 s once. This is the list that is installed with the package; it is never downloaded.
    from genai_prices.data import providers

    (provider,) = [provider for provider in providers if provider.id == table]
    model = provider.find_model(name)
    # A fine-tuned model costs more than its base model, but some rows match both.
    return None if model is None or name.startswith("ft:") != model.id.startswith("ft:") else model


def _bill(prices: Mapping[str, _Price], target: Target, answer: Answer) -> float:
    """Return the cost of all tokens of the usage, each kind at its own price."""
    usage, billing = answer.usage, answer.billing
    if not usage.keys() >= {"input_tokens", "output_tokens"}:
        raise _UnknownError("The provider did not report how many tokens the answer took.")
    prompt, cached = usage["input_tokens"], usage.get("cached_tokens", 0)
    written, long_written = usage.get("cache_write_tokens", 0), billing.long_cache_write_tokens
    if target.provider == "openai" and "cache_write_mtok" not in prices:
        written = long_written = 0  # before GPT-5.6, OpenAI bills a cache write like any input
    heard, heard_before = billing.audio_tokens, billing.cached_audio_tokens
    if "input_audio_mtok" not in prices:
        heard = heard_before = 0  # audio costs the same as text
    counted = {
        "input_mtok": prompt - cached - written - (heard - heard_before),
        "cache_read_mtok": cached - heard_before,
        "cache_write_mtok": written - long_written,
        "cache_write_1h_mtok": long_written,
        "input_audio_mtok": heard - heard_before,
        "cache_audio_read_mtok": heard_before,
        "output_mtok": usage["output_tokens"],
    }
    if min(counted.values()) < 0 or max(counted.values()) > IMPOSSIBLE_TOKENS:
        raise _UnknownError(f"The provider's token counts cannot be right: {usage}.")
    if missing := [what for name, what in _TOKENS.items() if counted[name] and name not in prices]:
        raise _UnknownError(f"{price_table()} has no price for {missing[0]} of {answer.model or target.model!r}.")
    return float(sum(_usd_for(prices[name], tokens, prompt) for name, tokens in counted.items() if tokens))


def _usd_for(price: _Price, tokens: int, prompt_tokens: int) -> Decimal:
    """Return the cost of `tokens` in a call whose prompt has `prompt_tokens`, as long prompts may cost more."""
    from genai_prices.types import calc_unit_price

    return calc_unit_price(price, tokens, prompt_tokens, per=_MILLION)


@cache
def _version() -> str:
    return version("genai-prices")
