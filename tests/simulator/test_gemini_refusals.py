"""What `generateContent` answers with 400, and so must this one."""

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


def declared(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"functionDeclarations": [{"name": "f", **fields}]}]}


def turns(*parts: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
    """Turns by user and model in turn."""
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

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown field": (FLASH, {"metadata": {}}, 'Unknown name "metadata": Cannot find field'),
    "unknown field below": (
        FLASH,
        config(systemInstruction=USER),
        "Unknown name \"systemInstruction\" at 'generation_config': Cannot find field",
    ),
    "no contents": (FLASH, {"contents": []}, "contents is not specified"),
    "no parts": (FLASH, {"contents": [{"role": "user", "parts": []}]}, "parts must not be empty"),
    "an empty part": (FLASH, turns({}), "required oneof field 'data'"),
    "two in one part": (FLASH, turns({"text": "x", "inlineData": {"mimeType": "image/png", "data": "AA=="}}), "oneof"),
    "bytes that are none": (FLASH, turns({"inlineData": {"mimeType": "image/png", "data": "?"}}), "Base64 decoding"),
    "unknown role": (FLASH, {"contents": [{**USER, "role": "assistant"}]}, "Please use a valid role: user, model."),
    "wrong type": (FLASH, config(temperature="hot"), "generation_config.temperature"),
    "a string for contents": (FLASH, {"contents": "hi"}, "contents"),
    "no tokens": (FLASH, config(maxOutputTokens=0), "max_output_tokens"),
    "level and budget": (
        GEMINI_3,
        config(thinkingConfig={"thinkingLevel": "LOW", "thinkingBudget": 5}),
        "only set only one of thinking budget and thinking level",
    ),
    "a level on 2.5": (FLASH, config(thinkingConfig={"thinking_level": "LOW"}), "Thinking level is not supported"),
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
    "a JSON schema in the other field": (
        FLASH,
        config(responseMimeType="application/json", responseSchema={"type": "object", "additionalProperties": False}),
        "Unknown name \"additionalProperties\" at 'generation_config.response_schema'",
    ),
    "no JSON schema": (
        FLASH,
        config(responseMimeType="application/json", responseJsonSchema={"type": "strng"}),
        "Invalid JSON schema",
    ),
    "additionalProperties in parameters": (
        FLASH,
        declared(parameters={"type": "object", "properties": {}, "additionalProperties": False}),
        'Unknown name "additionalProperties"',
    ),
    "a reference in parameters": (
        FLASH,
        declared(parameters={"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}),
        'Unknown name "$ref"',
    ),
    "two kinds of parameters": (FLASH, declared(parameters={}, parametersJsonSchema={}), "only one of"),
    "a bad function name": (FLASH, {"tools": [{"functionDeclarations": [{"name": "1 f"}]}]}, "Invalid function name"),
    "tools in another's form": (FLASH, {"tools": [{"type": "function", "name": "f"}]}, "Cannot find field"),
    "an empty tool": (FLASH, {"tools": [{}]}, "tool_type"),
    "names without ANY": (
        FLASH,
        {**DECLARED, "toolConfig": {"functionCallingConfig": {"mode": "AUTO", "allowedFunctionNames": ["f"]}}},
        "only be set when function_calling_config.mode is ANY",
    ),
    "an unknown mode": (FLASH, {**DECLARED, "toolConfig": {"functionCallingConfig": {"mode": "REQUIRED"}}}, "mode"),
    "a response of its own accord": (FLASH, turns(HI, HI, RESPONSE), "immediately after a function call turn"),
    "one response for two calls": (FLASH, turns(HI, [CALL, CALL], RESPONSE), "number of function response parts"),
    "responses in contents of their own": (
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
    "calls that nobody answered": (FLASH, turns(HI, CALL, HI), "number of function response parts"),
    "a response to another call": (
        FLASH,
        turns(HI, CALL, {"functionResponse": {"name": "g", "response": {}}}),
        "of the turn before",
    ),
    "a call that comes first": (
        FLASH,
        {"contents": [{"role": "model", "parts": [CALL]}, {"role": "user", "parts": [RESPONSE]}]},
        "function call turn comes immediately after a user turn",
    ),
    "a call without its signature on 3": (GEMINI_3, turns(HI, CALL, RESPONSE), "missing a thought_signature"),
    "a call with another's signature on 3": (
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


@pytest.mark.parametrize("name", REFUSED)
async def test_gemini_refuses(name: str, http: httpx.AsyncClient) -> None:
    """Each row changes a good request into one that the API refuses."""
    model, changes, words = REFUSED[name]
    answer = await http.post(path(model), json={"contents": [USER], **deepcopy(changes)})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["status"] == "INVALID_ARGUMENT"
    assert words in error["message"]


TAKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "a text": (FLASH, {}),
    "a text without a role": (FLASH, {"contents": [{"parts": [HI]}]}),
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
    "an open JSON schema in parameters": (
        FLASH,
        declared(
            parameters_json_schema={"type": "object", "properties": {"snake_case": {}}, "additionalProperties": True}
        ),
    ),
    "its own dialect": (
        FLASH,
        declared(parameters={"type": "OBJECT", "properties": {"snake_case": {"type": "STRING", "nullable": True}}}),
    ),
    "a tool loop": (FLASH, turns(HI, [CALL, CALL], [RESPONSE, RESPONSE])),
    "a loop with a stand-in signature on 3": (
        GEMINI_3,
        turns(HI, {**CALL, "thoughtSignature": "skip_thought_signature_validator"}, RESPONSE),
    ),
    "an old call without its signature on 3": (GEMINI_3, turns(HI, CALL, RESPONSE, HI, HI)),
    "the provider's own tools": (FLASH, {"tools": [{"googleSearch": {}}, {"urlContext": {}}]}),
}


@pytest.mark.parametrize("name", TAKEN)
async def test_gemini_takes(name: str, http: httpx.AsyncClient) -> None:
    """And strictness ends where the API's own ends; camelCase and snake_case are the same."""
    model, changes = TAKEN[name]
    answer = await http.post(path(model), json={"contents": [USER], **deepcopy(changes)})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("version", ["v1", "v1beta"])
async def test_both_versions_answer(version: str, http: httpx.AsyncClient) -> None:
    """The SDK switches between them."""
    answer = await http.post(f"/gemini/{version}/models/{FLASH}:generateContent", json={"contents": [USER]})
    assert answer.status_code == 200


async def test_a_model_of_somebody_else_is_unknown(http: httpx.AsyncClient) -> None:
    """404, as for any name that Google does not know."""
    answer = await http.post(path("gpt-4.1"), json={"contents": [USER]})
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


async def test_a_file_that_nobody_uploaded_is_forbidden(http: httpx.AsyncClient) -> None:
    """Gemini does not say whether it exists."""
    uri = "https://generativelanguage.googleapis.com/v1/files/abc123"
    answer = await http.post(path(FLASH), json=turns({"fileData": {"fileUri": uri, "mimeType": "text/plain"}}))
    assert (answer.status_code, answer.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
