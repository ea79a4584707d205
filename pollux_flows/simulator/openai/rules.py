"""The requests that OpenAI's `POST /responses` refuses, with its error messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pollux_flows.simulator import strict_schema
from pollux_flows.simulator.openai import attachments, shapes
from pollux_flows.simulator.openai.seal import is_unchanged
from pollux_flows.simulator.openai.stored_responses import StoredResponse
from pollux_flows.simulator.shape import Mismatch, Path
from pollux_flows.simulator.wire import BadRequest, Call, Refusal

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_KNOWN_MODELS = re.compile(r"(gpt-|o\d|chatgpt-|codex-|computer-use|ft:)")
_WITHOUT_SAMPLING = re.compile(r"(gpt-[5-9](?!.*chat)|o\d)")
_WITHOUT_REASONING = re.compile(r"(gpt-[34]|chatgpt-)")

_CHAT_FIELDS = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_TYPE_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    dict: "an object",
    list: "an array",
    type(None): "null",
}


def check(call: Call) -> StoredResponse | None:
    """Refuse the requests that the API refuses; return the stored response that this request continues."""
    body = call.body
    try:
        shapes.request_check()(body, ())
    except Mismatch as mismatch:
        raise refusal_for(mismatch) from None
    _check_model(body)
    _check_schemas(body)
    _check_tool_choice(body)
    attachments.check(call)
    return _check_turns(call)


def refusal_for(mismatch: Mismatch) -> Refusal:
    """Return OpenAI's error response for a mismatch."""
    param = _param(mismatch.path)
    got = _TYPE_NAMES.get(type(mismatch.value), "something else")
    match mismatch.problem:
        case "unknown" if (last := str(mismatch.path[-1])) in _CHAT_FIELDS and len(mismatch.path) == 1:
            message = f"Unsupported parameter: '{last}'. In the Responses API, use '{_CHAT_FIELDS[last]}' instead."
            code = "unsupported_parameter"
        case "unknown":
            message, code = f"Unknown parameter: '{param}'.", "unknown_parameter"
        case "missing":
            message, code = f"Missing required parameter: '{param}'.", "missing_required_parameter"
        case "type":
            message = f"Invalid type for '{param}': expected {mismatch.expected}, but got {got} instead."
            code = "invalid_type"
        case "value":
            message = f"Invalid value: '{mismatch.value}'. Supported values are: {mismatch.expected}."
            code = "invalid_value"
        case side:
            word, sign = ("below", ">=") if side == "minimum" else ("above", "<=")
            message = (
                f"Invalid '{param}': integer {word} {side} value. "
                f"Expected a value {sign} {mismatch.expected}, but got {mismatch.value} instead."
            )
            code = f"integer_{word}_{'min' if side == 'minimum' else 'max'}_value"
    return BadRequest(message, code=code, param=param or None)


def _param(path: Path) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def is_known_model(model: str) -> bool:
    return _KNOWN_MODELS.match(model) is not None


def _check_model(body: dict[str, Any]) -> None:
    model = body["model"]
    if not is_known_model(model):
        raise Refusal(
            404, f"The model `{model}` does not exist or you do not have access to it.", code="model_not_found"
        )
    if _WITHOUT_SAMPLING.match(model):
        for name in ("temperature", "top_p"):
            if body.get(name) is not None:
                raise _unsupported(name)
    if _WITHOUT_REASONING.match(model) and body.get("reasoning"):
        raise _unsupported("reasoning.effort" if "effort" in body["reasoning"] else "reasoning.summary")
    if body.get("stream") or body.get("background"):
        raise BadRequest("The simulator neither streams nor works in the background.")
    if not (body.get("input") or body.get("prompt") or body.get("previous_response_id") or body.get("conversation")):
        raise BadRequest(
            "One of \"input\" or \"previous_response_id\" or 'prompt' or 'conversation_id' must be provided.",
            code="missing_required_parameter",
        )


def _unsupported(param: str) -> Refusal:
    return BadRequest(
        f"Unsupported parameter: '{param}' is not supported with this model.", param=param, code="unsupported_parameter"
    )


def _check_schemas(body: dict[str, Any]) -> None:
    text_format = (body.get("text") or {}).get("format") or {}
    if text_format.get("type") == "json_schema":
        _check_name(text_format["name"], "text.format.name")
        if text_format.get("strict") and (problem := strict_schema.find_problem(text_format["schema"])):
            raise BadRequest(
                f"Invalid schema for response_format '{text_format['name']}': {problem}",
                param="text.format.schema",
                code="invalid_json_schema",
            )
    if text_format.get("type") == "json_object" and "json" not in str(body.get("input")).lower():
        raise BadRequest(
            "Response input messages must contain the word 'json' in some form to use 'text.format' of type "
            "'json_object'.",
            param="input",
        )
    for place, tool in enumerate(body.get("tools") or []):
        if tool["type"] != "function":
            continue
        _check_name(tool["name"], f"tools[{place}].name")
        if tool.get("strict") and (problem := strict_schema.find_problem(tool.get("parameters"))):
            raise BadRequest(
                f"Invalid schema for function '{tool['name']}': {problem}",
                param=f"tools[{place}].parameters",
                code="invalid_function_parameters",
            )


def _check_name(name: str, param: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f"Invalid '{param}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]+$'.",
            param=param,
            code="invalid_value",
        )


def _check_tool_choice(body: dict[str, Any]) -> None:
    choice = body.get("tool_choice")
    tools = body.get("tools") or []
    if choice is None:
        return
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise BadRequest(
                f"Invalid value: '{choice}'. Supported values are: 'none', 'auto', and 'required'.",
                param="tool_choice",
                code="invalid_value",
            )
        if choice == "required" and not tools:
            raise BadRequest("Tool choice 'required' must be specified with 'tools' parameter.", param="tool_choice")
    elif choice["type"] == "function" and choice["name"] not in [tool.get("name") for tool in tools]:
        raise BadRequest(f"Tool choice '{choice['name']}' not found in 'tools' parameter.", param="tool_choice")


def _check_turns(call: Call) -> StoredResponse | None:
    """Check that every output answers a call, and every call has an output; return the continued response."""
    body = call.body
    previous = _previous_response(call)
    items: Sequence[Any] = body["input"] if isinstance(body.get("input"), list) else ()
    open_calls = dict(previous.open_calls) if previous else {}
    for index, item in enumerate(items):
        match item.get("type"):
            case "reasoning" if (sealed := item.get("encrypted_content")) and not is_unchanged(sealed):
                raise BadRequest(
                    f"The encrypted content for item {item['id']} could not be verified.",
                    param="input",
                    code="invalid_encrypted_content",
                )
            case "function_call":
                if previous and item["call_id"] in previous.all_calls:
                    raise BadRequest(
                        f"Duplicate item found with id {item['call_id']}. Remove duplicate items from your input and "
                        "try again.",
                        param="input",
                    )
                open_calls[item["call_id"]] = item["name"]
            case "function_call_output":
                if "call_id" not in item:
                    at = f"input[{index}].call_id"
                    raise BadRequest(
                        f"Missing required parameter: '{at}'.", param=at, code="missing_required_parameter"
                    )
                if open_calls.pop(item["call_id"], None) is None:
                    raise BadRequest(
                        f"No tool call found for function call output with call_id {item['call_id']}.", param="input"
                    )
    if open_calls:
        raise BadRequest(f"No tool output found for function call {next(iter(open_calls))}.", param="input")
    return previous


def _previous_response(call: Call) -> StoredResponse | None:
    """Return the stored response that the request continues, if any; refuse an unknown one."""
    previous_id = call.body.get("previous_response_id")
    if not previous_id:
        return None
    previous = call.simulator.openai_responses.get(previous_id)
    if previous is None:
        raise BadRequest(
            f"Previous response with id '{previous_id}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return previous
