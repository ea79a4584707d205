"""The shape of Messages requests."""

from __future__ import annotations

import re
from typing import Any

from pollux_flows.simulator.shape import (
    Check,
    Misfit,
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

_SERVER_TOOL = re.compile(r"[a-z_]+_20\d{6}|mcp_toolset")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")

_CACHE_CONTROL = nullable(record({"type": one_of("ephemeral")}, {"ttl": one_of("5m", "1h")}))
_FILE = record({"type": text, "file_id": text})
_URL = record({"type": text, "url": text})
_TEXT = record({"type": text, "text": text}, {"cache_control": _CACHE_CONTROL, "citations": nullable(items(mapping))})
_IMAGE = record(
    {
        "type": text,
        "source": tagged(
            "type",
            {
                "base64": record(
                    {
                        "type": text,
                        "media_type": one_of("image/jpeg", "image/png", "image/gif", "image/webp"),
                        "data": text,
                    }
                ),
                "url": _URL,
                "file": _FILE,
            },
        ),
    },
    {"cache_control": _CACHE_CONTROL},
)
_DOCUMENT = record(
    {
        "type": text,
        "source": tagged(
            "type",
            {
                "base64": record({"type": text, "media_type": one_of("application/pdf"), "data": text}),
                "text": record({"type": text, "media_type": one_of("text/plain"), "data": text}),
                "content": record(
                    {"type": text, "content": string_or(items(tagged("type", {"text": _TEXT, "image": _IMAGE})))}
                ),
                "url": _URL,
                "file": _FILE,
            },
        ),
    },
    {
        "cache_control": _CACHE_CONTROL,
        "citations": nullable(record({}, {"enabled": boolean})),
        "title": nullable(text),
        "context": nullable(text),
    },
)
_RESULT_PARTS = tagged(
    "type",
    {
        "text": _TEXT,
        "image": _IMAGE,
        "document": _DOCUMENT,
        "search_result": record({"type": text}, is_open=True),
        "tool_reference": record({"type": text}, is_open=True),
    },
)
_TOOL_RESULT = record(
    {"type": text, "tool_use_id": text},
    {"content": string_or(items(_RESULT_PARTS)), "is_error": boolean, "cache_control": _CACHE_CONTROL},
)
_TOOL_USE = record(
    {"type": text, "id": text, "name": text, "input": mapping},
    {"cache_control": _CACHE_CONTROL, "caller": anything},
)
_BLOCK = tagged(
    "type",
    {
        "text": _TEXT,
        "image": _IMAGE,
        "document": _DOCUMENT,
        "search_result": record({"type": text}, is_open=True),
        "thinking": record({"type": text, "thinking": text, "signature": text}),
        "redacted_thinking": record({"type": text, "data": text}),
        "tool_use": _TOOL_USE,
        "tool_result": _TOOL_RESULT,
    },
)
_MESSAGE = record({"role": one_of("user", "assistant", "system"), "content": string_or(items(_BLOCK))})


def _tool_name(value: Any, path: Path) -> None:
    text(value, path)
    if not _TOOL_NAME.fullmatch(value):
        raise Misfit(path, "value", "a name that matches '^[a-zA-Z0-9_-]{1,128}$'", value)


_CUSTOM_TOOL = record(
    {"name": _tool_name, "input_schema": record({"type": one_of("object")}, is_open=True)},
    {
        "type": nullable(one_of("custom")),
        "description": text,
        "cache_control": _CACHE_CONTROL,
        "strict": boolean,
        "eager_input_streaming": nullable(boolean),
        "defer_loading": boolean,
        "allowed_callers": anything,
        "input_examples": items(mapping),
    },
)


def _tool(value: Any, path: Path) -> None:
    """Check a tool: custom ones in full, the provider's own only by their type."""
    mapping(value, path)
    kind = value.get("type")
    if kind in (None, "custom"):
        _CUSTOM_TOOL(value, path)
    elif not _SERVER_TOOL.fullmatch(str(kind)):
        raise Misfit((*path, "type"), "value", "'custom', or a server tool with its date", kind)


def _choice(**more: Check) -> Check:
    return record({"type": text, **more}, {"disable_parallel_tool_use": boolean})


_THINKING = tagged(
    "type",
    {
        "enabled": record(
            {"type": text, "budget_tokens": integer(minimum=1024)},
            {"display": nullable(one_of("summarized", "omitted"))},
        ),
        "adaptive": record({"type": text}, {"display": nullable(one_of("summarized", "omitted"))}),
        "disabled": record({"type": text}),
        "between_tools": record({"type": text}),
    },
)
_FIELDS: dict[str, Check] = {
    "system": string_or(items(tagged("type", {"text": _TEXT}))),
    "cache_control": _CACHE_CONTROL,
    "metadata": record({}, {"user_id": nullable(text)}),
    "stop_sequences": items(text),
    "stream": boolean,
    "service_tier": one_of("auto", "standard_only"),
    "speed": nullable(one_of("standard", "fast")),
    "thinking": _THINKING,
    "output_config": record(
        {},
        {
            "effort": nullable(one_of("low", "medium", "high", "xhigh", "max")),
            "format": nullable(tagged("type", {"json_schema": record({"type": text, "schema": mapping})})),
            "task_budget": anything,
        },
    ),
    "tools": items(_tool),
    "tool_choice": tagged("type", {"auto": _choice(), "any": _choice(), "none": _choice(), "tool": _choice(name=text)}),
    "container": anything,
    "diagnostics": anything,
    "inference_geo": nullable(text),
    "user_profile_id": nullable(text),
    "workspace_id": nullable(text),
    "mcp_servers": anything,
    "context_management": anything,
    "compaction": anything,
    "fallbacks": anything,
    "thread": anything,
    "billing_policy": anything,
    "fallback_credit_token": anything,
}
_REQUIRED: dict[str, Check] = {
    "model": text,
    "max_tokens": integer(minimum=1),
    "messages": items(_MESSAGE, at_least=1),
}
SAMPLING: dict[str, Check] = {
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "top_k": integer(minimum=0),
}

#: A request to the current version of the API, and one to those before 2026-10-21.
REQUEST = record(_REQUIRED, _FIELDS)
OLDER_REQUEST = record(_REQUIRED, {**_FIELDS, **SAMPLING})
