"""Usage and finish reasons have one meaning for all providers."""

from __future__ import annotations

from typing import Any

import pytest

from pollux_flows import Options, Source, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import MODELS, MakeConfig, every_provider, good, http, scripted

# One usage in each protocol: 100 input tokens, 40 of them read from a cache and 10 written to one; 20 output tokens,
# 5 of them reasoning. Gemini reports no cache writes, and local servers vary.
USAGES: dict[ProviderName, dict[str, Any]] = {
    "gemini": {
        "usageMetadata": {
            "promptTokenCount": 90,
            "toolUsePromptTokenCount": 10,
            "cachedContentTokenCount": 40,
            "candidatesTokenCount": 15,
            "thoughtsTokenCount": 5,
            "totalTokenCount": 120,
        }
    },
    "openai": {
        "usage": {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 10},
            "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 5},
            "total_tokens": 120,
        }
    },
    "anthropic": {
        "usage": {
            "input_tokens": 50,
            "cache_read_input_tokens": 40,
            "cache_creation_input_tokens": 10,
            "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 5},
        }
    },
    "openrouter": {
        "usage": {
            "prompt_tokens": 100,
            "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 10},
            "completion_tokens": 20,
            "completion_tokens_details": {"reasoning_tokens": 5},
            "total_tokens": 120,
            "cost": 0.001,
        }
    },
    "local": {
        "usage": {
            "prompt_tokens": 100,
            "prompt_tokens_details": {"cached_tokens": 40},
            "completion_tokens": 20,
            "reasoning_tokens": 5,
            "total_tokens": 120,
        }
    },
}


@every_provider
async def test_usage_has_one_meaning_for_all_providers(provider: ProviderName) -> None:
    """Input includes cache reads and writes, output includes reasoning, and the total is their sum."""
    async with scripted(http(good(provider, **USAGES[provider]))) as server:
        usage = (await run("p", config=server.config(provider))).usage
    writes = {} if provider in {"gemini", "local"} else {"cache_write_tokens": 10}
    assert usage == {
        "input_tokens": 100,
        "output_tokens": 20,
        "total_tokens": 120,
        "reasoning_tokens": 5,
        "cached_tokens": 40,
        **writes,
    }


@every_provider
async def test_usage_is_summed_over_the_calls(provider: ProviderName, config: MakeConfig) -> None:
    one = (await run_many(["prompt a"], config=config(provider), options=Options(system_instruction="s"))).usage
    two = (
        await run_many(["prompt b", "prompt c"], config=config(provider), options=Options(system_instruction="s"))
    ).usage
    assert two["input_tokens"] == 2 * one["input_tokens"]
    assert one["total_tokens"] == one["input_tokens"] + one["output_tokens"]


@every_provider
async def test_unreported_usage_is_absent(provider: ProviderName) -> None:
    """Unknown is not zero."""
    async with scripted(http(good(provider))) as server:
        assert (await run("p", config=server.config(provider))).usage == {}


async def test_anthropics_cache_writes_and_reads_are_input(config: MakeConfig) -> None:
    """The first call writes, the second reads, and both have equal input."""
    source = Source.from_text("A long story. " * 500)
    first = (await run("p", source=source, config=config("anthropic"))).usage
    second = (await run("p", source=source, config=config("anthropic"))).usage
    assert first["cache_write_tokens"] > 0
    assert second["cached_tokens"] == first["cache_write_tokens"]
    assert first["input_tokens"] == second["input_tokens"]


@every_provider
async def test_a_blocked_prompt_has_input_usage(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    sim.fail(Fault(kind="blocked"))
    usage = (await run("p", config=config(provider))).usage
    assert usage["input_tokens"] > 0
    assert "output_tokens" in usage


NATIVE_REASONS = {
    "stop": {"gemini": "STOP", "openai": "completed", "anthropic": "end_turn", "openrouter": "stop", "local": "stop"},
    "truncated": {
        "gemini": "MAX_TOKENS",
        "openai": "max_output_tokens",
        "anthropic": "max_tokens",
        "openrouter": "length",
        "local": "length",
    },
    "blocked": {
        "gemini": "SAFETY",
        "openai": "completed",
        "anthropic": "refusal",
        "openrouter": "content_filter",
        "local": "content_filter",
    },
    "content_filter": {
        "gemini": "SAFETY",
        "openai": "content_filter",
        "anthropic": "refusal",
        "openrouter": "content_filter",
        "local": "content_filter",
    },
}
EXPECTED_REASONS = {"stop": "stop", "truncated": "max_tokens", "blocked": "blocked", "content_filter": "blocked"}


@every_provider
@pytest.mark.parametrize("kind", NATIVE_REASONS)
async def test_finish_reasons_are_normalised_and_the_raw_one_is_stored(
    provider: ProviderName, kind: str, config: MakeConfig, sim: Simulator
) -> None:
    if kind != "stop":
        sim.fail(Fault(kind=kind))
    envelope = await run("Tell me about the sea.", config=config(provider))
    assert envelope.metrics["finish_reasons"] == [EXPECTED_REASONS[kind]]
    (raw,) = envelope.diagnostics["raw_responses"]
    assert raw["raw_finish_reason"] == NATIVE_REASONS[kind][provider]


UNKNOWN_REASON: dict[ProviderName, dict[str, Any]] = {
    "gemini": {"candidates": [{"content": {"parts": [{"text": "fine"}]}, "finishReason": "UNHEARD_OF"}]},
    "openai": {"status": "unheard_of"},
    "anthropic": {"stop_reason": "unheard_of"},
    "openrouter": {"choices": [{"message": {"content": "fine"}, "finish_reason": "unheard_of"}]},
    "local": {"choices": [{"message": {"content": "fine"}, "finish_reason": "unheard_of"}]},
}


@every_provider
async def test_an_unknown_finish_reason_is_other(provider: ProviderName) -> None:
    """The answer is returned."""
    async with scripted(http(good(provider, **UNKNOWN_REASON[provider]))) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.answers == ["fine"]
    assert envelope.metrics["finish_reasons"] == ["other"]


NO_REASON: dict[ProviderName, dict[str, Any]] = {
    "gemini": {"candidates": [{"content": {"parts": [{"text": "fine"}]}}]},
    "openai": {"status": None},
    "anthropic": {"stop_reason": None},
    "openrouter": {"choices": [{"message": {"content": "fine"}}]},
    "local": {"choices": [{"message": {"content": "fine"}}]},
}


@every_provider
async def test_a_missing_finish_reason_is_none(provider: ProviderName) -> None:
    async with scripted(http(good(provider, **NO_REASON[provider]))) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.metrics["finish_reasons"] == [None]
    assert envelope.status == "ok"


def test_every_provider_has_its_cases() -> None:
    assert USAGES.keys() == UNKNOWN_REASON.keys() == NO_REASON.keys() == MODELS.keys()
