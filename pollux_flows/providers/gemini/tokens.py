"""Token counts by Gemini. The SDK counts bare contents only, so the request is sent without it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from pollux_flows.providers.base import Call, as_count
from pollux_flows.providers.gemini.batch import request_json
from pollux_flows.providers.tokens import TokenCount, read_count

if TYPE_CHECKING:
    from pollux_flows.providers.gemini.client import Connection


async def count(client: Connection, call: Call) -> TokenCount:
    """Count the tokens of a call's request, including instructions, tools and schema."""
    name = call.model.removeprefix("models/")
    request = {"model": f"models/{name}", **request_json(call)}
    path = f"models/{quote(name, safe='')}:countTokens"
    response = await client.ask("POST", path, body={"generateContentRequest": request})
    return TokenCount(read_count(response, "totalTokens"), as_count(response.get("cachedContentTokenCount")))
