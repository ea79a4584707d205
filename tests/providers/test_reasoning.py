"""Reasoning: effort and budget by model family, and the reasoning text of the answer."""

from __future__ import annotations

from typing import Any

import pytest

from pollux_flows import ConfigurationError, Options, run
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import MakeConfig, sent

EFFORTS: list[tuple[ProviderName, str, str, dict[str, Any]]] = [
    ("gemini", "gemini-2.5-flash", "low", {"include_thoughts": True, "thinking_budget": 1024}),
    ("gemini", "models/gemini-2.5-flash", "high", {"include_thoughts": True, "thinking_budget": 24576}),
    ("gemini", "gemini-3-pro-preview", "low", {"include_thoughts": True, "thinking_level": "LOW"}),
    ("openai", "gpt-5-mini", "low", {"effort": "low", "summary": "auto"}),
    ("openai", "o4-mini", "high", {"effort": "high", "summary": "auto"}),
    ("anthropic", "claude-opus-4-5", "high", {"type": "enabled", "budget_tokens": 10240, "display": "summarized"}),
    ("anthropic", "claude-sonnet-4-6", "max", {"type": "adaptive", "display": "summarized"}),
    ("anthropic", "claude-opus-4-7", "xhigh", {"type": "adaptive", "display": "summarized"}),
    ("anthropic", "claude-haiku-4-5", "low", {"type": "enabled", "budget_tokens": 2048, "display": "summarized"}),
    ("anthropic", "claude-sonnet-4-5", "medium", {"type": "enabled", "budget_tokens": 5120, "display": "summarized"}),
    ("anthropic", "claude-3-7-sonnet", "high", {"type": "enabled", "budget_tokens": 10240, "display": "summarized"}),
    ("anthropic", "claude-opus-4-1", "max", {"type": "enabled", "budget_tokens": 24576, "display": "summarized"}),
    ("anthropic", "claude-novella-next", "max", {"type": "adaptive", "display": "summarized"}),
    ("openrouter", "openai/gpt-5-nano", "low", {"effort": "low"}),
]


def read_thinking(provider: ProviderName, body: dict[str, Any]) -> Any:
    if provider == "gemini":
        return body["generationConfig"]["thinkingConfig"]
    return body["thinking" if provider == "anthropic" else "reasoning"]


@pytest.mark.parametrize("case", EFFORTS, ids=str)
async def test_reasoning_effort_is_sent_in_the_form_of_each_model_family(
    case: tuple[ProviderName, str, str, dict[str, Any]], config: MakeConfig, sim: Simulator
) -> None:
    """The effort is sent as a level, a number of tokens or a mode, and the reasoning is returned."""
    provider, model, effort, wire = case
    envelope = await run("Why?", config=config(provider, model=model), options=Options(reasoning_effort=effort))
    assert read_thinking(provider, sent(sim)) == wire
    assert envelope.reasoning == ["Simulated reasoning about: Why?"]
    assert envelope.answers == ["Simulated answer to: Why?"]
    assert envelope.usage["reasoning_tokens"] > 0


async def test_anthropic_receives_the_effort_in_output_config(config: MakeConfig, sim: Simulator) -> None:
    """The effort is a setting beside the thinking mode."""
    await run("Why?", config=config("anthropic", model="claude-opus-4-7"), options=Options(reasoning_effort="low"))
    assert sent(sim)["output_config"] == {"effort": "low"}


@pytest.mark.parametrize(
    ("model", "output_config"), [("claude-haiku-4-5", None), ("claude-novella-next", {"effort": "max"})]
)
async def test_effort_is_left_out_only_for_models_known_to_refuse_it(
    model: str, output_config: Any, config: MakeConfig, sim: Simulator
) -> None:
    """Haiku 4.5 answers `output_config.effort` with a 400; an unknown model receives it."""
    await run("Why?", config=config("anthropic", model=model), options=Options(reasoning_effort="max"))
    assert sent(sim).get("output_config") == output_config


BUDGETS: list[tuple[ProviderName, str, int, dict[str, Any]]] = [
    ("gemini", "gemini-2.5-flash", 2000, {"include_thoughts": True, "thinking_budget": 2000}),
    ("gemini", "gemini-2.5-flash", 0, {"include_thoughts": False, "thinking_budget": 0}),
    ("anthropic", "claude-sonnet-4-5", 2000, {"type": "enabled", "budget_tokens": 2000}),
    ("anthropic", "claude-3-7-sonnet", 2000, {"type": "enabled", "budget_tokens": 2000}),
    ("anthropic", "claude-sonnet-4-5", 0, {"type": "disabled"}),
    ("anthropic", "claude-opus-4-7", 0, {"type": "disabled"}),
]


@pytest.mark.parametrize("case", BUDGETS, ids=str)
async def test_a_reasoning_budget_is_sent_as_tokens(
    case: tuple[ProviderName, str, int, dict[str, Any]], config: MakeConfig, sim: Simulator
) -> None:
    """Zero turns thinking off."""
    provider, model, budget, wire = case
    options = Options(reasoning_budget_tokens=budget)
    envelope = await run("Why?", config=config(provider, model=model), options=options)
    assert read_thinking(provider, sent(sim)) == wire
    assert (envelope.reasoning is not None) == (budget > 0)


async def test_the_default_max_tokens_of_anthropic_grows_with_the_budget(config: MakeConfig, sim: Simulator) -> None:
    """max_tokens includes the thinking."""
    options = Options(reasoning_budget_tokens=30_000)
    await run("Why?", config=config("anthropic", model="claude-sonnet-4-5"), options=options)
    assert sent(sim)["max_tokens"] > 30_000


async def test_the_default_max_tokens_stays_within_the_models_limit(config: MakeConfig, sim: Simulator) -> None:
    """Anthropic refuses a larger value."""
    options = Options(reasoning_budget_tokens=63_000)
    await run("Why?", config=config("anthropic", model="claude-sonnet-4-5"), options=options)
    assert sent(sim)["max_tokens"] == 64_000


REFUSED: list[tuple[ProviderName, str, dict[str, Any], str]] = [
    ("openai", "gpt-4.1-mini", {"reasoning_effort": "low"}, "does not reason"),
    ("openai", "gpt-5-mini", {"reasoning_budget_tokens": 2000}, "reasoning_budget"),
    ("openrouter", "openai/gpt-5-nano", {"reasoning_budget_tokens": 2000}, "reasoning_budget"),
    ("local", "m", {"reasoning_effort": "low"}, "reasoning_effort"),
    ("local", "m", {"reasoning_budget_tokens": 2000}, "reasoning_budget"),
    ("gemini", "gemini-2.0-flash", {"reasoning_effort": "low"}, "does not think"),
    ("gemini", "gemini-2.5-flash", {"reasoning_effort": "extreme"}, "extreme"),
    ("anthropic", "claude-haiku-4-5", {"reasoning_effort": "low", "max_tokens": 2048}, "2048 tokens leaves no room"),
    ("anthropic", "claude-haiku-4-5", {"reasoning_budget_tokens": 64_000}, "beyond claude-haiku-4-5"),
    ("anthropic", "claude-opus-4-1", {"reasoning_budget_tokens": 40_000}, "beyond claude-opus-4-1"),
    ("gemini", "gemini-2.5-flash", {"reasoning_budget_tokens": 24_577}, "24577"),
    ("gemini", "models/gemini-2.5-pro", {"reasoning_budget_tokens": 32_769}, "32769"),
    ("gemini", "gemini-2.5-pro", {"reasoning_budget_tokens": 0}, "of 0 tokens"),
    ("gemini", "gemini-2.5-flash-lite", {"reasoning_budget_tokens": 511}, "511"),
    ("anthropic", "claude-3-5-haiku", {"reasoning_budget_tokens": 2000}, "does not reason"),
    ("anthropic", "claude-opus-4-7", {"reasoning_budget_tokens": 2000}, "decides by itself"),
    ("anthropic", "claude-opus-4-5", {"reasoning_effort": "max"}, "'max'"),
    ("anthropic", "claude-sonnet-4-6", {"reasoning_effort": "xhigh"}, "'xhigh'"),
    ("anthropic", "claude-sonnet-4-5", {"reasoning_budget_tokens": 100}, "100"),
    ("anthropic", "claude-sonnet-4-5", {"reasoning_budget_tokens": 2000, "max_tokens": 2000}, "no room"),
    (
        "anthropic",
        "claude-sonnet-4-6",
        {"reasoning_effort": "low", "tools": [{"name": "f"}], "tool_choice": "required"},
        "forced",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
async def test_reasoning_options_that_a_model_does_not_support_are_refused_unsent(
    case: tuple[ProviderName, str, dict[str, Any], str], config: MakeConfig, sim: Simulator
) -> None:
    provider, model, options, message = case
    with pytest.raises(ConfigurationError, match=message) as caught:
        await run("Why?", config=config(provider, model=model), options=Options(**options))
    assert caught.value.hint
    assert sim.requests == []


@pytest.mark.parametrize("provider", ["local", "openrouter"])
async def test_unrequested_reasoning_is_returned(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Some servers reason by default, and name the field differently."""
    sim.fail(Fault(kind="reasoning"))
    envelope = await run("Why?", config=config(provider))
    assert envelope.reasoning == ["Simulated reasoning about: Why?"]
    assert envelope.text == "Simulated answer to: Why?"
