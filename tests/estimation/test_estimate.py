"""Tests of estimates: their numbers, and how they report an unknown one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from pollux_flows import Config, ConfigurationError, Estimate, Options, Source, estimate_many, run_many
from pollux_flows.config import ProviderName
from pollux_flows.estimation.estimate import Amount
from pollux_flows.estimation.estimating import estimate_calls
from pollux_flows.estimation.schema_size import size_of_answer
from pollux_flows.estimation.work import SampledCall, Work
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import KEY, SDKS, MakeConfig, asked

with_counter = pytest.mark.parametrize("provider", SDKS)


def operations(sim: Simulator) -> set[str]:
    return {each.operation for each in sim.requests}


@with_counter
async def test_the_tokens_of_a_few_calls_are_all_counted(
    sim: Simulator, config: MakeConfig, provider: ProviderName
) -> None:
    """The count includes instructions, schema and sources, and equals the bill."""
    options = Options(
        system_instruction="Be brief.",
        response_schema={"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
        max_tokens=500,
    )
    prompts, sources = ["Why?", "And how many?"], [Source.from_text("The north plant made 1,200 pumps.")]
    estimate = await estimate_many(prompts, config=config(provider), sources=sources, options=options)
    assert operations(sim) == {"count_tokens"}
    envelope = await run_many(prompts, config=config(provider), sources=sources, options=options)
    count = envelope.usage["input_tokens"]
    assert estimate.input_tokens == Amount(low=count, expected=count, worst=count)
    assert estimate.assumptions[0] == f"Input: {provider} has counted the tokens of every call."
    assert estimate.output_tokens.worst == 1_000
    now, batch = estimate.cost_usd, estimate.batch_cost_usd
    assert (now.low or 0) < (now.expected or 0) < (now.worst or 0)
    assert batch.expected == pytest.approx((now.expected or 0) / 2, rel=0.01)


@pytest.mark.parametrize("status", [404, 429, 401])
async def test_tokens_are_estimated_by_length_if_the_counter_fails(
    sim: Simulator, config: MakeConfig, status: int
) -> None:
    """A counter that is missing or refuses is asked once, and the estimate says so."""
    sim.fail(Fault(status=status), operation="count_tokens", times=None)
    estimate = await estimate_many(["x" * 400] * 30, config=config("openai"), options=Options(max_tokens=16))
    assert len(sim.requests) == 1
    assert estimate.input_tokens == Amount(low=2_250, expected=3_000, worst=6_000)
    assert estimate.counted == 0
    assert f"openai answered {status}" in estimate.assumptions[0]
    assert KEY not in estimate.model_dump_json()


async def test_a_local_server_is_not_asked_to_count(sim: Simulator, config: MakeConfig) -> None:
    """A local server has no counter, and its price is unknown."""
    estimate = await estimate_many(["x" * 400], config=config("local"), options=Options(max_tokens=10))
    assert not sim.requests
    assert estimate.input_tokens.expected == 100
    assert estimate.cost_usd.expected is None
    assert estimate.cost_usd.unknown == "The cost of an answer from a local server is unknown."
    assert "does not support" in str(estimate.batch_cost_usd.unknown)


async def test_openrouter_is_estimated_by_its_price_list(sim: Simulator, config: MakeConfig) -> None:
    """OpenRouter reports what it charges only with an answer."""
    prompts = ["x" * 4_000 + str(number) for number in range(10)]
    estimate = await estimate_many(prompts, config=config("openrouter"), options=Options(max_tokens=50))
    assert not sim.requests
    envelope = await run_many(prompts, config=config("openrouter"), options=Options(max_tokens=50))
    assert estimate.cost_usd.expected == pytest.approx(envelope.metrics["cost_usd"], rel=0.15)
    assert any("a route may cost more" in line for line in estimate.assumptions)


@with_counter
async def test_files_are_counted_without_an_upload(
    sim: Simulator, config: MakeConfig, provider: ProviderName, tmp_path: Path
) -> None:
    """A file is sent with a count, once for all calls about it."""
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7\n" + b"x" * 99_991)
    (tmp_path / "notes.txt").write_text("x" * 4_000)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 992)
    sources = [Source.from_file(str(tmp_path / name)) for name in ("report.pdf", "notes.txt", "image.png")]
    prompts = [f"Question {number}?" for number in range(12)]
    made, options = config(provider), Options(max_tokens=16)
    estimate = await estimate_many(prompts, sources=sources, config=made, options=options)
    assert operations(sim) == {"count_tokens"}
    assert not sim.files
    assert sum("png" in str(each.body) for each in sim.requests) == 1
    assert len(sim.requests) == 12 + 2
    bill = await run_many(prompts, sources=sources, config=made, options=options)
    assert estimate.input_tokens.expected == bill.usage["input_tokens"]


async def test_a_large_file_is_estimated_by_its_size(sim: Simulator, config: MakeConfig, tmp_path: Path) -> None:
    """The estimate says that the file was not counted."""
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"x" * (9 << 20))
    estimate = await estimate_many(
        ["four"], sources=[Source.from_file(str(tmp_path / "film.mp4"))], config=config("gemini")
    )
    assert operations(sim) == {"count_tokens"}
    assert estimate.input_tokens.expected == 1 + (9 << 20) // 1_000
    assert estimate.input_tokens.low != estimate.input_tokens.worst
    assert any("too large to be counted without an upload" in line for line in estimate.assumptions)


async def test_each_prompt_is_estimated_with_each_source(sim: Simulator, config: MakeConfig) -> None:
    """`each_source` estimates a broadcast."""
    sources = [Source.from_text("x" * 400 * number) for number in (1, 2, 3)]
    estimate = await estimate_many(["four"] * 2, sources=sources, config=config("anthropic"), each_source=True)
    assert (estimate.calls, estimate.duplicates) == (6, 3)
    assert estimate.input_tokens.expected == 2 * (600 + 3)
    assert not asked(sim)


async def test_reusable_answers_cost_nothing_in_an_estimate(config: MakeConfig) -> None:
    """`reuse` and `max_age` decide. The length of earlier answers is used in any case."""
    prompts = [f"prompt {number}" for number in range(10)]
    await run_many(prompts[:4], config=config("gemini"))
    estimate = await estimate_many(prompts, config=config("gemini"), reuse="always")
    assert (estimate.reused, estimate.to_ask) == (4, 6)
    too_old = await estimate_many(prompts, config=config("gemini"), reuse="always", max_age=0.0)
    again = await estimate_many(prompts, config=config("gemini"))
    assert (too_old.to_ask, again.to_ask) == (10, 10)
    assert {each.output_tokens.expected for each in (too_old, again)} == {80}
    everything = await estimate_many(prompts[:4], config=config("gemini"), reuse="always")
    assert (everything.to_ask, everything.cost_usd.worst, everything.assumptions) == (0, 0.0, [])


async def test_the_duration_follows_the_slowest_limit(sim: Simulator, config: MakeConfig) -> None:
    """The latency of the model is that of earlier answers."""
    options = Options(max_tokens=50)
    limited = config("gemini", requests_per_minute=10, tokens_per_minute=1_000)
    estimate = await estimate_many(["x" * 400] * 20, config=limited, options=options)
    assert estimate.duration_s.expected == pytest.approx(60 * 20 * (100 + 50) / 1_000)
    assert estimate.duration_s.low == 60 * 20 * 110 / 1_000
    assert estimate.duration_s.unknown is not None
    assert (await estimate_many(["x"], config=config("gemini"))).duration_s.expected is None
    sim.latency_s = 0.2
    await run_many(["slow"], config=config("gemini"))
    sim.latency_s = 0.0
    known = await estimate_many(["slow"] * 12, config=config("gemini", request_concurrency=2))
    assert known.duration_s.expected == pytest.approx(1.2, rel=0.5)


async def test_a_sample_is_estimated_for_all_calls_of_a_table(config: MakeConfig) -> None:
    """Each call of the sample may belong to another plan."""
    made = config("gemini")

    def plan(number: int) -> Plan:
        source = Source.from_text("x" * 4 * number)
        return make_plan(make_request("four", target=made.target, sources=[source], options=Options(max_tokens=20)))

    sample = [SampledCall(each, each.calls[0]) for each in map(plan, range(1, 101))]
    estimate = await estimate_calls(Work(sample, calls=50_000, to_ask=40_000, duplicates=4_000, reused=6_000), made)
    assert estimate.input_tokens.expected == pytest.approx(40_000 * 51.5, rel=0.02)
    assert (estimate.calls, estimate.to_ask, estimate.counted) == (50_000, 40_000, 20)
    assert "A sample of 100 calls represents all 40,000." in estimate.assumptions


async def test_an_estimate_advises_on_caching(config: MakeConfig) -> None:
    """The advice uses the arithmetic of cache="auto"."""
    report = Source.from_text("A long report. " * 20_000)
    model = "gemini-2.5-flash"
    pays = await estimate_many(["Why?"] * 30, sources=[report], config=config("gemini", model=model))
    assert pays.caching.startswith('cache="auto" is cheaper: ')
    vain = await estimate_many(["Why?", "How?"], config=config("gemini", model=model))
    assert vain.caching.startswith('cache="auto" would cache nothing: ')


async def test_thinking_is_part_of_the_answer(config: MakeConfig) -> None:
    """Half of the thinking budget is expected, and max_tokens limits thinking and answer together."""
    budget = config("anthropic", model="claude-haiku-4-5")
    thinks = Options(reasoning_budget_tokens=2_000, max_tokens=3_000)
    estimate = await estimate_many(["Why?"], config=budget, options=thinks)
    assert (estimate.output_tokens.expected, estimate.output_tokens.worst) == (1_250, 3_000)
    short = await estimate_many(["Why?"], config=budget, options=Options(max_tokens=100))
    assert (short.output_tokens.expected, short.output_tokens.worst) == (100, 100)


async def test_a_long_prompt_has_its_own_price(config: MakeConfig) -> None:
    """Gemini 2.5 Pro costs more from 200,000 tokens on, and each call has its own price."""
    made, options = config("gemini", model="gemini-2.5-pro"), Options(max_tokens=10)
    short = await estimate_many(["x" * 400_000] * 2, config=made, options=options)
    long = await estimate_many(["x" * 1_600_000, "x" * 400_000], config=made, options=options)
    assert short.cost_usd.expected == pytest.approx(2 * (0.125 + 0.0001))
    assert long.cost_usd.expected == pytest.approx(1.0 + 0.00015 + 0.125 + 0.0001)


async def test_an_estimate_refuses_what_a_run_refuses(sim: Simulator, config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match="blank"):
        await estimate_many([" "], config=config("openai"))
    options = Options(response_schema={"type": "array", "items": {"type": "string"}})
    with pytest.raises(ConfigurationError, match="root is an object"):
        await estimate_many(["x"], config=config("openai"), options=options)
    with pytest.raises(ConfigurationError, match="reuses none of them"):
        await estimate_many(["x"], config=config("openai"), max_age=5)
    assert not sim.requests


async def test_an_estimate_of_no_prompts_is_zero(config: MakeConfig) -> None:
    estimate = await estimate_many([], config=config("openai"))
    assert (estimate.calls, estimate.cost_usd.expected, estimate.duration_s.expected) == (0, 0.0, 0.0)


async def test_an_estimate_goes_through_json() -> None:
    config = Config(provider="gemini", model="gemini-2.5-flash-lite", use_mock=True)
    estimate = await estimate_many(["Why?"], config=config)
    assert Estimate.model_validate_json(estimate.model_dump_json()) == estimate


class _Line(BaseModel):
    item: str = Field(max_length=10)
    price: float


class _Invoice(BaseModel):
    lines: list[_Line] = Field(max_length=2)
    note: str | None = None
    total: int


def test_the_size_of_an_answer_is_estimated_from_its_schema() -> None:
    """Names and punctuation count, and each type has a size of its own."""
    size = size_of_answer(_Invoice.model_json_schema())
    line = len('{"item":"0123456789","price":1.25}')
    assert size.expected == pytest.approx(len('{"lines":[,],"note":"","total":123}') + 2 * line + 80, abs=8)
    assert size.least == pytest.approx(len('{"lines":[],"total":1}'), abs=3)
    recursive = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}}
    assert 0 < size_of_answer(recursive).expected < 200
    assert size_of_answer({"enum": ["a", "bbb"]}).expected == 4
    assert size_of_answer({"type": "object", "additionalProperties": {"type": "integer"}}).expected > 20


@pytest.mark.parametrize(
    ("provider", "model", "caching", "calls"),
    [
        ("openai", "gpt-4.1-mini", {}, 60),  # caches by itself; writes are free
        ("openai", "gpt-5.6", {}, 60),  # bills writes, too
        ("anthropic", "claude-opus-4-6", {"implicit_caching": "warm"}, 30),
        ("anthropic", "claude-opus-4-6", {"implicit_caching": "warm", "cache_ttl": "1h"}, 30),
        ("anthropic", "claude-opus-4-6", {"implicit_caching": True}, 60),
        ("anthropic", "claude-opus-4-6", {}, 1),  # a single call writes for the next turn
        ("anthropic", "claude-opus-4-6", {}, 20),
    ],
)
async def test_shared_input_is_priced_as_the_provider_caches_it(  # noqa: PLR0917 (fixtures and cases)
    sim: Simulator, config: MakeConfig, provider: ProviderName, model: str, caching: Any, calls: int
) -> None:
    """The first calls write, the others read."""
    sim.latency_s = 0.05  # the first ones leave before any is answered
    sources = [Source.from_text("A long report. " * 4_000)]
    prompts = [f"Question {number}: what does it say?" for number in range(calls)]
    made, options = config(provider, model=model), Options(max_tokens=16, **caching)
    estimate = await estimate_many(prompts, sources=sources, config=made, options=options)
    bill = (await run_many(prompts, sources=sources, config=made, options=options)).metrics["cost_usd"]
    assert estimate.cost_usd.expected == pytest.approx(bill, rel=0.15)
    assert any(line.startswith("Prompt caching:") for line in estimate.assumptions) == (calls != 20)
    assert (estimate.cost_usd.worst or 0) >= bill


async def test_cache_writes_that_no_call_reads_are_billed(sim: Simulator, config: MakeConfig) -> None:
    """GPT-5.6 bills writes of prompts that share nothing, too."""
    assert not sim.requests
    prompts = [f"{number} " + "x" * 20_000 for number in range(5)]
    made, options = config("openai", model="gpt-5.6"), Options(max_tokens=16)
    estimate = await estimate_many(prompts, config=made, options=options)
    bill = (await run_many(prompts, config=made, options=options)).metrics["cost_usd"]
    assert estimate.cost_usd.expected == pytest.approx(bill, rel=0.05)
