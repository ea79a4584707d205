"""Caches at Gemini."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pollux_flows.providers.base import UpstreamError
from pollux_flows.providers.caches import CacheToCreate, ProviderCache
from pollux_flows.providers.gemini.generate import tools
from pollux_flows.providers.gemini.inputs import parts

if TYPE_CHECKING:
    from google.genai import types

    from pollux_flows.providers.gemini.client import Connection

_PAGE: Final = 100


async def create(client: Connection, cache: CacheToCreate) -> ProviderCache:
    """Create a cache. Its expiry is the one that Gemini reports or, without one, counted from the request."""
    from google.genai import types

    asked_at = time.time()
    contents = [types.Content(role="user", parts=parts(cache.materials))] if cache.materials else None
    created = await client.aio.caches.create(
        model=cache.model,
        config=types.CreateCachedContentConfig(
            contents=contents,
            system_instruction=cache.options.system_instruction or None,
            tools=tools(cache.options.tools),
            ttl=f"{cache.ttl_seconds}s",
            display_name=cache.display_name,
        ),
    )
    return _read(created, asked_at + cache.ttl_seconds)


async def get(client: Connection, name: str) -> ProviderCache:
    return _read(await client.aio.caches.get(name=name), 0.0)


async def extend(client: Connection, name: str, ttl_seconds: int) -> ProviderCache:
    """Set the cache's lifetime, counted from now."""
    from google.genai import types

    asked_at = time.time()
    config = types.UpdateCachedContentConfig(ttl=f"{ttl_seconds}s")
    return _read(await client.aio.caches.update(name=name, config=config), asked_at + ttl_seconds)


async def find_all(client: Connection, display_names: Sequence[str]) -> list[ProviderCache]:
    """Return the account's caches that have one of these display names."""
    wanted = set(display_names)
    listing = await client.aio.caches.list(config={"page_size": _PAGE})
    return [_read(cache, 0.0) async for cache in listing if cache.display_name in wanted]


async def delete(client: Connection, name: str) -> None:
    await client.aio.caches.delete(name=name)


def _read(cache: types.CachedContent, otherwise: float) -> ProviderCache:
    """Read the SDK's description of a cache; `otherwise` is its expiry if none is reported."""
    if not cache.name:
        raise UpstreamError(None, "a cache without a name")
    usage = cache.usage_metadata
    return ProviderCache(
        name=cache.name,
        display_name=cache.display_name,
        expires_at=cache.expire_time.timestamp() if cache.expire_time else otherwise,
        tokens=usage.total_token_count if usage else None,
    )
