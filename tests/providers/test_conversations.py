"""Conversations: each turn carries its prior turns, in each provider's own protocol.

The simulator checks each request against that protocol: roles and their order, ids of calls and results, signatures.
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
NEW_CONVERSATION = Options(history=[])
PRIOR_TURNS = [{"role": "user", "content": "I am Ada."}, {"role": "assistant", "content": "Hello, Ada."}]
# Models that sign their calls, or think before them.
THINKING: dict[ProviderName, tuple[str, dict[str, Any]]] = {
    "gemini": ("gemini-3-flash-preview", {"reasoning_effort": "low"}),
    "openai": ("gpt-5-mini", {"reasoning_effort": "low"}),
    "anthropic": ("claude-sonnet-4-6", {"reasoning_effort": "low"}),
    "openrouter": ("anthropic/claude-sonnet-4.6", {"reasoning_effort": "low"}),
}
thinking_models = pytest.mark.parametrize("provider", THINKING)


def get_bodies(sim: Simulator) -> list[dict[str, Any]]:
    """Return the bodies of all generate requests, each of which was accepted."""
    assert [entry.status for entry in asked(sim)] == [200] * len(asked(sim))
    return [entry.body for entry in asked(sim)]


def read_turns(provider: ProviderName, body: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the role and the texts of each turn of a request."""
    if provider == "gemini":
        return [(turn["role"], [part["text"] for part in turn["parts"] if "text" in part]) for turn in body["contents"]]
    turns = body["input"] if provider == "openai" else body["messages"]
    return [(turn["role"], read_texts(turn["content"])) for turn in turns if "role" in turn]


def read_texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content or [] if "text" in part]


def get_calls(envelope: ResultEnvelope) -> list[dict[str, str]]:
    assert envelope.tool_calls is not None
    return envelope.tool_calls[0]


def make_results(envelope: ResultEnvelope) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps({"of": call["name"], "number": number})}
        for number, call in enumerate(get_calls(envelope))
    ]


async def run_with_tool_calls(
    config: Config, sim: Simulator, count: int = 2, options: Options = TOOLS
) -> ResultEnvelope:
    """Run a turn that ends with so many tool calls."""
    sim.fail(Fault(kind="tool_call", count=count))
    return await run("Weather?", config=config, options=options)


# --- Prior turns --------------------------------------------------------------------------------------------


@every_provider
async def test_a_history_is_sent_before_the_prompt(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    await run("Who am I?", config=config(provider), options=Options(history=PRIOR_TURNS))
    (body,) = get_bodies(sim)
    assistant = "model" if provider == "gemini" else "assistant"
    assert read_turns(provider, body) == [
        ("user", ["I am Ada."]),
        (assistant, ["Hello, Ada."]),
        ("user", ["Who am I?"]),
    ]


@every_provider
async def test_each_turn_sends_all_prior_turns(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """On OpenAI the turns are stored there, and only their response id is sent."""
    first = await run("One.", config=config(provider), options=NEW_CONVERSATION)
    second = await run("Two.", config=config(provider), options=Options(continue_from=first))
    await run("Three.", config=config(provider), options=Options(continue_from=second))
    last = get_bodies(sim)[-1]
    texts = [text for _, parts in read_turns(provider, last) for text in parts]
    if provider == "openai":
        assert texts == ["Three."]
        assert last["previous_response_id"] == second.diagnostics["raw_responses"][0]["response_id"]
    else:
        assert texts == ["One.", "Simulated answer to: One.", "Two.", "Simulated answer to: Two.", "Three."]


@every_provider
async def test_a_conversation_continues_from_the_json_of_an_envelope(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    first = await run("One.", config=config(provider), options=NEW_CONVERSATION)
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
    assert len(get_bodies(sim)) == 2


async def test_a_run_without_history_or_with_several_prompts_has_no_conversation_state(config: MakeConfig) -> None:
    single = await run("p", config=config("gemini"))
    several = await run_many(
        ["p", "q"], config=config("gemini"), options=Options(tools=[CLOCK], tool_choice="required")
    )
    for envelope in (single, several):
        assert "_conversation_state" not in envelope
        assert "_conversation_state" not in envelope.model_dump(mode="json")
        assert envelope.get("_conversation_state", "none") == "none"
    with pytest.raises(ConfigurationError, match="no conversation"):
        await run("q", config=config("gemini"), options=Options(continue_from=single))


@every_provider
async def test_a_text_source_of_a_prior_turn_is_sent_in_its_original_parts(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The prefix stays equal, so a provider finds it in its cache."""
    source = Source.from_text("The north plant.\n\nIt makes pumps.")
    first = await run("What?", source=source, config=config(provider), options=NEW_CONVERSATION)
    assert first["_conversation_state"]["history"][0]["content"] == "The north plant.\n\nIt makes pumps.\n\nWhat?"
    history = first["_conversation_state"]["history"]
    await run("And?", config=config(provider), options=Options(history=history))
    before, after = (read_turns(provider, body) for body in get_bodies(sim))
    assert after[0] == before[0]


async def test_the_second_turn_reads_the_cache_that_the_first_wrote_on_anthropic(config: MakeConfig) -> None:
    options = Options(history=[], implicit_caching=True)
    source = Source.from_text("A long report. " * 50)
    first = await run("What?", source=source, config=config("anthropic"), options=options)
    second = await run("And?", config=config("anthropic"), options=Options(continue_from=first))
    assert second.usage["cached_tokens"] == first.usage["cache_write_tokens"]


async def test_consecutive_user_turns_are_merged_for_anthropic(config: MakeConfig, sim: Simulator) -> None:
    """Anthropic requires alternating roles."""
    history = [{"role": "user", "content": "Hello."}, {"role": "user", "content": "It is me."}]
    await run("Who?", config=config("anthropic"), options=Options(history=history))
    (body,) = get_bodies(sim)
    assert read_turns("anthropic", body) == [("user", ["Hello.", "It is me.", "Who?"])]


@every_provider
async def test_a_history_that_ends_with_a_user_turn_needs_no_prompt(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    envelope = await run(
        config=config(provider), options=Options(history=[*PRIOR_TURNS, {"role": "user", "content": "And?"}])
    )
    assert envelope.text == "Simulated answer to: And?"
    assert len(read_turns(provider, get_bodies(sim)[0])) == 3


@every_provider
async def test_a_turn_without_content_is_not_sent(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Content of None is not sent as the text "None"."""
    history = [PRIOR_TURNS[0], {"role": "assistant", "content": None}]
    await run("p", config=config(provider), options=Options(history=history))
    assert "None" not in json.dumps(get_bodies(sim))
    assert all(texts for _, texts in read_turns(provider, get_bodies(sim)[0]))


# --- Tool calls and their results ---------------------------------------------------------------------------


@with_tools
async def test_tool_results_are_sent_together_in_the_order_of_their_calls(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The caller may return results in any order; rows 7 and 16 of the list of defects."""
    first = await run_with_tool_calls(config(provider), sim, 3)
    last = await continue_tool(first, make_results(first)[::-1], config=config(provider), options=TOOLS)
    assert last.status == "ok"
    assert last.text == "Simulated answer from the results of: get_weather, get_time, get_weather"
    body = get_bodies(sim)[1]
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
async def test_a_tool_loop_of_several_turns_repeats_no_item(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The provider accepts each request of a loop of call, result, prompt, call and result."""
    first = await run_with_tool_calls(config(provider), sim)
    second = await continue_tool(first, make_results(first), config=config(provider), options=TOOLS)
    sim.fail(Fault(kind="tool_call", count=1))
    options = TOOLS.model_copy(update={"continue_from": second})
    third = await run("And tomorrow?", config=config(provider), options=options)
    fourth = await continue_tool(third, make_results(third), config=config(provider), options=TOOLS)
    assert fourth.text == "Simulated answer from the results of: get_weather"
    assert len(get_bodies(sim)) == 4
    history = fourth["_conversation_state"]["history"]
    assert [turn["role"] for turn in history] == [
        "user", "assistant", "tool", "tool", "assistant", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    # The same history can be passed by the caller as well.
    await run("Thanks.", config=config(provider), options=TOOLS.model_copy(update={"history": history}))
    assert asked(sim)[-1].status == 200


@with_tools
async def test_tools_need_not_be_passed_again_with_their_results(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Declarations that the protocol requires are sent with names only, and cannot be called."""
    first = await run_with_tool_calls(config(provider), sim)
    last = await continue_tool(first, make_results(first), config=config(provider))
    assert last.text == "Simulated answer from the results of: get_weather, get_time"
    if provider in {"anthropic", "openrouter"}:
        assert len(get_bodies(sim)[1]["tools"]) == 2


@thinking_models
async def test_reasoning_and_signatures_are_sent_back_unchanged(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Reasoning precedes the calls that it led to; rows 11 and 17 of the list of defects."""
    model, more = THINKING[provider]
    options = TOOLS.model_copy(update=more)
    first = await run_with_tool_calls(config(provider, model=model), sim, 2, options)
    stored = ResultEnvelope.model_validate_json(first.model_dump_json())
    last = await continue_tool(stored, make_results(first), config=config(provider, model=model), options=options)
    assert last.status == "ok"
    body = get_bodies(sim)[1]
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
    # They are sent in the turn after that, too.
    next_options = options.model_copy(update={"continue_from": last})
    await run("Thanks.", config=config(provider, model=model), options=next_options)
    assert len(get_bodies(sim)) == 3


@with_tools
async def test_a_history_with_tool_calls_in_either_format_is_sent(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Calls are flat, or nested as OpenAI's. Gemini 3 requires a signature, so a placeholder is sent."""
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
    text = json.dumps(get_bodies(sim)[0])
    for part in ("Oslo", "zone", "CET", "noon"):
        assert part in text


@with_tools
async def test_a_prompt_can_follow_tool_results(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """The prompt and the results are sent in one turn."""
    history = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "tool_calls": [{"id": "c1", "name": "get_time", "arguments": "{}"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    await run("In words.", config=config(provider), options=TOOLS.model_copy(update={"history": history}))
    assert read_turns(provider, get_bodies(sim)[0])[-1] == ("user", ["In words."])


@with_tools
async def test_tool_results_can_be_answered_with_a_response_schema(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """If Anthropic returns the answer as arguments of a call, the next turn holds it as text."""
    first = await run_with_tool_calls(config(provider), sim, 1)
    options = Options(response_schema=Map)
    second = await continue_tool(first, make_results(first), config=config(provider), options=options)
    assert second.structured is not None
    assert Map.model_validate(second.structured[0])
    await run("Thanks.", config=config(provider), options=Options(continue_from=second))
    assert len(get_bodies(sim)) == 3


async def test_later_calls_of_a_tool_loop_need_no_thinking_on_anthropic(config: MakeConfig, sim: Simulator) -> None:
    """Only the first call of the loop has a thinking block."""
    options = TOOLS.model_copy(update={"reasoning_budget_tokens": 1024})
    thinking_config = config("anthropic", model="claude-opus-4-5")
    first = await run_with_tool_calls(thinking_config, sim, 1, options)
    history = [
        *first["_conversation_state"]["history"],
        {"role": "tool", "tool_call_id": get_calls(first)[0]["id"], "content": "rain"},
        {"role": "assistant", "tool_calls": [{"id": "c2", "name": "get_time", "arguments": "{}"}]},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
    ]
    assert (await run(config=thinking_config, options=options.model_copy(update={"history": history}))).status == "ok"
    assert len(get_bodies(sim)) == 2


async def test_gemini_receives_tool_results_as_objects(config: MakeConfig, sim: Simulator) -> None:
    """A JSON object is sent unchanged, any other result under the key `result`."""
    first = await run_with_tool_calls(config("gemini"), sim, 2)
    one, two = (call["id"] for call in get_calls(first))
    results = [{"tool_call_id": one, "content": '{"sky": "blue"}'}, {"tool_call_id": two, "content": "noon"}]
    await continue_tool(first, results, config=config("gemini"))
    responses = [part["functionResponse"] for part in get_bodies(sim)[1]["contents"][2]["parts"]]
    assert [each["response"] for each in responses] == [{"sky": "blue"}, {"result": "noon"}]
    assert [each["id"] for each in responses] == [one, two]


# --- Responses stored at OpenAI -----------------------------------------------------------------------------


async def test_all_turns_are_sent_when_openai_has_lost_the_response(config: MakeConfig, sim: Simulator) -> None:
    """The refusal cost nothing, and the answer is requested once more."""
    first = await run_with_tool_calls(config("openai"), sim)
    sim.openai_responses.clear()
    last = await continue_tool(first, make_results(first), config=config("openai"), options=TOOLS)
    assert last.status == "ok"
    assert [entry.status for entry in asked(sim)] == [200, 400, 200]
    assert "previous_response_id" not in asked(sim)[2].body
    assert [item.get("type", item.get("role")) for item in asked(sim)[2].body["input"]] == [
        "user", "function_call", "function_call", "function_call_output", "function_call_output",
    ]  # fmt: skip


async def test_a_lost_response_is_recognised_by_status_and_message() -> None:
    """Any other refusal is raised without another request."""
    state = {"version": 1, "provider": "openai", "history": PRIOR_TURNS, "response_id": "resp_1"}
    options = Options(continue_from={"_conversation_state": state})

    def refuse_previous_response(status: int, message: str) -> Callable[[bytes], bytes]:
        refusal = http({"error": {"message": message}}, status)
        return lambda body: refusal if b"previous_response_id" in body else http(good("openai"))

    async with scripted(refuse_previous_response(404, "Response resp_1 not found."), by_body=True) as server:
        assert (await run("Who am I?", config=server.config("openai"), options=options)).text == "fine"
        assert len(server.requests) == 2
    async with scripted(refuse_previous_response(400, "No."), by_body=True) as server:
        with pytest.raises(APIError, match="No"):
            await run("Who am I?", config=server.config("openai"), options=options)
        assert len(server.requests) == 1


async def test_all_turns_are_sent_when_storing_at_openai_is_off(config: MakeConfig, sim: Simulator) -> None:
    """With `store: false` there is no response id; encrypted reasoning is sent, too."""
    raw = {"openai": {"store": False, "include": ["reasoning.encrypted_content"]}}
    options = TOOLS.model_copy(update={"reasoning_effort": "low", "provider_options": raw})
    first = await run_with_tool_calls(config("openai", model="gpt-5-mini"), sim, 1, options)
    assert "response_id" not in first["_conversation_state"]
    await continue_tool(first, make_results(first), config=config("openai", model="gpt-5-mini"), options=options)
    body = get_bodies(sim)[1]
    assert [item.get("type", item.get("role")) for item in body["input"]] == [
        "user", "reasoning", "function_call", "function_call_output",
    ]  # fmt: skip
    assert body["input"][1]["encrypted_content"]
