"""Calls to a local server: text in, text or JSON out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pollux_flows.providers import chat
from pollux_flows.providers.base import Call, merged
from pollux_flows.providers.local.turns import messages
from pollux_flows.result import Answer
from pollux_flows.schemas import dialects

if TYPE_CHECKING:
    import httpx2


async def generate(client: httpx2.AsyncClient, call: Call) -> Answer:
    return await chat.complete(client, request(call))


def request(call: Call) -> dict[str, Any]:
    """Build the request's body."""
    body = chat.body(call, messages(call))
    if (answer_schema := call.options.response_json_schema()) is not None:
        body["response_format"] = chat.response_format(dialects.for_chat(answer_schema))
    fields = {name: value for name, value in body.items() if value is not None}
    return merged(fields, (call.options.provider_options or {}).get("local", {}))
