"""What an answer cost: list prices, in dollars a million tokens, against what the table makes of them."""

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


def answered(model: str | None = None, billing: dict[str, Any] | None = None, **usage: int) -> Answer:
    """An answer that took so many tokens: `input=…`, `output=…`, `cached=…`, `cache_write=…`."""
    counts = {f"{name}_tokens": count for name, count in usage.items()}
    return Answer(text="fine", finish_reason="stop", model=model, usage=counts, billing=Billing(**(billing or {})))


def priced(provider: ProviderName, model: str, **said: Any) -> Cost:
    """What so many tokens cost: `said` holds their counts, `billing`, `batch` and `at`."""
    asked = {"at": NOW, **{name: said.pop(name) for name in ("batch", "at") if name in said}}
    return cost_of(Target(provider=provider, model=model), answered(**said), **asked)


def known(usd: float) -> Cost:
    """Exactly this amount: what is counted in millionths of cents is no matter of rounding."""
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
def test_a_token_costs_what_the_provider_publishes(
    provider: ProviderName, model: str, read: float, written: float
) -> None:
    """Input and output, each by its own price."""
    assert priced(provider, model, input=MILLION, output=0) == known(read)
    assert priced(provider, model, input=0, output=MILLION) == known(written)
    assert priced(provider, model, input=1000, output=10).usd == pytest.approx((1000 * read + 10 * written) / MILLION)


def test_cached_tokens_are_part_of_the_input_and_cost_less() -> None:
    """A tenth at GPT-5, Sonnet and Flash: 600 tokens at the full price and 400 at that."""
    usage = {"input": 1000, "cached": 400, "output": 0}
    assert priced("openai", "gpt-5", **usage) == known((600 * 1.25 + 400 * 0.125) / MILLION)
    assert priced("anthropic", "claude-sonnet-4-6", **usage) == known((600 * 3 + 400 * 0.30) / MILLION)
    assert priced("gemini", "gemini-2.5-flash", **usage) == known((600 * 0.30 + 400 * 0.03) / MILLION)


def test_anthropics_cache_writes_cost_more_the_longer_they_are_kept() -> None:
    """A quarter more for five minutes, twice as much for an hour."""
    usage = {"input": 1000, "cache_write": 500, "output": 0}
    assert priced("anthropic", "claude-sonnet-4-6", **usage) == known((500 * 3 + 500 * 3.75) / MILLION)
    hour = priced("anthropic", "claude-sonnet-4-6", billing={"long_cache_write_tokens": 300}, **usage)
    assert hour == known((500 * 3 + 200 * 3.75 + 300 * 6) / MILLION)


@pytest.mark.parametrize("batch", [False, True])
def test_without_a_cache_all_input_costs_the_same(batch: bool) -> None:
    """Tokens that were read or written are input as any other; OpenRouter's prices are known to no list."""
    billing = {"long_cache_write_tokens": 100, "cost_usd": 7.0}
    answer = answered(billing=billing, input=1000, cached=400, cache_write=200, output=100)
    plain = priced("anthropic", "claude-sonnet-4-6", batch=batch, input=1000, output=100)
    target = Target(provider="anthropic", model="claude-sonnet-4-6")
    assert cost_uncached(target, answer, batch=batch, at=NOW) == plain
    routed = cost_uncached(Target(provider="openrouter", model="x/y"), answer)
    assert (routed.usd, routed.unknown) == (None, "OpenRouter does not report the price without a cache.")


def test_storage_has_a_price_where_it_is_listed() -> None:
    """By the model's name, with or without its prefix; unknown is None."""
    assert storage_price(Target(provider="gemini", model="models/gemini-2.5-flash")) == 1.0
    assert storage_price(Target(provider="gemini", model="gemini-of-tomorrow")) is None


def test_openais_cache_writes_are_billed_since_gpt_5_6() -> None:
    """Before, a write was input like any other."""
    usage = {"input": 1000, "cache_write": 500, "output": 0}
    assert priced("openai", "gpt-5.6", **usage) == known((500 * 4 + 500 * 5) / MILLION)
    assert priced("openai", "gpt-5", **usage) == known(1000 * 1.25 / MILLION)


def test_reasoning_is_output_and_is_paid_for_once() -> None:
    """It is counted in the output tokens already."""
    assert priced("openai", "gpt-5", input=0, output=100, reasoning=80) == known(100 * 10 / MILLION)
    assert priced("gemini", "gemini-2.5-flash", input=0, output=100, reasoning=80) == known(100 * 2.50 / MILLION)


@pytest.mark.parametrize(
    ("provider", "model", "limit", "short", "long"),
    [
        ("gemini", "gemini-2.5-pro", 200_000, (1.25, 10), (2.50, 15)),
        ("openai", "gpt-5.5", 272_000, (5, 30), (10, 45)),
        ("anthropic", "claude-haiku-5-5", 100_000, (0.10, 0.50), (0.50, 2.50)),
    ],
)
def test_a_long_prompt_makes_every_token_dearer(
    provider: ProviderName, model: str, limit: int, short: tuple[float, float], long: tuple[float, float]
) -> None:
    """Beyond the limit all of the call is billed at the higher prices, the answer too."""
    at_limit = priced(provider, model, input=limit, output=1000)
    beyond = priced(provider, model, input=limit + 1, output=1000)
    assert at_limit.usd == pytest.approx((limit * short[0] + 1000 * short[1]) / MILLION)
    assert beyond.usd == pytest.approx(((limit + 1) * long[0] + 1000 * long[1]) / MILLION)


def test_two_short_prompts_are_not_one_long_one() -> None:
    """So costs are added up, never tokens."""
    one = priced("gemini", "gemini-2.5-pro", input=150_000, output=0)
    assert total([one, one]) == known(0.375)
    assert priced("gemini", "gemini-2.5-pro", input=300_000, output=0) == known(0.75)


def test_gemini_hears_at_another_price_than_it_reads() -> None:
    """$1.00 for sound and $0.30 for the rest, $0.10 and $0.03 out of a cache."""
    heard = {"audio_tokens": 600, "cached_audio_tokens": 200}
    cost = priced("gemini", "gemini-2.5-flash", input=1000, cached=300, output=0, billing=heard)
    assert cost == known((300 * 0.30 + 100 * 0.03 + 400 * 1.00 + 200 * 0.10) / MILLION)
    # Pro takes the same for both.
    assert priced("gemini", "gemini-2.5-pro", input=1000, output=0, billing=heard) == known(1000 * 1.25 / MILLION)


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
    """Of input and output; of cached tokens where the provider says so."""
    cost = priced(provider, model, batch=True, input=1000, cached=400, output=100)
    assert cost.usd == pytest.approx((600 * read + 400 * cached + 100 * written) / MILLION)


def test_a_batch_is_known_by_what_anthropic_says_of_the_answer() -> None:
    """Its rows name it as the tier; OpenAI's name the usual one."""
    usage = {"input": 1000, "output": 100}
    told = priced("anthropic", "claude-sonnet-4-6", billing={"service_tier": "batch"}, **usage)
    assert told == priced("anthropic", "claude-sonnet-4-6", batch=True, **usage)
    default = priced("openai", "gpt-5", batch=True, billing={"service_tier": "default"}, **usage)
    assert default == known((1000 * 0.625 + 100 * 5) / MILLION)


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
def test_a_tier_costs_its_own_price(provider: ProviderName, model: str, billing: dict[str, Any], read: float) -> None:
    """The one that answered counts, not the one that was asked for."""
    assert priced(provider, model, billing=billing, input=MILLION // 10, output=0) == known(read / 10)


def test_a_price_is_that_of_its_day() -> None:
    """GPT-5.6 became cheaper on 2026-08-21."""
    before = datetime(2026, 8, 20, 23, 59, tzinfo=UTC)
    assert priced("openai", "gpt-5.6", at=before, input=MILLION // 10, output=0) == known(0.5)
    assert priced("openai", "gpt-5.6", input=MILLION // 10, output=0) == known(0.4)


# --- Names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "asked", "told", "read"),
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
        ),  # what answered counts, not what the alias means now
    ],
)
def test_a_model_is_known_by_all_its_names(provider: ProviderName, asked: str, told: str | None, read: float) -> None:
    """Dated, prefixed, trained on, in capitals."""
    answer = answered(told, input=MILLION // 10, output=0)
    assert cost_of(Target(provider=provider, model=asked), answer, at=NOW) == known(read / 10)


@pytest.mark.parametrize(
    ("provider", "asked", "told"),
    [
        ("openai", "gpt-99", None),
        ("openai", "gpt-5", "gpt-99"),  # whatever was asked for: another model answered
        ("anthropic", "claude-opus-4", "claude-opus-4-99"),  # a version is not a date
        ("openai", "ft:gpt-4.1-2025-04-14:acme::abc", None),
        ("openai", "ft:gpt-4-0613:acme::abc", None),  # the list has it at the price of the base model
        ("openai", "whisper-1", None),  # by the hour
        ("openai", "gpt-image-2", None),  # by the picture
        ("openai", "omni-moderation-latest", None),  # free, or so it seems
        ("gemini", "gemma-3-27b-it", None),
        ("anthropic", "gpt-5", None),
    ],
)
def test_a_model_without_a_price_costs_nobody_knows_what(provider: ProviderName, asked: str, told: str | None) -> None:
    """The reason names the model and the list."""
    cost = cost_of(Target(provider=provider, model=asked), answered(told, input=10, output=1), at=NOW)
    assert cost.usd is None
    assert cost.unknown is not None
    assert price_table() in cost.unknown
    assert repr(told or asked) in cost.unknown


# --- Unknown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "asked", "words"),
    [
        ("openai", "o1-mini", {"batch": True}, "processing 'batch'"),
        ("openai", "ft:gpt-4o-2024-08-06:acme::abc", {"batch": True}, "processing 'batch'"),  # not half: nobody knows
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
def test_what_the_list_does_not_say_is_unknown(
    provider: ProviderName, model: str, asked: dict[str, Any], words: str
) -> None:
    """No usual price for what is unusual, and no number for what cannot be."""
    cost = priced(provider, model, **{"input": 10, "output": 1, **asked})
    assert cost.usd is None
    assert words in str(cost.unknown)


@pytest.mark.parametrize("usage", [{}, {"input": 10}, {"output": 10}])
def test_an_answer_without_token_counts_is_unknown(usage: dict[str, int]) -> None:
    """Half of a bill is none."""
    cost = priced("openai", "gpt-5", **usage)
    assert cost.usd is None
    assert "how many tokens" in str(cost.unknown)


def test_a_gateway_is_taken_to_charge_what_the_list_says() -> None:
    """Most pass the price on; one that does not is its owner's to know."""
    target = Target(provider="openai", model="gpt-5", base_url="http://127.0.0.1:8000/v1")
    assert cost_of(target, answered(input=1000, output=0), at=NOW) == known(0.00125)


def test_a_local_server_is_nobodys_business() -> None:
    """Even one whose model has a famous name."""
    target = Target(provider="local", model="gpt-5", base_url="http://127.0.0.1:8000/v1")
    assert cost_of(target, answered(input=10, output=1)).usd is None


@pytest.mark.parametrize("model", ["openai/gpt-5", "deepseek/deepseek-r1:free", "meta-llama/llama-4:nitro"])
def test_openrouter_alone_knows_what_its_route_cost(model: str) -> None:
    """What it says counts, a 0 as well. Where it says nothing no list helps, though the model is called free."""
    target = Target(provider="openrouter", model=model, base_url="http://127.0.0.1:8000/api/v1")
    assert cost_of(target, answered(billing={"cost_usd": 0.00095}, input=1000, output=50)) == known(0.00095)
    assert cost_of(target, answered(billing={"cost_usd": 0.0}, input=1000, output=50)) == known(0.0)
    silent = cost_of(target, answered(input=1000, output=50))
    assert silent.usd is None
    assert "OpenRouter did not report" in str(silent.unknown)


def test_a_rehearsal_is_priced_like_the_real_run() -> None:
    """With the simulator, too, a name that no list has is no price."""
    for model, usd in (("gpt-5", 0.00125), ("made-up", None)):
        target = Target(provider="openai", model=model, use_mock=True)
        assert cost_of(target, answered(input=1000, output=0), at=NOW).usd == usd


# --- Adding up ----------------------------------------------------------------------------------------------


def test_a_total_is_unknown_when_one_of_its_parts_is() -> None:
    """It says how many are, and why the first."""
    costs = [known(0.5), Cost(None, "Nobody knows."), known(0.25), Cost(None, "Nor that.")]
    assert total(costs) == Cost(None, "The cost of 2 of 4 answers is unknown. The first: Nobody knows.")


def test_a_total_is_the_sum() -> None:
    """Without the dust of floats, and without losing what is tiny; nothing asked is nothing paid."""
    assert total([known(0.1)] * 3) == known(0.3)
    assert total([known(1e-9)] * 10_000) == known(1e-5)
    assert total([]) == known(0.0)


# --- The list -----------------------------------------------------------------------------------------------


USAGES = [
    {"input": 1000, "output": 50},
    {"input": 90_000, "cached": 40_000, "cache_write": 10_000, "output": 5000},
    {"input": 500_000, "cached": 400_000, "output": 5000},
]


@pytest.mark.parametrize("provider", LISTED)
def test_every_model_on_the_list_costs_what_the_library_says(provider: ProviderName) -> None:
    """Its own arithmetic is right, but takes 50 µs an answer. Where ours knows a cost, it is the same."""
    from genai_prices import Usage, calc_price
    from genai_prices.data import providers

    (listed,) = [each for each in providers if each.id == LISTED[provider]]
    compared = 0
    for model in listed.models:
        for usage in USAGES:
            for batch in (False, True):
                ours = priced(provider, model.id, batch=batch, **usage)
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


def test_of_many_steps_the_highest_that_was_passed_counts() -> None:
    """The providers' lists have one step; the library's rows may have more."""
    from genai_prices.types import Tier, TieredPrices

    steps = TieredPrices(base=Decimal(1), tiers=[Tier(start=20, price=Decimal(3)), Tier(start=10, price=Decimal(2))])
    assert [pricing._usd_for(steps, 1_000_000, prompt) for prompt in (0, 10, 11, 20, 21)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("provider", LISTED)
def test_no_price_depends_on_the_time_of_day(provider: ProviderName) -> None:
    """The list knows such prices, of others: ours are kept by the day."""
    from genai_prices.data import providers
    from genai_prices.types import StartDateConstraint

    (listed,) = [each for each in providers if each.id == LISTED[provider]]
    conditions = [
        price.constraint for model in listed.models if isinstance(model.prices, list) for price in model.prices
    ]
    conditions += [variant.constraint for model in listed.models for variant in model.price_variants or ()]
    assert {type(condition) for condition in conditions} == {type(None), StartDateConstraint}


def test_the_list_is_the_one_that_was_installed() -> None:
    """Nothing fetches a newer one, and one that somebody else has fetched changes nothing here."""
    from genai_prices import data_snapshot, update_prices

    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot(providers=[], from_auto_update=True))
    try:
        assert priced("openai", "gpt-5-nano", input=MILLION // 10, output=0) == known(0.005)
    finally:
        data_snapshot.set_custom_snapshot(None)
    assert update_prices._shared_updater.ref_count == 0


def test_the_list_has_a_version() -> None:
    """For whoever wonders how old it is."""
    import genai_prices

    assert price_table() == f"genai-prices {genai_prices.__version__}"


@pytest.mark.parametrize("model", ["gpt-5", "no-such-model"])
def test_ten_thousand_answers_are_priced_in_no_time(model: str) -> None:
    """Less than 20 µs each, the model that is on no list included."""
    answer = answered(input=1000, cached=100, output=50)
    target = Target(provider="openai", model=model)
    cost_of(target, answer, at=NOW)

    def seconds() -> float:
        start = time.process_time()
        for _ in range(10_000):
            cost_of(target, answer, at=NOW)
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.2


# --- For people ---------------------------------------------------------------------------------------------


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
def test_money_for_people(usd: float, text: str) -> None:
    """To the cent from a dollar up; below, so that something is left to see."""
    assert dollars(usd) == text


@given(st.floats(min_value=1e-12, max_value=1e9))
@example(0.0049999)
@example(0.994999)
def test_what_is_not_nothing_does_not_look_like_nothing(usd: float) -> None:
    """Nor is it off by more than a twentieth."""
    shown = float(dollars(usd).removeprefix("$").replace(",", ""))
    assert shown == pytest.approx(usd, rel=0.051)
