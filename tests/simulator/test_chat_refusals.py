"""What OpenRouter and local servers refuse."""

from copy import deepcopy
from typing import Any

import httpx
import pytest

OPENROUTER = "/openrouter/api/v1/chat/completions"
LOCAL = "/local/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "1"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
THOUGHT = {
    "role": "assistant",
    "content": "ho",
    "reasoning_details": [{"type": "reasoning.text", "text": "why", "signature": "x", "format": "simulated-v1"}],
}
OPEN_SCHEMA = {"type": "json_schema", "json_schema": {"name": "o", "strict": True, "schema": {"type": "object"}}}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://e.x/a.png"}}]}
LLAMA = "meta-llama/llama-3.3-70b-instruct"

EVERYWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages that are none": ({"messages": "hi"}, "messages"),
    "unknown role": ({"messages": [{"role": "model", "content": "x"}]}, "role"),
    "unknown part": ({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]}, "type"),
    "wrong type": ({"max_tokens": "9"}, "max_tokens"),
    "tool in flat form": ({"tools": [{"type": "function", "name": "f"}]}, "tools.0.function"),
    "choice of an unknown tool": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "Tool choice 'g' not found",
    ),
    "choice without tools": ({"tool_choice": "required"}, "tools"),
    "format without a schema": ({"response_format": {"type": "json_schema"}}, "json_schema"),
    "unknown format": ({"response_format": {"type": "yaml"}}, "response_format"),
    "a result without a call": ({"messages": [USER, RESULT]}, "must be a response to a preceeding message"),
    "a call without a result": ({"messages": [USER, CALLS, USER]}, "did not have response messages: c1"),
    "streaming": ({"stream": True}, "does not stream"),
}


@pytest.mark.parametrize("url", [OPENROUTER, LOCAL])
@pytest.mark.parametrize("name", EVERYWHERE)
async def test_chat_completions_refuse(name: str, url: str, http: httpx.AsyncClient) -> None:
    """Each row changes a good request into one that no server takes."""
    changes, words = EVERYWHERE[name]
    ask = {"model": "openai/gpt-4.1-mini", "messages": [USER], **deepcopy(changes)}
    answer = await http.post(url, json=ask)
    assert answer.status_code == 400, answer.text
    assert words in str(answer.json()["error"])


AT_OPENROUTER: dict[str, tuple[int, dict[str, Any], str]] = {
    "unknown model": (400, {"model": "nobody/nothing"}, "nobody/nothing is not a valid model ID"),
    "strict schema of an OpenAI model": (400, {"response_format": OPEN_SCHEMA}, "Invalid schema for response_format"),
    "strict tool of an OpenAI model": (
        400,
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}]},
        "Invalid schema for function 'f'",
    ),
    "tools for a model without": (404, {"model": LLAMA, "tools": [TOOL]}, "support tool use"),
    "an image for a model that is blind": (404, {"model": LLAMA, "messages": [IMAGE]}, "support image input"),
    "a parameter that must be heeded": (
        404,
        {"model": LLAMA, "response_format": OPEN_SCHEMA, "provider": {"require_parameters": True}},
        "requested parameters",
    ),
    "calls without their tools": (400, {"messages": [USER, CALLS, RESULT]}, "Tools must be defined"),
    "thoughts that were changed": (400, {"messages": [USER, THOUGHT, USER]}, "Invalid `signature`"),
    "two ways to limit reasoning": (400, {"reasoning": {"effort": "low", "max_tokens": 5}}, "Only one of"),
}


@pytest.mark.parametrize("name", AT_OPENROUTER)
async def test_openrouter_refuses(name: str, http: httpx.AsyncClient) -> None:
    """What depends on the model is looked up in the catalogue."""
    status, changes, words = AT_OPENROUTER[name]
    ask = {"model": "openai/gpt-4.1-mini", "messages": [USER], **deepcopy(changes)}
    answer = await http.post(OPENROUTER, json=ask)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == status
    assert words in answer.json()["error"]["message"]


TAKEN: dict[str, dict[str, Any]] = {
    "unknown fields": {"session_id": "s", "usage": {"include": True}, "plugins": [{"id": "file-parser"}]},
    "a loop": {"messages": [USER, CALLS, RESULT], "tools": [TOOL]},
    "a variant": {"model": "openai/gpt-4.1-mini:nitro"},
    "a loose schema of another's model": {"model": "google/gemini-2.5-flash-lite", "response_format": OPEN_SCHEMA},
    "a file": {
        "model": LLAMA,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
                    {"type": "text", "text": "hi"},
                ],
            }
        ],
    },
}


@pytest.mark.parametrize("name", TAKEN)
async def test_openrouter_takes(name: str, http: httpx.AsyncClient) -> None:
    """And what it does not know it lets pass."""
    ask = {"model": "openai/gpt-4.1-mini", "messages": [USER], **deepcopy(TAKEN[name])}
    answer = await http.post(OPENROUTER, json=ask)
    assert answer.status_code == 200, answer.text


async def test_the_local_model_reads_text_only(http: httpx.AsyncClient) -> None:
    """A small server says so with a plain string."""
    answer = await http.post(LOCAL, json={"model": "m", "messages": [IMAGE]})
    assert (answer.status_code, answer.json()) == (400, {"error": "image_url input is not supported by this model"})
