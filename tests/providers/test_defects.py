"""Requests that the library behind the seeds (pollux) sends wrongly: sent correctly here, or refused unsent.

The numbers are the rows of the list of defects. Rows 7, 11, 16 and 17 are in test_conversations.py; rows 19 and 21
concern deferred jobs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pollux_flows import ConfigurationError, Options, Source, run
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Simulator
from tests.loopback import MakeConfig, asked, sent
from tests.providers.shapes import Bounded, Map, Optionals, Painted

OPTIONAL_ARGUMENT: dict[str, Any] = {
    "name": "f",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["a"],
    },
}
Case = tuple[int, ProviderName, str, dict[str, Any]]  # row, provider, model, options
BEHIND_OPENROUTER = "openai/gpt-4.1-mini"
ACCEPTED_CASES: list[Case] = [
    (1, "openai", "gpt-4.1-mini", {"response_schema": Optionals}),
    (1, "openrouter", BEHIND_OPENROUTER, {"response_schema": Optionals}),
    (1, "openai", "gpt-4.1-mini", {"tools": [OPTIONAL_ARGUMENT]}),
    (1, "openrouter", BEHIND_OPENROUTER, {"tools": [OPTIONAL_ARGUMENT]}),
    (2, "openai", "gpt-4.1-mini", {"response_schema": Painted}),
    (2, "openrouter", BEHIND_OPENROUTER, {"response_schema": Painted}),
    (3, "openai", "gpt-4.1-mini", {"response_schema": Map}),
    (3, "openrouter", BEHIND_OPENROUTER, {"response_schema": Map}),
    (3, "local", "local-model", {"response_schema": Map}),
    (4, "openai", "gpt-4.1-mini", {"max_tokens": 16}),
    (6, "openai", "gpt-4.1-mini", {"temperature": 0.5}),
    (6, "openai", "gpt-5-mini", {"reasoning_effort": "low"}),
    (8, "anthropic", "claude-haiku-4-5", {"reasoning_effort": "low"}),
    (8, "anthropic", "claude-3-7-sonnet", {"reasoning_effort": "low"}),
    (9, "anthropic", "claude-3-7-sonnet", {"reasoning_effort": "high"}),
    (9, "anthropic", "claude-opus-4-5", {"reasoning_effort": "high"}),
    (9, "anthropic", "claude-3-7-sonnet", {"reasoning_budget_tokens": 10240}),
    (10, "anthropic", "claude-sonnet-4-6", {"response_schema": Bounded}),
    (12, "anthropic", "claude-opus-4-7", {"reasoning_effort": "high"}),
    (13, "anthropic", "claude-opus-4-8", {"reasoning_effort": "low"}),
    (18, "gemini", "gemini-3-pro-preview", {"response_schema": Optionals, "tools": [OPTIONAL_ARGUMENT]}),
    (20, "gemini", "gemini-2.5-flash-lite", {"max_tokens": 5}),
]


@pytest.mark.parametrize("case", ACCEPTED_CASES, ids=str)
async def test_a_request_that_pollux_gets_wrong_is_accepted_by_the_provider(
    case: Case, config: MakeConfig, sim: Simulator
) -> None:
    """The simulator refuses what the provider refuses, and accepted the only request."""
    _, provider, model, options = case
    await run("What do you see?", config=config(provider, model=model), options=Options(**options))
    assert [entry.status for entry in asked(sim)] == [200]


REFUSED_CASES: list[Case] = [
    (4, "openai", "gpt-4.1-mini", {"max_tokens": 15}),
    (6, "openai", "gpt-5-mini", {"temperature": 0.5}),
    (6, "openai", "gpt-5-mini", {"top_p": 0.5}),
    (6, "openai", "gpt-4.1-mini", {"reasoning_effort": "low"}),
    (9, "anthropic", "claude-opus-4-5", {"reasoning_effort": "high", "max_tokens": 4096}),
    (9, "anthropic", "claude-3-7-sonnet", {"reasoning_budget_tokens": 4096, "max_tokens": 4096}),
    (12, "anthropic", "claude-opus-4-7", {"reasoning_budget_tokens": 2048}),
    (12, "anthropic", "claude-opus-4-8", {"reasoning_budget_tokens": 2048}),
    (14, "anthropic", "claude-sonnet-4-6", {"temperature": 1.0}),
    (14, "anthropic", "claude-sonnet-4-6", {"top_p": 1.0}),
    (15, "anthropic", "claude-3-5-haiku", {"response_schema": Optionals}),
    (15, "anthropic", "claude-3-7-sonnet", {"response_schema": Optionals}),
    (18, "gemini", "gemini-2.5-flash", {"response_schema": Optionals, "tools": [OPTIONAL_ARGUMENT]}),
]


@pytest.mark.parametrize("case", REFUSED_CASES, ids=str)
async def test_a_request_that_pollux_gets_wrong_is_refused_with_a_hint_and_unsent(
    case: Case, config: MakeConfig, sim: Simulator
) -> None:
    _, provider, model, options = case
    with pytest.raises(ConfigurationError) as caught:
        await run("p", config=config(provider, model=model), options=Options(**options))
    assert caught.value.hint
    assert sim.requests == []


async def test_row_5_audio_for_openai_is_refused_before_an_upload(
    config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """OpenAI reads no audio as a file."""
    sound = tmp_path / "a.mp3"
    sound.write_bytes(b"ID3\4\0\0\0\0\0\0")
    with pytest.raises(ConfigurationError) as caught:
        await run("p", source=Source.from_file(sound), config=config("openai"))
    assert caught.value.hint
    assert sim.requests == []


async def test_row_13_the_reasoning_of_newer_claude_models_is_returned(config: MakeConfig) -> None:
    """These models bill for thinking, and return it only on request."""
    options = Options(reasoning_effort="low")
    envelope = await run("Why?", config=config("anthropic", model="claude-opus-4-8"), options=options)
    assert envelope.reasoning == ["Simulated reasoning about: Why?"]


async def test_row_20_max_tokens_limits_geminis_answer(config: MakeConfig, sim: Simulator) -> None:
    envelope = await run("Tell me about the sea.", config=config("gemini"), options=Options(max_tokens=5))
    assert sent(sim)["generationConfig"]["maxOutputTokens"] == 5
    assert len(envelope.text) <= 20


@pytest.mark.parametrize("budget", [1024, 20_000])
async def test_row_9_the_default_max_tokens_leaves_room_beside_thinking(
    budget: int, config: MakeConfig, sim: Simulator
) -> None:
    """Anthropic counts thinking against max_tokens."""
    options = Options(reasoning_budget_tokens=budget)
    await run("p", config=config("anthropic", model="claude-sonnet-4-5"), options=options)
    assert sent(sim)["max_tokens"] - budget >= 4096
