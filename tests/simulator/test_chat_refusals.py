"""Invalid requests that OpenRouter and local servers refuse, and edge cases that OpenRouter accepts."""

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

REFUSED_BY_ALL: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages that are not a list": ({"messages": "hi"}, "messages"),
    "unknown role": ({"messages": [{"role": "model", "content": "x"}]}, "role"),
    "unknown part": ({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]}, "type"),
    "max_tokens of the wrong type": ({"max_tokens": "9"}, "max_tokens"),
    "tool in the format of Responses": ({"tools": [{"type": "function", "name": "f"}]}, "tools.0.function"),
    "choice of an unknown tool": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "Tool choice 'g' not found",
    ),
    "choice without tools": ({"tool_choice": "required"}, "tools"),
    "format without a schema": ({"response_format": {"type": "json_schema"}}, "json_schema"),
    "unknown format": ({"response_format": {"type": "yaml"}}, "response_format"),
    "tool result without a call": ({"messages": [USER, RESULT]}, "must be a response to a preceeding message"),
    "tool call without a result": ({"messages": [USER, CALLS, USER]}, "did not have response messages: c1"),
    "streaming": ({"stream": True}, "does not stream"),
}


@pytest.mark.parametrize("url", [OPENROUTER, LOCAL])
@pytest.mark.parametrize("name", REFUSED_BY_ALL)
async def test_chat_completions_refuse(name: str, url: str, http: httpx.AsyncClient) -> None:
    """OpenRouter and local servers refuse a valid request after each of these changes."""
    changes, words = REFUSED_BY_ALL[name]
    body = {"model": "openai/gpt-4.1-mini", "messages": [USER], **deepcopy(changes)}
    answer = await http.post(url, json=body)
    assert answer.status_code == 400, answer.text
    assert words in str(answer.json()["error"])


REFUSED_BY_OPENROUTER: dict[str, tuple[int, dict[str, Any], str]] = {
    "unknown model": (400, {"model": "unknown/model"}, "unknown/model is not a valid model ID"),
    "strict schema of an OpenAI model": (400, {"response_format": OPEN_SCHEMA}, "Invalid schema for response_format"),
    "strict tool of an OpenAI model": (
        400,
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}]},
        "Invalid schema for function 'f'",
    ),
    "tools for a model without tool use": (404, {"model": LLAMA, "tools": [TOOL]}, "support tool use"),
    "image for a model without image input": (404, {"model": LLAMA, "messages": [IMAGE]}, "support image input"),
    "required parameter that the model does not support": (
        404,
        {"model": LLAMA, "response_format": OPEN_SCHEMA, "provider": {"require_parameters": True}},
        "requested parameters",
    ),
    "tool calls without declared tools": (400, {"messages": [USER, CALLS, RESULT]}, "Tools must be defined"),
    "reasoning with a wrong signature": (400, {"messages": [USER, THOUGHT, USER]}, "Invalid `signature`"),
    "reasoning with an effort and a limit": (400, {"reasoning": {"effort": "low", "max_tokens": 5}}, "Only one of"),
}


@pytest.mark.parametrize("name", REFUSED_BY_OPENROUTER)
async def test_openrouter_refuses(name: str, http: httpx.AsyncClient) -> None:
    """OpenRouter refuses what its catalogue says that the model cannot do."""
    status, changes, words = REFUSED_BY_OPENROUTER[name]
    body = {"model": "openai/gpt-4.1-mini", "messages": [USER], **deepcopy(changes)}
    answer = await http.post(OPENROUTER, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == status
    assert words in answer.json()["error"]["message"]


ACCEPTED_REQUESTS: dict[str, dict[str, Any]] = {
    "unknown fields": {"session_id": "s", "usage": {"include": True}, "plugins": [{"id": "file-parser"}]},
    "tool loop": {"messages": [USER, CALLS, RESULT], "tools": [TOOL]},
    "variant of a model": {"model": "openai/gpt-4.1-mini:nitro"},
    "open schema of a Gemini model": {"model": "google/gemini-2.5-flash-lite", "response_format": OPEN_SCHEMA},
    "file for a model without file input": {
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


@pytest.mark.parametrize("name", ACCEPTED_REQUESTS)
async def test_openrouter_accepts(name: str, http: httpx.AsyncClient) -> None:
    """OpenRouter accepts each of these requests, including unknown fields."""
    body = {"model": "openai/gpt-4.1-mini", "messages": [USER], **deepcopy(ACCEPTED_REQUESTS[name])}
    answer = await http.post(OPENROUTER, json=body)
    assert answer.status_code == 200, answer.text


async def test_the_local_model_reads_text_only(http: httpx.AsyncClient) -> None:
    """A local server without image input answers with a plain string as its error."""
    answer = await http.post(LOCAL, json={"model": "m", "messages": [IMAGE]})
    assert (answer.status_code, answer.json()) == (400, {"error": "image_url input is not supported by this model"})
