"""Invalid requests that the Messages API refuses with 400, and edge cases that it accepts."""

from copy import deepcopy
from typing import Any

import httpx
import pytest

from pollux_flows.simulator.anthropic.signature import sign

PATH = "/anthropic/v1/messages"
USER = {"role": "user", "content": "hi"}
EPHEMERAL = {"type": "ephemeral"}


def schema(**part: Any) -> dict[str, Any]:
    """Return a request for structured output with one property."""
    json_schema = {"type": "object", "properties": {"a": part}, "required": ["a"], "additionalProperties": False}
    return {"output_config": {"format": {"type": "json_schema", "schema": json_schema}}}


def turns(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def use(identity: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": identity, "name": "f", "input": {}}


def result(identity: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": identity, "content": "1"}


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": content, **more}


TOOLS = {"tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]}
THINKING = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
ADAPTIVE = {"model": "claude-sonnet-4-6", "thinking": {"type": "adaptive"}}

REFUSED_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"seed": 1}, "seed: Extra inputs are not permitted"),
    "unknown field below": (turns(("user", [text("x", title="t")])), "messages.0.content.0.title: Extra inputs"),
    "no output tokens": ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    "too many tokens": ({"max_tokens": 64_001}, "max_tokens: 64001 > 64000"),
    "wrong type": ({"max_tokens": "9"}, "max_tokens: Input should be a valid integer"),
    "temperature": ({"temperature": 1.0}, "temperature"),
    "top_p": ({"top_p": 1.0}, "top_p"),
    "top_k": ({"top_k": 1}, "top_k"),
    "streaming": ({"stream": True}, "does not stream"),
    "unknown block": (turns(("user", [{"type": "video"}])), "Input tag 'video'"),
    "unknown role": (turns(("tool", "x")), "messages.0.role: Input should be"),
    "no content": (turns(("user", [])), "non-empty content"),
    "empty text": (turns(("user", "")), "text content blocks must be non-empty"),
    "assistant in the first turn": (turns(("assistant", "ho"), ("user", "hi")), 'must use the "user" role'),
    "image of an unsupported type": (
        turns(("user", [{"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": "AA=="}}])),
        "media_type",
    ),
    "document of an unsupported type": (
        turns(("user", [{"type": "document", "source": {"type": "base64", "media_type": "text/csv", "data": "AA=="}}])),
        "application/pdf",
    ),
    "effort on Haiku 4.5": ({"output_config": {"effort": "low"}}, "does not support the effort parameter"),
    "effort on Sonnet 3.7": (
        {"model": "claude-3-7-sonnet-20250219", "output_config": {"effort": "high"}},
        "does not support the effort parameter",
    ),
    "unknown effort level": (
        {"model": "claude-opus-4-6", "output_config": {"effort": "xhigh"}},
        "does not support effort level 'xhigh'",
    ),
    "thinking budget below the minimum": ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "budget_tokens"),
    "thinking budget above max_tokens": (
        {"thinking": {"type": "enabled", "budget_tokens": 4000}},
        "`max_tokens` must be greater than `thinking.budget_tokens`",
    ),
    "thinking budget on Opus 4.7": (
        {"model": "claude-opus-4-7", "thinking": {"type": "enabled", "budget_tokens": 1024}},
        '"thinking.type.enabled" is not supported',
    ),
    "adaptive thinking on Haiku 4.5": ({"thinking": {"type": "adaptive"}}, "adaptive thinking is not supported"),
    "thinking on Haiku 3.5": (
        {"model": "claude-3-5-haiku-20241022", "thinking": {"type": "enabled", "budget_tokens": 1024}},
        "does not support thinking",
    ),
    "thinking with a forced tool": (
        {**ADAPTIVE, **TOOLS, "tool_choice": {"type": "any"}},
        "Thinking may not be enabled",
    ),
    "schema on Sonnet 3.7": (
        {"model": "claude-3-7-sonnet-20250219", **schema(type="string")},
        "does not support output format",
    ),
    "schema: minimum": (schema(type="integer", minimum=0), "For 'integer' type, property 'minimum' is not supported"),
    "schema: exclusiveMaximum": (
        schema(type="number", exclusiveMaximum=0),
        "property 'exclusiveMaximum' is not supported",
    ),
    "schema: maxLength": (schema(type="string", maxLength=3), "property 'maxLength' is not supported"),
    "schema: minLength of a nullable string": (
        schema(type=["string", "null"], minLength=3),
        "'minLength' is not supported",
    ),
    "schema: minItems above one": (
        schema(type="array", items={"type": "string"}, minItems=2),
        "'minItems' values other than",
    ),
    "schema: maxItems": (schema(type="array", items={"type": "string"}, maxItems=2), "'maxItems' is not supported"),
    "schema: open object": (schema(type="object", properties={}), "must be explicitly set to false"),
    "schema: map": (schema(type="object", additionalProperties={"type": "integer"}), "explicitly set to false"),
    "schema: oneOf": (schema(oneOf=[{"type": "string"}]), "'oneOf' is not supported"),
    "schema: unresolvable reference": (schema(**{"$ref": "#/$defs/A"}), "cannot be resolved"),
    "schema: circular reference": (schema(**{"$ref": "#"}), "Circular reference"),
    "format with a name": ({"output_config": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "name"),
    "strict tool with a minimum": (
        {
            "tools": [
                {
                    "name": "f",
                    "strict": True,
                    "input_schema": {
                        "type": "object",
                        "properties": {"n": {"type": "integer", "minimum": 1}},
                        "additionalProperties": False,
                    },
                }
            ]
        },
        "property 'minimum' is not supported",
    ),
    "tool in OpenAI's format": (
        {"tools": [{"type": "function", "name": "f", "parameters": {}}]},
        "tools.0: Input tag 'function'",
    ),
    "tool with a bad name": ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools.0.name"),
    "two tools of one name": ({"tools": TOOLS["tools"] * 2}, "Tool names must be unique"),
    "choice without tools": ({"tool_choice": {"type": "any"}}, "while providing tools"),
    "choice of an unknown tool": ({**TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "Tool 'g' not found"),
    "choice as a string": ({**TOOLS, "tool_choice": "any"}, "tool_choice"),
    "five cache breakpoints": (
        turns(("user", [text("x", cache_control=EPHEMERAL)] * 5)),
        "A maximum of 4 blocks with cache_control may be provided. Found 5",
    ),
    "unknown cache lifetime": (turns(("user", [text("x", cache_control={**EPHEMERAL, "ttl": "2h"})])), "ttl"),
    "tool use without declared tools": (
        turns(("user", "hi"), ("assistant", [use("t1")]), ("user", [result("t1")])),
        "must define tools",
    ),
    "tool result without a tool use": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", "ho"), ("user", [result("t1")]))},
        "unexpected `tool_use_id`",
    ),
    "tool use without a result": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", [use("t1")]), ("user", "and?"))},
        "without `tool_result` blocks immediately after: t1",
    ),
    "one result for two tool uses": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", [use("t1"), use("t2")]), ("user", [result("t1")]))},
        "without `tool_result` blocks immediately after: t2",
    ),
    "text before the tool results": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", [use("t1")]), ("user", [text("so"), result("t1")]))},
        "without `tool_result` blocks immediately after",
    ),
    "tool result from the assistant": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", [use("t1"), result("t1")]))},
        "may only be in user messages",
    ),
    "text before thinking": (
        {**ADAPTIVE, **TOOLS}
        | turns(("user", "hi"), ("assistant", [text("so"), THINKING, use("t1")]), ("user", [result("t1")])),
        "must start with a thinking block",
    ),
    "turn without its thinking": (
        {"max_tokens": 4000, "thinking": {"type": "enabled", "budget_tokens": 1024}, **TOOLS}
        | turns(("user", "hi"), ("assistant", [use("t1")]), ("user", [result("t1")])),
        "must start with a thinking block",
    ),
    "thinking with a wrong signature": (
        {**ADAPTIVE, **TOOLS} | turns(("user", "hi"), ("assistant", [THINKING, use("t1")]), ("user", [result("t1")])),
        "Invalid `signature` in `thinking` block",
    ),
    "prefill on Opus 4.6": (
        {"model": "claude-opus-4-6", **turns(("user", "hi"), ("assistant", "{"))},
        "does not support assistant message prefill",
    ),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
async def test_anthropic_refuses(name: str, http: httpx.AsyncClient) -> None:
    """Anthropic refuses a valid request after each of these changes, and the message names the problem."""
    changes, words = REFUSED_REQUESTS[name]
    body = {"model": "claude-haiku-4-5", "max_tokens": 2000, "messages": [USER], **deepcopy(changes)}
    answer = await http.post(PATH, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


ACCEPTED_REQUESTS: dict[str, dict[str, Any]] = {
    "tool loop with thinking in its first turn only": {
        "max_tokens": 4000,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        **TOOLS,
        **turns(
            ("user", "hi"),
            ("assistant", [{"type": "thinking", "thinking": "why", "signature": sign("why")}, use("t1")]),
            ("user", [result("t1")]),
            ("assistant", [use("t2")]),
            ("user", [result("t2")]),
        ),
    },
    "text": {},
    "two user turns in a row": turns(("user", "hi"), ("user", "ho")),
    "effort on Opus 4.5": {"model": "claude-opus-4-5-20251101", "output_config": {"effort": "high"}},
    "effort on Sonnet 4.6": {"model": "claude-sonnet-4-6", "output_config": {"effort": "max"}},
    "effort on Opus 4.7": {"model": "claude-opus-4-7", "output_config": {"effort": "xhigh"}},
    "thinking budget": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "thinking budget on Sonnet 4.0": {
        "model": "claude-sonnet-4-20250514",
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    },
    "all kinds of blocks": {
        **turns(
            (
                "user",
                [
                    text("hi", cache_control={**EPHEMERAL, "ttl": "1h"}),
                    {"type": "image", "source": {"type": "url", "url": "https://e.x/a.png"}},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
                    {"type": "document", "source": {"type": "url", "url": "https://e.x/a.pdf"}, "title": "T"},
                    {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}},
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": "txt"},
                        "citations": {"enabled": True},
                    },
                ],
            )
        )
    },
    "schema as the SDK writes it": schema(type="array", items={"type": "string", "format": "date"}, minItems=1),
    "tool that is not strict": {
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {"n": {"minimum": 1}}}}]
    },
    "tool loop": {**TOOLS, **turns(("user", "hi"), ("assistant", [text("so"), use("t1")]), ("user", [result("t1")]))},
    "prefill on Haiku 4.5": turns(("user", "hi"), ("assistant", "{")),
    "other fields": {
        "system": [text("sys", cache_control=EPHEMERAL)],
        "cache_control": EPHEMERAL,
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "stop_sequences": ["END"],
    },
}


@pytest.mark.parametrize("name", ACCEPTED_REQUESTS)
async def test_anthropic_accepts(name: str, http: httpx.AsyncClient) -> None:
    """Anthropic accepts each of these requests: the simulator is not stricter than the API."""
    body = {"model": "claude-haiku-4-5", "max_tokens": 2000, "messages": [USER], **deepcopy(ACCEPTED_REQUESTS[name])}
    answer = await http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("field", ["model", "max_tokens", "messages"])
async def test_a_missing_field_is_named(field: str, http: httpx.AsyncClient) -> None:
    """Each required field that is missing is named in the error."""
    body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [USER]}
    del body[field]
    answer = await http.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"{field}: Field required")


async def test_the_version_header_is_required(http: httpx.AsyncClient) -> None:
    """A request without `anthropic-version` is refused."""
    body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [USER]}
    del http.headers["anthropic-version"]
    answer = await http.post(PATH, json=body)
    assert answer.json()["error"]["message"] == "anthropic-version: header is required"


async def test_an_older_api_version_accepts_a_temperature(http: httpx.AsyncClient) -> None:
    """Temperature, which the current version refuses, is accepted with version 2023-06-01."""
    body = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [USER], "temperature": 0.5}
    answer = await http.post(PATH, json=body, headers={"anthropic-version": "2023-06-01"})
    assert answer.status_code == 200, answer.text


async def test_a_model_of_another_provider_is_unknown(http: httpx.AsyncClient) -> None:
    """A model name that is not Anthropic's is refused with 404."""
    answer = await http.post(PATH, json={"model": "gpt-4.1", "max_tokens": 9, "messages": [USER]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


async def test_an_unknown_file_id_is_refused(http: httpx.AsyncClient) -> None:
    """A reference to a file that was never uploaded is refused with 404."""
    block = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    answer = await http.post(PATH, json={"model": "claude-haiku-4-5", "max_tokens": 9, **turns(("user", [block]))})
    assert answer.status_code == 404
    assert "file_1" in answer.json()["error"]["message"]
