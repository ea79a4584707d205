"""Invalid requests that the Responses API refuses with 400, and edge cases that it accepts."""

from copy import deepcopy
from typing import Any

import httpx
import pytest

from pollux_flows.simulator.openai.seal import seal

PATH = "/openai/v1/responses"
CLOSED: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
USER = {"role": "user", "content": "hi"}


def schema(**changes: Any) -> dict[str, Any]:
    """Return a request for structured output with a strict schema and these changes."""
    text_format = {"type": "json_schema", "name": "out", "schema": {**CLOSED, **changes}, "strict": True}
    return {"text": {"format": text_format}}


def properties(**parts: Any) -> dict[str, Any]:
    return schema(properties=parts, required=list(parts))


def tool(**changes: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "name": "f", "parameters": CLOSED, "strict": True, **changes}]}


def part(**content: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [content]}]}


REFUSED_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"seed": 1}, "Unknown parameter: 'seed'"),
    "a field of the other API": ({"max_tokens": 20}, "use 'max_output_tokens' instead"),
    "unknown field below": ({"reasoning": {"budget": 1}}, "Unknown parameter: 'reasoning.budget'"),
    "wrong type": ({"instructions": 3}, "Invalid type for 'instructions': expected a string, but got an integer"),
    "boolean for a number": ({"top_p": True}, "Invalid type for 'top_p'"),
    "no input": ({"input": None}, "Invalid type for 'input'"),
    "empty input": ({"input": []}, "must be provided"),
    "too few output tokens": ({"max_output_tokens": 15}, "Expected a value >= 16, but got 15"),
    "temperature above the maximum": ({"temperature": 3}, "Expected a value <= 2, but got 3"),
    "unknown effort": ({"model": "gpt-5", "reasoning": {"effort": "huge"}}, "Invalid value: 'huge'"),
    "sampling on gpt-5": ({"model": "gpt-5-nano", "temperature": 0.5}, "'temperature' is not supported"),
    "sampling on o-series": ({"model": "o3-mini", "top_p": 0.5}, "'top_p' is not supported"),
    "effort on gpt-4": ({"reasoning": {"effort": "low"}}, "'reasoning.effort' is not supported"),
    "streaming": ({"stream": True}, "neither streams"),
    "unknown role": ({"input": [{"role": "tool", "content": "x"}]}, "Invalid value: 'tool'"),
    "unknown item": ({"input": [{"type": "nonsense"}]}, "Invalid value: 'nonsense'"),
    "answer part from a user": (part(type="output_text", text="x"), "Supported values are: 'input_text'"),
    "image of an unsupported type": (
        part(type="input_image", image_url="data:image/tiff;base64,AA=="),
        "unsupported image",
    ),
    "image without a URL": (part(type="input_image"), "image_url"),
    "image at an invalid URL": (part(type="input_image", image_url="cat.png"), "valid URL"),
    "audio as a file": (
        part(type="input_file", filename="a.mp3", file_data="data:audio/mpeg;base64,AA=="),
        "unsupported MIME type 'audio/mpeg'",
    ),
    "file without a data URL": (part(type="input_file", filename="a.pdf", file_data="JVBERi0="), "data URL"),
    "file without a name": (part(type="input_file", file_data="data:application/pdf;base64,AA=="), "filename"),
    "schema: optional property": (schema(properties={"opt": {"type": "string"}}, required=[]), "Missing 'opt'"),
    "schema: open object": (schema(additionalProperties=True), "'additionalProperties' is required"),
    "schema: open object below": (properties(a={"type": "object", "properties": {}}), "('properties', 'a')"),
    "schema: map": (
        properties(a={"type": "object", "additionalProperties": {"type": "integer"}}),
        "'additionalProperties' is required to be supplied and to be false",
    ),
    "schema: reference with siblings": (
        {
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "out",
                    "strict": True,
                    "schema": {
                        **CLOSED,
                        "properties": {"a": {"$ref": "#/$defs/A", "description": "d"}},
                        "required": ["a"],
                        "$defs": {"A": {"type": "string"}},
                    },
                }
            }
        },
        "$ref cannot have keywords {'description'}",
    ),
    "schema: unresolvable reference": (properties(a={"$ref": "#/$defs/A"}), "#/$defs/A"),
    "schema: allOf": (properties(a={"allOf": [{"type": "string"}]}), "'allOf' is not permitted"),
    "schema: oneOf": (properties(a={"oneOf": [{"type": "string"}]}), "'oneOf' is not permitted"),
    "schema: unique items": (
        properties(a={"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
        "'uniqueItems' is not permitted",
    ),
    "schema: property without a type": (properties(a={}), "must have a 'type' key"),
    "schema: array without items": (properties(a={"type": "array"}), "array schema missing items"),
    "schema: unknown format": (properties(a={"type": "string", "format": "uri"}), "'uri' is not a valid format"),
    "schema: not an object": (schema(type="array"), "got 'type: \"array\"'"),
    "schema: unknown type": (schema(properties={"a": {"type": "strng"}}, required=["a"]), "Invalid JSON schema"),
    "schema: invalid name": (
        {"text": {"format": {"type": "json_schema", "name": "a b", "schema": CLOSED}}},
        "does not match pattern",
    ),
    "JSON mode without the word": ({"text": {"format": {"type": "json_object"}}}, "must contain the word 'json'"),
    "tool in the format of chat completions": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": CLOSED}}]},
        "Missing required parameter: 'tools[0].name'",
    ),
    "tool of an unknown kind": ({"tools": [{"type": "calculator"}]}, "Invalid value: 'calculator'"),
    "tool: optional argument": (
        tool(parameters={**CLOSED, "properties": {"opt": {"type": "string"}}}),
        "Invalid schema for function 'f'",
    ),
    "tool: invalid name": (tool(name="a.b"), "does not match pattern"),
    "choice of an unknown tool": (
        {**tool(), "tool_choice": {"type": "function", "name": "g"}},
        "Tool choice 'g' not found",
    ),
    "choice in the format of chat completions": (
        {**tool(), "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "Missing required parameter: 'tool_choice.name'",
    ),
    "choice without tools": ({"tool_choice": "required"}, "'tools'"),
    "unknown choice": ({"tool_choice": "any"}, "Invalid value: 'any'"),
    "output without a call": (
        {"input": [USER, {"type": "function_call_output", "call_id": "c1", "output": "x"}]},
        "No tool call found for function call output with call_id c1",
    ),
    "call without an output": (
        {"input": [USER, {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}]},
        "No tool output found for function call c1",
    ),
    "reasoning with changed encrypted content": (
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": seal("why")[::-1]}, USER]},
        "The encrypted content for item rs_1 could not be verified",
    ),
    "unknown previous response": ({"previous_response_id": "resp_x"}, "Previous response with id 'resp_x' not found"),
    "metadata value that is not a string": ({"metadata": {"n": 1}}, "Invalid type for 'metadata.n'"),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
async def test_openai_refuses(name: str, http: httpx.AsyncClient) -> None:
    """OpenAI refuses a valid request after each of these changes, and the message names the problem."""
    changes, words = REFUSED_REQUESTS[name]
    answer = await http.post(PATH, json={"model": "gpt-4.1", "input": "hi", **deepcopy(changes)})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


ACCEPTED_REQUESTS: dict[str, dict[str, Any]] = {
    "text": {},
    "all kinds of parts": {
        "input": [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "hi"},
                    {"type": "input_image", "image_url": "https://e.x/a.png", "detail": "auto"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
                    {"type": "input_file", "file_url": "https://e.x/a.pdf"},
                    {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
                ],
            },
        ]
    },
    "prior turns": {
        "input": [
            USER,
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ho"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": seal("why")},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
        ]
    },
    "an optional property in a schema that is not strict": {
        "text": {
            "format": {
                "type": "json_schema",
                "name": "out",
                "schema": {"type": "object", "properties": {"opt": {"type": "string"}}},
                "strict": False,
            }
        }
    },
    "a description beside a union with a reference": schema(
        properties={"a": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}], "description": "d", "default": None}},
        required=["a"],
        **{"$defs": {"A": {"type": "string", "enum": ["x", "y"]}}},
    ),
    "JSON mode with the word": {"input": "as JSON", "text": {"format": {"type": "json_object"}}},
    "OpenAI's own tool": {"tools": [{"type": "web_search"}]},
    "effort on gpt-5": {"model": "gpt-5", "reasoning": {"effort": "high"}},
    "sampling on gpt-4.1": {"temperature": 0.1, "top_p": 0.9},
    "other fields": {
        "instructions": "sys",
        "max_output_tokens": 16,
        "metadata": {"run": "1"},
        "store": False,
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
        "include": ["reasoning.encrypted_content"],
        "text": {"verbosity": "low"},
        "parallel_tool_calls": True,
        "truncation": "disabled",
    },
}


@pytest.mark.parametrize("name", ACCEPTED_REQUESTS)
async def test_openai_accepts(name: str, http: httpx.AsyncClient) -> None:
    """OpenAI accepts each of these requests: the simulator is not stricter than the API."""
    answer = await http.post(PATH, json={"model": "gpt-4.1", "input": "hi", **deepcopy(ACCEPTED_REQUESTS[name])})
    assert answer.status_code == 200, answer.text


async def test_a_missing_model_is_named(http: httpx.AsyncClient) -> None:
    """The error of a missing parameter names it."""
    answer = await http.post(PATH, json={"input": "hi"})
    assert answer.json()["error"] == {
        "message": "Missing required parameter: 'model'.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "missing_required_parameter",
    }


async def test_a_model_of_another_provider_is_unknown(http: httpx.AsyncClient) -> None:
    """A model name that is not OpenAI's is refused with 404."""
    answer = await http.post(PATH, json={"model": "claude-haiku-4-5", "input": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_an_unknown_file_id_is_refused(http: httpx.AsyncClient) -> None:
    """A reference to a file that was never uploaded is refused with 404."""
    answer = await http.post(PATH, json={"model": "gpt-4.1", **part(type="input_file", file_id="file-1")})
    assert answer.status_code == 404
    assert "file-1" in answer.json()["error"]["message"]


async def test_a_response_that_was_not_stored_cannot_be_continued(http: httpx.AsyncClient) -> None:
    """A response with `store: false` cannot be a `previous_response_id`."""
    body = {"model": "gpt-4.1", "input": "hi", "store": False}
    first = (await http.post(PATH, json=body)).json()
    second = await http.post(PATH, json={**body, "previous_response_id": first["id"]})
    assert second.json()["error"]["code"] == "previous_response_not_found"
