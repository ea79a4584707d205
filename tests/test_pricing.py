"""The cost of an answer: the code is compared with list prices in dollars per million tokens."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pollux_flows import pricing
from pollux_flows.config import ProviderName, Target
from pollux_flows.pricing import Cost, cost_of, cost_uncached, dollars, price_table, storage_price, total
from pollux_flows.result import Answer, Billing

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MILLION = 1_000_000
LISTED: dict[ProviderName, str] = {"gemini": "google", "openai": "openai", "anthropic": "anthropic"}


def make_answer(model: str | None = None, billing: dict[str, Any] | None = None, **usage: int) -> Answer:
    """Return an answer with these token counts: `input=…`, `output=…`, `cached=…`, `cache_write=…`."""
    counts = {f"{name}_tokens": count for name, count in usage.items()}
    return Answer(text="fine", finish_reason="stop", model=model, usage=counts, billing=Billing(**(billing or {})))


def price(provider: ProviderName, model: str, **terms: Any) -> Cost:
    """Return the cost of an answer; `terms` are its token counts, `billing`, `batch` and `at`."""
    options = {"at": NOW, **{name: terms.pop(name) for name in ("batch", "at") if name in terms}}
    return cost_of(Target(provider=provider, model=model), make_answer(**terms), **options)


def make_cost(usd: float) -> Cost:
    """Return a known cost of exactly this amount; costs are exact to millionths of cents."""
    return Cost(usd, None)


# --- List prices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "read", "written"),
    [
        ("openai", "gpt-5", 1.25, 10),
        ("openai", "gpt-5-mini", 0.25, 2),
        ("openai", "gpt-4.1-mini", 0.40, 1.60),
        ("anthropic", "claude-sonnet-4-6", 3, 15),
        ("anthropic", "claude-haiku-4-5", 1, 5),
        ("anthropic", "claude-opus-4-1", 15, 75),
        ("gemini", "gemini-2.5-flash", 0.30, 2.50),
        ("gemini", "gemini-2.5-flash-lite", 0.10, 0.40),
        ("gemini", "gemini-3-flash-preview", 0.50, 3),
    ],
)
def test_a_token_has_the_list_price_of_the_provider(
    provider: ProviderName, model: str, read: float, written: float
) -> None:
    """Input and output have separate prices."""
    assert price(provider, model, input=MILLION, output=0) == make_cost(read)
    assert price(provider, model, input=0, output=MILLION) == make_cost(written)
    assert price(provider, model, input=1000, output=10).usd == pytest.approx((1000 * read + 10 * written) / MILLION)


def test_cached_tokens_are_part_of_the_input_and_cost_less() -> None:
    """With GPT-5, Sonnet and Flash, 600 of 1,000 tokens have the full price, and 400 cached ones a tenth of it."""
    usage = {"input": 1000, "cached": 400, "output": 0}
    assert price("openai", "gpt-5", **usage) == make_cost((600 * 1.25 + 400 * 0.125) / MILLION)
    assert price("anthropic", "claude-sonnet-4-6", **usage) == make_cost((600 * 3 + 400 * 0.30) / MILLION)
    assert price("gemini", "gemini-2.5-flash", **usage) == make_cost((600 * 0.30 + 400 * 0.03) / MILLION)


def test_cache_writes_of_anthropic_cost_more_for_a_longer_lifetime() -> None:
    """A write for five minutes costs 1.25 times the input, and one for an hour twice the input."""
    usage = {"input": 1000, "cache_write": 500, "output": 0}
    assert price("anthropic", "claude-sonnet-4-6", **usage) == make_cost((500 * 3 + 500 * 3.75) / MILLION)
    hour = price("anthropic", "claude-sonnet-4-6", billing={"long_cache_write_tokens": 300}, **usage)
    assert hour == make_cost((500 * 3 + 200 * 3.75 + 300 * 6) / MILLION)


@pytest.mark.parametrize("batch", [False, True])
def test_the_cost_without_a_cache_prices_all_input_equally(batch: bool) -> None:
    """Tokens that were read from or written to a cache count as input. For OpenRouter the cost is unknown."""
    billing = {"long_cache_write_tokens": 100, "cost_usd": 7.0}
    answer = make_answer(billing=billing, input=1000, cached=400, cache_write=200, output=100)
    plain = price("anthropic", "claude-sonnet-4-6", batch=batch, input=1000, output=100)
    target = Target(provider="anthropic", model="claude-sonnet-4-6")
    assert cost_uncached(target, answer, batch=batch, at=NOW) == plain
    routed = cost_uncached(Target(provider="openrouter", model="x/y"), answer)
    assert (routed.usd, routed.unknown) == (None, "OpenRouter does not report the price without a cache.")


def test_the_price_of_storage_is_none_if_it_is_not_listed() -> None:
    """The model may be written with or without its prefix."""
    assert storage_price(Target(provider="gemini", model="models/gemini-2.5-flash")) == 1.0
    assert storage_price(Target(provider="gemini", model="gemini-of-tomorrow")) is None


def test_cache_writes_of_openai_cost_extra_since_gpt_5_6() -> None:
    """With earlier models, a write costs as much as other input."""
    usage = {"input": 1000, "cache_write": 500, "output": 0}
    assert price("openai", "gpt-5.6", **usage) == make_cost((500 * 4 + 500 * 5) / MILLION)
    assert price("openai", "gpt-5", **usage) == make_cost(1000 * 1.25 / MILLION)


def test_reasoning_tokens_are_not_counted_twice() -> None:
    """They are part of the output tokens."""
    assert price("openai", "gpt-5", input=0, output=100, reasoning=80) == make_cost(100 * 10 / MILLION)
    assert price("gemini", "gemini-2.5-flash", input=0, output=100, reasoning=80) == make_cost(100 * 2.50 / MILLION)


@pytest.mark.parametrize(
    ("provider", "model", "limit", "short", "long"),
    [
        ("gemini", "gemini-2.5-pro", 200_000, (1.25, 10), (2.50, 15)),
        ("openai", "gpt-5.5", 272_000, (5, 30), (10, 45)),
        ("anthropic", "claude-haiku-5-5", 100_000, (0.10, 0.50), (0.50, 2.50)),
    ],
)
def test_a_prompt_beyond_the_limit_has_higher_prices_for_all_its_tokens(
    provider: ProviderName, model: str, limit: int, short: tuple[float, float], long: tuple[float, float]
) -> None:
    """The output of such a call also has the higher price."""
    at_limit = price(provider, model, input=limit, output=1000)
    beyond = price(provider, model, input=limit + 1, output=1000)
    assert at_limit.usd == pytest.approx((limit * short[0] + 1000 * short[1]) / MILLION)
    assert beyond.usd == pytest.approx(((limit + 1) * long[0] + 1000 * long[1]) / MILLION)


def test_two_short_prompts_cost_less_than_one_long_prompt() -> None:
    """The total of several calls is the sum of their costs, not the cost of the sum of their tokens."""
    one = price("gemini", "gemini-2.5-pro", input=150_000, output=0)
    assert total([one, one]) == make_cost(0.375)
    assert price("gemini", "gemini-2.5-pro", input=300_000, output=0) == make_cost(0.75)


def test_audio_input_of_gemini_has_its_own_price() -> None:
    """Audio costs $1.00 and other input $0.30; from a cache they cost $0.10 and $0.03."""
    audio = {"audio_tokens": 600, "cached_audio_tokens": 200}
    cost = price("gemini", "gemini-2.5-flash", input=1000, cached=300, output=0, billing=audio)
    assert cost == make_cost((300 * 0.30 + 100 * 0.03 + 400 * 1.00 + 200 * 0.10) / MILLION)
    # Gemini Pro has one price for both.
    assert price("gemini", "gemini-2.5-pro", input=1000, output=0, billing=audio) == make_cost(1000 * 1.25 / MILLION)


@pytest.mark.parametrize(
    ("provider", "model", "read", "cached", "written"),
    [
        ("openai", "gpt-5-mini", 0.125, 0.0125, 1),
        ("openai", "gpt-4.1", 1, 0.50, 4),  # whose cached price is not halved
        ("anthropic", "claude-sonnet-4-6", 1.50, 0.15, 7.50),
        ("gemini", "gemini-2.5-flash", 0.15, 0.03, 1.25),  # nor is Gemini's
    ],
)
def test_a_batch_costs_half(provider: ProviderName, model: str, read: float, cached: float, written: float) -> None:
    """Input and output cost half; cached tokens only with some providers."""
    cost = price(provider, model, batch=True, input=1000, cached=400, output=100)
    assert cost.usd == pytest.approx((600 * read + 400 * cached + 100 * written) / MILLION)


def test_a_batch_answer_of_anthropic_is_known_by_its_service_tier() -> None:
    """Batch answers of OpenAI have the default tier."""
    usage = {"input": 1000, "output": 100}
    tagged = price("anthropic", "claude-sonnet-4-6", billing={"service_tier": "batch"}, **usage)
    assert tagged == price("anthropic", "claude-sonnet-4-6", batch=True, **usage)
    default = price("openai", "gpt-5", batch=True, billing={"service_tier": "default"}, **usage)
    assert default == make_cost((1000 * 0.625 + 100 * 5) / MILLION)


@pytest.mark.parametrize(
    ("provider", "model", "billing", "read"),
    [
        ("openai", "gpt-5", {"service_tier": "default"}, 1.25),
        ("openai", "gpt-5", {"service_tier": "flex"}, 0.625),
        ("openai", "gpt-5", {"service_tier": "priority"}, 2.50),
        ("anthropic", "claude-opus-4-8", {"service_tier": "standard", "speed": "standard", "region": "global"}, 5),
        ("anthropic", "claude-opus-4-8", {"speed": "fast"}, 10),
        ("anthropic", "claude-opus-4-8", {"region": "not_available"}, 5),
        ("gemini", "gemini-2.5-flash", {"service_tier": "standard"}, 0.30),
    ],
)
def test_each_service_tier_has_its_own_price(
    provider: ProviderName, model: str, billing: dict[str, Any], read: float
) -> None:
    """The tier of the answer counts, not the requested one."""
    assert price(provider, model, billing=billing, input=MILLION // 10, output=0) == make_cost(read / 10)


def test_the_price_is_that_of_the_date_of_the_answer() -> None:
    """The price of GPT-5.6 was lowered on 2026-08-21."""
    before = datetime(2026, 8, 20, 23, 59, tzinfo=UTC)
    assert price("openai", "gpt-5.6", at=before, input=MILLION // 10, output=0) == make_cost(0.5)
    assert price("openai", "gpt-5.6", input=MILLION // 10, output=0) == make_cost(0.4)


# --- Names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "requested", "answering", "read"),
    [
        ("openai", "gpt-5", "gpt-5-2025-08-07", 1.25),
        ("openai", "gpt-5", "gpt-5-2031-01-31", 1.25),  # a date that the list does not know yet
        ("openai", "GPT-5", None, 1.25),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme::abc", None, 0.30),  # twice what the base model costs
        ("anthropic", "claude-sonnet-4-5", "claude-sonnet-4-5-20250929", 3),
        ("anthropic", "claude-sonnet-4-5-20250929", None, 3),
        ("gemini", "models/gemini-2.5-flash", None, 0.30),
        ("gemini", "gemini-2.5-flash", "models/gemini-2.5-flash-001", 0.30),
        (
            "gemini",
            "gemini-flash-latest",
            "gemini-2.5-flash",
            0.30,
        ),  # the answering model counts, not the current target of the alias
    ],
)
def test_a_model_is_priced_under_all_its_names(
    provider: ProviderName, requested: str, answering: str | None, read: float
) -> None:
    """The name may have a date, a prefix, capitals, or the id of a fine-tuned model."""
    answer = make_answer(answering, input=MILLION // 10, output=0)
    assert cost_of(Target(provider=provider, model=requested), answer, at=NOW) == make_cost(read / 10)


@pytest.mark.parametrize(
    ("provider", "requested", "answering"),
    [
        ("openai", "gpt-99", None),
        ("openai", "gpt-5", "gpt-99"),  # another model than the requested one answered
        ("anthropic", "claude-opus-4", "claude-opus-4-99"),  # a version is not a date
        ("openai", "ft:gpt-4.1-2025-04-14:acme::abc", None),
        ("openai", "ft:gpt-4-0613:acme::abc", None),  # the list has it at the price of the base model
        ("openai", "whisper-1", None),  # by the hour
        ("openai", "gpt-image-2", None),  # by the picture
        ("openai", "omni-moderation-latest", None),  # apparently free
        ("gemini", "gemma-3-27b-it", None),
        ("anthropic", "gpt-5", None),
    ],
)
def test_the_cost_of_a_model_without_a_price_is_unknown(
    provider: ProviderName, requested: str, answering: str | None
) -> None:
    """The reason names the model and the price list."""
    cost = cost_of(Target(provider=provider, model=requested), make_answer(answering, input=10, output=1), at=NOW)
    assert cost.usd is None
    assert cost.unknown is not None
    assert price_table() in cost.unknown
    assert repr(answering or requested) in cost.unknown


# --- Unknown costs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "terms", "words"),
    [
        ("openai", "o1-mini", {"batch": True}, "processing 'batch'"),
        ("openai", "ft:gpt-4o-2024-08-06:acme::abc", {"batch": True}, "processing 'batch'"),  # may not be half
        ("anthropic", "claude-3-haiku", {"batch": True}, "processing 'batch'"),
        ("openai", "gpt-5", {"batch": True, "at": datetime(2026, 9, 1, tzinfo=UTC)}, "processing 'batch'"),
        ("openai", "gpt-4o-mini", {"billing": {"service_tier": "flex"}}, "service_tier 'flex'"),
        ("openai", "gpt-5", {"billing": {"service_tier": "scale"}}, "service_tier 'scale'"),
        ("anthropic", "claude-sonnet-4-6", {"billing": {"service_tier": "priority"}}, "service_tier 'priority'"),
        ("anthropic", "claude-sonnet-4-6", {"billing": {"speed": "fast"}}, "speed 'fast'"),
        ("anthropic", "claude-opus-4-8", {"billing": {"speed": "fast"}, "batch": True}, "'batch' and speed 'fast'"),
        ("anthropic", "claude-sonnet-4-6", {"billing": {"region": "us"}}, "region 'us'"),
        ("anthropic", "claude-sonnet-4-6", {"billing": {"server_tools": 1}}, "tools of the provider"),
        ("openai", "gpt-5.6", {"cache_write": 5, "billing": {"long_cache_write_tokens": 5}}, "with a longer lifetime"),
        ("openai", "o1-pro", {"cached": 5}, "cached input"),
        ("openai", "gpt-5", {"cached": 11}, "cannot be right"),
        ("openai", "gpt-5", {"output": 10**400}, "cannot be right"),
        ("gemini", "gemini-2.5-flash", {"billing": {"audio_tokens": 11}}, "cannot be right"),
    ],
)
def test_a_cost_that_the_price_list_does_not_cover_is_unknown(
    provider: ProviderName, model: str, terms: dict[str, Any], words: str
) -> None:
    """Unusual terms have no usual price, and impossible token counts no price at all."""
    cost = price(provider, model, **{"input": 10, "output": 1, **terms})
    assert cost.usd is None
    assert words in str(cost.unknown)


@pytest.mark.parametrize("usage", [{}, {"input": 10}, {"output": 10}])
def test_the_cost_of_an_answer_without_token_counts_is_unknown(usage: dict[str, int]) -> None:
    """The cost needs both input and output tokens."""
    cost = price("openai", "gpt-5", **usage)
    assert cost.usd is None
    assert "how many tokens" in str(cost.unknown)


def test_a_gateway_has_the_list_prices() -> None:
    """Most gateways charge the price of the provider."""
    target = Target(provider="openai", model="gpt-5", base_url="http://127.0.0.1:8000/v1")
    assert cost_of(target, make_answer(input=1000, output=0), at=NOW) == make_cost(0.00125)


def test_the_cost_of_a_local_server_is_unknown() -> None:
    """The cost is unknown also if a model on the list has the same name."""
    target = Target(provider="local", model="gpt-5", base_url="http://127.0.0.1:8000/v1")
    assert cost_of(target, make_answer(input=10, output=1)).usd is None


@pytest.mark.parametrize("model", ["openai/gpt-5", "deepseek/deepseek-r1:free", "meta-llama/llama-4:nitro"])
def test_the_cost_of_openrouter_is_the_one_that_it_reports(model: str) -> None:
    """A reported cost of 0 counts. Without a report the cost is unknown, even for a model with `free` in its name."""
    target = Target(provider="openrouter", model=model, base_url="http://127.0.0.1:8000/api/v1")
    assert cost_of(target, make_answer(billing={"cost_usd": 0.00095}, input=1000, output=50)) == make_cost(0.00095)
    assert cost_of(target, make_answer(billing={"cost_usd": 0.0}, input=1000, output=50)) == make_cost(0.0)
    silent = cost_of(target, make_answer(input=1000, output=50))
    assert silent.usd is None
    assert "OpenRouter did not report" in str(silent.unknown)


def test_the_mock_has_the_prices_of_the_provider() -> None:
    """A model that is not on the list has no price with the mock either."""
    for model, usd in (("gpt-5", 0.00125), ("made-up", None)):
        target = Target(provider="openai", model=model, use_mock=True)
        assert cost_of(target, make_answer(input=1000, output=0), at=NOW).usd == usd


# --- Totals -------------------------------------------------------------------------------------------------


def test_a_total_is_unknown_if_one_of_its_costs_is() -> None:
    """The reason has the number of unknown costs and the first of their reasons."""
    costs = [make_cost(0.5), Cost(None, "No price."), make_cost(0.25), Cost(None, "No usage.")]
    assert total(costs) == Cost(None, "The cost of 2 of 4 answers is unknown. The first: No price.")


def test_a_total_is_the_exact_sum_of_costs() -> None:
    """The sum has no rounding errors, also of tiny costs; the total of no costs is 0."""
    assert total([make_cost(0.1)] * 3) == make_cost(0.3)
    assert total([make_cost(1e-9)] * 10_000) == make_cost(1e-5)
    assert total([]) == make_cost(0.0)


# --- The price list -----------------------------------------------------------------------------------------


USAGES = [
    {"input": 1000, "output": 50},
    {"input": 90_000, "cached": 40_000, "cache_write": 10_000, "output": 5000},
    {"input": 500_000, "cached": 400_000, "output": 5000},
]


@pytest.mark.parametrize("provider", LISTED)
def test_costs_equal_those_of_the_library_for_every_listed_model(provider: ProviderName) -> None:
    """The library takes 50 µs an answer, so the code has its own arithmetic. It must agree where it knows the cost."""
    from genai_prices import Usage, calc_price
    from genai_prices.data import providers

    (listed,) = [each for each in providers if each.id == LISTED[provider]]
    compared = 0
    for model in listed.models:
        for usage in USAGES:
            for batch in (False, True):
                ours = price(provider, model.id, batch=batch, **usage)
                if ours.usd is None:
                    continue
                names = {"cached": "cache_read"}
                theirs = calc_price(
                    Usage(**{f"{names.get(name, name)}_tokens": count for name, count in usage.items()}),
                    model.id,
                    provider_id=listed.id,
                    genai_request_timestamp=NOW,
                    price_context={"processing": "batch"} if batch else None,
                )
                assert ours.usd == pytest.approx(float(theirs.total_price), rel=1e-12), (model.id, usage, batch)
                compared += 1
    assert compared > 50


def test_the_highest_price_tier_below_the_prompt_length_counts() -> None:
    """Listed prices have one tier, but the library supports more."""
    from genai_prices.types import Tier, TieredPrices

    tiers = TieredPrices(base=Decimal(1), tiers=[Tier(start=20, price=Decimal(3)), Tier(start=10, price=Decimal(2))])
    assert [pricing._usd_for(tiers, 1_000_000, prompt) for prompt in (0, 10, 11, 20, 21)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("provider", LISTED)
def test_no_price_depends_on_the_time_of_day(provider: ProviderName) -> None:
    """Such prices exist only for other providers. Our cache of prices has one entry a day."""
    from genai_prices.data import providers
    from genai_prices.types import StartDateConstraint

    (listed,) = [each for each in providers if each.id == LISTED[provider]]
    conditions = [
        price.constraint for model in listed.models if isinstance(model.prices, list) for price in model.prices
    ]
    conditions += [variant.constraint for model in listed.models for variant in model.price_variants or ()]
    assert {type(condition) for condition in conditions} == {type(None), StartDateConstraint}


def test_the_installed_price_list_is_used() -> None:
    """No newer list is fetched, and a list that other code has fetched is not used."""
    from genai_prices import data_snapshot, update_prices

    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot(providers=[], from_auto_update=True))
    try:
        assert price("openai", "gpt-5-nano", input=MILLION // 10, output=0) == make_cost(0.005)
    finally:
        data_snapshot.set_custom_snapshot(None)
    assert update_prices._shared_updater.ref_count == 0


def test_the_name_of_the_price_list_has_its_version() -> None:
    import genai_prices

    assert price_table() == f"genai-prices {genai_prices.__version__}"


@pytest.mark.parametrize("model", ["gpt-5", "no-such-model"])
def test_ten_thousand_answers_are_priced_within_200_ms(model: str) -> None:
    """An unknown model is as quick: each answer takes less than 20 µs."""
    answer = make_answer(input=1000, cached=100, output=50)
    target = Target(provider="openai", model=model)
    cost_of(target, answer, at=NOW)

    def measure_seconds() -> float:
        start = time.process_time()
        for _ in range(10_000):
            cost_of(target, answer, at=NOW)
        return time.process_time() - start

    assert min(measure_seconds() for _ in range(3)) < 0.2


# --- Formatting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0, "$0.00"),
        (0.0031, "$0.0031"),
        (0.00314159, "$0.0031"),
        (0.05, "$0.05"),
        (0.0999, "$0.10"),
        (0.1, "$0.10"),
        (0.314, "$0.31"),
        (0.999, "$1.00"),
        (1, "$1.00"),
        (12.345678, "$12.35"),
        (1234.5, "$1,234.50"),
        (0.00000012, "$0.00000012"),
        (-0.0031, "-$0.0031"),
    ],
)
def test_dollars_are_formatted_with_enough_digits(usd: float, text: str) -> None:
    """Amounts from a dollar up are rounded to cents; small amounts have two significant digits."""
    assert dollars(usd) == text


@given(st.floats(min_value=1e-12, max_value=1e9))
@example(0.0049999)
@example(0.994999)
def test_a_formatted_amount_is_never_off_by_more_than_a_twentieth(usd: float) -> None:
    """In particular, no positive amount is shown as zero."""
    shown = float(dollars(usd).removeprefix("$").replace(",", ""))
    assert shown == pytest.approx(usd, rel=0.051)
