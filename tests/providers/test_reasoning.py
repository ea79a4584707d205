"""Reasoning: effort and budget by model family, and the reasoning text that comes back."""

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


def thinking_of(provider: ProviderName, body: dict[str, Any]) -> Any:
    if provider == "gemini":
        return body["generationConfig"]["thinkingConfig"]
    return body["thinking" if provider == "anthropic" else "reasoning"]


@pytest.mark.parametrize("case", EFFORTS, ids=str)
async def test_effort_is_said_as_each_family_wants_it(
    case: tuple[ProviderName, str, str, dict[str, Any]], config: MakeConfig, sim: Simulator
) -> None:
    """The same word everywhere; on the wire a level, a number of tokens or a mode. The reasoning comes back."""
    provider, model, effort, wire = case
    envelope = await run("Why?", config=config(provider, model=model), options=Options(reasoning_effort=effort))
    assert thinking_of(provider, sent(sim)) == wire
    assert envelope.reasoning == ["Simulated reasoning about: Why?"]
    assert envelope.answers == ["Simulated answer to: Why?"]
    assert envelope.usage["reasoning_tokens"] > 0


async def test_anthropic_is_told_the_effort_beside_the_thinking(config: MakeConfig, sim: Simulator) -> None:
    """Effort is a setting of its own there."""
    await run("Why?", config=config("anthropic", model="claude-opus-4-7"), options=Options(reasoning_effort="low"))
    assert sent(sim)["output_config"] == {"effort": "low"}


@pytest.mark.parametrize(
    ("model", "output_config"), [("claude-haiku-4-5", None), ("claude-novella-next", {"effort": "max"})]
)
async def test_only_a_model_that_is_known_to_refuse_the_effort_is_sent_none(
    model: str, output_config: Any, config: MakeConfig, sim: Simulator
) -> None:
    """Haiku 4.5 answers `output_config.effort` with a 400; a name that no list knows is the provider's to judge."""
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
async def test_a_budget_is_a_number_of_tokens(
    case: tuple[ProviderName, str, int, dict[str, Any]], config: MakeConfig, sim: Simulator
) -> None:
    """Zero turns thinking off."""
    provider, model, budget, wire = case
    options = Options(reasoning_budget_tokens=budget)
    envelope = await run("Why?", config=config(provider, model=model), options=options)
    assert thinking_of(provider, sent(sim)) == wire
    assert (envelope.reasoning is not None) == (budget > 0)


async def test_anthropic_leaves_room_for_the_answer(config: MakeConfig, sim: Simulator) -> None:
    """max_tokens covers the thinking too, so the default grows with the budget."""
    options = Options(reasoning_budget_tokens=30_000)
    await run("Why?", config=config("anthropic", model="claude-sonnet-4-5"), options=options)
    assert sent(sim)["max_tokens"] > 30_000


async def test_the_room_for_the_answer_ends_where_the_model_does(config: MakeConfig, sim: Simulator) -> None:
    """A default beyond what the model can write is a 400."""
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
async def test_what_a_model_cannot_do_is_refused_before_it_is_asked(
    case: tuple[ProviderName, str, dict[str, Any], str], config: MakeConfig, sim: Simulator
) -> None:
    """A stable fact about a model family costs nothing here, and a failed run over there."""
    provider, model, given, says = case
    with pytest.raises(ConfigurationError, match=says) as caught:
        await run("Why?", config=config(provider, model=model), options=Options(**given))
    assert caught.value.hint
    assert sim.requests == []


@pytest.mark.parametrize("provider", ["local", "openrouter"])
async def test_reasoning_that_nobody_asked_for_is_passed_on(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Servers think by themselves, and name the field as they like."""
    sim.fail(Fault(kind="reasoning"))
    envelope = await run("Why?", config=config(provider))
    assert envelope.reasoning == ["Simulated reasoning about: Why?"]
    assert envelope.text == "Simulated answer to: Why?"
