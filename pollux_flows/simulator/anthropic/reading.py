"""Parses Messages requests into `GenerateRequest`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pollux_flows.simulator import tokens
from pollux_flows.simulator.anthropic import attachments
from pollux_flows.simulator.anthropic.rules import blocks_of, check
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.prefixes import Block
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.wire import Call

CACHE_S = {"5m": 300.0, "1h": 3600.0}
_CHOICES: dict[str, Any] = {"auto": "auto", "none": "none", "any": "required"}


def read(call: Call) -> GenerateRequest:
    model = check(call)
    attachments.check(call)
    body = call.body
    prompt, results = _last_turn(body["messages"])
    thinking = (body.get("thinking") or {"type": "disabled"})["type"]
    reasoning = thinking in ("enabled", "adaptive") or (thinking == "between_tools" and bool(results))
    return GenerateRequest(
        prompt=prompt,
        input_tokens=sum(block.tokens for block in prompt_blocks(call)),
        context_window=model.context_window,
        max_tokens=body["max_tokens"],
        schema=_schema(body),
        tools={tool["name"]: tool["input_schema"] for tool in body.get("tools") or [] if "input_schema" in tool},
        tool_choice=_tool_choice(body.get("tool_choice")),
        tool_results=results,
        reasoning=reasoning,
        # Claude announces its calls; a client must replay a turn of thinking, text and call.
        announces_calls=reasoning,
        stop=tuple(body.get("stop_sequences") or ()),
    )


def prompt_blocks(call: Call) -> list[Block]:
    """Split the prompt into blocks, in the order of prefix caching: schema, tools, system, messages."""
    body = call.body
    blocks = []
    if (schema := _schema(body)) is not None:
        blocks.append(Block(schema, tokens.of_json(schema)))
    blocks += [_block("tool", tool, tokens.of_json(_unmarked(tool))) for tool in body.get("tools") or []]
    for part in blocks_of(body.get("system") or []):
        blocks.append(_block("system", part, tokens.of_text(part["text"])))
    for message in body["messages"]:
        for part in blocks_of(message["content"]):
            blocks.append(_block(message["role"], part, _part_tokens(part, call.files)))
    if control := body.get("cache_control"):
        # A top-level `cache_control` caches the entire request.
        last = blocks[-1]
        blocks[-1] = Block(last.content, last.tokens, CACHE_S[control.get("ttl", "5m")])
    return blocks


def _block(role: str, part: dict[str, Any], count: int) -> Block:
    control = part.get("cache_control")
    return Block([role, _unmarked(part)], count, CACHE_S[control.get("ttl", "5m")] if control else None)


def _unmarked(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name != "cache_control"}


def _schema(body: dict[str, Any]) -> Any:
    output_format = (body.get("output_config") or {}).get("format")
    return output_format["schema"] if output_format else None


def _tool_choice(choice: dict[str, Any] | None) -> Any:
    if choice is None:
        return "auto"
    return (choice["name"],) if choice["type"] == "tool" else _CHOICES[choice["type"]]


def _last_turn(messages: list[dict[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """Return the prompt of the last turn, and the names of the tools whose results it has."""
    turns = [(message["role"], blocks_of(message["content"])) for message in messages]
    content = [blocks for role, blocks in turns if role == "user"][-1]
    names = {block["id"]: block["name"] for _, blocks in turns for block in blocks if block["type"] == "tool_use"}
    results = tuple(names[block["tool_use_id"]] for block in content if block["type"] == "tool_result")
    texts = [block["text"] for block in content if block["type"] == "text"]
    return (texts[-1] if texts else ""), results


def _part_tokens(part: dict[str, Any], files: Mapping[str, StoredFile]) -> int:
    match part["type"]:
        case "text":
            return tokens.of_text(part["text"])
        case "thinking":
            return tokens.of_text(part["thinking"])
        case "tool_use":
            return tokens.of_text(part["name"]) + tokens.of_json(part["input"])
        case "tool_result":
            return _content_tokens(part.get("content") or "", files)
        case "image" | "document":
            return _source_tokens(part["source"], files)
        case _:
            return tokens.of_json(part)


def _content_tokens(content: Any, files: Mapping[str, StoredFile]) -> int:
    if isinstance(content, str):
        return tokens.of_text(content)
    return sum(_part_tokens(part, files) for part in content)


def _source_tokens(source: dict[str, Any], files: Mapping[str, StoredFile]) -> int:
    match source["type"]:
        case "text":
            return tokens.of_text(source["data"])
        case "base64":
            return tokens.of_base64(source["data"])
        case "content":
            return _content_tokens(source["content"], files)
        case "file":
            file = files[source["file_id"]]
            return tokens.of_file(file.mime_type, file.size)
        case _:
            return tokens.of_attachment()
