"""Savings: the usage that the provider reports, compared with the usage without a cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import CacheHandle, Config, Options, ResultEnvelope, Source, create_cache, run_many
from pollux_flows.caching.registry import open_registry
from pollux_flows.pages import RunInput, render_answers
from pollux_flows.pipeline.caches import CacheRequest
from pollux_flows.pipeline.execute import open_execution
from pollux_flows.pipeline.extract import extract_envelope
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from tests.loopback import MakeConfig, good, http, scripted

VIDEO = Source.from_text("a" * 4 * 946_800, identifier="video")  # as many tokens as an hour of video
# 50 tokens each; thinking and answering take 100.
QUESTIONS = [f"{number}. {'What happens then?' * 10}"[:174].ljust(200) for number in range(10)]
STORY = Source.from_text("A long story about the sea. " * 200)


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


@pytest.fixture
def gemini(config: MakeConfig) -> Config:
    return config("gemini", model="gemini-2.5-flash")


async def ask_with_new_cache(config: Config, source: Source, prompts: list[str], **options: Any) -> ResultEnvelope:
    """Run with a cache of the source that the run creates."""
    asking = make_request(prompts, target=config.target, sources=[source], options=Options(**options))
    plan = make_plan(asking, await read_sources(asking), cache_request=CacheRequest(sources=[source]))
    async with open_execution(plan, config, caches=open_registry(config)) as execution:
        outcomes = await execution.answer_calls(plan.calls)
        return extract_envelope(plan, outcomes, duration_s=1.0, caches=execution.used_caches)


async def test_a_cache_for_ten_questions_about_an_hour_of_video_saves_half_of_the_cost(gemini: Config) -> None:
    """Of the tokens, 90.0 % are saved, as compare_efficiency(946_800, 10) says; storage reduces the saving in money."""
    envelope = await ask_with_new_cache(gemini, VIDEO, QUESTIONS, reasoning_budget_tokens=1024)
    caching = envelope.metrics["caching"]
    assert (caching["sent_tokens"], caching["naive_tokens"], caching["created_tokens"]) == (948_300, 9_469_500, 946_800)
    assert caching["saved_tokens"] == 8_521_200
    assert f"{caching['saved_tokens'] / caching['naive_tokens']:.1%}" == "90.0%"
    # Gemini 2.5 Flash: $0.30 a million tokens of input, $0.03 from a cache, $1.00 an hour of storage.
    assert caching["storage_usd"] == pytest.approx(0.9468, rel=0.01)
    assert caching["storage_usd_per_hour"] == pytest.approx(0.9468)
    answers_usd = sum(call["cost_usd"] for call in envelope.diagnostics["calls"])
    assert envelope.metrics["cost_usd"] == pytest.approx(answers_usd + 0.9468 * 0.3 + caching["storage_usd"], abs=1e-6)
    assert caching["naive_usd"] == pytest.approx(answers_usd + 9.468 * 0.27)
    assert 0.4 < caching["saved_usd"] / caching["naive_usd"] < 0.6
    assert "unknown" not in caching
    assert (envelope.metrics["cache_used"], envelope.metrics["n_cache_hits"]) == (True, 10)
    page = render_answers(RunInput(gemini.target, QUESTIONS), envelope)
    assert "| Caching | 948,300 tokens sent, 9,468,000 read from cache, 946,800 written |" in page
    assert "8,521,200 of 9,469,500 tokens (90.0%); in money: $1." in page
    assert "| Storage | $0.95 an hour, $0.95 until it ends |" in page


async def test_a_run_does_not_count_the_creation_of_an_existing_cache(gemini: Config) -> None:
    """A run with a handle, or one that finds the cache, reports at most the hourly price of its storage."""
    handle = await create_cache([STORY], config=gemini)
    envelope = await run_many(["a", "b"], config=gemini, options=Options(cache=handle))
    caching = envelope.metrics["caching"]
    assert caching["created_tokens"] == 0
    assert caching["saved_tokens"] == envelope.usage["cached_tokens"]
    assert caching["storage_usd_per_hour"] == pytest.approx(envelope.usage["cached_tokens"] / 2 / 1e6)
    assert "storage_usd" not in caching
    assert "its creation and storage are not counted here" in render_answers(
        RunInput(gemini.target, ["a", "b"]), envelope
    )
    found = (await ask_with_new_cache(gemini, STORY, ["c"])).metrics["caching"]
    assert found["created_tokens"] == 0
    assert "storage_usd" not in found


async def test_without_a_price_of_storage_the_saving_in_money_is_unknown(config: MakeConfig) -> None:
    """The saved tokens are still reported."""
    flash = config("gemini", model="gemini-2.5-flash-lite")  # whose storage has no listed price here
    envelope = await ask_with_new_cache(flash, STORY, ["a", "b", "c"])
    caching = envelope.metrics["caching"]
    assert caching["saved_tokens"] > 0
    assert (caching["storage_usd"], caching["storage_usd_per_hour"], caching["saved_usd"]) == (None, None, None)
    assert caching["unknown"] == "The price of cache storage for gemini-2.5-flash-lite is unknown."
    page = render_answers(RunInput(flash.target, ["a", "b", "c"]), envelope)
    assert "in money: unknown (The price of cache storage" in page
    assert "| Storage | unknown |" in page


async def test_without_reported_usage_the_savings_are_unknown() -> None:
    """A reply without usage is not counted as zero tokens."""
    handle = CacheHandle(
        name="cachedContents/1", model="gemini-2.5-flash", provider="gemini", expires_at=time.time() + 3600
    )
    async with scripted(http(good("gemini", usageMetadata={}))) as server:
        asking = server.config("gemini", model="gemini-2.5-flash")
        envelope = await run_many(["a"], config=asking, options=Options(cache=handle))
    caching = envelope.metrics["caching"]
    assert (caching["sent_tokens"], caching["naive_tokens"], caching["saved_usd"]) == (None, None, None)
    assert "did not report how many tokens" in caching["unknown"]


async def test_savings_of_anthropic_include_the_surcharge_for_cache_writes(config: MakeConfig) -> None:
    """A write costs 1.25 times the input, and a read a tenth."""
    claude = config("anthropic")
    envelope = await run_many(["a", "b", "c"], sources=[STORY], config=claude, options=Options(implicit_caching="warm"))
    usage, caching = envelope.usage, envelope.metrics["caching"]
    assert usage["cached_tokens"] == 2 * usage["cache_write_tokens"] > 0
    assert caching["saved_tokens"] == usage["cached_tokens"]
    assert "storage_usd_per_hour" not in caching
    price = 3 / 1e6  # a token of Claude Sonnet's input
    assert caching["saved_usd"] == pytest.approx(
        price * (0.9 * usage["cached_tokens"] - 0.25 * usage["cache_write_tokens"])
    )


async def test_without_a_cache_no_savings_are_reported(gemini: Config) -> None:
    envelope = await run_many(["a"], config=gemini)
    assert "caching" not in envelope.metrics
    assert "Caching" not in render_answers(RunInput(gemini.target, ["a"]), envelope)
