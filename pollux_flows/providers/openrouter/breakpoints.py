"""Prompt caching: sets the cache breakpoint on Anthropic's routes, to which OpenRouter passes `cache_control`.

On other routes the provider behind OpenRouter caches by itself, or not at all.
"""

from __future__ import annotations

from typing import Any

from pollux_flows.providers.base import Call


def takes_breakpoints(model: str) -> bool:
    """Return whether the route caches the prefix before a breakpoint."""
    return model.removeprefix("~").startswith("anthropic/")


def mark_prefix(messages: list[dict[str, Any]], call: Call) -> None:
    """Set the breakpoint before the prompt, or after the system instruction if that is all there is."""
    control = {"type": "ephemeral", "ttl": "1h"} if call.options.cache_ttl == "1h" else {"type": "ephemeral"}
    asks = call.is_one_of_many and call.prompt is not None
    for message in reversed(messages):
        parts = message.get("content")
        if isinstance(parts, str) and parts and message["role"] == "system":
            parts = [{"type": "text", "text": parts}]
        elif message["role"] != "user" or not isinstance(parts, list):
            continue
        last = len(parts) - 1 - asks
        asks = False
        if last >= 0:
            message["content"] = [*parts[:last], {**parts[last], "cache_control": control}, *parts[last + 1 :]]
            return
