"""The shape of chat completions requests. Unknown fields pass, as with OpenRouter and local servers."""

from __future__ import annotations

from typing import Any

from pollux_flows.simulator.shape import (
    Check,
    Mismatch,
    Path,
    anything,
    boolean,
    integer,
    items,
    mapping,
    nullable,
    number,
    one_of,
    record,
    string_or,
    tagged,
    text,
)
from pollux_flows.simulator.wire import BadRequest, Refusal


def _open(required: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    return record(required, optional, is_open=True)


_TEXT_PART = _open({"type": text, "text": text}, {"cache_control": nullable(mapping)})
_TEXT_PARTS = tagged("type", {"text": _TEXT_PART})
_USER_PARTS = tagged(
    "type",
    {
        "text": _TEXT_PART,
        "image_url": _open({"image_url": _open({"url": text})}),
        "file": _open({"file": _open({}, {"filename": text, "file_data": text, "file_id": text})}),
        "input_audio": _open({"input_audio": _open({"data": text, "format": text})}),
        "video_url": _open({"video_url": _open({"url": text})}),
    },
)
_TOOL_CALL = _open({"id": text, "type": one_of("function"), "function": _open({"name": text, "arguments": text})})
_MESSAGE = tagged(
    "role",
    {
        "system": _open({"content": string_or(items(_TEXT_PARTS))}),
        "developer": _open({"content": string_or(items(_TEXT_PARTS))}),
        "user": _open({"content": string_or(items(_USER_PARTS, at_least=1))}),
        "assistant": _open(
            {},
            {"content": nullable(string_or(items(_open({"type": text})))), "tool_calls": nullable(items(_TOOL_CALL))},
        ),
        "tool": _open({"tool_call_id": text, "content": string_or(items(_TEXT_PARTS))}),
    },
)
_REQUEST = _open(
    {"model": text, "messages": items(_MESSAGE, at_least=1)},
    {
        "max_tokens": nullable(integer(1)),
        "max_completion_tokens": nullable(integer(1)),
        "temperature": nullable(number(0, 2)),
        "top_p": nullable(number(0, 1)),
        "seed": nullable(integer()),
        "stop": nullable(string_or(items(text))),
        "stream": nullable(boolean),
        "tools": nullable(
            items(
                tagged(
                    "type",
                    {
                        "function": _open(
                            {"function": _open({"name": text}, {"parameters": mapping, "strict": anything})}
                        )
                    },
                )
            )
        ),
        "tool_choice": nullable(string_or(_open({"type": one_of("function"), "function": _open({"name": text})}))),
        "parallel_tool_calls": nullable(boolean),
        "response_format": nullable(
            tagged(
                "type",
                {
                    "text": _open({}),
                    "json_object": _open({}),
                    "json_schema": _open(
                        {"json_schema": _open({"name": text, "schema": mapping}, {"strict": nullable(boolean)})}
                    ),
                },
            )
        ),
        "plugins": nullable(
            items(
                _open(
                    {"id": text},
                    {
                        "pdf": nullable(
                            _open({}, {"engine": one_of("cloudflare-ai", "mistral-ocr", "native", "pdf-text")})
                        )
                    },
                )
            )
        ),
        "provider": nullable(_open({}, {"require_parameters": nullable(boolean)})),
        "reasoning": nullable(
            _open(
                {},
                {
                    "effort": nullable(one_of("max", "xhigh", "high", "medium", "low", "minimal", "none")),
                    "max_tokens": nullable(integer(1)),
                    "exclude": nullable(boolean),
                    "enabled": nullable(boolean),
                },
            )
        ),
    },
)


def check(body: Any) -> None:
    """Refuse requests that no chat completions server accepts."""
    try:
        _REQUEST(body, ())
    except Mismatch as mismatch:
        raise _refusal_for(mismatch) from None
    if body.get("stream"):
        raise BadRequest("The simulator does not stream.")
    tools = [tool["function"]["name"] for tool in body.get("tools") or []]
    choice = body.get("tool_choice")
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise BadRequest(f"Invalid value for 'tool_choice': {choice!r}")
    if isinstance(choice, dict) and choice["function"]["name"] not in tools:
        raise BadRequest(f"Tool choice '{choice['function']['name']}' not found in 'tools' parameter.")
    if choice == "required" and not tools:
        raise BadRequest("'tool_choice' is only allowed when 'tools' are specified.")
    if (body.get("reasoning") or {}).keys() >= {"effort", "max_tokens"}:
        raise BadRequest('Only one of "reasoning.effort" and "reasoning.max_tokens" can be specified')
    _check_turns(body["messages"])


def _refusal_for(mismatch: Mismatch) -> Refusal:
    where = _where(mismatch.path)
    match mismatch.problem:
        case "missing":
            return BadRequest(f'Input required: specify "{where}"')
        case "type":
            return BadRequest(f"{where}: Invalid input: expected {mismatch.expected}")
        case "value":
            return BadRequest(f"{where}: Invalid option: expected one of {mismatch.expected}")
        case _:
            return BadRequest(f"{where}: Too small or too big: {mismatch.problem} {mismatch.expected}")


def _where(path: Path) -> str:
    return ".".join(map(str, path))


def _check_turns(messages: list[dict[str, Any]]) -> None:
    """Check that tool messages answer the calls of the assistant message before them, each of them once."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                raise BadRequest(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message "
                    "with 'tool_calls'."
                )
            waiting.remove(message["tool_call_id"])
            continue
        if waiting:
            break
        waiting = [call["id"] for call in message.get("tool_calls") or []]
    if waiting:
        raise BadRequest(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(waiting)}"
        )
