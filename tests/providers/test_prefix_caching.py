"""Prompt caching over shared sources, through the real SDKs over loopback: who writes, who reads, and what it costs."""

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
TEN = [f"Question {number:02}?" for number in range(10)]
WARM = Options(implicit_caching="warm")
MARK = {"type": "ephemeral"}


def documents_billed(usage: dict[str, int]) -> float:
    """Input in documents: plain input, writes at 1.25, reads at 0.1."""
    read, written = usage.get("cached_tokens", 0), usage.get("cache_write_tokens", 0)
    plain = usage["input_tokens"] - read - written
    return (plain + 1.25 * written + 0.1 * read) / DOCUMENT_TOKENS


def marks(body: Any) -> int:
    """How many breakpoints a request has."""
    if isinstance(body, dict):
        return ("cache_control" in body) + sum(map(marks, body.values()))
    return sum(map(marks, body)) if isinstance(body, list) else 0


# --- Anthropic ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "least", "most"), [(WARM, 2.1, 2.2), (None, 10.0, 10.01)])
async def test_ten_prompts_about_one_document(
    options: Options | None, least: float, most: float, config: MakeConfig, sim: Simulator
) -> None:
    """The headline: a warm fan-out bills 1.25 + 0.9 documents, one without caching all ten."""
    sim.latency_s = 0.1
    envelope = await run_many(TEN, sources=[DOCUMENT], config=config("anthropic"), options=options)
    assert envelope.status == "ok"
    assert least <= documents_billed(envelope.usage) <= most


async def test_side_by_side_each_call_writes(config: MakeConfig, sim: Simulator) -> None:
    """What `implicit_caching=True` costs in a fan-out, and why it is not the default: 12.5 documents."""
    sim.latency_s = 0.2
    options, settings = Options(implicit_caching=True), config("anthropic", request_concurrency=10)
    envelope = await run_many(TEN, sources=[DOCUMENT], config=settings, options=options)
    assert documents_billed(envelope.usage) == pytest.approx(12.5, abs=0.01)


async def test_the_first_goes_alone_and_the_others_together(config: MakeConfig, sim: Simulator) -> None:
    """Ten answers that take 0.2 seconds each are there after two of them."""
    sim.latency_s = 0.2
    settings = config("anthropic", request_concurrency=10)
    envelope = await run_many(TEN, sources=[DOCUMENT], config=settings, options=WARM)
    assert envelope.metrics["duration_s"] < 1.2
    used = [call["cache_used"] for call in envelope.diagnostics["calls"]]
    assert sorted(used) == [False] + [True] * 9
    metrics = envelope.metrics
    assert (metrics["n_cache_hits"], metrics["cache_hit"], metrics["cache_mode"]) == (9, True, "implicit")
    assert (metrics["cache_write_tokens"], metrics["cached_tokens"]) == (DOCUMENT_TOKENS, 9 * DOCUMENT_TOKENS)
    assert metrics["cache_used"] is False  # no handle was given


async def test_the_breakpoint_stands_after_the_sources(config: MakeConfig, sim: Simulator) -> None:
    """One, at the last source: what comes before it is covered, and the prompt is not."""
    options = WARM.model_copy(update={"system_instruction": "Be brief.", "cache_ttl": "1h"})
    sources = [Source.from_text("one"), Source.from_text("two")]
    await run_many(["a", "b"], sources=sources, config=config("anthropic"), options=options)
    for entry in asked(sim):
        first, second, prompt = entry.body["messages"][0]["content"]
        assert second["cache_control"] == {**MARK, "ttl": "1h"}
        assert (marks(first), marks(prompt), marks(entry.body)) == (0, 0, 1)
        assert entry.body["system"] == "Be brief."


async def test_an_hour_is_counted_as_one(config: MakeConfig) -> None:
    """The answer's billing says which writes last longer, which cost more."""
    options = WARM.model_copy(update={"cache_ttl": "1h"})
    found = await outcomes(["a", "b"], config("anthropic"), options, [DOCUMENT])
    billed = [outcome.answer.billing.long_cache_write_tokens for outcome in found if outcome.answer]
    assert sorted(billed) == [0, DOCUMENT_TOKENS]


@pytest.mark.parametrize("shared", ["system_instruction", "tools"])
async def test_without_sources_the_breakpoint_stands_after_what_is_shared(
    shared: str, config: MakeConfig, sim: Simulator
) -> None:
    """The system instruction, or the last tool."""
    tools = [{"name": "a", "parameters": {"type": "object"}}, {"name": "b", "parameters": {"type": "object"}}]
    options = Options(implicit_caching="warm", **{shared: "Be brief." if shared != "tools" else tools})
    await run_many(["a", "b"], config=config("anthropic"), options=options)
    for entry in asked(sim):
        at = entry.body["system"][-1] if shared != "tools" else entry.body["tools"][-1]
        assert at["cache_control"] == MARK
        assert marks(entry.body) == 1


@pytest.mark.parametrize(
    ("raw", "ours"),
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
async def test_the_callers_own_breakpoints_stay(
    raw: dict[str, Any], ours: int, config: MakeConfig, sim: Simulator
) -> None:
    """Ours is one more where there is room: four are the most that Anthropic takes."""
    options = WARM.model_copy(update={"provider_options": {"anthropic": raw}})
    await run_many(["a", "b"], sources=[Source.from_text("s")], config=config("anthropic"), options=options)
    for entry in asked(sim):
        assert marks(entry.body) == marks(raw) + ours
        assert entry.body.items() >= raw.items()


async def test_when_the_first_fails_the_next_takes_its_place(config: MakeConfig, sim: Simulator) -> None:
    """It writes, the others read, and the one that failed is reported as it is."""
    sim.latency_s = 0.1
    sim.fail(Fault(kind="status", status=400), contains=TEN[0])
    found = await outcomes(TEN, config("anthropic"), WARM, [DOCUMENT])
    assert [outcome.answer is None for outcome in found] == [True] + [False] * 9
    assert _writes(found) == [0, 1, *[0] * 8]
    assert _reads(found) == [0, 0, *[1] * 8]


async def test_after_three_failures_the_others_do_not_wait(config: MakeConfig, sim: Simulator) -> None:
    """Nor do they write: side by side, each would pay for it."""
    sim.latency_s = 0.05
    sim.fail(Fault(kind="status", status=500), times=3)
    plan = _plan(TEN, config)
    found = await execute_plan(plan, config("anthropic", retry=ONCE))
    (warning,) = extract_envelope(plan, found, duration_s=0.0).diagnostics["warnings"]
    assert "the first calls failed" in warning
    assert sum(outcome.answer is None for outcome in found) == 3
    assert _writes(found) == [0] * 10
    assert sum(marks(entry.body) for entry in asked(sim)) == 3


async def test_when_the_first_is_cancelled_the_next_takes_its_place(config: MakeConfig, sim: Simulator) -> None:
    """As when one task run of a flow is stopped: all of them share one execution."""
    sim.fail(Fault(kind="hang"), contains=TEN[0])
    plan = _plan(TEN[:4], config)
    async with open_execution(plan, config("anthropic"), Terms()) as execution:
        parts = [asyncio.create_task(execution.answer_calls(part.calls)) for part in plan.parts(1)]
        await until(lambda: asked(sim))
        await asyncio.sleep(0.1)
        assert len(asked(sim)) == 1
        parts[0].cancel()
        found = [outcome for part in parts[1:] for outcome in await part]
    assert _writes(found) == [1, 0, 0]
    assert _reads(found) == [0, 1, 1]


async def test_the_parts_of_a_run_share_one_first_call(config: MakeConfig, sim: Simulator) -> None:
    """Each task run of a flow is a part; whichever comes first writes."""
    sim.latency_s = 0.1
    plan = _plan(TEN, config)
    async with open_execution(plan, config("anthropic"), Terms()) as execution:
        each = await asyncio.gather(*(execution.answer_calls(part.calls) for part in plan.parts(2)))
    found = [outcome for part in each for outcome in part]
    assert sum(_writes(found)) == 1
    assert sum(_reads(found)) == 9


async def test_a_call_on_a_machine_of_its_own_writes_nothing(config: MakeConfig, sim: Simulator) -> None:
    """Where each part has an execution of its own, a part of one call would write for no other."""
    for part in _plan(TEN[:3], config).parts(1):
        await execute_plan(part, config("anthropic"))
    assert sum(marks(entry.body) for entry in asked(sim)) == 0


async def test_a_rerun_warms_nothing(config: MakeConfig, sim: Simulator) -> None:
    """All answers are there, so nothing is asked; of those that lack some, the first that is missing goes alone."""
    settings, plan = config("anthropic", retry=ONCE), _plan(TEN, config)
    sim.latency_s = 0.05
    for prompt in TEN[4:8]:
        sim.fail(Fault(kind="status", status=400), contains=prompt)
    await execute_plan(plan, settings, Terms(run_key="nightly"))
    sim.prefixes.clear()  # by the time of the rerun, it is forgotten
    again = await execute_plan(plan, settings, Terms(run_key="nightly"))
    assert _writes(again[4:8]) == [1, 0, 0, 0]
    assert _reads(again[4:8]) == [0, 1, 1, 1]
    count = len(asked(sim))
    await execute_plan(plan, settings, Terms(run_key="nightly"))
    assert len(asked(sim)) == count


async def test_each_source_of_a_broadcast_has_a_first_call(config: MakeConfig, sim: Simulator) -> None:
    """Three prompts about each of three sources: three writes, six reads."""
    sim.latency_s = 0.1
    sources = [Source.from_text(letter * 8_000, identifier=letter) for letter in "abc"]
    envelopes = await _broadcast(TEN[:3], sources, config, WARM)
    assert [envelope.metrics["n_cache_hits"] for envelope in envelopes] == [2, 2, 2]
    assert [envelope.metrics["cache_write_tokens"] for envelope in envelopes] == [2_000] * 3


async def test_a_broadcast_of_one_prompt_writes_nothing(config: MakeConfig, sim: Simulator) -> None:
    """Ten sources have nothing in common; with "warm" neither, which the diagnostics say."""
    sources = [Source.from_text(str(number) * 8_000, identifier=str(number)) for number in range(10)]
    for options, warned in ((None, False), (WARM, True)):
        envelopes = await _broadcast(["p"], sources, config, options)
        assert [envelope.metrics["cache_write_tokens"] for envelope in envelopes] == [0] * 10
        told = [envelope.diagnostics["warnings"] for envelope in envelopes]
        assert all(any("had no effect" in each for each in warnings) is warned for warnings in told)
    assert sum(marks(entry.body) for entry in asked(sim)) == 0


async def test_more_calls_than_places_in_line_all_go(config: MakeConfig, sim: Simulator) -> None:
    """Those that wait for the first call hold no place that it could wait for."""
    sim.latency_s = 0.02
    sources = [Source.from_text(letter * 8_000, identifier=letter) for letter in "abcd"]
    envelopes = await asyncio.wait_for(_broadcast(TEN, sources, config, WARM, request_concurrency=1), timeout=20)
    assert [envelope.status for envelope in envelopes] == ["ok"] * 4
    assert len(asked(sim)) == 40


@pytest.mark.parametrize(
    ("model", "length", "warned"),
    [
        ("claude-haiku-4-5", 3_000, "4,096"),
        ("claude-haiku-4-5", 5_000, None),
        ("claude-opus-5", 500, "512"),
        ("claude-sonnet-4-6", 100, None),  # no claim about what is not known
    ],
)
async def test_what_is_too_short_is_reported(model: str, length: int, warned: str | None, config: MakeConfig) -> None:
    """Anthropic says nothing about it; its usage shows it."""
    source = Source.from_text("x" * 4 * length)
    settings = config("anthropic", model=model)
    for implicit in ("warm", True):
        options = Options(implicit_caching=implicit)
        told = (await run_many(["a", "b"], sources=[source], config=settings, options=options)).diagnostics["warnings"]
        assert [warning for warning in told if "Nothing was cached" in warning] == told
        assert warned is None if not told else str(warned) in told[0]
        assert bool(told) is (warned is not None)


async def test_a_short_prompt_alone_is_no_matter(config: MakeConfig) -> None:
    """Where caching was not asked for, nothing is said about it."""
    envelope = await run("p", config=config("anthropic", model="claude-haiku-4-5"))
    assert envelope.diagnostics["warnings"] == []


async def test_warm_with_one_prompt_is_what_a_lone_call_is(config: MakeConfig, sim: Simulator) -> None:
    """One call, at whose end the breakpoint stands."""
    await run("p", source=Source.from_text("s"), config=config("anthropic"), options=WARM)
    assert sent(sim)["cache_control"] == MARK


async def test_a_ttl_without_caching_is_reported(config: MakeConfig) -> None:
    """A fan-out caches nothing by itself, so the lifetime is of nothing."""
    envelope = await run_many(["a", "b"], config=config("anthropic"), options=Options(cache_ttl="1h"))
    assert any("cache_ttl='1h' had no effect" in warning for warning in envelope.diagnostics["warnings"])


# --- OpenAI, OpenRouter, local ------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "openrouter", "local"])
async def test_requests_begin_alike_byte_for_byte(provider: ProviderName) -> None:
    """Up to the prompt: that is what the providers cache by."""
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


async def test_openai_is_told_by_which_key_to_cache(config: MakeConfig, sim: Simulator) -> None:
    """One for the same content, wherever it is asked about; another for other content, and none without any."""
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


async def test_the_callers_own_key_wins(config: MakeConfig, sim: Simulator) -> None:
    """And so do the caller's cache options."""
    raw = {"prompt_cache_key": "mine", "prompt_cache_options": {"mode": "implicit", "ttl": "30m"}}
    options = Options(provider_options={"openai": raw}, cache_ttl="1h")
    await run("p", source=Source.from_text("s"), config=config("openai", model="gpt-5.6"), options=options)
    assert sent(sim).items() >= raw.items()


@pytest.mark.parametrize(("model", "lasts"), [("gpt-5.6", "12h"), ("gpt-6.1", "12h"), ("gpt-4.1-mini", None)])
async def test_openai_keeps_it_longer_where_that_can_be_said(
    model: str, lasts: str | None, config: MakeConfig, sim: Simulator
) -> None:
    """Where writes are billed; elsewhere the diagnostics say that it had no effect."""
    settings = config("openai", model=model)
    envelope = await run("p", source=Source.from_text("s"), config=settings, options=Options(cache_ttl="1h"))
    assert (sent(sim).get("prompt_cache_options") or {}).get("ttl") == lasts
    assert any("cache_ttl" in warning for warning in envelope.diagnostics["warnings"]) is (lasts is None)


async def test_openai_reads_what_a_first_call_wrote(config: MakeConfig, sim: Simulator) -> None:
    """Its cache is automatic; "warm" sees to it that there is something to read."""
    sim.latency_s = 0.2
    settings = config("openai", model="gpt-5.6", request_concurrency=10)
    cold = await run_many(TEN, sources=[DOCUMENT], config=settings)
    assert documents_billed(cold.usage) == pytest.approx(12.5, abs=0.01)
    sim.prefixes.clear()
    warm = await run_many(TEN, sources=[DOCUMENT], config=settings, options=WARM)
    assert documents_billed(warm.usage) == pytest.approx(2.15, abs=0.01)
    assert warm.metrics["n_cache_hits"] == 9


async def test_what_openai_does_not_cache_is_reported(config: MakeConfig) -> None:
    """Less than 1,024 tokens."""
    settings, short = config("openai"), Source.from_text("short")
    (warning,) = (await run_many(TEN, sources=[short], config=settings, options=WARM)).diagnostics["warnings"]
    assert "1,024" in warning


async def test_openrouter_marks_what_goes_to_anthropic(config: MakeConfig, sim: Simulator) -> None:
    """And its usage is counted as Anthropic's is."""
    sim.latency_s = 0.1
    settings = config("openrouter", model="anthropic/claude-sonnet-4.6")
    envelope = await run_many(TEN, sources=[DOCUMENT], config=settings, options=WARM)
    assert documents_billed(envelope.usage) == pytest.approx(2.15, abs=0.01)
    for entry in asked(sim):
        document, prompt = entry.body["messages"][-1]["content"]
        assert document["cache_control"] == MARK
        assert marks(prompt) == 0
    await run_many(TEN[:2], sources=[DOCUMENT], config=settings)
    assert [marks(entry.body) for entry in asked(sim)[10:]] == [0, 0]


async def test_openrouter_marks_no_other_route(config: MakeConfig, sim: Simulator) -> None:
    """What caches by itself needs no mark."""
    await run_many(TEN[:2], sources=[DOCUMENT], config=config("openrouter"), options=WARM)
    assert [marks(entry.body) for entry in asked(sim)] == [0, 0]


@pytest.mark.parametrize("provider", ["gemini", "local"])
@pytest.mark.parametrize("options", [WARM, Options(cache_ttl="1h")])
async def test_nothing_is_warmed_where_nothing_is_known_to_be_read(
    provider: ProviderName, options: Options, config: MakeConfig, sim: Simulator
) -> None:
    """Refused before anything is sent, with what to do instead."""
    with pytest.raises(ConfigurationError, match="does not support") as caught:
        await run_many(["a", "b"], config=config(provider), options=options)
    assert "Leave it out" in str(caught.value.hint)
    assert sim.requests == []


# --- Helpers ------------------------------------------------------------------------------------------------


def _plan(prompts: list[str], config: MakeConfig) -> Plan:
    target = config("anthropic").target
    return make_plan(make_request(prompts, target=target, sources=[DOCUMENT], options=WARM))


async def _broadcast(
    prompts: list[str], sources: list[Source], config: MakeConfig, options: Options | None, **settings: Any
) -> list[ResultEnvelope]:
    made = config("anthropic", **settings)
    plan = make_plan(make_request(prompts, target=made.target, sources=sources, options=options, each_source=True))
    return extract_each(plan, await execute_plan(plan, made), duration_s=0.0)


def _writes(found: list[Outcome]) -> list[int]:
    """For each call, how many documents it wrote."""
    return [_count(outcome, "cache_write_tokens") for outcome in found]


def _reads(found: list[Outcome]) -> list[int]:
    return [_count(outcome, "cached_tokens") for outcome in found]


def _count(outcome: Outcome, name: str) -> int:
    return 0 if outcome.answer is None else outcome.answer.usage.get(name, 0) // DOCUMENT_TOKENS
