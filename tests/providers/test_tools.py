"""Tools: declarations sent to the provider, and the tool calls returned."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pollux_flows import ConfigurationError, Options, continue_tool, run
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import MODELS, MakeConfig, asked, every_provider, good, http, scripted, sent, with_tools

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather at a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}, "unit": {"type": "string", "description": "C or F"}},
        "required": ["place"],
        "additionalProperties": False,
    },
}
CLOCK: dict[str, Any] = {"name": "get_time"}


def read_declarations(provider: ProviderName, body: dict[str, Any]) -> list[Any]:
    tools: list[Any] = body["tools"]
    if provider == "gemini":
        functions: list[Any] = tools[0]["functionDeclarations"]
        return functions
    return [tool["function"] for tool in tools] if provider == "openrouter" else tools


@with_tools
async def test_tools_are_declared(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """A declaration has name and description; a tool without parameters takes no arguments."""
    await run("p", config=config(provider), options=Options(tools=[WEATHER, CLOCK]))
    first, second = read_declarations(provider, sent(sim))
    assert (first["name"], first["description"], second["name"]) == (
        "get_weather",
        "The weather at a place.",
        "get_time",
    )


@with_tools
async def test_a_tool_call_is_returned(provider: ProviderName, config: MakeConfig) -> None:
    """The call has an id, a name and JSON arguments, and the status is ok although the answer has no text."""
    options = Options(tools=[WEATHER], tool_choice="required")
    envelope = await run("Weather?", config=config(provider), options=options)
    assert envelope.tool_calls is not None
    ((call,),) = envelope.tool_calls
    assert call["name"] == "get_weather"
    assert call["id"]
    assert "place" in json.loads(call["arguments"])
    assert envelope.answers == [""]
    assert envelope.status == "ok"
    assert envelope.errors is None
    assert envelope.metrics["finish_reasons"] == ["tool_calls"]


@with_tools
async def test_several_tool_calls_in_one_turn_are_returned(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Each call has an id of its own."""
    sim.fail(Fault(kind="tool_call", count=3))
    envelope = await run("p", config=config(provider), options=Options(tools=[WEATHER, CLOCK]))
    assert envelope.tool_calls is not None
    (calls,) = envelope.tool_calls
    assert [call["name"] for call in calls] == ["get_weather", "get_time", "get_weather"]
    assert len({call["id"] for call in calls}) == 3


@with_tools
@pytest.mark.parametrize("choice", ["auto", "required", "none", {"name": "get_time"}], ids=str)
async def test_tool_choice_decides_which_tool_is_called(
    provider: ProviderName, choice: Any, config: MakeConfig
) -> None:
    """The model decides with auto; required forces any tool, a name that tool, and none forbids calls."""
    options = Options(tools=[WEATHER, CLOCK], tool_choice=choice)
    envelope = await run("p", config=config(provider), options=options)
    names = [call["name"] for call in (envelope.tool_calls or [[]])[0]]
    expected = {"auto": [], "required": ["get_weather"], "none": []}
    assert names == (["get_time"] if isinstance(choice, dict) else expected[choice])


async def test_openai_tools_are_strict_with_nullable_optional_arguments(config: MakeConfig, sim: Simulator) -> None:
    await run("p", config=config("openai"), options=Options(tools=[WEATHER]))
    (tool,) = sent(sim)["tools"]
    assert tool["strict"] is True
    assert tool["parameters"]["required"] == ["place", "unit"]
    assert tool["parameters"]["properties"]["unit"]["type"] == ["string", "null"]


@pytest.mark.parametrize(("provider", "model"), [("openai", "gpt-4.1-mini"), ("openrouter", "openai/gpt-4.1-mini")])
async def test_a_tool_with_strict_false_has_its_parameters_unchanged(
    provider: ProviderName, model: str, config: MakeConfig, sim: Simulator
) -> None:
    await run("p", config=config(provider, model=model), options=Options(tools=[{**WEATHER, "strict": False}]))
    (tool,) = read_declarations(provider, sent(sim))
    assert tool["strict"] is False
    assert tool["parameters"] == WEATHER["parameters"]


async def test_a_tool_with_a_map_is_not_strict(config: MakeConfig, sim: Simulator) -> None:
    """Strict mode has no maps, and closing the map would empty it."""
    parameters = {"type": "object", "properties": {"m": {"type": "object", "additionalProperties": {"type": "string"}}}}
    await run("p", config=config("openai"), options=Options(tools=[{"name": "f", "parameters": parameters}]))
    (tool,) = sent(sim)["tools"]
    assert (tool["strict"], tool["parameters"]) == (False, parameters)


async def test_additional_properties_is_not_sent_to_gemini(config: MakeConfig, sim: Simulator) -> None:
    """Gemini's API refuses the keyword; a property with that name is sent."""
    parameters = {
        "type": "object",
        "properties": {"additionalProperties": {"type": "string"}},
        "additionalProperties": False,
    }
    await run("p", config=config("gemini"), options=Options(tools=[{"name": "f", "parameters": parameters}]))
    (function,) = read_declarations("gemini", sent(sim))
    assert function["parameters_json_schema"] == {k: v for k, v in parameters.items() if k != "additionalProperties"}


async def test_tools_are_refused_for_local_servers(config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="tools"):
        await run("p", config=config("local"), options=Options(tools=[CLOCK]))
    assert sim.requests == []


async def test_tools_with_a_schema_are_refused_for_gemini_2(config: MakeConfig, sim: Simulator) -> None:
    """Gemini 3 supports both at once."""
    options = Options(tools=[CLOCK], response_schema={"type": "object", "properties": {"a": {"type": "string"}}})
    with pytest.raises(ConfigurationError, match="at once"):
        await run("p", config=config("gemini"), options=options)
    assert sim.requests == []
    await run("p", config=config("gemini", model="gemini-3-flash-preview"), options=options)
    assert len(asked(sim)) == 1


@with_tools
async def test_an_invalid_tool_schema_is_refused_with_the_tools_name(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    options = Options(tools=[{"name": "f", "parameters": {"type": "objekt"}}])
    with pytest.raises(ConfigurationError, match=r"\(f\)"):
        await run("p", config=config(provider), options=options)
    assert asked(sim) == []


def answer_with_call_without_id(provider: ProviderName, **item: Any) -> dict[str, Any]:
    """Return an answer with a text, and a call of get_time that has no id."""
    match provider:
        case "gemini":
            parts = [{"text": "fine"}, {"functionCall": {"name": "get_time", **item}}]
            return {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}
        case "openai":
            call = {"type": "function_call", "name": "get_time", "arguments": "{}", **item}
            return good("openai", id="resp_1", output=[*good("openai")["output"], call])
        case "anthropic":
            call = {"type": "tool_use", "name": "get_time", "input": {}, **item}
            return {"content": [{"type": "text", "text": "fine"}, call], "stop_reason": "tool_use"}
        case _:
            calls = [{"type": "function", "function": {"name": "get_time", "arguments": "{}"}, **item}]
            return {"choices": [{"message": {"content": "fine", "tool_calls": calls}, "finish_reason": "tool_calls"}]}


LISTING = http({"data": [{"id": MODELS["openrouter"], "supported_parameters": ["tools"]}]})


@every_provider
@pytest.mark.parametrize("item", [{}, {"id": None}, {"id": "", "call_id": ""}], ids=str)
async def test_a_tool_call_without_an_id_gets_one_from_its_position(
    provider: ProviderName, item: dict[str, Any]
) -> None:
    """The id is needed to send the result back."""
    options = None if provider == "local" else Options(tools=[CLOCK])
    async with scripted(http(answer_with_call_without_id(provider, **item))) as server:
        server.listing = LISTING
        envelope = await run("p", config=server.config(provider), options=options)
    place = 0 if provider in {"openrouter", "local"} else 1
    assert envelope.tool_calls == [[{"id": f"call_{place}", "name": "get_time", "arguments": "{}"}]]
    assert envelope.answers == ["fine"]
    assert envelope.diagnostics["warnings"] == []


def read_ids(provider: ProviderName, body: dict[str, Any]) -> tuple[Any, Any]:
    """Return the ids of the call and of its result in a request."""
    match provider:
        case "gemini":
            _, model, user = body["contents"]
            return model["parts"][1]["functionCall"].get("id"), user["parts"][0]["functionResponse"].get("id")
        case "openai":
            *_, call, result = body["input"]
            return call["call_id"], result["call_id"]
        case "anthropic":
            _, assistant, user = body["messages"]
            return assistant["content"][-1]["id"], user["content"][0]["tool_use_id"]
        case _:
            _, assistant, tool = body["messages"]
            return assistant["tool_calls"][0]["id"], tool["tool_call_id"]


@with_tools
@pytest.mark.parametrize("thinks", [False, True])
async def test_the_result_of_a_tool_call_without_an_id_is_sent_with_its_new_id(
    provider: ProviderName, thinks: bool
) -> None:
    """Gemini pairs calls and results by order instead. OpenAI's stored response lacks the id, so all turns are sent."""
    reply = answer_with_call_without_id(provider)
    if thinks and provider == "anthropic":
        reply["content"].insert(0, {"type": "thinking", "thinking": "hm", "signature": "s"})
    if thinks and provider == "openai":
        reply["output"].insert(0, {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"})
    async with scripted(http(reply)) as server:
        server.listing = LISTING
        config, options = server.config(provider), Options(tools=[CLOCK])
        first = await run("p", config=config, options=options)
        assert first.tool_calls is not None
        results = [{"tool_call_id": first.tool_calls[0][0]["id"], "content": "noon"}]
        await continue_tool(first, results, config=config, options=options)
        body = json.loads(server.requests[1])
    call, result = read_ids(provider, body)
    assert call == result
    assert (call is None) == (provider == "gemini")
    assert "previous_response_id" not in body
