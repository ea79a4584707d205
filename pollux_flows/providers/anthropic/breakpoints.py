"""Prompt caching: sets the cache breakpoint of a request.

Anthropic caches the prefix before a breakpoint, in the order tools, system, messages. A single call has it at its end,
so that the next turn of the conversation reads all of it. In several calls with a shared prefix it stands before the
prompt: the prefix that one of them writes is then read by the others.
"""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.providers.base import Call

_MOST_BREAKPOINTS: Final = 4
# Other blocks take no breakpoint.
_MARKABLE: Final = {"text", "image", "document", "tool_use", "tool_result"}


def mark_prefix(body: dict[str, Any], call: Call, raw: dict[str, Any]) -> None:
    """Set the breakpoint in a request's body, unless the caller's own fields leave no room for one."""
    if _count_breakpoints(raw) >= _MOST_BREAKPOINTS:
        return
    control = {"type": "ephemeral", "ttl": "1h"} if call.options.cache_ttl == "1h" else {"type": "ephemeral"}
    if not (call.is_one_of_many and _mark_before_prompt(body, call, control)):
        body["cache_control"] = control


def _mark_before_prompt(body: dict[str, Any], call: Call, control: dict[str, str]) -> bool:
    """Mark the last block before the prompt, else the system instruction or the last tool; return whether one is."""
    blocks = [(message, index) for message in body["messages"] for index in range(len(message["content"]))]
    if call.prompt is not None:
        blocks.pop()
    while blocks:
        message, index = blocks.pop()
        block = message["content"][index]
        if block.get("type") in _MARKABLE:
            # Prior turns share their blocks with other requests.
            marked = {**block, "cache_control": control}
            message["content"] = [*message["content"][:index], marked, *message["content"][index + 1 :]]
            return True
    if body["system"]:
        body["system"] = [{"type": "text", "text": body["system"], "cache_control": control}]
        return True
    if body["tools"]:
        *others, last = body["tools"]
        body["tools"] = [*others, {**last, "cache_control": control}]
        return True
    return False


def _count_breakpoints(value: Any) -> int:
    if isinstance(value, dict):
        return ("cache_control" in value) + sum(map(_count_breakpoints, value.values()))
    return sum(map(_count_breakpoints, value)) if isinstance(value, list) else 0
