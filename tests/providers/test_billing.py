"""Billing details beside the tokens, as each provider reports them."""

from __future__ import annotations

from typing import Any

import pytest

from pollux_flows.config import ProviderName, Target
from pollux_flows.pricing import cost_of
from pollux_flows.result import Answer, Billing
from tests.loopback import MakeConfig, every_provider, good, http, outcomes, scripted


async def read_answer(provider: ProviderName, body: dict[str, Any], **headers: Any) -> Answer:
    """Return the answer that the provider's SDK reads from a response with these fields."""
    async with scripted(http(good(provider, **body), **headers)) as server:
        (outcome,) = await outcomes(["p"], server.config(provider))
    assert outcome.answer is not None
    return outcome.answer


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ({"cost": 0.00095, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.00095}}, 0.00095),
        ({"cost": 0}, 0.0),
        # With the caller's own key upstream (BYOK), OpenRouter takes a fee and the provider its price.
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}}, 0.21),
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        ({"cost": 0.01, "is_byok": True}, None),
        ({}, None),
        ({"cost": None}, None),
        ({"cost": "0.01"}, None),
        ({"cost": True}, None),
        ({"cost": -1}, None),
        ({"cost": float("nan")}, None),
        ({"cost": 10**400}, None),
    ],
)
async def test_the_cost_that_openrouter_reports_is_read(usage: dict[str, Any], usd: float | None) -> None:
    """Anything but a finite, non-negative number of dollars is ignored."""
    billing = (
        await read_answer("openrouter", {"usage": {"prompt_tokens": 10, "completion_tokens": 1, **usage}})
    ).billing
    assert billing == Billing(cost_usd=usd)


async def test_the_simulated_openrouter_reports_a_cost(config: MakeConfig) -> None:
    """The cost of the answer is the one reported."""
    (outcome,) = await outcomes(["p"], config("openrouter"))
    assert outcome.answer is not None
    cost = cost_of(config("openrouter").target, outcome.answer)
    assert cost.usd == outcome.answer.billing.cost_usd
    assert cost.usd


async def test_billing_details_of_anthropic_are_read() -> None:
    """The service tier, speed, region, one-hour cache writes and server tool calls are read."""
    usage = {
        "service_tier": "priority",
        "speed": "fast",
        "inference_geo": "us",
        "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70},
    }
    content = [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "text", "text": "x"}]
    billing = (await read_answer("anthropic", {"usage": usage, "content": content})).billing
    assert billing == Billing(
        service_tier="priority", speed="fast", region="us", long_cache_write_tokens=70, server_tools=1
    )


async def test_billing_details_of_openai_are_read() -> None:
    """A function that the caller runs does not count as a server tool."""
    output = [
        {"type": "web_search_call", "id": "ws", "status": "completed"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    ]
    written = {"cache_write_tokens": 50, "cache_write_tokens_details": {"ttl_30m_tokens": 10, "ttl_12h_tokens": 40}}
    body = {"service_tier": "flex", "output": output, "usage": {"input_tokens_details": written}}
    billing = (await read_answer("openai", body)).billing
    assert billing == Billing(service_tier="flex", long_cache_write_tokens=40, server_tools=1)


async def test_billing_details_of_gemini_are_read() -> None:
    """Audio tokens are in the usage; the service tier is in a header."""
    details = [{"modality": "TEXT", "tokenCount": 10}, {"modality": "AUDIO", "tokenCount": 320}]
    usage = {"promptTokensDetails": details, "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 20}]}
    billing = (await read_answer("gemini", {"usageMetadata": usage}, x_gemini_service_tier="flex")).billing
    assert billing == Billing(service_tier="flex", audio_tokens=320, cached_audio_tokens=20)


@pytest.mark.parametrize(
    ("more", "tools"),
    [
        ({"groundingMetadata": {"webSearchQueries": ["a", "b"]}}, 1),
        ({"groundingMetadata": {"groundingChunks": [{"maps": {}}]}}, 1),
        ({"groundingMetadata": {"groundingChunks": [{"web": {}}]}, "urlContextMetadata": {"urlMetadata": []}}, 1),
        ({"groundingMetadata": {"groundingChunks": [{}]}, "urlContextMetadata": {"urlMetadata": [{}]}}, 0),
        ({"groundingMetadata": {}}, 0),
        ({}, 0),
    ],
)
async def test_gemini_searches_are_counted_as_one_server_tool(more: dict[str, Any], tools: int) -> None:
    """A page opened through URL context costs only tokens."""
    candidate = {"content": {"parts": [{"text": "fine"}]}, "finishReason": "STOP", **more}
    billing = (await read_answer("gemini", {"candidates": [candidate]})).billing
    assert billing.server_tools == tools


NONSENSE: list[Any] = [None, 5, "5", [], [None], [5], {}, {"tokenCount": -1}, float("nan"), 10**400]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
@every_provider
async def test_malformed_billing_details_do_not_lose_the_answer(provider: ProviderName, value: Any) -> None:
    names = ("service_tier", "speed", "inference_geo", "cache_creation", "cost", "is_byok", "cost_details")
    usage = dict.fromkeys((*names, "promptTokensDetails", "cacheTokensDetails", "input_tokens_details"), value)
    answer = await read_answer(provider, {"usage": usage, "usageMetadata": usage, "service_tier": value})
    assert answer.text == "fine"
    cost_of(Target(provider=provider, model="gpt-5"), answer)


@every_provider
async def test_an_answer_without_billing_details_has_the_default_billing(provider: ProviderName) -> None:
    billing = (await read_answer(provider, {})).billing
    assert billing == Billing()
