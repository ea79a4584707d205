"""The shape of Responses requests."""

from __future__ import annotations

from typing import Any

from pollux_flows.simulator.shape import (
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
    values,
)

_EFFORTS = one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")
_STATUS = one_of("in_progress", "completed", "incomplete")

_INPUT_TEXT = record({"type": text, "text": text}, {"prompt_cache_breakpoint": nullable(mapping)})
_INPUT_IMAGE = record(
    {"type": text},
    {
        "detail": nullable(one_of("low", "high", "auto", "original")),
        "file_id": nullable(text),
        "image_url": nullable(text),
        "prompt_cache_breakpoint": nullable(mapping),
    },
)
_INPUT_FILE = record(
    {"type": text},
    {
        "file_data": text,
        "file_id": nullable(text),
        "file_url": text,
        "filename": text,
        "detail": one_of("auto", "low", "high"),
        "prompt_cache_breakpoint": nullable(mapping),
    },
)
_INPUT_PARTS = tagged("type", {"input_text": _INPUT_TEXT, "input_image": _INPUT_IMAGE, "input_file": _INPUT_FILE})
_OUTPUT_PARTS = tagged(
    "type",
    {
        "output_text": record({"type": text, "text": text}, {"annotations": items(mapping), "logprobs": anything}),
        "refusal": record({"type": text, "refusal": text}),
    },
)


def _message(value: Any, path: Path) -> None:
    role = value.get("role")
    parts = _OUTPUT_PARTS if role == "assistant" else _INPUT_PARTS
    record(
        {"role": one_of("user", "assistant", "system", "developer"), "content": string_or(items(parts))},
        {"type": text, "id": text, "status": _STATUS, "phase": nullable(text)},
    )(value, path)


_ITEM = tagged(
    "type",
    {
        "message": _message,
        "function_call": record(
            {"type": text, "call_id": text, "name": text, "arguments": text},
            {"id": nullable(text), "status": nullable(_STATUS), "namespace": text, "caller": anything},
        ),
        "function_call_output": record(
            {"type": text, "call_id": text, "output": string_or(items(_INPUT_PARTS))},
            {"id": nullable(text), "status": nullable(_STATUS), "caller": anything},
        ),
        "reasoning": record(
            {"type": text, "id": text, "summary": items(record({"type": text, "text": text}))},
            {"encrypted_content": nullable(text), "content": nullable(items(mapping)), "status": nullable(_STATUS)},
        ),
        "item_reference": record({"id": text}, {"type": nullable(text)}),
    },
    default="message",
)

_TOOL_TYPES = one_of(
    "function",
    "custom",
    "web_search",
    "web_search_preview",
    "file_search",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "mcp",
    "image_generation",
    "local_shell",
    "shell",
    "apply_patch",
    "namespace",
    "tool_search",
)
_FUNCTION = record(
    {"type": text, "name": text},
    {
        "parameters": nullable(mapping),
        "strict": nullable(boolean),
        "description": nullable(text),
        "defer_loading": boolean,
        "allowed_callers": anything,
        "output_schema": nullable(mapping),
    },
)


def _tool(value: Any, path: Path) -> None:
    """Check a tool: function tools in full, the provider's own only by their type."""
    record({"type": _TOOL_TYPES}, is_open=True)(value, path)
    if value["type"] == "function":
        _FUNCTION(value, path)


_FORMAT = tagged(
    "type",
    {
        "text": record({"type": text}),
        "json_object": record({"type": text}),
        "json_schema": record(
            {"type": text, "name": text, "schema": mapping},
            {"strict": nullable(boolean), "description": nullable(text)},
        ),
    },
)

REQUEST = record(
    {"model": text},
    {
        "input": string_or(items(_ITEM)),
        "instructions": nullable(text),
        "max_output_tokens": nullable(integer(minimum=16)),
        "max_tool_calls": nullable(integer()),
        "temperature": nullable(number(0, 2)),
        "top_p": nullable(number(0, 1)),
        "top_logprobs": nullable(integer(0, 20)),
        "parallel_tool_calls": nullable(boolean),
        "previous_response_id": nullable(text),
        "store": nullable(boolean),
        "stream": nullable(boolean),
        "background": nullable(boolean),
        "include": nullable(items(text)),
        "metadata": nullable(values(text)),
        "reasoning": nullable(
            record(
                {},
                {
                    "effort": nullable(_EFFORTS),
                    "summary": nullable(one_of("auto", "concise", "detailed")),
                    "generate_summary": nullable(text),
                    "context": nullable(text),
                    "mode": nullable(text),
                },
            )
        ),
        "text": nullable(record({}, {"format": _FORMAT, "verbosity": nullable(one_of("low", "medium", "high"))})),
        "tools": nullable(items(_tool)),
        "tool_choice": string_or(record({"type": text}, is_open=True)),
        "truncation": nullable(one_of("auto", "disabled")),
        "service_tier": nullable(text),
        "user": text,
        "safety_identifier": nullable(text),
        "prompt_cache_key": nullable(text),
        "prompt_cache_options": nullable(mapping),
        "prompt_cache_retention": nullable(text),
        "prompt": nullable(mapping),
        "conversation": anything,
        "context_management": anything,
        "access_programs": anything,
        "image": anything,
        "moderation": anything,
        "stream_options": anything,
    },
)
