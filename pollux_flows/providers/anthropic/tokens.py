"""Token counts by Anthropic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pollux_flows.providers.anthropic.generate import request
from pollux_flows.providers.base import Call
from pollux_flows.providers.tokens import TokenCount, ask_counter

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

# The fields of a request that shape its input; the counter refuses the others.
_COUNTED: Final = {
    "cache_control",
    "messages",
    "model",
    "output_config",
    "speed",
    "system",
    "thinking",
    "tool_choice",
    "tools",
}


async def count(client: AsyncAnthropic, call: Call) -> TokenCount:
    """Count the tokens of a call's request, including instructions, tools and schema."""
    body = {name: value for name, value in request(call).items() if name in _COUNTED}
    return await ask_counter(client, "/v1/messages/count_tokens", body)
