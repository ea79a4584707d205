"""The requests that Gemini's `:generateContent` refuses, with its error messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pollux_flows.simulator.gemini import fields
from pollux_flows.simulator.gemini.signature import is_valid
from pollux_flows.simulator.shape import Check, Mismatch
from pollux_flows.simulator.wire import BadRequest, Call, Refusal

LIST_LIMIT = 100
_KNOWN_MODELS = re.compile(r"(gemini|gemma|learnlm)-")
_WITHOUT_CACHES = re.compile(r"gemini-([4-9]|\d{2,})(?![^.-])")
_WITHOUT_THINKING = re.compile(r"(gemini-(1|2\.0)|gemma-|learnlm-)")
_DATA_FIELDS = (
    "text",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "executableCode",
    "codeExecutionResult",
    "toolCall",
    "toolResponse",
)

Item = TypeVar("Item")


def page(call: Call, items: Sequence[Item], request: str) -> tuple[list[Item], dict[str, str]]:
    """Return a page of the items, and the field of the response that leads to the next one, if there is one."""
    size, start = call.query.get("pageSize", "0"), call.query.get("pageToken", "0")
    if not (re.fullmatch(r"\d{1,9}", size, re.ASCII) and re.fullmatch(r"\d{1,9}", start, re.ASCII)):
        raise BadRequest("Invalid page token or page size.")
    if int(size) > LIST_LIMIT:
        raise BadRequest(f"* {request}.page_size: page_size must be at most {LIST_LIMIT}\n")
    # Without a page size, the service chooses one.
    end = int(start) + (int(size) or 10)
    return list(items[int(start) : end]), {"nextPageToken": str(end)} if end < len(items) else {}


def read_message(body: Any, shape: Check) -> dict[str, Any]:
    """Return the body with field names in camelCase; refuse one of another shape."""
    message: dict[str, Any] = fields.normal(body)
    try:
        shape(message, ())
    except Mismatch as mismatch:
        raise BadRequest(fields.describe(mismatch)) from None
    return message


def check_model(name: str) -> None:
    if not _KNOWN_MODELS.match(name):
        raise Refusal(
            404,
            f"models/{name} is not found for API version v1, or is not supported for generateContent. Call ListModels "
            "to see the list of available models and their supported methods.",
        )


def check_cacheable(model: str) -> None:
    if _WITHOUT_CACHES.match(model):
        raise Refusal(
            404, f"models/{model} is not found for API version v1, or is not supported for createCachedContent."
        )


def check_generate(model: str, message: dict[str, Any]) -> None:
    if not message.get("contents"):
        raise BadRequest("* GenerateContentRequest.contents: contents is not specified\n")
    check_contents(message["contents"])
    config = message.get("generationConfig") or {}
    _check_thinking(model, config.get("thinkingConfig") or {})
    _check_schema(model, message, config)
    _check_tools(message)
    _check_turns(model, message["contents"])
    if message.get("cachedContent") and message.keys() & {"systemInstruction", "tools", "toolConfig"}:
        raise BadRequest(
            "CachedContent can not be used with GenerateContent request setting system_instruction, tools or "
            "tool_config.\n\nProposed fix: move those values to CachedContent from GenerateContent request."
        )


def check_contents(contents: list[dict[str, Any]]) -> None:
    for place, content in enumerate(contents):
        if content.get("role", "user") not in ("user", "model", "function"):
            raise BadRequest("Please use a valid role: user, model.")
        parts = content.get("parts") or []
        if not parts:
            raise BadRequest(f"* GenerateContentRequest.contents[{place}].parts: contents.parts must not be empty.\n")
        for index, part in enumerate(parts):
            _check_part(part, f"contents[{place}].parts[{index}]")


def _check_part(part: dict[str, Any], where: str) -> None:
    data = [name for name in _DATA_FIELDS if name in part]
    if len(data) > 1:
        raise BadRequest(
            f"Invalid value at '{where}' (oneof), oneof field 'data' is already set. Cannot set '{data[1]}'"
        )
    # A part may have nothing but a thought signature.
    if not data and "thoughtSignature" not in part:
        raise BadRequest(
            f"* GenerateContentRequest.{where}.data: required oneof field 'data' must have one initialized field\n"
        )


def _check_thinking(model: str, thinking: dict[str, Any]) -> None:
    if {"thinkingLevel", "thinkingBudget"} <= thinking.keys():
        raise BadRequest("You can only set only one of thinking budget and thinking level.")
    if _WITHOUT_THINKING.match(model) and (
        thinking.get("includeThoughts") or "thinkingLevel" in thinking or thinking.get("thinkingBudget")
    ):
        raise BadRequest("Thinking is not enabled for this model.")
    if "thinkingLevel" in thinking and model.startswith("gemini-2"):
        raise BadRequest("Thinking level is not supported for this model.")
    if thinking.get("thinkingBudget") == 0 and re.match(r"gemini-(2\.5|3(\.\d)?)-pro", model):
        raise BadRequest("Budget 0 is invalid. This model only works in thinking mode.")


def _check_schema(model: str, message: dict[str, Any], config: dict[str, Any]) -> None:
    kind = config.get("responseMimeType", "text/plain")
    schemas = config.keys() & {"responseSchema", "responseJsonSchema"}
    if len(schemas) > 1:
        raise BadRequest("Only one of response_schema and response_json_schema may be set.")
    if schemas and kind not in ("application/json", "text/x.enum"):
        raise BadRequest(
            f"Unsupported response mime type: {kind}. When response_schema is set, response_mime_type must be "
            "application/json."
        )
    if kind not in ("text/plain", "application/json", "text/x.enum"):
        raise BadRequest(
            "* GenerateContentRequest.generation_config.response_mime_type: allowed mimetypes are `text/plain`, "
            "`application/json`, `application/xml`, `application/yaml` and `text/x.enum`.\n"
        )
    if message.get("tools") and kind == "application/json" and model.startswith("gemini-2"):
        raise BadRequest("Function calling with a response mime type: 'application/json' is unsupported")


def _check_tools(message: dict[str, Any]) -> None:
    names: list[str] = []
    for place, tool in enumerate(message.get("tools") or []):
        if not tool:
            raise BadRequest(f"* GenerateContentRequest.tools[{place}].tool_type: required one_of 'tool_type' must "
                               "have one initialized field\n")  # fmt: skip
        for index, declaration in enumerate(tool.get("functionDeclarations") or []):
            where = f"GenerateContentRequest.tools[{place}].function_declarations[{index}]"
            if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}", declaration["name"]):
                raise BadRequest(f"* {where}.name: Invalid function name. Must start with a letter or an underscore.\n")
            if {"parameters", "parametersJsonSchema"} <= declaration.keys():
                raise BadRequest(f"* {where}: only one of parameters and parameters_json_schema may be set\n")
            if declaration["name"] in names:
                raise BadRequest(f"Duplicate function declaration found: {declaration['name']}")
            names.append(declaration["name"])
    _check_calling(message, names)


def _check_calling(message: dict[str, Any], names: list[str]) -> None:
    calling = (message.get("toolConfig") or {}).get("functionCallingConfig") or {}
    allowed = calling.get("allowedFunctionNames") or []
    if allowed and calling.get("mode") not in ("ANY", "VALIDATED"):
        raise BadRequest(
            "* GenerateContentRequest.tool_config.function_calling_config."
            "allowed_function_names should only be set when function_calling_config.mode is ANY.\n"
        )
    if calling.get("mode") == "ANY" and not names and not message.get("cachedContent"):
        raise BadRequest("Function calling config is set without function_declarations.")
    for name in allowed:
        if names and name not in names:
            raise BadRequest(f"allowed_function_names: {name} is not a declared function")


def _check_turns(model: str, contents: list[dict[str, Any]]) -> None:
    """Check that function responses stand together, right after the calls that they answer."""
    calls: list[dict[str, Any]] = []
    current_turn = max((place for place, content in enumerate(contents) if _is_asking(content)), default=-1)
    for place, content in enumerate(contents):
        responses = [part for part in content["parts"] if "functionResponse" in part]
        if calls or responses:
            _check_responses(calls, responses)
        calls = [part for part in content["parts"] if "functionCall" in part]
        if calls and place == 0:
            raise BadRequest(
                "Please ensure that function call turn comes immediately after a user turn or after a function "
                "response turn."
            )
        if calls and model.startswith("gemini-3") and place > current_turn:
            _check_signature(calls[0], place)
    if calls:
        _check_responses(calls, [])


def _is_asking(content: dict[str, Any]) -> bool:
    return content.get("role", "user") == "user" and not any("functionResponse" in part for part in content["parts"])


def _check_responses(calls: list[dict[str, Any]], responses: list[dict[str, Any]]) -> None:
    if not calls:
        raise BadRequest("Please ensure that function response turn comes immediately after a function call turn.")
    if len(calls) != len(responses):
        raise BadRequest(
            "Please ensure that the number of function response parts is equal to the number of function call parts of "
            "the function call turn."
        )
    called = sorted(part["functionCall"]["name"] for part in calls)
    answered = sorted(part["functionResponse"]["name"] for part in responses)
    if called != answered:
        raise BadRequest(
            f"Please ensure that the function responses ({', '.join(answered)}) answer the function calls "
            f"({', '.join(called)}) of the turn before."
        )


def _check_signature(first_call: dict[str, Any], place: int) -> None:
    # Only the first of parallel calls carries the signature.
    signature = first_call.get("thoughtSignature")
    if signature is None:
        raise BadRequest(
            "Function call is missing a thought_signature in functionCall parts. This is required for tools to work "
            "correctly, and missing thought_signature may lead to degraded model performance. Additional data, "
            f"function call `default_api:{first_call['functionCall']['name']}` , position {place + 1}. Please refer to "
            "https://ai.google.dev/gemini-api/docs/thought-signatures for more details."
        )
    if not is_valid(signature, first_call["functionCall"]["name"]):
        raise BadRequest("Thought signature is not valid")
