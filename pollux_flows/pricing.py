"""Pricing: what an answer cost, as far as anybody can tell."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from pollux_flows.config import ProviderName, Target
from pollux_flows.result import Answer, Billing

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, TieredPrices

# Who bills by a list, and what the table calls it.
_LISTS: Final[dict[ProviderName, str]] = {"gemini": "google", "openai": "openai", "anthropic": "anthropic"}
# The words by which providers say that nothing is special about a request.
_USUAL_TIERS: Final = {None, "standard", "default"}
_USUAL_SPEEDS: Final = {None, "standard"}
_USUAL_REGIONS: Final = {None, "", "global", "not_available"}
# What the list may say of a model that takes tokens and gives text. A model with other prices (of pictures it paints,
# of hours it listens) is billed by what no usage of ours counts.
_TOKENS: Final = {
    "input_mtok": "input",
    "cache_read_mtok": "cached input",
    "cache_write_mtok": "cache writes",
    "cache_write_1h_mtok": "cache writes that are kept longer",
    "input_audio_mtok": "sound",
    "cache_audio_read_mtok": "cached sound",
    "output_mtok": "output",
}
_TOOLS: Final = {"web_searches_kcount", "storage_searches_kcount"}
NO_CALL_TAKES: Final = 10**12  # tokens

# Steps from the highest to the base: the first whose start the prompt is longer than sets the price of a million.
_Price = tuple[tuple[int, Decimal], ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """An amount in US dollars, or the reason why nobody can tell it. Unknown is None, never 0."""

    usd: float | None
    unknown: str | None = None


def cost_of(target: Target, answer: Answer, *, batch: bool = False, at: datetime | None = None) -> Cost:
    """What one answer cost: what the provider says it charged or, where it does not say, the list price at that time.

    Price answers one by one and add up what they cost: some prices depend on how long the one prompt was.

    The list is `price_table()`. It knows cached tokens, cache writes, audio, long prompts, service tiers and batches.
    The cost is unknown where the list does not know the model, or its price in a batch or a tier, and where the answer
    tells of something that is billed in another way (a search, a region). No answer tells of taxes, of an account's
    discounts and free quotas, of what a gateway at another `base_url` charges, or of the hours that a persistent cache
    is kept: they are in no cost.

    What the simulator answered is priced as if the provider had, so that a rehearsal says what the real run may cost.
    """
    try:
        return Cost(_usd(target, answer, batch, at or datetime.now(UTC)))
    except _UnknownError as reason:
        return Cost(None, str(reason))


@dataclass(frozen=True, slots=True)
class InputPrices:
    """Prices of a million tokens of input, in US dollars."""

    plain: float
    cached: float | None
    """Read from a cache; None where the list has no such price."""
    written: float | None = None
    """Written to a cache by a prompt that is to be cached, for five minutes."""
    written_1h: float | None = None
    """Written to be cached for an hour."""


def input_prices(target: Target, prompt_tokens: int) -> InputPrices | None:
    """Return the list prices of input today, for prompts of that length; None where the list does not know them."""
    if target.provider not in _LISTS:
        return None
    prices = _prices(_LISTS[target.provider], _names(target.model, None), (), datetime.now(UTC).date())
    if isinstance(prices, str):
        return None
    names = ("cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok")
    others = [float(_rate(prices[name], prompt_tokens)) if name in prices else None for name in names]
    return InputPrices(float(_rate(prices["input_mtok"], prompt_tokens)), *others)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum; unknown as soon as one of them is."""
    costs = list(costs)
    if reasons := [cost.unknown for cost in costs if cost.usd is None]:
        return Cost(None, f"What {len(reasons)} of {len(costs)} answers cost is unknown. The first: {reasons[0]}")
    # A token costs a billionth of a dollar or more: what is left far below that comes from adding floats.
    return Cost(round(math.fsum(cost.usd or 0.0 for cost in costs), 12))


def dollars(usd: float) -> str:
    """The amount for people: to the cent from a dollar up, below with two digits that say something."""
    sign, usd = "-" if usd < 0 else "", abs(usd)
    if usd >= 1 or usd == 0:
        return f"{sign}${usd:,.2f}"
    few = Decimal(f"{usd:.2g}")
    return f"{sign}${few:.2f}" if few >= Decimal("0.1") else f"{sign}${few:f}"


def price_table() -> str:
    """Which list of prices this process has, for diagnostics: it grows old."""
    return f"genai-prices {_version()}"


class _UnknownError(Exception):
    """Nobody can tell the price; the text says why."""


def _usd(target: Target, answer: Answer, batch: bool, at: datetime) -> float:
    billing = answer.billing
    if target.provider == "local":
        raise _UnknownError("What an answer of a local server costs is known only to whoever runs it.")
    if target.provider == "openrouter":
        # Its price depends on the route that it took, which no list tells.
        if billing.cost_usd is None:
            raise _UnknownError("OpenRouter did not say what it charged for this answer.")
        return billing.cost_usd
    if billing.server_tools:
        raise _UnknownError("The answer used the provider's own tools (a search, say), which cost more than tokens.")
    if billing.region not in _USUAL_REGIONS:
        raise _UnknownError(f"The answer was made in region {billing.region!r}, which may have a price of its own.")
    prices = _prices(
        _LISTS[target.provider], _names(target.model, answer.model), _terms(billing, batch), at.astimezone(UTC).date()
    )
    if isinstance(prices, str):
        raise _UnknownError(prices)
    return _bill(prices, target, answer)


def _names(asked: str, answered: str | None) -> tuple[str, ...]:
    """What the list may know the model as: the one that answered or, if that is a dated form of it, the one asked."""
    asked = asked.removeprefix("models/")
    if answered is None:
        return (asked,)
    answered = answered.removeprefix("models/")
    return (answered, asked) if re.fullmatch(re.escape(asked) + r"[-@]\d{3}[\d-]*", answered) else (answered,)


def _terms(billing: Billing, batch: bool) -> tuple[tuple[str, str], ...]:
    """What makes the price another than the usual one, in the words of the list."""
    terms = []
    # A batch is a way to hand in requests and not a tier: OpenAI says "default" of it, Anthropic "batch".
    if batch or billing.service_tier == "batch":
        terms.append(("processing", "batch"))
    elif billing.service_tier not in _USUAL_TIERS:
        terms.append(("service_tier", str(billing.service_tier)))
    if billing.speed not in _USUAL_SPEEDS:
        terms.append(("speed", str(billing.speed)))
    return tuple(terms)


# Finding a model takes 50 µs, not finding it as long: both are kept.
@lru_cache(maxsize=1024)
def _prices(
    table: str, names: tuple[str, ...], terms: tuple[tuple[str, str], ...], day: date
) -> dict[str, _Price] | str:
    """What the list says of the model on that day, or what it does not say."""
    noon = datetime.combine(day, time(12), UTC)
    model = next((model for name in names if (model := _model(table, name))), None)
    if model is None:
        return f"{price_table()} has no price for the model {names[0]!r}."
    if terms:  # where the list has no price on just these, the library would give the usual one
        variants = [variant for variant in model.price_variants or () if variant.when == dict(terms)]
        if not any(variant.constraint is None or variant.constraint.active(noon) for variant in variants):
            asked = " and ".join(f"{name} {value!r}" for name, value in terms)
            return f"{price_table()} has no price for the model {names[0]!r} with {asked}."
    listed = vars(model.get_prices(noon, dict(terms)))
    prices = {name: _price(price) for name, price in listed.items() if price is not None and name not in _TOOLS}
    if prices.keys() - _TOKENS.keys() or not prices.keys() >= {"input_mtok", "output_mtok"}:
        # Among them the free ones: the list says so by saying nothing, as of a price that it does not know.
        return f"{price_table()} has no price by tokens of text for the model {names[0]!r}."
    return prices


def _model(table: str, name: str) -> ModelInfo | None:
    # Takes 0.15 s once. This is the list that came with the package: it is never fetched anew.
    from genai_prices.data import providers

    (provider,) = [provider for provider in providers if provider.id == table]
    model = provider.find_model(name)
    # A model of one's own training costs more than what it was trained from, which a few rows overlook.
    return None if model is None or name.startswith("ft:") != model.id.startswith("ft:") else model


def _price(listed: Decimal | TieredPrices) -> _Price:
    if isinstance(listed, Decimal):
        return ((-1, listed),)
    return (*((tier.start, tier.price) for tier in reversed(listed.tiers)), (-1, listed.base))


def _bill(prices: Mapping[str, _Price], target: Target, answer: Answer) -> float:
    """Every token of the usage, at the price of what it was."""
    usage, billing = answer.usage, answer.billing
    if not usage.keys() >= {"input_tokens", "output_tokens"}:
        raise _UnknownError("The provider did not say how many tokens the answer took.")
    prompt, cached = usage["input_tokens"], usage.get("cached_tokens", 0)
    written, kept_long = usage.get("cache_write_tokens", 0), billing.long_cache_write_tokens
    if target.provider == "openai" and "cache_write_mtok" not in prices:
        written = kept_long = 0  # before GPT-5.6, OpenAI says, a cache write costs what any input does
    heard, heard_before = billing.audio_tokens, billing.cached_audio_tokens
    if "input_audio_mtok" not in prices:
        heard = heard_before = 0  # sounds cost what words do
    counted = {
        "input_mtok": prompt - cached - written - (heard - heard_before),
        "cache_read_mtok": cached - heard_before,
        "cache_write_mtok": written - kept_long,
        "cache_write_1h_mtok": kept_long,
        "input_audio_mtok": heard - heard_before,
        "cache_audio_read_mtok": heard_before,
        "output_mtok": usage["output_tokens"],
    }
    if min(counted.values()) < 0 or max(counted.values()) > NO_CALL_TAKES:
        raise _UnknownError(f"The provider's token counts cannot be right: {usage}.")
    if missing := [what for name, what in _TOKENS.items() if counted[name] and name not in prices]:
        raise _UnknownError(f"{price_table()} has no price for {missing[0]} of {answer.model or target.model!r}.")
    usd = sum(tokens * _rate(prices[name], prompt) for name, tokens in counted.items() if tokens)
    return float(usd / 1_000_000)


def _rate(price: _Price, prompt: int) -> Decimal:
    return next(usd for start, usd in price if prompt > start)


@cache
def _version() -> str:
    return version("genai-prices")
