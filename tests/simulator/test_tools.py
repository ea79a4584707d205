"""Tools are called when they must be, or when the prompt says so; their results end the loop."""

from typing import Any

import httpx
import pytest

from .clients import Client

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
TOOLS = {"weather": WEATHER, "clock": CLOCK}


async def test_tools_on_offer_are_not_called(client: Client) -> None:
    """With tool choice `auto` the answer is text."""
    said = await client.ask("Hello?", tools=TOOLS)
    assert (said.text, said.calls) == ("Simulated answer to: Hello?", [])


async def test_a_required_tool_is_called_with_fitting_arguments(client: Client) -> None:
    """The first tool is called; its arguments come from its parameter schema."""
    said = await client.ask("Rain?", tools=TOOLS, tool_choice="required")
    assert said.calls == [("weather", {"city": "Simulated city: Rain?", "days": 2})]
    assert not said.text


async def test_a_named_tool_is_the_one_that_is_called(client: Client) -> None:
    """A tool that is asked for by name is called, and no other."""
    said = await client.ask("Time?", tools=TOOLS, tool_choice="clock")
    assert said.calls == [("clock", {})]


async def test_a_prompt_may_ask_for_a_call(client: Client) -> None:
    """`[[simulate: tool_call]]` lets the model choose to call."""
    said = await client.ask("Rain? [[simulate: tool_call]]", tools=TOOLS)
    assert [name for name, _ in said.calls] == ["weather"]


async def test_a_prompt_may_ask_for_two_calls_at_once(client: Client) -> None:
    """Parallel calls go through the declared tools in turn."""
    said = await client.ask("Rain? [[simulate: tool_calls=2]]", tools=TOOLS)
    assert [name for name, _ in said.calls] == ["weather", "clock"]


async def test_without_tools_nothing_is_called(client: Client) -> None:
    """A model cannot call what it was not given."""
    said = await client.ask("Rain? [[simulate: tool_call]]")
    assert (said.text, said.calls) == ("Simulated answer to: Rain?", [])


ANSWERED: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": (
        "/openai/v1/responses",
        {
            "model": "gpt-4.1",
            "input": [
                {"role": "user", "content": "Rain? [[simulate: tool_call]]"},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            ],
        },
    ),
    "anthropic": (
        "/anthropic/v1/messages",
        {
            "model": "claude-haiku-4-5",
            "max_tokens": 100,
            "messages": [
                {"role": "user", "content": "Rain? [[simulate: tool_call]]"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]},
            ],
            "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
        },
    ),
    "gemini": (
        "/gemini/v1/models/gemini-2.5-flash:generateContent",
        {
            "contents": [
                {"role": "user", "parts": [{"text": "Rain? [[simulate: tool_call]]"}]},
                {"role": "model", "parts": [{"function_call": {"name": "weather", "args": {}}}]},
                {"role": "user", "parts": [{"function_response": {"name": "weather", "response": {"sky": "blue"}}}]},
            ],
            "tools": [{"function_declarations": [{"name": "weather"}]}],
        },
    ),
    "local": (
        "/local/v1/chat/completions",
        {
            "model": "local-model",
            "messages": [
                {"role": "user", "content": "Rain? [[simulate: tool_call]]"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            ],
            "tools": [{"type": "function", "function": {"name": "weather"}}],
        },
    ),
}


@pytest.mark.parametrize("protocol", ANSWERED)
async def test_tool_results_are_answered_with_text(protocol: str, http: httpx.AsyncClient) -> None:
    """The answer names the tools whose results it saw, and never calls again: loops end."""
    path, body = ANSWERED[protocol]
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert "Simulated answer from the results of: weather" in answer.text


async def test_a_tool_that_is_named_is_called_again(http: httpx.AsyncClient) -> None:
    """Results end a loop, but not for a model that is given no choice."""
    path, body = ANSWERED["anthropic"]
    answer = await http.post(path, json={**body, "tool_choice": {"type": "tool", "name": "weather"}})
    assert answer.json()["stop_reason"] == "tool_use"


async def test_a_stored_response_remembers_its_calls(http: httpx.AsyncClient) -> None:
    """With `previous_response_id` only the outputs are sent; the calls are with OpenAI."""
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    ask = {"model": "gpt-4.1", "input": "Rain?", "tools": tools, "tool_choice": "required"}
    first = (await http.post("/openai/v1/responses", json=ask)).json()
    call_id = first["output"][0]["call_id"]
    following = {
        "model": "gpt-4.1",
        "previous_response_id": first["id"],
        "input": [{"type": "function_call_output", "call_id": call_id, "output": "sunny"}],
    }
    second = (await http.post("/openai/v1/responses", json=following)).json()
    assert second["output"][0]["content"][0]["text"] == "Simulated answer from the results of: weather"
    assert second["usage"]["input_tokens"] == first["usage"]["total_tokens"] + 2  # and "sunny"


async def test_what_a_stored_response_remembers_is_not_sent_again(http: httpx.AsyncClient) -> None:
    """Neither in the turn that brings the output, nor in a later one."""
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    ask = {"model": "gpt-4.1", "input": "Rain?", "tools": tools, "tool_choice": "required"}
    first = (await http.post("/openai/v1/responses", json=ask)).json()
    call = {name: first["output"][0][name] for name in ("type", "call_id", "name", "arguments")}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    following = {"model": "gpt-4.1", "previous_response_id": first["id"], "input": [result]}
    second = (await http.post("/openai/v1/responses", json=following)).json()
    for before in (first["id"], second["id"]):
        again = {"model": "gpt-4.1", "previous_response_id": before, "input": [call, result]}
        answer = await http.post("/openai/v1/responses", json=again)
        assert answer.status_code == 400
        assert "Duplicate item found" in answer.json()["error"]["message"]


async def test_claude_thinks_and_speaks_before_it_calls(http: httpx.AsyncClient) -> None:
    """A turn of thinking, text and call, which goes back as it came."""
    ask: dict[str, Any] = {
        "model": "claude-sonnet-4-6",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "Rain? [[simulate: tool_call]]"}],
        "thinking": {"type": "adaptive"},
        "tools": [{"name": "weather", "input_schema": WEATHER}],
    }
    content = (await http.post("/anthropic/v1/messages", json=ask)).json()["content"]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use"]
    result = {"type": "tool_result", "tool_use_id": content[2]["id"], "content": "sunny"}
    ask["messages"] += [{"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
    assert (await http.post("/anthropic/v1/messages", json=ask)).status_code == 200


async def test_gemini_3_takes_its_calls_back_with_their_signature(http: httpx.AsyncClient) -> None:
    """Of parallel calls the first carries the signature; replayed as they came they are accepted."""
    path = "/gemini/v1/models/gemini-3-flash-preview:generateContent"
    ask: dict[str, Any] = {
        "contents": [{"role": "user", "parts": [{"text": "Rain? [[simulate: tool_calls=2]]"}]}],
        "tools": [{"functionDeclarations": [{"name": "weather", "parametersJsonSchema": WEATHER}]}],
    }
    turn = (await http.post(path, json=ask)).json()["candidates"][0]["content"]
    assert ["thoughtSignature" in part for part in turn["parts"]] == [True, False]
    results = [{"functionResponse": {"name": "weather", "response": {"sky": "blue"}}} for _ in turn["parts"]]
    ask["contents"] += [turn, {"role": "user", "parts": results}]
    assert (await http.post(path, json=ask)).status_code == 200
