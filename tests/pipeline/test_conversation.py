"""Conversations across runs: refusals before a call is sent, and answers that are not paid for twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import (
    APIError,
    CacheHandle,
    Config,
    ConfigurationError,
    Options,
    ResultEnvelope,
    Source,
    continue_tool,
    create_cache,
    defer,
    run,
    run_many,
)
from pollux_flows.config import Target
from pollux_flows.pipeline.request import make_request
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import ONCE, MakeConfig, asked

TOOLS = Options(tools=[{"name": "look"}, {"name": "listen"}])
TURNS: list[dict[str, Any]] = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
CALL_TURN = {"role": "assistant", "tool_calls": [{"id": "c1", "name": "look", "arguments": "{}"}]}
STATE = {"version": 1, "provider": "openai", "history": TURNS}


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


@pytest.fixture
def openai(config: MakeConfig) -> Config:
    return config("openai")


async def ask_for_tool_calls(config: Config, sim: Simulator, **more: Any) -> ResultEnvelope:
    sim.fail(Fault(kind="tool_call", count=2))
    return await run("Look.", config=config, options=TOOLS, **more)


def make_tool_results(envelope: ResultEnvelope) -> list[dict[str, Any]]:
    return [{"tool_call_id": call["id"], "content": call["name"]} for call in (envelope.tool_calls or [[]])[0]]


def continue_from(**state: Any) -> dict[str, Any]:
    return {"continue_from": {"_conversation_state": {**STATE, **state}}}


# --- Refusals -----------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no state": ({"continue_from": {}}, r"has no conversation .*history=\[\]"),
    "an empty state": ({"continue_from": {"_conversation_state": None}}, "has no conversation"),
    "a list instead of a state": ({"continue_from": {"_conversation_state": []}}, "Pass the envelope unchanged"),
    "a state without turns": ({"continue_from": {"_conversation_state": {"version": 1}}}, "unchanged"),
    "a version in words": (continue_from(version="1"), "unchanged"),
    "a number instead of an id": (continue_from(response_id=1), "response_id of continue_from is not a text"),
    "a newer version": (continue_from(version=2), "newer version of pollux_flows .*Update"),
    "another provider": (continue_from(provider="gemini"), "was with gemini, and cannot be continued with openai"),
    "a turn of an unknown role": (
        continue_from(history=[{"role": "system"}]),
        r"_conversation_state.history\[0\] has the role",
    ),
    "a text instead of a turn": (continue_from(history=["Hi."]), r"history\[0\] has no role"),
    "tool calls without results": (
        continue_from(history=[TURNS[0], CALL_TURN]),
        r"waits for the result of the tool call 'c1' \(look\)",
    ),
    "tool calls without results in a history": ({"history": [TURNS[0], CALL_TURN]}, "continue_tool"),
    "a turn about a cache without its handle": (
        {"history": [{**TURNS[0], "cache": "caches/1"}]},
        r"Options\(cache=…\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_an_invalid_conversation_is_refused_before_the_call(name: str, openai: Config, sim: Simulator) -> None:
    """The error names the place, and its hint the remedy."""
    options, words = REFUSED[name]
    with pytest.raises(ConfigurationError, match=words) as caught:
        await run("p", config=openai, options=Options(**options))
    assert caught.value.hint
    assert sim.requests == []


@pytest.mark.parametrize("conversation", [{"history": TURNS}, {"history": []}, continue_from()])
async def test_a_conversation_with_several_prompts_or_sources_is_refused(
    conversation: dict[str, Any], openai: Config, sim: Simulator
) -> None:
    """Each prompt, and each source of a broadcast, would be a conversation of its own."""
    options = Options(**conversation)
    with pytest.raises(ConfigurationError, match="with one prompt, not 2"):
        await run_many(["p", "q"], config=openai, options=options)
    sources = [Source.from_text("a"), Source.from_text("b")]
    with pytest.raises(ConfigurationError, match="each source separately"):
        make_request(["p"], target=openai.target, sources=sources, options=options, each_source=True)
    assert sim.requests == []


@pytest.mark.parametrize("conversation", [{"history": TURNS}, {"history": []}, continue_from()])
async def test_a_conversation_without_a_new_prompt_is_refused(
    conversation: dict[str, Any], openai: Config, sim: Simulator
) -> None:
    """The last turn is the assistant's, so there is nothing to answer."""
    with pytest.raises(ConfigurationError, match="nothing to send"):
        await run(config=openai, options=Options(**conversation))
    assert sim.requests == []


@pytest.mark.parametrize("conversation", [{"history": TURNS}, continue_from()])
async def test_a_conversation_cannot_be_deferred(conversation: dict[str, Any], openai: Config, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="A conversation cannot be deferred"):
        await defer("p", config=openai, options=Options(**conversation))
    assert sim.requests == []


async def test_tool_results_in_a_history_are_refused_for_a_local_server(config: MakeConfig, sim: Simulator) -> None:
    history = [TURNS[0], CALL_TURN, {"role": "tool", "tool_call_id": "c1", "content": "sea"}]
    with pytest.raises(ConfigurationError, match="tool_results"):
        await run("p", config=config("local"), options=Options(history=history))
    assert sim.requests == []


@pytest.mark.parametrize(
    "case",
    [
        ("anthropic", "claude-sonnet-4-6", [TURNS[1]], {}, "begins with an assistant's turn"),
        ("gemini", "gemini-2.5-flash", [CALL_TURN, {"role": "tool", "tool_call_id": "c1"}], {},
         "begins with a tool call"),
        ("anthropic", "claude-opus-4-5", [TURNS[0], CALL_TURN, {"role": "tool", "tool_call_id": "c1"}],
         {"reasoning_budget_tokens": 1024}, "made without thinking"),
        *((provider, model, [TURNS[0], {**CALL_TURN, "tool_calls": [{"id": "c1", "name": "f", "arguments": "[1]"}]},
           {"role": "tool", "tool_call_id": "c1"}], {}, "not a JSON object")
          for provider, model in (("anthropic", "claude-sonnet-4-6"), ("gemini", "gemini-2.5-flash"))),
        ("gemini", "gemini-2.5-flash", [TURNS[0], {**TURNS[1], "provider_state": {"parts": [{"text": 1}]}}], {},
         "cannot be sent back to Gemini"),
        *((provider, model, [TURNS[0], {**TURNS[1], "provider_state": {name: ["x"]}}], {}, f"the provider sent .{name}")
          for provider, model, name in (("anthropic", "claude-sonnet-4-6", "content"), ("openai", "gpt-5", "output"),
                                        ("gemini", "gemini-2.5-flash", "parts"))),
    ],
)  # fmt: skip
async def test_a_history_that_breaks_a_rule_of_the_provider_is_refused_before_the_call(
    case: tuple[Any, str, Any, dict[str, Any], str], config: MakeConfig, sim: Simulator
) -> None:
    """The error explains the rule."""
    provider, model, history, more, words = case
    with pytest.raises(ConfigurationError, match=words) as caught:
        await run("p", config=config(provider, model=model), options=Options(history=history, **more))
    assert caught.value.hint
    assert asked(sim) == []


async def test_tool_results_are_refused_for_an_openrouter_model_without_tools(
    config: MakeConfig, sim: Simulator
) -> None:
    """The catalogue of OpenRouter says so before the call."""
    history = [TURNS[0], CALL_TURN, {"role": "tool", "tool_call_id": "c1", "content": "sea"}]
    with pytest.raises(ConfigurationError, match="does not support tools"):
        await run(
            config=config("openrouter", model="meta-llama/llama-3.3-70b-instruct"), options=Options(history=history)
        )
    assert asked(sim) == []


RESULTS: dict[str, tuple[Any, str]] = {
    "none": ([], "tool_results is empty"),
    "no list": ({"tool_call_id": "x"}, "Pass a list"),
    "text": ("sea", "Pass a list"),
    "no result": (["sea"], r"tool_results\[0\]"),
    "no id": ([{"content": "sea"}], r"tool_results\[0\] has no tool_call_id"),
    "unknown": ([{"tool_call_id": "x", "content": "sea"}], r"tool_results\[0\] is the result of the tool call 'x'"),
    "a prompt": ([{"role": "user", "content": "sea"}], "a turn of role user"),
    "an object": ([{"tool_call_id": "x", "content": {"a": 1}}], r"tool_results\[0\].content is of type dict"),
}


@pytest.mark.parametrize("name", RESULTS)
async def test_invalid_tool_results_are_refused_before_the_call(name: str, openai: Config, sim: Simulator) -> None:
    """The error names the index of the result."""
    first = await ask_for_tool_calls(openai, sim)
    results, words = RESULTS[name]
    with pytest.raises(ConfigurationError, match=words) as caught:
        await continue_tool(first, results, config=openai)
    assert caught.value.hint
    assert len(asked(sim)) == 1


async def test_missing_and_duplicate_tool_results_are_refused(openai: Config, sim: Simulator) -> None:
    first = await ask_for_tool_calls(openai, sim)
    one, two = make_tool_results(first)
    with pytest.raises(ConfigurationError, match=r"tool_results ends before there is a result of .*\(listen\)"):
        await continue_tool(first, [one], config=openai)
    with pytest.raises(ConfigurationError, match=r"tool_results\[2\] is a second result"):
        await continue_tool(first, [one, two, one], config=openai)
    assert len(asked(sim)) == 1


async def test_continue_tool_needs_an_envelope_with_open_tool_calls(openai: Config, sim: Simulator) -> None:
    """An envelope without a conversation, and one whose answer is text, are refused."""
    with pytest.raises(ConfigurationError, match="has no conversation"):
        await continue_tool(await run("p", config=openai), [{"tool_call_id": "x"}], config=openai)
    words = await run("p", config=openai, options=Options(history=[]))
    with pytest.raises(ConfigurationError, match="needs no tool results"):
        await continue_tool(words, [{"tool_call_id": "x"}], config=openai)
    for wrong in (None, "envelope"):
        with pytest.raises(ConfigurationError, match="Pass the envelope"):
            await continue_tool(wrong, [], config=openai)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="options is a dict"):
        await continue_tool(words, [], config=openai, options={})  # type: ignore[arg-type]
    assert len(asked(sim)) == 2


async def test_a_conversation_cannot_continue_from_a_blocked_answer(openai: Config, sim: Simulator) -> None:
    """The conversation can still continue from the envelope before."""
    first = await run("p", config=openai, options=Options(history=[]))
    sim.fail(Fault(kind="blocked"))
    blocked = await run("q", config=openai, options=Options(continue_from=first))
    assert "_conversation_state" not in blocked
    with pytest.raises(ConfigurationError, match="has no conversation"):
        await run("r", config=openai, options=Options(continue_from=blocked))
    assert (await run("r", config=openai, options=Options(continue_from=first))).status == "ok"


async def test_a_conversation_about_a_cache_continues_only_with_its_handle(config: MakeConfig) -> None:
    """Without the handle, the cached content would be missing."""
    gemini = config("gemini")
    handle = await create_cache([Source.from_text("A report. " * 2000)], config=gemini, tools=[{"name": "look"}])
    first = await run("Look. [[simulate: tool_call]]", config=gemini, options=Options(cache=handle))
    with pytest.raises(ConfigurationError, match="is about the cached content"):
        await continue_tool(first, make_tool_results(first), config=gemini)
    last = await continue_tool(first, make_tool_results(first), config=gemini, options=Options(cache=handle))
    assert (last.status, last.metrics["cache_used"]) == ("ok", True)


def test_a_conversation_with_a_cache_handle_is_refused_for_other_providers_than_gemini() -> None:
    handle = CacheHandle(name="c", model="m", provider="openai", expires_at=2e9)
    with pytest.raises(ConfigurationError, match="persistent_cache"):
        make_request("p", target=Target(provider="openai", model="m"), options=Options(cache=handle, history=TURNS))


# --- Reuse --------------------------------------------------------------------------------------------------


async def test_a_repeated_tool_loop_reuses_all_its_answers(openai: Config, sim: Simulator) -> None:
    """With the same run_key, each turn has the same history as before, and so the same identity."""
    seen = []
    sim.fail(Fault(kind="tool_call", count=2))
    for _ in range(2):
        first = await run("Look.", config=openai, options=TOOLS, run_key="monday")
        second = await continue_tool(first, make_tool_results(first), config=openai, options=TOOLS, run_key="monday")
        third = await run("So?", config=openai, options=Options(continue_from=second), run_key="monday")
        seen.append([first["_conversation_state"], second["_conversation_state"], third["_conversation_state"]])
    assert seen[0] == seen[1]
    assert third.metrics["n_reused"] == 1
    assert len(asked(sim)) == 3


async def test_turns_of_other_runs_are_reused_with_reuse_always(openai: Config, sim: Simulator) -> None:
    """A history has the same identity whether it is passed as `history` or as `continue_from`."""
    first = await run("Hi.", config=openai, options=Options(history=[]))
    for _ in range(2):
        await run("So?", config=openai, options=Options(continue_from=first), reuse="always")
    assert len(asked(sim)) == 2
    history = first["_conversation_state"]["history"]
    by_state = {"_conversation_state": {"version": 1, "history": history}}
    await run("And?", config=openai, options=Options(history=history), reuse="always")
    await run("And?", config=openai, options=Options(continue_from=by_state), reuse="always")
    assert len(asked(sim)) == 3


async def test_an_empty_history_has_the_identity_of_no_history(openai: Config, sim: Simulator) -> None:
    """Only the envelope of the call with a history can be continued."""
    plain = await run("Hi.", config=openai, reuse="always")
    begun = await run("Hi.", config=openai, options=Options(history=[]), reuse="always")
    assert (plain.answers, len(asked(sim))) == (begun.answers, 1)
    assert "_conversation_state" in begun


async def test_prior_turns_are_part_of_the_identity(openai: Config, sim: Simulator) -> None:
    for content in ("Hi.", "Ho."):
        history = [{"role": "user", "content": content}, TURNS[1]]
        await run("So?", config=openai, options=Options(history=history), reuse="always")
    assert len(asked(sim)) == 2


async def test_a_conversation_that_the_provider_has_lost_is_answered_once(openai: Config, sim: Simulator) -> None:
    """The full history is then sent instead of the id; if that call fails, its error is raised."""
    first = await run("Hi.", config=openai, options=Options(history=[]))
    sim.openai_responses.clear()
    once = openai.model_copy(update={"retry": ONCE})
    sim.fail(Fault(status=500), contains="Hello" if "Hello" in first.text else "Simulated")
    with pytest.raises(APIError):
        await run("So?", config=once, options=Options(continue_from=first), run_key="monday")
    await run("So?", config=once, options=Options(continue_from=first), run_key="monday")
    await run("So?", config=once, options=Options(continue_from=first), run_key="monday")
    assert [entry.status for entry in asked(sim)] == [200, 400, 500, 400, 200]


def test_options_take_only_the_conversation_from_an_envelope() -> None:
    """Options are part of each run's record, which does not need the rest of the envelope."""
    envelope = ResultEnvelope(status="ok", answers=["Hello."], confidence=0.9, conversation_state=STATE)
    assert json.loads(envelope.model_dump_json())["_conversation_state"] == STATE
    assert Options(continue_from=envelope).continue_from == {"_conversation_state": STATE}


async def test_the_provider_state_is_stored_only_for_a_single_answer(config: MakeConfig) -> None:
    """A conversation cannot continue from one of several answers, so their reasoning is not stored for it."""
    thinking = Options(reasoning_effort="low")
    several = await run_many(["p", "q"], config=config("anthropic"), options=thinking)
    single = await run("p", config=config("anthropic"), options=thinking)
    assert ["provider_state" in raw for raw in several.diagnostics["raw_responses"]] == [False, False]
    assert ["provider_state" in raw for raw in single.diagnostics["raw_responses"]] == [True]


@pytest.mark.parametrize("provider", ["anthropic", "openrouter"])
async def test_raw_tools_of_a_provider_are_sent_with_tool_results(
    provider: Any, config: MakeConfig, sim: Simulator
) -> None:
    """Tools in provider_options replace our own declarations."""
    tools = {
        "anthropic": [{"name": "look", "input_schema": {"type": "object"}}],
        "openrouter": [{"type": "function", "function": {"name": "look"}}],
    }[provider]
    history = [TURNS[0], CALL_TURN, {"role": "tool", "tool_call_id": "c1", "content": "sea"}]
    options = Options(history=history, provider_options={provider: {"tools": tools}})
    await run(config=config(provider), options=options)
    assert asked(sim)[0].body["tools"] == tools


async def test_a_shortened_history_is_sent_without_the_response_id(openai: Config, sim: Simulator) -> None:
    """The response id stands for an answer that is no longer in the history."""
    state = {**STATE, "history": TURNS[:1], "response_id": "resp_1"}
    await run("And?", config=openai, options=Options(continue_from={"_conversation_state": state}))
    assert "previous_response_id" not in asked(sim)[0].body
