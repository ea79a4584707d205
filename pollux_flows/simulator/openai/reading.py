"""Parses Responses requests into `GenerateRequest`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pollux_flows.simulator import tokens
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.openai.rules import check
from pollux_flows.simulator.prefixes import Block
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.wire import Call

#: Shorter prompts are not cached.
CACHED_FROM_TOKENS = 1024
#: The cache lifetimes that a request can choose where writes are billed; older models have a shorter one.
CACHE_S = {"30m": 1800.0, "12h": 43_200.0}
_OLDER_S = 600.0


def read(call: Call) -> GenerateRequest:
    previous = check(call)
    body = call.body
    blocks = prompt_blocks(call)
    names = dict(previous.open_calls) if previous else {}
    prompt = ""
    results: list[str] = []
    for item in input_items(body):
        kind = item.get("type", "message")
        if kind == "message" and item["role"] == "user":
            prompt, results = _last_text(item["content"]), []
        elif kind == "function_call":
            names[item["call_id"]] = item["name"]
        elif kind == "function_call_output":
            results.append(names.get(item["call_id"], item["call_id"]))
        elif kind == "message" and item["role"] == "assistant":
            results = []
    return GenerateRequest(
        prompt="" if results else prompt,
        input_tokens=sum(block.tokens for block in blocks) + (previous.context_tokens if previous else 0),
        context_window=1_047_576 if body["model"].startswith("gpt-4.1") else 400_000,
        max_tokens=body.get("max_output_tokens"),
        schema=_schema(body),
        tools={
            tool["name"]: tool.get("parameters") or {} for tool in body.get("tools") or [] if tool["type"] == "function"
        },
        tool_choice=_tool_choice(body.get("tool_choice")),
        tool_results=tuple(results),
        reasoning=_reasons(body),
    )


def input_items(body: dict[str, Any]) -> list[dict[str, Any]]:
    value = body.get("input")
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    return value or []


def prompt_blocks(call: Call) -> list[Block]:
    """Split the prompt into blocks, in the order in which the model reads it: tools, schema, instructions, input."""
    body, files = call.body, call.files
    pieces: list[tuple[Any, int]] = [(tool, tokens.of_json(tool)) for tool in body.get("tools") or []]
    if isinstance(schema := _schema(body), dict):
        pieces.append((schema, tokens.of_json(schema)))
    if body.get("instructions"):
        pieces.append((body["instructions"], tokens.of_text(body["instructions"])))
    for item in input_items(body):
        content = item.get("content")
        if isinstance(content, list) and item.get("type", "message") == "message":
            pieces.extend(([item["role"], part], _part_tokens(part, files)) for part in content)
        else:
            pieces.append((item, _item_tokens(item, files)))
    options = body.get("prompt_cache_options") or {}
    lifetime_s = CACHE_S[options.get("ttl") or "30m"] if writes_are_billed(body["model"]) else _OLDER_S
    only_marked = options.get("mode") == "explicit"
    return [
        Block(content, count, None if only_marked and not _is_breakpoint(content) else lifetime_s)
        for content, count in pieces
    ]


def _is_breakpoint(content: Any) -> bool:
    part = content[1] if isinstance(content, list) else content
    return isinstance(part, dict) and part.get("prompt_cache_breakpoint") is not None


def writes_are_billed(model: str) -> bool:
    """Return whether the model reports and bills cache writes: from GPT-5.6 on."""
    return re.match(r"gpt-(5\.[6-9]|5\.\d\d|[6-9])", model) is not None


def _reasons(body: dict[str, Any]) -> bool:
    settings = body.get("reasoning") or {}
    return settings.get("effort") not in (None, "none") or settings.get("summary") is not None


def _schema(body: dict[str, Any]) -> Any:
    text_format = (body.get("text") or {}).get("format") or {}
    if text_format.get("type") == "json_schema":
        return text_format["schema"]
    return True if text_format.get("type") == "json_object" else None


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict):
        return (choice["name"],) if choice["type"] == "function" else "auto"
    return choice or "auto"


def _last_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content if part["type"] == "input_text"]
    return texts[-1] if texts else ""


def _item_tokens(item: dict[str, Any], files: Mapping[str, StoredFile]) -> int:
    match item.get("type", "message"):
        case "message":
            return tokens.of_text(item["content"])
        case "function_call":
            return tokens.of_text(item["name"]) + tokens.of_text(item["arguments"])
        case "function_call_output":
            output = item["output"]
            if isinstance(output, str):
                return tokens.of_text(output)
            return sum(_part_tokens(part, files) for part in output)
        case "reasoning":
            return sum(tokens.of_text(part.get("text", "")) for part in item["summary"])
        case _:
            return 0


def _part_tokens(part: dict[str, Any], files: Mapping[str, StoredFile]) -> int:
    match part["type"]:
        case "input_text" | "output_text":
            return tokens.of_text(part["text"])
        case "refusal":
            return tokens.of_text(part["refusal"])
        case "input_file" | "input_image" if part.get("file_id"):
            file = files[part["file_id"]]
            return tokens.of_file(file.mime_type, file.size)
        case "input_file" if part.get("file_data"):
            return tokens.of_url(part["file_data"])
        case "input_image" if part.get("image_url"):
            return tokens.of_url(part["image_url"])
        case _:
            return tokens.of_attachment()
