"""What a bill depends on beside the tokens, as each provider says it."""

from __future__ import annotations

from typing import Any

import pytest

from pollux_flows.config import ProviderName, Target
from pollux_flows.pricing import cost_of
from pollux_flows.result import Answer, Billing
from tests.loopback import MakeConfig, every_provider, good, http, outcomes, scripted


async def answer_in(provider: ProviderName, body: dict[str, Any], **headers: Any) -> Answer:
    """What is read of it, through the provider's SDK."""
    async with scripted(http(good(provider, **body), **headers)) as server:
        (outcome,) = await outcomes(["p"], server.config(provider))
    assert outcome.answer is not None
    return outcome.answer


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ({"cost": 0.00095, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.00095}}, 0.00095),
        ({"cost": 0}, 0.0),
        # With a key of one's own upstream, OpenRouter takes a fee and the provider its price.
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
async def test_openrouter_says_what_it_charged(usage: dict[str, Any], usd: float | None) -> None:
    """In dollars; anything else is no amount."""
    billing = (await answer_in("openrouter", {"usage": {"prompt_tokens": 10, "completion_tokens": 1, **usage}})).billing
    assert billing == Billing(cost_usd=usd)


async def test_the_simulated_openrouter_says_so_as_well(config: MakeConfig) -> None:
    """Over the wire, and so into the cost."""
    (outcome,) = await outcomes(["p"], config("openrouter"))
    assert outcome.answer is not None
    cost = cost_of(config("openrouter").target, outcome.answer)
    assert cost.usd == outcome.answer.billing.cost_usd
    assert cost.usd


async def test_anthropic_says_how_it_answered() -> None:
    """Tier, speed, place, the hours that a cache is kept, and the searches it made."""
    usage = {
        "service_tier": "priority",
        "speed": "fast",
        "inference_geo": "us",
        "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70},
    }
    content = [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "text", "text": "x"}]
    billing = (await answer_in("anthropic", {"usage": usage, "content": content})).billing
    assert billing == Billing(
        service_tier="priority", speed="fast", region="us", long_cache_write_tokens=70, server_tools=1
    )


async def test_openai_says_how_it_answered() -> None:
    """A function that the caller runs is no tool of OpenAI's."""
    output = [
        {"type": "web_search_call", "id": "ws", "status": "completed"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    ]
    written = {"cache_write_tokens": 50, "cache_write_tokens_details": {"ttl_30m_tokens": 10, "ttl_12h_tokens": 40}}
    body = {"service_tier": "flex", "output": output, "usage": {"input_tokens_details": written}}
    billing = (await answer_in("openai", body)).billing
    assert billing == Billing(service_tier="flex", long_cache_write_tokens=40, server_tools=1)


async def test_gemini_says_how_it_answered() -> None:
    """What of the prompt was sound, in its usage; the tier that answered, in a header."""
    details = [{"modality": "TEXT", "tokenCount": 10}, {"modality": "AUDIO", "tokenCount": 320}]
    usage = {"promptTokensDetails": details, "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 20}]}
    billing = (await answer_in("gemini", {"usageMetadata": usage}, x_gemini_service_tier="flex")).billing
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
async def test_gemini_shows_that_it_searched(more: dict[str, Any], tools: int) -> None:
    """A page that the caller asked it to open costs tokens alone."""
    candidate = {"content": {"parts": [{"text": "fine"}]}, "finishReason": "STOP", **more}
    billing = (await answer_in("gemini", {"candidates": [candidate]})).billing
    assert billing.server_tools == tools


NONSENSE: list[Any] = [None, 5, "5", [], [None], [5], {}, {"tokenCount": -1}, float("nan"), 10**400]


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
@every_provider
async def test_nonsense_about_the_bill_loses_no_answer(provider: ProviderName, value: Any) -> None:
    """It was paid for, whatever it says of its price."""
    names = ("service_tier", "speed", "inference_geo", "cache_creation", "cost", "is_byok", "cost_details")
    usage = dict.fromkeys((*names, "promptTokensDetails", "cacheTokensDetails", "input_tokens_details"), value)
    answer = await answer_in(provider, {"usage": usage, "usageMetadata": usage, "service_tier": value})
    assert answer.text == "fine"
    cost_of(Target(provider=provider, model="gpt-5"), answer)


@every_provider
async def test_an_answer_that_says_nothing_special_is_billed_as_usual(provider: ProviderName) -> None:
    """As all of them are, where nobody asks for more."""
    billing = (await answer_in(provider, {})).billing
    assert billing == Billing()
