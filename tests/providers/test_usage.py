"""Usage and finish reasons: the same words for the same things, whoever answers."""

from __future__ import annotations

from typing import Any

import pytest

from pollux_flows import Options, Source, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import MODELS, MakeConfig, every_provider, good, http, scripted

# What each protocol says of: 100 tokens read, 40 of them from a cache, 10 of them into one; 20 written, 5 of them
# in thought. Gemini bills no writes, local servers report what they like.
SAID: dict[ProviderName, dict[str, Any]] = {
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
async def test_usage_means_the_same_everywhere(provider: ProviderName) -> None:
    """Input includes what came from and went into a cache; output includes the reasoning; total is their sum."""
    async with scripted(http(good(provider, **SAID[provider]))) as server:
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
async def test_usage_adds_up_over_the_calls(provider: ProviderName, config: MakeConfig) -> None:
    """Two calls cost what two calls cost, and the total is input plus output."""
    one = (await run_many(["prompt a"], config=config(provider), options=Options(system_instruction="s"))).usage
    two = (
        await run_many(["prompt b", "prompt c"], config=config(provider), options=Options(system_instruction="s"))
    ).usage
    assert two["input_tokens"] == 2 * one["input_tokens"]
    assert one["total_tokens"] == one["input_tokens"] + one["output_tokens"]


@every_provider
async def test_what_nobody_reported_is_absent(provider: ProviderName) -> None:
    """Unknown is not zero."""
    async with scripted(http(good(provider))) as server:
        assert (await run("p", config=server.config(provider))).usage == {}


async def test_anthropics_cache_writes_and_reads_are_input(config: MakeConfig) -> None:
    """The first lone call writes, the second reads; both had the same input."""
    source = Source.from_text("A long story. " * 500)
    first = (await run("p", source=source, config=config("anthropic"))).usage
    second = (await run("p", source=source, config=config("anthropic"))).usage
    assert first["cache_write_tokens"] > 0
    assert second["cached_tokens"] == first["cache_write_tokens"]
    assert first["input_tokens"] == second["input_tokens"]


@every_provider
async def test_a_blocked_prompt_has_been_read(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """A refusal costs its input; what was counted is told."""
    sim.fail(Fault(kind="blocked"))
    usage = (await run("p", config=config(provider))).usage
    assert usage["input_tokens"] > 0
    assert "output_tokens" in usage


RAW = {
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
OURS = {"stop": "stop", "truncated": "max_tokens", "blocked": "blocked", "content_filter": "blocked"}


@every_provider
@pytest.mark.parametrize("kind", RAW)
async def test_finish_reasons_are_ours_and_theirs(
    provider: ProviderName, kind: str, config: MakeConfig, sim: Simulator
) -> None:
    """One vocabulary to decide by; the provider's own word is kept beside the answer."""
    if kind != "stop":
        sim.fail(Fault(kind=kind))
    envelope = await run("Tell me about the sea.", config=config(provider))
    assert envelope.metrics["finish_reasons"] == [OURS[kind]]
    (raw,) = envelope.diagnostics["raw_responses"]
    assert raw["raw_finish_reason"] == RAW[kind][provider]


UNHEARD_OF: dict[ProviderName, dict[str, Any]] = {
    "gemini": {"candidates": [{"content": {"parts": [{"text": "fine"}]}, "finishReason": "UNHEARD_OF"}]},
    "openai": {"status": "unheard_of"},
    "anthropic": {"stop_reason": "unheard_of"},
    "openrouter": {"choices": [{"message": {"content": "fine"}, "finish_reason": "unheard_of"}]},
    "local": {"choices": [{"message": {"content": "fine"}, "finish_reason": "unheard_of"}]},
}


@every_provider
async def test_a_new_finish_reason_is_other(provider: ProviderName) -> None:
    """A word that this version has never heard loses no answer."""
    async with scripted(http(good(provider, **UNHEARD_OF[provider]))) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.answers == ["fine"]
    assert envelope.metrics["finish_reasons"] == ["other"]


SILENT: dict[ProviderName, dict[str, Any]] = {
    "gemini": {"candidates": [{"content": {"parts": [{"text": "fine"}]}}]},
    "openai": {"status": None},
    "anthropic": {"stop_reason": None},
    "openrouter": {"choices": [{"message": {"content": "fine"}}]},
    "local": {"choices": [{"message": {"content": "fine"}}]},
}


@every_provider
async def test_no_finish_reason_is_none(provider: ProviderName) -> None:
    """Who does not say why it ended is not put words into the mouth."""
    async with scripted(http(good(provider, **SILENT[provider]))) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.metrics["finish_reasons"] == [None]
    assert envelope.status == "ok"


def test_every_provider_has_a_row() -> None:
    assert SAID.keys() == UNHEARD_OF.keys() == SILENT.keys() == MODELS.keys()
