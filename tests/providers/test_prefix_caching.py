"""Prompt caching over shared sources, through the real SDKs: which calls write, which read, and at what cost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pollux_flows import ConfigurationError, Options, Source, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.pipeline.execute import open_execution
from pollux_flows.pipeline.extract import extract_each, extract_envelope
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome, ResultEnvelope
from pollux_flows.simulator import Fault, Simulator
from tests.executing import execute_plan
from tests.loopback import ONCE, MakeConfig, asked, good, http, outcomes, scripted, sent, until

DOCUMENT_TOKENS = 100_000
DOCUMENT = Source.from_text("x" * 4 * DOCUMENT_TOKENS, identifier="report")
TEN_PROMPTS = [f"Question {number:02}?" for number in range(10)]
WARM = Options(implicit_caching="warm")
MARK = {"type": "ephemeral"}


def count_billed_documents(usage: dict[str, int]) -> float:
    """Return the billed input in documents: uncached input, writes at 1.25, reads at 0.1."""
    read, written = usage.get("cached_tokens", 0), usage.get("cache_write_tokens", 0)
    uncached = usage["input_tokens"] - read - written
    return (uncached + 1.25 * written + 0.1 * read) / DOCUMENT_TOKENS


def count_breakpoints(body: Any) -> int:
    """Return how many cache breakpoints a request has."""
    if isinstance(body, dict):
        return ("cache_control" in body) + sum(map(count_breakpoints, body.values()))
    return sum(map(count_breakpoints, body)) if isinstance(body, list) else 0


# --- Anthropic ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "least", "most"), [(WARM, 2.1, 2.2), (None, 10.0, 10.01)])
async def test_a_warm_fan_out_bills_two_documents_instead_of_ten(
    options: Options | None, least: float, most: float, config: MakeConfig, sim: Simulator
) -> None:
    """The write costs 1.25 documents and nine reads cost 0.9; without caching, ten calls cost ten."""
    sim.latency_s = 0.1
    envelope = await run_many(TEN_PROMPTS, sources=[DOCUMENT], config=config("anthropic"), options=options)
    assert envelope.status == "ok"
    assert least <= count_billed_documents(envelope.usage) <= most


async def test_concurrent_calls_with_implicit_caching_each_write_the_cache(config: MakeConfig, sim: Simulator) -> None:
    """Ten calls cost 12.5 documents, so `implicit_caching=True` is not the default of a fan-out."""
    sim.latency_s = 0.2
    options, settings = Options(implicit_caching=True), config("anthropic", request_concurrency=10)
    envelope = await run_many(TEN_PROMPTS, sources=[DOCUMENT], config=settings, options=options)
    assert count_billed_documents(envelope.usage) == pytest.approx(12.5, abs=0.01)


async def test_a_warm_fan_out_makes_the_first_call_before_the_others(config: MakeConfig, sim: Simulator) -> None:
    """Ten answers of 0.2 seconds each take the time of two."""
    sim.latency_s = 0.2
    settings = config("anthropic", request_concurrency=10)
    envelope = await run_many(TEN_PROMPTS, sources=[DOCUMENT], config=settings, options=WARM)
    assert envelope.metrics["duration_s"] < 1.2
    cache_used = [call["cache_used"] for call in envelope.diagnostics["calls"]]
    assert sorted(cache_used) == [False] + [True] * 9
    metrics = envelope.metrics
    assert (metrics["n_cache_hits"], metrics["cache_hit"], metrics["cache_mode"]) == (9, True, "implicit")
    assert (metrics["cache_write_tokens"], metrics["cached_tokens"]) == (DOCUMENT_TOKENS, 9 * DOCUMENT_TOKENS)
    assert metrics["cache_used"] is False  # no cache handle was used


async def test_the_breakpoint_is_at_the_last_source(config: MakeConfig, sim: Simulator) -> None:
    """The cached prefix covers all sources, and not the prompt."""
    options = WARM.model_copy(update={"system_instruction": "Be brief.", "cache_ttl": "1h"})
    sources = [Source.from_text("one"), Source.from_text("two")]
    await run_many(["a", "b"], sources=sources, config=config("anthropic"), options=options)
    for entry in asked(sim):
        first, second, prompt = entry.body["messages"][0]["content"]
        assert second["cache_control"] == {**MARK, "ttl": "1h"}
        assert (count_breakpoints(first), count_breakpoints(prompt), count_breakpoints(entry.body)) == (0, 0, 1)
        assert entry.body["system"] == "Be brief."


async def test_writes_with_a_ttl_of_an_hour_are_billed_as_long_writes(config: MakeConfig) -> None:
    options = WARM.model_copy(update={"cache_ttl": "1h"})
    results = await outcomes(["a", "b"], config("anthropic"), options, [DOCUMENT])
    long_writes = [outcome.answer.billing.long_cache_write_tokens for outcome in results if outcome.answer]
    assert sorted(long_writes) == [0, DOCUMENT_TOKENS]


@pytest.mark.parametrize("shared", ["system_instruction", "tools"])
async def test_without_sources_the_breakpoint_is_at_the_system_instruction_or_the_last_tool(
    shared: str, config: MakeConfig, sim: Simulator
) -> None:
    tools = [{"name": "a", "parameters": {"type": "object"}}, {"name": "b", "parameters": {"type": "object"}}]
    options = Options(implicit_caching="warm", **{shared: "Be brief." if shared != "tools" else tools})
    await run_many(["a", "b"], config=config("anthropic"), options=options)
    for entry in asked(sim):
        at = entry.body["system"][-1] if shared != "tools" else entry.body["tools"][-1]
        assert at["cache_control"] == MARK
        assert count_breakpoints(entry.body) == 1


@pytest.mark.parametrize(
    ("raw", "added"),
    [
        ({"cache_control": {**MARK, "ttl": "1h"}}, 0),
        ({"tools": [{"name": "t", "input_schema": {"type": "object"}, "cache_control": MARK}]}, 1),
        (
            {
                "tools": [
                    {"name": f"t{number}", "input_schema": {"type": "object"}, "cache_control": MARK}
                    for number in range(4)
                ]
            },
            0,
        ),
    ],
)
async def test_breakpoints_of_the_caller_are_not_changed(
    raw: dict[str, Any], added: int, config: MakeConfig, sim: Simulator
) -> None:
    """One breakpoint is added, unless the caller has set the maximum of four."""
    options = WARM.model_copy(update={"provider_options": {"anthropic": raw}})
    await run_many(["a", "b"], sources=[Source.from_text("s")], config=config("anthropic"), options=options)
    for entry in asked(sim):
        assert count_breakpoints(entry.body) == count_breakpoints(raw) + added
        assert entry.body.items() >= raw.items()


async def test_if_the_first_call_fails_the_next_one_writes_the_cache(config: MakeConfig, sim: Simulator) -> None:
    sim.latency_s = 0.1
    sim.fail(Fault(kind="status", status=400), contains=TEN_PROMPTS[0])
    results = await outcomes(TEN_PROMPTS, config("anthropic"), WARM, [DOCUMENT])
    assert [outcome.answer is None for outcome in results] == [True] + [False] * 9
    assert _count_writes(results) == [0, 1, *[0] * 8]
    assert _count_reads(results) == [0, 0, *[1] * 8]


async def test_after_three_failed_first_calls_the_others_run_uncached(config: MakeConfig, sim: Simulator) -> None:
    """Concurrent calls would each pay for a write."""
    sim.latency_s = 0.05
    sim.fail(Fault(kind="status", status=500), times=3)
    plan = _make_plan(TEN_PROMPTS, config)
    results = await execute_plan(plan, config("anthropic", retry=ONCE))
    (warning,) = extract_envelope(plan, results, duration_s=0.0).diagnostics["warnings"]
    assert "the first calls failed" in warning
    assert sum(outcome.answer is None for outcome in results) == 3
    assert _count_writes(results) == [0] * 10
    assert sum(count_breakpoints(entry.body) for entry in asked(sim)) == 3


async def test_if_the_first_call_is_cancelled_the_next_one_writes_the_cache(config: MakeConfig, sim: Simulator) -> None:
    """One task run of a flow may be stopped, and all task runs share one execution."""
    sim.fail(Fault(kind="hang"), contains=TEN_PROMPTS[0])
    plan = _make_plan(TEN_PROMPTS[:4], config)
    async with open_execution(plan, config("anthropic"), Terms()) as execution:
        parts = [asyncio.create_task(execution.answer_calls(part.calls)) for part in plan.parts(1)]
        await until(lambda: asked(sim))
        await asyncio.sleep(0.1)
        assert len(asked(sim)) == 1
        parts[0].cancel()
        results = [outcome for part in parts[1:] for outcome in await part]
    assert _count_writes(results) == [1, 0, 0]
    assert _count_reads(results) == [0, 1, 1]


async def test_all_parts_of_a_run_share_one_first_call(config: MakeConfig, sim: Simulator) -> None:
    """Each task run of a flow is a part; the first to start writes."""
    sim.latency_s = 0.1
    plan = _make_plan(TEN_PROMPTS, config)
    async with open_execution(plan, config("anthropic"), Terms()) as execution:
        each = await asyncio.gather(*(execution.answer_calls(part.calls) for part in plan.parts(2)))
    results = [outcome for part in each for outcome in part]
    assert sum(_count_writes(results)) == 1
    assert sum(_count_reads(results)) == 9


async def test_a_part_of_one_call_with_its_own_execution_writes_no_cache(config: MakeConfig, sim: Simulator) -> None:
    """No other call would read it."""
    for part in _make_plan(TEN_PROMPTS[:3], config).parts(1):
        await execute_plan(part, config("anthropic"))
    assert sum(count_breakpoints(entry.body) for entry in asked(sim)) == 0


async def test_a_rerun_writes_the_cache_only_for_missing_answers(config: MakeConfig, sim: Simulator) -> None:
    """The first missing answer is requested before the others; a rerun without missing answers sends nothing."""
    settings, plan = config("anthropic", retry=ONCE), _make_plan(TEN_PROMPTS, config)
    sim.latency_s = 0.05
    for prompt in TEN_PROMPTS[4:8]:
        sim.fail(Fault(kind="status", status=400), contains=prompt)
    await execute_plan(plan, settings, Terms(run_key="nightly"))
    sim.prefixes.clear()  # the cache has expired before the rerun
    rerun = await execute_plan(plan, settings, Terms(run_key="nightly"))
    assert _count_writes(rerun[4:8]) == [1, 0, 0, 0]
    assert _count_reads(rerun[4:8]) == [0, 1, 1, 1]
    count = len(asked(sim))
    await execute_plan(plan, settings, Terms(run_key="nightly"))
    assert len(asked(sim)) == count


async def test_each_source_of_a_broadcast_has_a_first_call(config: MakeConfig, sim: Simulator) -> None:
    """Three prompts about each of three sources make three writes and six reads."""
    sim.latency_s = 0.1
    sources = [Source.from_text(letter * 8_000, identifier=letter) for letter in "abc"]
    envelopes = await _run_broadcast(TEN_PROMPTS[:3], sources, config, WARM)
    assert [envelope.metrics["n_cache_hits"] for envelope in envelopes] == [2, 2, 2]
    assert [envelope.metrics["cache_write_tokens"] for envelope in envelopes] == [2_000] * 3


async def test_a_broadcast_of_one_prompt_writes_no_cache(config: MakeConfig, sim: Simulator) -> None:
    """Ten sources share no prefix; with "warm" a warning says that it had no effect."""
    sources = [Source.from_text(str(number) * 8_000, identifier=str(number)) for number in range(10)]
    for options, is_reported in ((None, False), (WARM, True)):
        envelopes = await _run_broadcast(["p"], sources, config, options)
        assert [envelope.metrics["cache_write_tokens"] for envelope in envelopes] == [0] * 10
        all_warnings = [envelope.diagnostics["warnings"] for envelope in envelopes]
        assert all(any("had no effect" in each for each in warnings) is is_reported for warnings in all_warnings)
    assert sum(count_breakpoints(entry.body) for entry in asked(sim)) == 0


async def test_calls_that_wait_for_a_first_call_hold_no_slot(config: MakeConfig, sim: Simulator) -> None:
    """With a concurrency of one, a waiting call that held the slot would block the first call."""
    sim.latency_s = 0.02
    sources = [Source.from_text(letter * 8_000, identifier=letter) for letter in "abcd"]
    envelopes = await asyncio.wait_for(
        _run_broadcast(TEN_PROMPTS, sources, config, WARM, request_concurrency=1), timeout=20
    )
    assert [envelope.status for envelope in envelopes] == ["ok"] * 4
    assert len(asked(sim)) == 40


@pytest.mark.parametrize(
    ("model", "length", "threshold"),
    [
        ("claude-haiku-4-5", 3_000, "4,096"),
        ("claude-haiku-4-5", 5_000, None),
        ("claude-opus-5", 500, "512"),
        ("claude-sonnet-4-6", 100, None),  # the minimum of this model is not known
    ],
)
async def test_a_prefix_too_short_to_be_cached_is_reported(
    model: str, length: int, threshold: str | None, config: MakeConfig
) -> None:
    """Anthropic returns no error; only its usage shows it."""
    source = Source.from_text("x" * 4 * length)
    settings = config("anthropic", model=model)
    for implicit in ("warm", True):
        options = Options(implicit_caching=implicit)
        envelope = await run_many(["a", "b"], sources=[source], config=settings, options=options)
        warnings = envelope.diagnostics["warnings"]
        assert [warning for warning in warnings if "Nothing was cached" in warning] == warnings
        assert threshold is None if not warnings else str(threshold) in warnings[0]
        assert bool(warnings) is (threshold is not None)


async def test_a_short_prompt_without_a_caching_option_is_not_reported(config: MakeConfig) -> None:
    envelope = await run("p", config=config("anthropic", model="claude-haiku-4-5"))
    assert envelope.diagnostics["warnings"] == []


async def test_warm_with_one_prompt_caches_like_a_single_call(config: MakeConfig, sim: Simulator) -> None:
    """The breakpoint is at the end of the call."""
    await run("p", source=Source.from_text("s"), config=config("anthropic"), options=WARM)
    assert sent(sim)["cache_control"] == MARK


async def test_a_cache_ttl_without_caching_is_reported(config: MakeConfig) -> None:
    """A fan-out does not cache by default."""
    envelope = await run_many(["a", "b"], config=config("anthropic"), options=Options(cache_ttl="1h"))
    assert any("cache_ttl='1h' had no effect" in warning for warning in envelope.diagnostics["warnings"])


# --- OpenAI, OpenRouter, local ------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "openrouter", "local"])
async def test_requests_of_a_fan_out_have_equal_bytes_up_to_the_prompt(provider: ProviderName) -> None:
    """The providers' automatic caches match by prefix."""
    sources = [Source.from_text("one"), Source.from_json({"b": 1, "a": [2]})]
    prompts = ["FIRST-PROMPT", "ANOTHER-PROMPT"]
    options = Options(system_instruction="Be brief.")
    async with scripted(http(good(provider))) as server:
        await run_many(prompts, sources=sources, config=server.config(provider), options=options)
        bodies = {prompt: body for body in server.requests for prompt in prompts if prompt.encode() in body}
    (first, first_end), (other, other_end) = (bodies[prompt].split(prompt.encode()) for prompt in prompts)
    assert first == other
    assert first_end == other_end
    assert b"one" in first


async def test_openai_receives_a_prompt_cache_key_by_content(config: MakeConfig, sim: Simulator) -> None:
    """Equal content has an equal key in every run; without sources no key is sent."""
    settings, other = config("openai"), Source.from_text("another")
    await run_many(["a", "b"], sources=[Source.from_text("s", identifier="x")], config=settings)
    await run("c", source=Source.from_text("s", identifier="y"), config=settings)
    await run("a", source=other, config=settings)
    await run("a", source=other, config=settings, options=Options(system_instruction="t"))
    await run("a", config=settings)
    keys = [entry.body.get("prompt_cache_key") for entry in asked(sim)]
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys)) == 4
    assert keys[-1] is None
    assert all(len(key) <= 64 for key in keys[:-1])


async def test_a_prompt_cache_key_of_the_caller_is_used(config: MakeConfig, sim: Simulator) -> None:
    """The caller's cache options are used, too."""
    raw = {"prompt_cache_key": "mine", "prompt_cache_options": {"mode": "implicit", "ttl": "30m"}}
    options = Options(provider_options={"openai": raw}, cache_ttl="1h")
    await run("p", source=Source.from_text("s"), config=config("openai", model="gpt-5.6"), options=options)
    assert sent(sim).items() >= raw.items()


@pytest.mark.parametrize(("model", "ttl"), [("gpt-5.6", "12h"), ("gpt-6.1", "12h"), ("gpt-4.1-mini", None)])
async def test_cache_ttl_is_sent_to_openai_models_that_take_it(
    model: str, ttl: str | None, config: MakeConfig, sim: Simulator
) -> None:
    """These models bill for writes; for others a warning says that it had no effect."""
    settings = config("openai", model=model)
    envelope = await run("p", source=Source.from_text("s"), config=settings, options=Options(cache_ttl="1h"))
    assert (sent(sim).get("prompt_cache_options") or {}).get("ttl") == ttl
    assert any("cache_ttl" in warning for warning in envelope.diagnostics["warnings"]) is (ttl is None)


async def test_a_warm_fan_out_reads_openais_automatic_cache(config: MakeConfig, sim: Simulator) -> None:
    """The first call fills the cache before the others start."""
    sim.latency_s = 0.2
    settings = config("openai", model="gpt-5.6", request_concurrency=10)
    cold = await run_many(TEN_PROMPTS, sources=[DOCUMENT], config=settings)
    assert count_billed_documents(cold.usage) == pytest.approx(12.5, abs=0.01)
    sim.prefixes.clear()
    warm = await run_many(TEN_PROMPTS, sources=[DOCUMENT], config=settings, options=WARM)
    assert count_billed_documents(warm.usage) == pytest.approx(2.15, abs=0.01)
    assert warm.metrics["n_cache_hits"] == 9


async def test_a_prefix_that_openai_does_not_cache_is_reported(config: MakeConfig) -> None:
    """OpenAI caches prefixes of 1,024 tokens and more."""
    settings, short = config("openai"), Source.from_text("short")
    (warning,) = (await run_many(TEN_PROMPTS, sources=[short], config=settings, options=WARM)).diagnostics["warnings"]
    assert "1,024" in warning


async def test_openrouter_requests_to_anthropic_have_a_breakpoint(config: MakeConfig, sim: Simulator) -> None:
    """Usage is counted as for Anthropic."""
    sim.latency_s = 0.1
    settings = config("openrouter", model="anthropic/claude-sonnet-4.6")
    envelope = await run_many(TEN_PROMPTS, sources=[DOCUMENT], config=settings, options=WARM)
    assert count_billed_documents(envelope.usage) == pytest.approx(2.15, abs=0.01)
    for entry in asked(sim):
        document, prompt = entry.body["messages"][-1]["content"]
        assert document["cache_control"] == MARK
        assert count_breakpoints(prompt) == 0
    await run_many(TEN_PROMPTS[:2], sources=[DOCUMENT], config=settings)
    assert [count_breakpoints(entry.body) for entry in asked(sim)[10:]] == [0, 0]


async def test_openrouter_requests_to_other_vendors_have_no_breakpoint(config: MakeConfig, sim: Simulator) -> None:
    """Their caches are automatic."""
    await run_many(TEN_PROMPTS[:2], sources=[DOCUMENT], config=config("openrouter"), options=WARM)
    assert [count_breakpoints(entry.body) for entry in asked(sim)] == [0, 0]


@pytest.mark.parametrize("provider", ["gemini", "local"])
@pytest.mark.parametrize("options", [WARM, Options(cache_ttl="1h")])
async def test_warm_and_cache_ttl_are_refused_for_providers_without_support(
    provider: ProviderName, options: Options, config: MakeConfig, sim: Simulator
) -> None:
    with pytest.raises(ConfigurationError, match="does not support") as caught:
        await run_many(["a", "b"], config=config(provider), options=options)
    assert "Leave it out" in str(caught.value.hint)
    assert sim.requests == []


# --- Helpers ------------------------------------------------------------------------------------------------


def _make_plan(prompts: list[str], config: MakeConfig) -> Plan:
    target = config("anthropic").target
    return make_plan(make_request(prompts, target=target, sources=[DOCUMENT], options=WARM))


async def _run_broadcast(
    prompts: list[str], sources: list[Source], config: MakeConfig, options: Options | None, **changes: Any
) -> list[ResultEnvelope]:
    settings = config("anthropic", **changes)
    plan = make_plan(make_request(prompts, target=settings.target, sources=sources, options=options, each_source=True))
    return extract_each(plan, await execute_plan(plan, settings), duration_s=0.0)


def _count_writes(results: list[Outcome]) -> list[int]:
    """Return how many documents each call wrote to the cache."""
    return [_count(outcome, "cache_write_tokens") for outcome in results]


def _count_reads(results: list[Outcome]) -> list[int]:
    return [_count(outcome, "cached_tokens") for outcome in results]


def _count(outcome: Outcome, name: str) -> int:
    return 0 if outcome.answer is None else outcome.answer.usage.get(name, 0) // DOCUMENT_TOKENS
