"""Tokens: the interface of a provider's `tokens.py`, which counts the tokens of a request. Nothing is generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pollux_flows.providers.base import Call, UpstreamError


@dataclass(frozen=True)
class TokenCount:
    """The input tokens of one request."""

    input_tokens: int
    cached_tokens: int = 0
    """The input tokens that are read from the cache of the request."""


class TokensModule(Protocol):
    """The interface of `tokens.py`, for a provider that counts tokens itself."""

    async def count(self, client: Any, call: Call, /) -> TokenCount: ...


async def ask_counter(client: Any, path: str, body: Mapping[str, Any]) -> TokenCount:
    """Have a provider count the tokens of a request, through its SDK's client."""
    import httpx2

    response = await client.post(path, body=body, cast_to=httpx2.Response)
    return TokenCount(read_count(response.json(), "input_tokens"))


def read_count(response: Any, name: str) -> int:
    """Return the count under that name in a response. Raises an UpstreamError if it has none."""
    count = response.get(name) if isinstance(response, dict) else None
    if type(count) is not int or count < 0:
        raise UpstreamError.found_in(response)
    return count
