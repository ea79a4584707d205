"""Invalid requests that `generateContent` refuses with 400, and edge cases that it accepts."""

from copy import deepcopy
from typing import Any

import httpx
import pytest

from pollux_flows.simulator.gemini.signature import sign

FLASH = "gemini-2.5-flash"
GEMINI_3 = "gemini-3-flash-preview"
USER = {"role": "user", "parts": [{"text": "hi"}]}
DECLARED = {"tools": [{"functionDeclarations": [{"name": "f"}]}]}


def path(model: str) -> str:
    return f"/gemini/v1/models/{model}:generateContent"


def config(**fields: Any) -> dict[str, Any]:
    return {"generationConfig": fields}


def declare(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"functionDeclarations": [{"name": "f", **fields}]}]}


def turns(*parts: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
    """Return contents whose roles alternate between user and model."""
    roles = ("user", "model")
    return {
        "contents": [
            {"role": roles[place % 2], "parts": turn if isinstance(turn, list) else [turn]}
            for place, turn in enumerate(parts)
        ]
    }


HI = {"text": "hi"}
CALL = {"functionCall": {"name": "f", "args": {}}}
RESPONSE = {"functionResponse": {"name": "f", "response": {"n": 1}}}

REFUSED_REQUESTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown field": (FLASH, {"metadata": {}}, 'Unknown name "metadata": Cannot find field'),
    "unknown field below": (
        FLASH,
        config(systemInstruction=USER),
        "Unknown name \"systemInstruction\" at 'generation_config': Cannot find field",
    ),
    "no contents": (FLASH, {"contents": []}, "contents is not specified"),
    "no parts": (FLASH, {"contents": [{"role": "user", "parts": []}]}, "parts must not be empty"),
    "empty part": (FLASH, turns({}), "required oneof field 'data'"),
    "part with two kinds of data": (
        FLASH,
        turns({"text": "x", "inlineData": {"mimeType": "image/png", "data": "AA=="}}),
        "oneof",
    ),
    "invalid base64": (FLASH, turns({"inlineData": {"mimeType": "image/png", "data": "?"}}), "Base64 decoding"),
    "unknown role": (FLASH, {"contents": [{**USER, "role": "assistant"}]}, "Please use a valid role: user, model."),
    "wrong type": (FLASH, config(temperature="hot"), "generation_config.temperature"),
    "contents as a string": (FLASH, {"contents": "hi"}, "contents"),
    "no output tokens": (FLASH, config(maxOutputTokens=0), "max_output_tokens"),
    "thinking level and budget": (
        GEMINI_3,
        config(thinkingConfig={"thinkingLevel": "LOW", "thinkingBudget": 5}),
        "only set only one of thinking budget and thinking level",
    ),
    "thinking level on 2.5": (
        FLASH,
        config(thinkingConfig={"thinking_level": "LOW"}),
        "Thinking level is not supported",
    ),
    "thinking on 2.0": ("gemini-2.0-flash", config(thinkingConfig={"includeThoughts": True}), "not enabled"),
    "no thinking on 2.5 Pro": ("gemini-2.5-pro", config(thinkingConfig={"thinkingBudget": 0}), "Budget 0 is invalid"),
    "tools and JSON on 2.5": (
        FLASH,
        {**DECLARED, **config(responseMimeType="application/json")},
        "Function calling with a response mime type: 'application/json' is unsupported",
    ),
    "a schema without JSON": (FLASH, config(responseJsonSchema={"type": "object"}), "Unsupported response mime type"),
    "two schemas": (
        FLASH,
        config(responseMimeType="application/json", responseJsonSchema={}, responseSchema={}),
        "Only one of",
    ),
    "JSON Schema in responseSchema": (
        FLASH,
        config(responseMimeType="application/json", responseSchema={"type": "object", "additionalProperties": False}),
        "Unknown name \"additionalProperties\" at 'generation_config.response_schema'",
    ),
    "invalid JSON Schema": (
        FLASH,
        config(responseMimeType="application/json", responseJsonSchema={"type": "strng"}),
        "Invalid JSON schema",
    ),
    "additionalProperties in parameters": (
        FLASH,
        declare(parameters={"type": "object", "properties": {}, "additionalProperties": False}),
        'Unknown name "additionalProperties"',
    ),
    "a reference in parameters": (
        FLASH,
        declare(parameters={"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}),
        'Unknown name "$ref"',
    ),
    "parameters in two dialects": (FLASH, declare(parameters={}, parametersJsonSchema={}), "only one of"),
    "invalid function name": (FLASH, {"tools": [{"functionDeclarations": [{"name": "1 f"}]}]}, "Invalid function name"),
    "tool in OpenAI's format": (FLASH, {"tools": [{"type": "function", "name": "f"}]}, "Cannot find field"),
    "empty tool": (FLASH, {"tools": [{}]}, "tool_type"),
    "allowed names without mode ANY": (
        FLASH,
        {**DECLARED, "toolConfig": {"functionCallingConfig": {"mode": "AUTO", "allowedFunctionNames": ["f"]}}},
        "only be set when function_calling_config.mode is ANY",
    ),
    "unknown mode": (FLASH, {**DECLARED, "toolConfig": {"functionCallingConfig": {"mode": "REQUIRED"}}}, "mode"),
    "response without a call": (FLASH, turns(HI, HI, RESPONSE), "immediately after a function call turn"),
    "one response for two calls": (FLASH, turns(HI, [CALL, CALL], RESPONSE), "number of function response parts"),
    "responses in separate contents": (
        FLASH,
        {
            "contents": [
                USER,
                {"role": "model", "parts": [CALL, CALL]},
                {"role": "user", "parts": [RESPONSE]},
                {"role": "user", "parts": [RESPONSE]},
            ]
        },
        "number of function response parts",
    ),
    "call without a response": (FLASH, turns(HI, CALL, HI), "number of function response parts"),
    "response with the name of another function": (
        FLASH,
        turns(HI, CALL, {"functionResponse": {"name": "g", "response": {}}}),
        "of the turn before",
    ),
    "call in the first turn": (
        FLASH,
        {"contents": [{"role": "model", "parts": [CALL]}, {"role": "user", "parts": [RESPONSE]}]},
        "function call turn comes immediately after a user turn",
    ),
    "a call without its signature on 3": (GEMINI_3, turns(HI, CALL, RESPONSE), "missing a thought_signature"),
    "a call with an invalid signature on 3": (
        GEMINI_3,
        turns(HI, {**CALL, "thoughtSignature": "AAAA"}, RESPONSE),
        "Thought signature is not valid",
    ),
    "a call with the signature of another call on 3": (
        GEMINI_3,
        turns(HI, {**CALL, "thoughtSignature": sign("g")}, RESPONSE),
        "Thought signature is not valid",
    ),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
async def test_gemini_refuses(name: str, http: httpx.AsyncClient) -> None:
    """Gemini refuses a valid request after each of these changes, and the message names the problem."""
    model, changes, words = REFUSED_REQUESTS[name]
    answer = await http.post(path(model), json={"contents": [USER], **deepcopy(changes)})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["status"] == "INVALID_ARGUMENT"
    assert words in error["message"]


ACCEPTED_REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": (FLASH, {}),
    "text without a role": (FLASH, {"contents": [{"parts": [HI]}]}),
    "snake case": (
        FLASH,
        {
            "system_instruction": {"parts": [HI]},
            "generation_config": {"max_output_tokens": 9, "thinking_config": {"thinking_budget": 0}},
            "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        },
    ),
    "all kinds of parts": (
        FLASH,
        turns(
            [
                {"inline_data": {"mime_type": "image/png", "data": "AP8="}},
                {"fileData": {"fileUri": "https://e.x/a.pdf", "mimeType": "application/pdf"}},
                {
                    "fileData": {"file_uri": "https://www.youtube.com/watch?v=x", "mime_type": "video/mp4"},
                    "videoMetadata": {"start_offset": "10s", "fps": 2.0},
                },
                HI,
            ]
        ),
    ),
    "tools and JSON on 3": (GEMINI_3, {**DECLARED, **config(responseMimeType="application/json")}),
    "open schema in parametersJsonSchema": (
        FLASH,
        declare(
            parameters_json_schema={"type": "object", "properties": {"snake_case": {}}, "additionalProperties": True}
        ),
    ),
    "Gemini's schema dialect": (
        FLASH,
        declare(parameters={"type": "OBJECT", "properties": {"snake_case": {"type": "STRING", "nullable": True}}}),
    ),
    "tool loop": (FLASH, turns(HI, [CALL, CALL], [RESPONSE, RESPONSE])),
    "tool loop with a placeholder signature on 3": (
        GEMINI_3,
        turns(HI, {**CALL, "thoughtSignature": "skip_thought_signature_validator"}, RESPONSE),
    ),
    "call of an earlier turn without its signature on 3": (GEMINI_3, turns(HI, CALL, RESPONSE, HI, HI)),
    "Gemini's own tools": (FLASH, {"tools": [{"googleSearch": {}}, {"urlContext": {}}]}),
}


@pytest.mark.parametrize("name", ACCEPTED_REQUESTS)
async def test_gemini_accepts(name: str, http: httpx.AsyncClient) -> None:
    """Gemini accepts each of these requests, with fields in camelCase or snake_case."""
    model, changes = ACCEPTED_REQUESTS[name]
    answer = await http.post(path(model), json={"contents": [USER], **deepcopy(changes)})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("version", ["v1", "v1beta"])
async def test_both_api_versions_answer(version: str, http: httpx.AsyncClient) -> None:
    """The SDK uses both versions."""
    answer = await http.post(f"/gemini/{version}/models/{FLASH}:generateContent", json={"contents": [USER]})
    assert answer.status_code == 200


async def test_a_model_of_another_provider_is_unknown(http: httpx.AsyncClient) -> None:
    """A model name that is not Google's is refused with 404."""
    answer = await http.post(path("gpt-4.1"), json={"contents": [USER]})
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


async def test_an_unknown_file_is_forbidden(http: httpx.AsyncClient) -> None:
    """A file that was never uploaded is refused with 403, like one of another account."""
    uri = "https://generativelanguage.googleapis.com/v1/files/abc123"
    answer = await http.post(path(FLASH), json=turns({"fileData": {"fileUri": uri, "mimeType": "text/plain"}}))
    assert (answer.status_code, answer.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
