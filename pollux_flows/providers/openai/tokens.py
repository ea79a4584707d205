"""Token counts by OpenAI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pollux_flows.providers.base import Call
from pollux_flows.providers.openai.generate import request
from pollux_flows.providers.tokens import TokenCount, ask_counter

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# The fields of a request that shape its input; the others are unknown to the counter.
_COUNTED: Final = {
    "conversation",
    "input",
    "instructions",
    "model",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "text",
    "tool_choice",
    "tools",
    "truncation",
}


async def count(client: AsyncOpenAI, call: Call) -> TokenCount:
    """Count the tokens of a call's request, including instructions, tools and schema."""
    body = {name: value for name, value in request(call).items() if name in _COUNTED}
    return await ask_counter(client, "/responses/input_tokens", body)
