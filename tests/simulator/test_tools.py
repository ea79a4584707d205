"""Tool calls: made when the request or a directive requires them, and ended by tool results."""

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


async def test_optional_tools_are_not_called(client: Client) -> None:
    """With tool choice `auto` the answer is text."""
    answer = await client.ask("Hello?", tools=TOOLS)
    assert (answer.text, answer.calls) == ("Simulated answer to: Hello?", [])


async def test_a_required_call_has_valid_arguments(client: Client) -> None:
    """The first tool is called, with arguments that fit its parameter schema."""
    answer = await client.ask("Rain?", tools=TOOLS, tool_choice="required")
    assert answer.calls == [("weather", {"city": "Simulated city: Rain?", "days": 2})]
    assert not answer.text


async def test_a_tool_chosen_by_name_is_called(client: Client) -> None:
    """The tool named in the tool choice is called, and no other."""
    answer = await client.ask("Time?", tools=TOOLS, tool_choice="clock")
    assert answer.calls == [("clock", {})]


async def test_a_directive_can_request_a_call(client: Client) -> None:
    """The directive `tool_call` makes the model call a tool with tool choice `auto`."""
    answer = await client.ask("Rain? [[simulate: tool_call]]", tools=TOOLS)
    assert [name for name, _ in answer.calls] == ["weather"]


async def test_a_directive_can_request_parallel_calls(client: Client) -> None:
    """Parallel calls go through the declared tools in turn."""
    answer = await client.ask("Rain? [[simulate: tool_calls=2]]", tools=TOOLS)
    assert [name for name, _ in answer.calls] == ["weather", "clock"]


async def test_a_directive_without_declared_tools_calls_nothing(client: Client) -> None:
    answer = await client.ask("Rain? [[simulate: tool_call]]")
    assert (answer.text, answer.calls) == ("Simulated answer to: Rain?", [])


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
    """The answer names the tools whose results the request has, and calls none, so that loops end."""
    path, body = ANSWERED[protocol]
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert "Simulated answer from the results of: weather" in answer.text


async def test_a_forced_tool_is_called_after_its_result(http: httpx.AsyncClient) -> None:
    """A tool choice with a name is obeyed even after a tool result."""
    path, body = ANSWERED["anthropic"]
    answer = await http.post(path, json={**body, "tool_choice": {"type": "tool", "name": "weather"}})
    assert answer.json()["stop_reason"] == "tool_use"


async def test_a_stored_response_remembers_its_calls(http: httpx.AsyncClient) -> None:
    """With `previous_response_id`, a request sends only the tool outputs."""
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    body = {"model": "gpt-4.1", "input": "Rain?", "tools": tools, "tool_choice": "required"}
    first = (await http.post("/openai/v1/responses", json=body)).json()
    call_id = first["output"][0]["call_id"]
    following = {
        "model": "gpt-4.1",
        "previous_response_id": first["id"],
        "input": [{"type": "function_call_output", "call_id": call_id, "output": "sunny"}],
    }
    second = (await http.post("/openai/v1/responses", json=following)).json()
    assert second["output"][0]["content"][0]["text"] == "Simulated answer from the results of: weather"
    assert second["usage"]["input_tokens"] == first["usage"]["total_tokens"] + 2  # and "sunny"


async def test_calls_of_a_stored_response_cannot_be_sent_again(http: httpx.AsyncClient) -> None:
    """A repeated call is refused in the turn with its output and in later ones."""
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    body = {"model": "gpt-4.1", "input": "Rain?", "tools": tools, "tool_choice": "required"}
    first = (await http.post("/openai/v1/responses", json=body)).json()
    call = {name: first["output"][0][name] for name in ("type", "call_id", "name", "arguments")}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    following = {"model": "gpt-4.1", "previous_response_id": first["id"], "input": [result]}
    second = (await http.post("/openai/v1/responses", json=following)).json()
    for before in (first["id"], second["id"]):
        again = {"model": "gpt-4.1", "previous_response_id": before, "input": [call, result]}
        answer = await http.post("/openai/v1/responses", json=again)
        assert answer.status_code == 400
        assert "Duplicate item found" in answer.json()["error"]["message"]


async def test_a_claude_turn_with_calls_can_be_replayed(http: httpx.AsyncClient) -> None:
    """A turn of thinking, text and call is accepted when it is sent back unchanged."""
    body: dict[str, Any] = {
        "model": "claude-sonnet-4-6",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "Rain? [[simulate: tool_call]]"}],
        "thinking": {"type": "adaptive"},
        "tools": [{"name": "weather", "input_schema": WEATHER}],
    }
    content = (await http.post("/anthropic/v1/messages", json=body)).json()["content"]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use"]
    result = {"type": "tool_result", "tool_use_id": content[2]["id"], "content": "sunny"}
    body["messages"] += [{"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
    assert (await http.post("/anthropic/v1/messages", json=body)).status_code == 200


async def test_gemini_3_calls_can_be_replayed_with_their_signature(http: httpx.AsyncClient) -> None:
    """The first of parallel calls has the signature; the turn is accepted when sent back unchanged."""
    path = "/gemini/v1/models/gemini-3-flash-preview:generateContent"
    body: dict[str, Any] = {
        "contents": [{"role": "user", "parts": [{"text": "Rain? [[simulate: tool_calls=2]]"}]}],
        "tools": [{"functionDeclarations": [{"name": "weather", "parametersJsonSchema": WEATHER}]}],
    }
    turn = (await http.post(path, json=body)).json()["candidates"][0]["content"]
    assert ["thoughtSignature" in part for part in turn["parts"]] == [True, False]
    results = [{"functionResponse": {"name": "weather", "response": {"sky": "blue"}}} for _ in turn["parts"]]
    body["contents"] += [turn, {"role": "user", "parts": results}]
    assert (await http.post(path, json=body)).status_code == 200
