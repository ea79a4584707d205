"""Conversations: a turn takes with it all that was said before, in each provider's own protocol.

The simulator holds each request to that protocol: roles and their order, ids of calls and results, signatures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pollux_flows import (
    APIError,
    Config,
    ConfigurationError,
    Options,
    ResultEnvelope,
    Source,
    continue_tool,
    run,
    run_many,
)
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.documents import check_json_round_trip
from tests.loopback import MODELS, MakeConfig, asked, every_provider, good, http, scripted, with_tools
from tests.providers.shapes import Map
from tests.providers.test_tools import CLOCK, WEATHER

TOOLS = Options(tools=[WEATHER, CLOCK])
BEGIN = Options(history=[])
SAID = [{"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hello, Ada."}]
# Models that sign their calls, or think before them.
THINKING: dict[ProviderName, tuple[str, dict[str, Any]]] = {
    "gemini": ("gemini-3-flash-preview", {"reasoning_effort": "low"}),
    "openai": ("gpt-5-mini", {"reasoning_effort": "low"}),
    "anthropic": ("claude-sonnet-4-6", {"reasoning_effort": "low"}),
    "openrouter": ("anthropic/claude-sonnet-4.6", {"reasoning_effort": "low"}),
}
thinking = pytest.mark.parametrize("provider", THINKING)


def bodies(sim: Simulator) -> list[dict[str, Any]]:
    """Of the requests that were made, all of which were taken."""
    assert [entry.status for entry in asked(sim)] == [200] * len(asked(sim))
    return [entry.body for entry in asked(sim)]


def said_in(provider: ProviderName, body: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The turns of a request: whose, and the texts in them."""
    if provider == "gemini":
        return [(turn["role"], [part["text"] for part in turn["parts"] if "text" in part]) for turn in body["contents"]]
    turns = body["input"] if provider == "openai" else body["messages"]
    return [(turn["role"], texts_in(turn["content"])) for turn in turns if "role" in turn]


def texts_in(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content or [] if "text" in part]


def calls_of(envelope: ResultEnvelope) -> list[dict[str, str]]:
    assert envelope.tool_calls is not None
    return envelope.tool_calls[0]


def results_for(envelope: ResultEnvelope) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps({"of": call["name"], "number": number})}
        for number, call in enumerate(calls_of(envelope))
    ]


async def called(config: Config, sim: Simulator, count: int = 2, options: Options = TOOLS) -> ResultEnvelope:
    """An envelope of a turn that ended with tool calls."""
    sim.fail(Fault(kind="tool_call", count=count))
    return await run("Weather?", config=config, options=options)


# --- What was said ------------------------------------------------------------------------------------------


@every_provider
async def test_a_history_is_sent_before_the_prompt(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Turn by turn, in order."""
    await run("Who am I?", config=config(provider), options=Options(history=SAID))
    (body,) = bodies(sim)
    assistant = "model" if provider == "gemini" else "assistant"
    assert said_in(provider, body) == [
        ("user", ["I am Ada."]),
        (assistant, ["Hello, Ada."]),
        ("user", ["Who am I?"]),
    ]


@every_provider
async def test_a_conversation_goes_on(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Three turns: each brings all before it, or, on OpenAI, the id under which they are kept."""
    first = await run("One.", config=config(provider), options=BEGIN)
    second = await run("Two.", config=config(provider), options=Options(continue_from=first))
    await run("Three.", config=config(provider), options=Options(continue_from=second))
    last = bodies(sim)[-1]
    told = [text for _, texts in said_in(provider, last) for text in texts]
    if provider == "openai":
        assert told == ["Three."]
        assert last["previous_response_id"] == second.diagnostics["raw_responses"][0]["response_id"]
    else:
        assert told == ["One.", "Simulated answer to: One.", "Two.", "Simulated answer to: Two.", "Three."]


@every_provider
async def test_the_state_is_plain_data(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """It is in the envelope's JSON, and what was read from there goes on like the envelope itself."""
    first = await run("One.", config=config(provider), options=BEGIN)
    check_json_round_trip(first)
    state = first["_conversation_state"]
    assert state == json.loads(first.model_dump_json())["_conversation_state"]
    assert (state["version"], state["provider"]) == (1, provider)
    assert [(turn["role"], turn["content"]) for turn in state["history"]] == [
        ("user", "One."),
        ("assistant", "Simulated answer to: One."),
    ]
    stored = json.loads(first.model_dump_json())
    assert Options(continue_from=stored) == Options(continue_from=first) == Options(continue_from=dict(first))
    await run("Two.", config=config(provider), options=Options.model_validate({"continue_from": stored}))
    assert len(bodies(sim)) == 2


async def test_a_run_by_itself_carries_no_conversation(config: MakeConfig) -> None:
    """Nor do several prompts at once, whatever they are answered with."""
    alone = await run("p", config=config("gemini"))
    several = await run_many(
        ["p", "q"], config=config("gemini"), options=Options(tools=[CLOCK], tool_choice="required")
    )
    for envelope in (alone, several):
        assert "_conversation_state" not in envelope
        assert "_conversation_state" not in envelope.model_dump(mode="json")
        assert envelope.get("_conversation_state", "none") == "none"
    with pytest.raises(ConfigurationError, match="no conversation"):
        await run("q", config=config("gemini"), options=Options(continue_from=alone))


@every_provider
async def test_text_that_a_turn_was_about_is_said_again(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """In the very pieces it had, so that what a provider cached of it is found."""
    source = Source.from_text("The north plant.\n\nIt makes pumps.")
    first = await run("What?", source=source, config=config(provider), options=BEGIN)
    assert first["_conversation_state"]["history"][0]["content"] == "The north plant.\n\nIt makes pumps.\n\nWhat?"
    history = first["_conversation_state"]["history"]
    await run("And?", config=config(provider), options=Options(history=history))
    before, after = (said_in(provider, body) for body in bodies(sim))
    assert after[0] == before[0]


async def test_anthropic_finds_its_cache_again(config: MakeConfig) -> None:
    """The second turn reads what the first one wrote."""
    options = Options(history=[], implicit_caching=True)
    source = Source.from_text("A long report. " * 50)
    first = await run("What?", source=source, config=config("anthropic"), options=options)
    second = await run("And?", config=config("anthropic"), options=Options(continue_from=first))
    assert second.usage["cached_tokens"] == first.usage["cache_write_tokens"]


async def test_two_turns_of_one_side_are_one_message_to_anthropic(config: MakeConfig, sim: Simulator) -> None:
    """It takes user and assistant in turns."""
    history = [{"role": "user", "content": "Hello."}, {"role": "user", "content": "It is me."}]
    await run("Who?", config=config("anthropic"), options=Options(history=history))
    (body,) = bodies(sim)
    assert said_in("anthropic", body) == [("user", ["Hello.", "It is me.", "Who?"])]


@every_provider
async def test_a_history_may_end_with_the_question(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Then no prompt is needed."""
    envelope = await run(config=config(provider), options=Options(history=[*SAID, {"role": "user", "content": "And?"}]))
    assert envelope.text == "Simulated answer to: And?"
    assert len(said_in(provider, bodies(sim)[0])) == 3


@every_provider
async def test_nothing_said_is_nothing_sent(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """No text is None in words, and an empty answer is no turn."""
    history = [SAID[0], {"role": "assistant", "content": None}]
    await run("p", config=config(provider), options=Options(history=history))
    assert "None" not in json.dumps(bodies(sim))
    assert all(texts for _, texts in said_in(provider, bodies(sim)[0]))


# --- Tools --------------------------------------------------------------------------------------------------


@with_tools
async def test_results_go_back_together(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """In the order of the calls, whatever order they were given in; rows 7 and 16 of the list of defects."""
    first = await called(config(provider), sim, 3)
    last = await continue_tool(first, results_for(first)[::-1], config=config(provider), options=TOOLS)
    assert last.status == "ok"
    assert last.text == "Simulated answer from the results of: get_weather, get_time, get_weather"
    body = bodies(sim)[1]
    numbers: list[Any]
    if provider == "gemini":
        assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user"]
        numbers = [part["functionResponse"]["response"]["number"] for part in body["contents"][2]["parts"]]
    elif provider == "anthropic":
        assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
        numbers = [json.loads(block["content"])["number"] for block in body["messages"][2]["content"]]
    elif provider == "openai":
        assert {item["type"] for item in body["input"]} == {"function_call_output"}
        numbers = [json.loads(item["output"])["number"] for item in body["input"]]
    else:
        assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "tool", "tool", "tool"]
        numbers = [json.loads(turn["content"])["number"] for turn in body["messages"][2:]]
    assert numbers == [0, 1, 2]


@with_tools
async def test_a_tool_loop_goes_on_for_turns(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Call, result, prompt, call, result: each request is one that the provider takes, with no item twice."""
    first = await called(config(provider), sim)
    second = await continue_tool(first, results_for(first), config=config(provider), options=TOOLS)
    sim.fail(Fault(kind="tool_call", count=1))
    options = TOOLS.model_copy(update={"continue_from": second})
    third = await run("And tomorrow?", config=config(provider), options=options)
    fourth = await continue_tool(third, results_for(third), config=config(provider), options=TOOLS)
    assert fourth.text == "Simulated answer from the results of: get_weather"
    assert len(bodies(sim)) == 4
    history = fourth["_conversation_state"]["history"]
    assert [turn["role"] for turn in history] == [
        "user", "assistant", "tool", "tool", "assistant", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    # The whole of it can be sent by hand as well.
    await run("Thanks.", config=config(provider), options=TOOLS.model_copy(update={"history": history}))
    assert asked(sim)[-1].status == 200


@with_tools
async def test_the_tools_need_not_be_told_again(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Where the protocol wants them beside the results, they are there by name, and not to be called."""
    first = await called(config(provider), sim)
    last = await continue_tool(first, results_for(first), config=config(provider))
    assert last.text == "Simulated answer from the results of: get_weather, get_time"
    if provider in {"anthropic", "openrouter"}:
        assert len(bodies(sim)[1]["tools"]) == 2


@thinking
async def test_what_a_provider_wants_back_goes_back_as_it_came(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Thoughts with their signatures, before the calls they led to; rows 11 and 17 of the list of defects."""
    model, more = THINKING[provider]
    options = TOOLS.model_copy(update=more)
    first = await called(config(provider, model=model), sim, 2, options)
    stored = ResultEnvelope.model_validate_json(first.model_dump_json())
    last = await continue_tool(stored, results_for(first), config=config(provider, model=model), options=options)
    assert last.status == "ok"
    body = bodies(sim)[1]
    if provider == "anthropic":
        assert [block["type"] for block in body["messages"][1]["content"]] == [
            "thinking", "text", "tool_use", "tool_use",
        ]  # fmt: skip
    elif provider == "gemini":
        assert ["thoughtSignature" in part for part in body["contents"][1]["parts"]] == [True, True, False]
    elif provider == "openrouter":
        assert body["messages"][1]["reasoning_details"][0]["signature"]
    assert first["_conversation_state"]["history"][-1].get("provider_state") == (
        first["_conversation_state"].get("provider_state")
    )
    # And so it does in the turn after that.
    again = options.model_copy(update={"continue_from": last})
    await run("Thanks.", config=config(provider, model=model), options=again)
    assert len(bodies(sim)) == 3


@with_tools
async def test_a_history_with_tools_by_hand(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Calls as ours or nested as OpenAI's; name and arguments arrive. Gemini 3 wants a signature: a stand-in."""
    flat = {"id": "c1", "name": "get_weather", "arguments": {"place": "Oslo"}}
    nested = {"id": "c2", "type": "function", "function": {"name": "get_time", "arguments": '{"zone": "CET"}'}}
    history = [
        {"role": "user", "content": "Weather and time?"},
        {"role": "assistant", "content": None, "tool_calls": [flat, nested]},
        {"role": "tool", "tool_call_id": "c2", "name": "get_time", "content": "noon"},
        {"role": "tool", "tool_call_id": "c1", "content": None},
    ]
    model = "gemini-3-flash-preview" if provider == "gemini" else MODELS[provider]
    envelope = await run(config=config(provider, model=model), options=TOOLS.model_copy(update={"history": history}))
    assert envelope.text == "Simulated answer from the results of: get_weather, get_time"
    text = json.dumps(bodies(sim)[0])
    for part in ("Oslo", "zone", "CET", "noon"):
        assert part in text


@with_tools
async def test_a_prompt_may_follow_the_results(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """In one turn with them."""
    history = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "tool_calls": [{"id": "c1", "name": "get_time", "arguments": "{}"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    await run("In words.", config=config(provider), options=TOOLS.model_copy(update={"history": history}))
    assert said_in(provider, bodies(sim)[0])[-1] == ("user", ["In words."])


@with_tools
async def test_results_may_be_answered_in_a_shape(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Also in one that Anthropic gives only as the arguments of a call: the next turn is told the answer."""
    first = await called(config(provider), sim, 1)
    options = Options(response_schema=Map)
    second = await continue_tool(first, results_for(first), config=config(provider), options=options)
    assert second.structured is not None
    assert Map.model_validate(second.structured[0])
    await run("Thanks.", config=config(provider), options=Options(continue_from=second))
    assert len(bodies(sim)) == 3


async def test_claude_thinks_when_a_loop_begins(config: MakeConfig, sim: Simulator) -> None:
    """Further calls of the loop may come without a thought."""
    options = TOOLS.model_copy(update={"reasoning_budget_tokens": 1024})
    claude = config("anthropic", model="claude-opus-4-5")
    first = await called(claude, sim, 1, options)
    history = [
        *first["_conversation_state"]["history"],
        {"role": "tool", "tool_call_id": calls_of(first)[0]["id"], "content": "rain"},
        {"role": "assistant", "tool_calls": [{"id": "c2", "name": "get_time", "arguments": "{}"}]},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
    ]
    assert (await run(config=claude, options=options.model_copy(update={"history": history}))).status == "ok"
    assert len(bodies(sim)) == 2


async def test_gemini_takes_results_as_objects(config: MakeConfig, sim: Simulator) -> None:
    """A JSON object as it is; whatever else as the result of one."""
    first = await called(config("gemini"), sim, 2)
    one, two = (call["id"] for call in calls_of(first))
    results = [{"tool_call_id": one, "content": '{"sky": "blue"}'}, {"tool_call_id": two, "content": "noon"}]
    await continue_tool(first, results, config=config("gemini"))
    given = [part["functionResponse"] for part in bodies(sim)[1]["contents"][2]["parts"]]
    assert [each["response"] for each in given] == [{"sky": "blue"}, {"result": "noon"}]
    assert [each["id"] for each in given] == [one, two]


# --- OpenAI's memory ----------------------------------------------------------------------------------------


async def test_openai_has_forgotten(config: MakeConfig, sim: Simulator) -> None:
    """Then all of it is sent; the refusal cost nothing, and the answer is asked for once."""
    first = await called(config("openai"), sim)
    sim.openai_responses.clear()
    last = await continue_tool(first, results_for(first), config=config("openai"), options=TOOLS)
    assert last.status == "ok"
    assert [entry.status for entry in asked(sim)] == [200, 400, 200]
    assert "previous_response_id" not in asked(sim)[2].body
    assert [item.get("type", item.get("role")) for item in asked(sim)[2].body["input"]] == [
        "user", "function_call", "function_call", "function_call_output", "function_call_output",
    ]  # fmt: skip


async def test_openai_says_in_other_words_that_it_has_forgotten() -> None:
    """By status and words alone. What it refuses for another reason is refused."""
    state = {"version": 1, "provider": "openai", "history": SAID, "response_id": "resp_1"}
    options = Options(continue_from={"_conversation_state": state})

    def refusing(status: int, message: str) -> Callable[[bytes], bytes]:
        refusal = http({"error": {"message": message}}, status)
        return lambda body: refusal if b"previous_response_id" in body else http(good("openai"))

    async with scripted(refusing(404, "Response resp_1 not found."), by_body=True) as server:
        assert (await run("Who am I?", config=server.config("openai"), options=options)).text == "fine"
        assert len(server.requests) == 2
    async with scripted(refusing(400, "No."), by_body=True) as server:
        with pytest.raises(APIError, match="No"):
            await run("Who am I?", config=server.config("openai"), options=options)
        assert len(server.requests) == 1


async def test_openai_keeps_nothing_when_it_is_told_so(config: MakeConfig, sim: Simulator) -> None:
    """Without `store` there is no id to go on from: all is sent, sealed reasoning included."""
    raw = {"openai": {"store": False, "include": ["reasoning.encrypted_content"]}}
    options = TOOLS.model_copy(update={"reasoning_effort": "low", "provider_options": raw})
    first = await called(config("openai", model="gpt-5-mini"), sim, 1, options)
    assert "response_id" not in first["_conversation_state"]
    await continue_tool(first, results_for(first), config=config("openai", model="gpt-5-mini"), options=options)
    body = bodies(sim)[1]
    assert [item.get("type", item.get("role")) for item in body["input"]] == [
        "user", "reasoning", "function_call", "function_call_output",
    ]  # fmt: skip
    assert body["input"][1]["encrypted_content"]
