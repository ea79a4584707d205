"""What the Messages API answers with 400, and so must this one."""

from copy import deepcopy
from typing import Any

import httpx
import pytest

from pollux_flows.simulator.anthropic.signature import sign

PATH = "/anthropic/v1/messages"
USER = {"role": "user", "content": "hi"}
EPHEMERAL = {"type": "ephemeral"}


def schema(**part: Any) -> dict[str, Any]:
    """Structured output with one property."""
    wanted = {"type": "object", "properties": {"a": part}, "required": ["a"], "additionalProperties": False}
    return {"output_config": {"format": {"type": "json_schema", "schema": wanted}}}


def turns(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def use(identity: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": identity, "name": "f", "input": {}}


def result(identity: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": identity, "content": "1"}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


TOOLS = {"tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]}
THINKING = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
ADAPTIVE = {"model": "claude-sonnet-4-6", "thinking": {"type": "adaptive"}}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"seed": 1}, "seed: Extra inputs are not permitted"),
    "unknown field below": (turns(("user", [text("x", title="t")])), "messages.0.content.0.title: Extra inputs"),
    "zero tokens": ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    "too many tokens": ({"max_tokens": 64_001}, "max_tokens: 64001 > 64000"),
    "wrong type": ({"max_tokens": "9"}, "max_tokens: Input should be a valid integer"),
    "temperature": ({"temperature": 1.0}, "temperature"),
    "top_p": ({"top_p": 1.0}, "top_p"),
    "top_k": ({"top_k": 1}, "top_k"),
    "streaming": ({"stream": True}, "does not stream"),
    "unknown block": (turns(("user", [{"type": "video"}])), "Input tag 'video'"),
    "unknown role": (turns(("tool", "x")), "messages.0.role: Input should be"),
    "nothing said": (turns(("user", [])), "non-empty content"),
    "an empty text": (turns(("user", "")), "text content blocks must be non-empty"),
    "the assistant first": (turns(("assistant", "ho"), ("user", "hi")), 'must use the "user" role'),
    "an image of another type": (
        turns(("user", [{"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": "AA=="}}])),
        "media_type",
    ),
    "a document of another type": (
        turns(("user", [{"type": "document", "source": {"type": "base64", "media_type": "text/csv", "data": "AA=="}}])),
        "application/pdf",
    ),
    "effort on Haiku 4.5": ({"output_config": {"effort": "low"}}, "does not support the effort parameter"),
    "effort on 3.7": (
        {"model": "claude-3-7-sonnet-20250219", "output_config": {"effort": "high"}},
        "does not support the effort parameter",
    ),
    "an effort too many": (
        {"model": "claude-opus-4-6", "output_config": {"effort": "xhigh"}},
        "does not support effort level 'xhigh'",
    ),
    "a small thinking budget": ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "budget_tokens"),
    "a thinking budget above max_tokens": (
        {"thinking": {"type": "enabled", "budget_tokens": 4000}},
        "`max_tokens` must be greater than `thinking.budget_tokens`",
    ),
    "a thinking budget on Opus 4.7": (
        {"model": "claude-opus-4-7", "thinking": {"type": "enabled", "budget_tokens": 1024}},
        '"thinking.type.enabled" is not supported',
    ),
    "adaptive thinking on Haiku 4.5": ({"thinking": {"type": "adaptive"}}, "adaptive thinking is not supported"),
    "thinking on 3.5": (
        {"model": "claude-3-5-haiku-20241022", "thinking": {"type": "enabled", "budget_tokens": 1024}},
        "does not support thinking",
    ),
    "thinking and a forced tool": (
        {**ADAPTIVE, **TOOLS, "tool_choice": {"type": "any"}},
        "Thinking may not be enabled",
    ),
    "schema on 3.7": (
        {"model": "claude-3-7-sonnet-20250219", **schema(type="string")},
        "does not support output format",
    ),
    "schema: minimum": (schema(type="integer", minimum=0), "For 'integer' type, property 'minimum' is not supported"),
    "schema: exclusive": (schema(type="number", exclusiveMaximum=0), "property 'exclusiveMaximum' is not supported"),
    "schema: length": (schema(type="string", maxLength=3), "property 'maxLength' is not supported"),
    "schema: a nullable with a length": (schema(type=["string", "null"], minLength=3), "'minLength' is not supported"),
    "schema: two items": (schema(type="array", items={"type": "string"}, minItems=2), "'minItems' values other than"),
    "schema: item count": (schema(type="array", items={"type": "string"}, maxItems=2), "'maxItems' is not supported"),
    "schema: open object": (schema(type="object", properties={}), "must be explicitly set to false"),
    "schema: map": (schema(type="object", additionalProperties={"type": "integer"}), "explicitly set to false"),
    "schema: oneOf": (schema(oneOf=[{"type": "string"}]), "'oneOf' is not supported"),
    "schema: reference to nowhere": (schema(**{"$ref": "#/$defs/A"}), "cannot be resolved"),
    "schema: itself": (schema(**{"$ref": "#"}), "Circular reference"),
    "schema: not wrapped": ({"output_config": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "name"),
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
    "tool in another's form": (
        {"tools": [{"type": "function", "name": "f", "parameters": {}}]},
        "tools.0: Input tag 'function'",
    ),
    "tool with a bad name": ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools.0.name"),
    "two tools of one name": ({"tools": TOOLS["tools"] * 2}, "Tool names must be unique"),
    "choice without tools": ({"tool_choice": {"type": "any"}}, "while providing tools"),
    "choice of an unknown tool": ({**TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "Tool 'g' not found"),
    "choice as a word": ({**TOOLS, "tool_choice": "any"}, "tool_choice"),
    "five breakpoints": (
        turns(("user", [text("x", cache_control=EPHEMERAL)] * 5)),
        "A maximum of 4 blocks with cache_control may be provided. Found 5",
    ),
    "a breakpoint of another age": (turns(("user", [text("x", cache_control={**EPHEMERAL, "ttl": "2h"})])), "ttl"),
    "a use without its tool": (
        turns(("user", "hi"), ("assistant", [use("t1")]), ("user", [result("t1")])),
        "must define tools",
    ),
    "a result without a use": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", "ho"), ("user", [result("t1")]))},
        "unexpected `tool_use_id`",
    ),
    "a use without a result": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", [use("t1")]), ("user", "and?"))},
        "without `tool_result` blocks immediately after: t1",
    ),
    "one of two results": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", [use("t1"), use("t2")]), ("user", [result("t1")]))},
        "without `tool_result` blocks immediately after: t2",
    ),
    "a text before the results": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", [use("t1")]), ("user", [text("so"), result("t1")]))},
        "without `tool_result` blocks immediately after",
    ),
    "a result from the assistant": (
        {**TOOLS, **turns(("user", "hi"), ("assistant", [use("t1"), result("t1")]))},
        "may only be in user messages",
    ),
    "text before thinking": (
        {**ADAPTIVE, **TOOLS}
        | turns(("user", "hi"), ("assistant", [text("so"), THINKING, use("t1")]), ("user", [result("t1")])),
        "must start with a thinking block",
    ),
    "thinking that was left out": (
        {"max_tokens": 4000, "thinking": {"type": "enabled", "budget_tokens": 1024}, **TOOLS}
        | turns(("user", "hi"), ("assistant", [use("t1")]), ("user", [result("t1")])),
        "must start with a thinking block",
    ),
    "thinking that was changed": (
        {**ADAPTIVE, **TOOLS} | turns(("user", "hi"), ("assistant", [THINKING, use("t1")]), ("user", [result("t1")])),
        "Invalid `signature` in `thinking` block",
    ),
    "a beginning of the answer": (
        {"model": "claude-opus-4-6", **turns(("user", "hi"), ("assistant", "{"))},
        "does not support assistant message prefill",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_anthropic_refuses(name: str, http: httpx.AsyncClient) -> None:
    """Each row changes a good request into one that the API refuses."""
    changes, words = REFUSED[name]
    ask = {"model": "claude-haiku-4-5", "max_tokens": 2000, "messages": [USER], **deepcopy(changes)}
    answer = await http.post(PATH, json=ask)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


TAKEN: dict[str, dict[str, Any]] = {
    "a loop that thought when it began": {
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
    "a text": {},
    "two turns of one role": turns(("user", "hi"), ("user", "ho")),
    "effort on Opus 4.5": {"model": "claude-opus-4-5-20251101", "output_config": {"effort": "high"}},
    "effort on Sonnet 4.6": {"model": "claude-sonnet-4-6", "output_config": {"effort": "max"}},
    "effort on Opus 4.7": {"model": "claude-opus-4-7", "output_config": {"effort": "xhigh"}},
    "a thinking budget": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "a thinking budget on Sonnet 4.0": {
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
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="},
                    },
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": "txt"},
                        "citations": {"enabled": True},
                    },
                ],
            )
        )
    },
    "a schema as the SDK makes it": schema(type="array", items={"type": "string", "format": "date"}, minItems=1),
    "a tool that is not strict": {
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {"n": {"minimum": 1}}}}]
    },
    "a tool loop": {**TOOLS, **turns(("user", "hi"), ("assistant", [text("so"), use("t1")]), ("user", [result("t1")]))},
    "a beginning of the answer where it belongs": turns(("user", "hi"), ("assistant", "{")),
    "everything else": {
        "system": [text("sys", cache_control=EPHEMERAL)],
        "cache_control": EPHEMERAL,
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "stop_sequences": ["END"],
    },
}


@pytest.mark.parametrize("name", TAKEN)
async def test_anthropic_takes(name: str, http: httpx.AsyncClient) -> None:
    """And strictness ends where the API's own ends."""
    ask = {"model": "claude-haiku-4-5", "max_tokens": 2000, "messages": [USER], **deepcopy(TAKEN[name])}
    answer = await http.post(PATH, json=ask)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("field", ["model", "max_tokens", "messages"])
async def test_a_missing_field_is_named(field: str, http: httpx.AsyncClient) -> None:
    """The three that must be there."""
    ask = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [USER]}
    del ask[field]
    answer = await http.post(PATH, json=ask)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"{field}: Field required")


async def test_the_version_header_is_required(http: httpx.AsyncClient) -> None:
    """Without it nobody knows which API is meant."""
    ask = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [USER]}
    del http.headers["anthropic-version"]
    answer = await http.post(PATH, json=ask)
    assert answer.json()["error"]["message"] == "anthropic-version: header is required"


async def test_the_older_version_still_takes_a_temperature(http: httpx.AsyncClient) -> None:
    """The documented way back."""
    ask = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [USER], "temperature": 0.5}
    answer = await http.post(PATH, json=ask, headers={"anthropic-version": "2023-06-01"})
    assert answer.status_code == 200, answer.text


async def test_a_model_of_somebody_else_is_unknown(http: httpx.AsyncClient) -> None:
    """404, as for any name that Anthropic does not know."""
    answer = await http.post(PATH, json={"model": "gpt-4.1", "max_tokens": 9, "messages": [USER]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


async def test_a_file_that_nobody_uploaded_does_not_exist(http: httpx.AsyncClient) -> None:
    """A reference is followed."""
    block = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    answer = await http.post(PATH, json={"model": "claude-haiku-4-5", "max_tokens": 9, **turns(("user", [block]))})
    assert answer.status_code == 404
    assert "file_1" in answer.json()["error"]["message"]
