"""Parses chat completions requests into `GenerateRequest`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pollux_flows.simulator import tokens
from pollux_flows.simulator.anthropic.reading import CACHE_S
from pollux_flows.simulator.generate_request import GenerateRequest
from pollux_flows.simulator.prefixes import Block


def read(body: dict[str, Any], *, context_window: int, reasoning: bool) -> GenerateRequest:
    prompt, results = _last_turn(body["messages"])
    stop = body.get("stop") or ()
    return GenerateRequest(
        prompt=prompt,
        input_tokens=sum(block.tokens for block in prompt_blocks(body)),
        context_window=context_window,
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        schema=schema(body),
        tools={tool["function"]["name"]: tool["function"].get("parameters") for tool in body.get("tools") or []},
        tool_choice=_tool_choice(body.get("tool_choice")),
        tool_results=results,
        reasoning=reasoning,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )


def schema(body: dict[str, Any]) -> Any:
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        return response_format["json_schema"]["schema"]
    return True if response_format.get("type") == "json_object" else None


def parts(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Iterate over the content parts of all messages."""
    for message in body["messages"]:
        if isinstance(message.get("content"), list):
            yield from message["content"]


def prompt_blocks(body: dict[str, Any]) -> list[Block]:
    """Split the prompt into blocks; `cache_control` marks the end of a prefix to cache."""
    blocks = [Block(tool, tokens.of_json(tool)) for tool in body.get("tools") or []]
    if isinstance(json_schema := schema(body), dict):
        blocks.append(Block(json_schema, tokens.of_json(json_schema)))
    for message in body["messages"]:
        for part in _parts(message.get("content")):
            control = part.get("cache_control")
            lifetime_s = CACHE_S.get(control.get("ttl", "5m")) if control else None
            content = {name: value for name, value in part.items() if name != "cache_control"}
            blocks.append(Block([message["role"], content], _part_tokens(part), lifetime_s))
        for call in message.get("tool_calls") or []:
            function = call["function"]
            count = tokens.of_text(function["name"]) + tokens.of_text(function["arguments"])
            blocks.append(Block(call, count))
    return blocks


def _parts(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [{"type": "text", "text": content or ""}]


def _last_turn(messages: list[dict[str, Any]]) -> tuple[str, tuple[str, ...]]:
    if messages[-1]["role"] == "tool":
        names = {
            call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls") or []
        }
        last_calls = max(place for place, message in enumerate(messages) if message.get("tool_calls"))
        return "", tuple(names[message["tool_call_id"]] for message in messages[last_calls + 1 :])
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content, ()
            texts = [part["text"] for part in content if part["type"] == "text"]
            return (texts[-1] if texts else ""), ()
    return "", ()


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict):
        return (choice["function"]["name"],)
    return choice or "auto"


def _part_tokens(part: dict[str, Any]) -> int:
    match part["type"]:
        case "text":
            return tokens.of_text(part["text"])
        case "image_url" | "video_url":
            return tokens.of_url(part[part["type"]]["url"])
        case "file":
            return tokens.of_url(part["file"].get("file_data", ""))
        case "input_audio":
            return tokens.of_base64(part["input_audio"]["data"])
        case _:
            return 0
