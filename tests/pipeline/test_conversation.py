"""Conversations across runs: what cannot go on is refused unsent, and what was paid for is not paid for again."""

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
SAID: list[dict[str, Any]] = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
CALLED = {"role": "assistant", "tool_calls": [{"id": "c1", "name": "look", "arguments": "{}"}]}
STATE = {"version": 1, "provider": "openai", "history": SAID}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


@pytest.fixture
def openai(config: MakeConfig) -> Config:
    return config("openai")


async def called(config: Config, sim: Simulator, **more: Any) -> ResultEnvelope:
    sim.fail(Fault(kind="tool_call", count=2))
    return await run("Look.", config=config, options=TOOLS, **more)


def results_for(envelope: ResultEnvelope) -> list[dict[str, Any]]:
    return [{"tool_call_id": call["id"], "content": call["name"]} for call in (envelope.tool_calls or [[]])[0]]


def going_on(**state: Any) -> dict[str, Any]:
    return {"continue_from": {"_conversation_state": {**STATE, **state}}}


# --- Refused ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no state": ({"continue_from": {}}, r"has no conversation .*history=\[\]"),
    "a state that is empty": ({"continue_from": {"_conversation_state": None}}, "has no conversation"),
    "a state that is none": ({"continue_from": {"_conversation_state": []}}, "Pass the envelope unchanged"),
    "a state without turns": ({"continue_from": {"_conversation_state": {"version": 1}}}, "unchanged"),
    "a version in words": (going_on(version="1"), "unchanged"),
    "an id that is none": (going_on(response_id=1), "response_id of continue_from is not a text"),
    "a newer version": (going_on(version=2), "newer version of pollux_flows .*Update"),
    "another provider": (going_on(provider="gemini"), "was with gemini, and cannot be continued with openai"),
    "a turn that is none": (going_on(history=[{"role": "system"}]), r"_conversation_state.history\[0\] has the role"),
    "a turn that is no object": (going_on(history=["Hi."]), r"history\[0\] has no role"),
    "calls that wait": (going_on(history=[SAID[0], CALLED]), r"waits for the result of the tool call 'c1' \(look\)"),
    "calls that wait in a history": ({"history": [SAID[0], CALLED]}, "continue_tool"),
    "a cache that would be missing": ({"history": [{**SAID[0], "cache": "caches/1"}]}, r"Options\(cache=…\)"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_go_on_is_refused_unsent(name: str, openai: Config, sim: Simulator) -> None:
    """Where it is, and what to do."""
    given, words = REFUSED[name]
    with pytest.raises(ConfigurationError, match=words) as caught:
        await run("p", config=openai, options=Options(**given))
    assert caught.value.hint
    assert sim.requests == []


@pytest.mark.parametrize("given", [{"history": SAID}, {"history": []}, going_on()])
async def test_a_conversation_takes_one_prompt_at_a_time(given: dict[str, Any], openai: Config, sim: Simulator) -> None:
    """Two would be two conversations; and so would one about each source."""
    options = Options(**given)
    with pytest.raises(ConfigurationError, match="with one prompt, not 2"):
        await run_many(["p", "q"], config=openai, options=options)
    sources = [Source.from_text("a"), Source.from_text("b")]
    with pytest.raises(ConfigurationError, match="each source separately"):
        make_request(["p"], target=openai.target, sources=sources, options=options, each_source=True)
    assert sim.requests == []


@pytest.mark.parametrize("given", [{"history": SAID}, {"history": []}, going_on()])
async def test_without_a_question_there_is_nothing_to_send(
    given: dict[str, Any], openai: Config, sim: Simulator
) -> None:
    """The assistant had the last word."""
    with pytest.raises(ConfigurationError, match="nothing to send"):
        await run(config=openai, options=Options(**given))
    assert sim.requests == []


@pytest.mark.parametrize("given", [{"history": SAID}, going_on()])
async def test_a_conversation_is_not_deferred(given: dict[str, Any], openai: Config, sim: Simulator) -> None:
    """Batches answer later, and once."""
    with pytest.raises(ConfigurationError, match="A conversation cannot be deferred"):
        await defer("p", config=openai, options=Options(**given))
    assert sim.requests == []


async def test_a_local_server_gets_no_tool_turns(config: MakeConfig, sim: Simulator) -> None:
    """It would not know what to make of them."""
    history = [SAID[0], CALLED, {"role": "tool", "tool_call_id": "c1", "content": "sea"}]
    with pytest.raises(ConfigurationError, match="tool_results"):
        await run("p", config=config("local"), options=Options(history=history))
    assert sim.requests == []


@pytest.mark.parametrize(
    "case",
    [
        ("anthropic", "claude-sonnet-4-6", [SAID[1]], {}, "begins with an assistant's turn"),
        ("gemini", "gemini-2.5-flash", [CALLED, {"role": "tool", "tool_call_id": "c1"}], {}, "begins with a tool call"),
        ("anthropic", "claude-opus-4-5", [SAID[0], CALLED, {"role": "tool", "tool_call_id": "c1"}],
         {"reasoning_budget_tokens": 1024}, "made without thinking"),
        *((provider, model, [SAID[0], {**CALLED, "tool_calls": [{"id": "c1", "name": "f", "arguments": "[1]"}]},
           {"role": "tool", "tool_call_id": "c1"}], {}, "not a JSON object")
          for provider, model in (("anthropic", "claude-sonnet-4-6"), ("gemini", "gemini-2.5-flash"))),
        ("gemini", "gemini-2.5-flash", [SAID[0], {**SAID[1], "provider_state": {"parts": [{"text": 1}]}}], {},
         "cannot be sent back to Gemini"),
        *((provider, model, [SAID[0], {**SAID[1], "provider_state": {name: ["x"]}}], {}, f"the provider sent .{name}")
          for provider, model, name in (("anthropic", "claude-sonnet-4-6", "content"), ("openai", "gpt-5", "output"),
                                        ("gemini", "gemini-2.5-flash", "parts"))),
    ],
)  # fmt: skip
async def test_what_one_provider_does_not_take_is_refused_unsent(
    case: tuple[Any, str, Any, dict[str, Any], str], config: MakeConfig, sim: Simulator
) -> None:
    """Its own rules, in words."""
    provider, model, history, more, words = case
    with pytest.raises(ConfigurationError, match=words) as caught:
        await run("p", config=config(provider, model=model), options=Options(history=history, **more))
    assert caught.value.hint
    assert asked(sim) == []


async def test_a_model_of_openrouter_may_know_no_tools(config: MakeConfig, sim: Simulator) -> None:
    """The catalogue says so before the call."""
    history = [SAID[0], CALLED, {"role": "tool", "tool_call_id": "c1", "content": "sea"}]
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
async def test_results_that_do_not_fit_are_refused_unsent(name: str, openai: Config, sim: Simulator) -> None:
    """By their place."""
    first = await called(openai, sim)
    results, words = RESULTS[name]
    with pytest.raises(ConfigurationError, match=words) as caught:
        await continue_tool(first, results, config=openai)
    assert caught.value.hint
    assert len(asked(sim)) == 1


async def test_every_call_has_one_result(openai: Config, sim: Simulator) -> None:
    """None is missing, none is there twice."""
    first = await called(openai, sim)
    one, two = results_for(first)
    with pytest.raises(ConfigurationError, match=r"tool_results ends before there is a result of .*\(listen\)"):
        await continue_tool(first, [one], config=openai)
    with pytest.raises(ConfigurationError, match=r"tool_results\[2\] is a second result"):
        await continue_tool(first, [one, two, one], config=openai)
    assert len(asked(sim)) == 1


async def test_tools_go_on_where_tools_were_called(openai: Config, sim: Simulator) -> None:
    """Not from an envelope without a conversation, nor from an answer in words."""
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


async def test_what_has_no_answer_cannot_be_gone_on_from(openai: Config, sim: Simulator) -> None:
    """The envelope before it still can."""
    first = await run("p", config=openai, options=Options(history=[]))
    sim.fail(Fault(kind="blocked"))
    blocked = await run("q", config=openai, options=Options(continue_from=first))
    assert "_conversation_state" not in blocked
    with pytest.raises(ConfigurationError, match="has no conversation"):
        await run("r", config=openai, options=Options(continue_from=blocked))
    assert (await run("r", config=openai, options=Options(continue_from=first))).status == "ok"


async def test_a_cached_conversation_goes_on_with_its_cache(config: MakeConfig) -> None:
    """Without it, what it was about would be missing."""
    gemini = config("gemini")
    handle = await create_cache([Source.from_text("A report. " * 2000)], config=gemini, tools=[{"name": "look"}])
    first = await run("Look. [[simulate: tool_call]]", config=gemini, options=Options(cache=handle))
    with pytest.raises(ConfigurationError, match="is about the cached content"):
        await continue_tool(first, results_for(first), config=gemini)
    last = await continue_tool(first, results_for(first), config=gemini, options=Options(cache=handle))
    assert (last.status, last.metrics["cache_used"]) == ("ok", True)


def test_only_gemini_has_cached_conversations() -> None:
    """As it alone has caches."""
    handle = CacheHandle(name="c", model="m", provider="openai", expires_at=2e9)
    with pytest.raises(ConfigurationError, match="persistent_cache"):
        make_request("p", target=Target(provider="openai", model="m"), options=Options(cache=handle, history=SAID))


# --- Paid once ----------------------------------------------------------------------------------------------


async def test_a_tool_loop_that_is_run_again_asks_nothing(openai: Config, sim: Simulator) -> None:
    """Under the same key each turn finds the turn before as it was, and with it its own answer."""
    seen = []
    sim.fail(Fault(kind="tool_call", count=2))
    for _ in range(2):
        first = await run("Look.", config=openai, options=TOOLS, run_key="monday")
        second = await continue_tool(first, results_for(first), config=openai, options=TOOLS, run_key="monday")
        third = await run("So?", config=openai, options=Options(continue_from=second), run_key="monday")
        seen.append([first["_conversation_state"], second["_conversation_state"], third["_conversation_state"]])
    assert seen[0] == seen[1]
    assert third.metrics["n_reused"] == 1
    assert len(asked(sim)) == 3


async def test_anybodys_turn_counts_where_it_may(openai: Config, sim: Simulator) -> None:
    """With reuse="always"; the same history by another way is the same."""
    first = await run("Hi.", config=openai, options=Options(history=[]))
    for _ in range(2):
        await run("So?", config=openai, options=Options(continue_from=first), reuse="always")
    assert len(asked(sim)) == 2
    history = first["_conversation_state"]["history"]
    by_state = {"_conversation_state": {"version": 1, "history": history}}
    await run("And?", config=openai, options=Options(history=history), reuse="always")
    await run("And?", config=openai, options=Options(continue_from=by_state), reuse="always")
    assert len(asked(sim)) == 3


async def test_a_history_of_nothing_is_no_history(openai: Config, sim: Simulator) -> None:
    """The call is the same; only its envelope can be gone on from."""
    plain = await run("Hi.", config=openai, reuse="always")
    begun = await run("Hi.", config=openai, options=Options(history=[]), reuse="always")
    assert (plain.answers, len(asked(sim))) == (begun.answers, 1)
    assert "_conversation_state" in begun


async def test_another_conversation_is_another_question(openai: Config, sim: Simulator) -> None:
    """What was said before changes the answer."""
    for content in ("Hi.", "Ho."):
        history = [{"role": "user", "content": content}, SAID[1]]
        await run("So?", config=openai, options=Options(history=history), reuse="always")
    assert len(asked(sim)) == 2


async def test_a_forgotten_conversation_is_asked_once(openai: Config, sim: Simulator) -> None:
    """Also where the second way fails: then nothing was answered, and that is the error."""
    first = await run("Hi.", config=openai, options=Options(history=[]))
    sim.openai_responses.clear()
    once = openai.model_copy(update={"retry": ONCE})
    sim.fail(Fault(status=500), contains="Hello" if "Hello" in first.text else "Simulated")
    with pytest.raises(APIError):
        await run("So?", config=once, options=Options(continue_from=first), run_key="monday")
    await run("So?", config=once, options=Options(continue_from=first), run_key="monday")
    await run("So?", config=once, options=Options(continue_from=first), run_key="monday")
    assert [entry.status for entry in asked(sim)] == [200, 400, 500, 400, 200]


def test_options_hold_the_conversation_alone() -> None:
    """They go into each run's record: what else an envelope holds would go there for nothing."""
    envelope = ResultEnvelope(status="ok", answers=["Hello."], confidence=0.9, conversation_state=STATE)
    assert json.loads(envelope.model_dump_json())["_conversation_state"] == STATE
    assert Options(continue_from=envelope).continue_from == {"_conversation_state": STATE}


async def test_of_many_answers_nothing_is_kept_for_a_next_turn(config: MakeConfig) -> None:
    """Nobody can go on from one of several: its thoughts would be kept twice for nothing."""
    thinking = Options(reasoning_effort="low")
    several = await run_many(["p", "q"], config=config("anthropic"), options=thinking)
    alone = await run("p", config=config("anthropic"), options=thinking)
    assert ["provider_state" in raw for raw in several.diagnostics["raw_responses"]] == [False, False]
    assert ["provider_state" in raw for raw in alone.diagnostics["raw_responses"]] == [True]


@pytest.mark.parametrize("provider", ["anthropic", "openrouter"])
async def test_raw_tools_are_not_in_the_way(provider: Any, config: MakeConfig, sim: Simulator) -> None:
    """Whoever declares tools in the provider's own words says all there is to say."""
    tools = {
        "anthropic": [{"name": "look", "input_schema": {"type": "object"}}],
        "openrouter": [{"type": "function", "function": {"name": "look"}}],
    }[provider]
    history = [SAID[0], CALLED, {"role": "tool", "tool_call_id": "c1", "content": "sea"}]
    options = Options(history=history, provider_options={provider: {"tools": tools}})
    await run(config=config(provider), options=options)
    assert asked(sim)[0].body["tools"] == tools


async def test_a_state_that_somebody_cut_is_sent_whole(openai: Config, sim: Simulator) -> None:
    """Without an answer in it there is nothing that its id could stand for."""
    state = {**STATE, "history": SAID[:1], "response_id": "resp_1"}
    await run("And?", config=openai, options=Options(continue_from={"_conversation_state": state}))
    assert "previous_response_id" not in asked(sim)[0].body
