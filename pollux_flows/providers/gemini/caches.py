"""Cache handles at Gemini."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pollux_flows.handles import CacheHandle
from pollux_flows.options import Options
from pollux_flows.providers.base import UpstreamError
from pollux_flows.providers.gemini.generate import tools
from pollux_flows.providers.gemini.sources import parts
from pollux_flows.providers.material import Material

if TYPE_CHECKING:
    from pollux_flows.providers.gemini.client import Connection


async def create(
    client: Connection, model: str, materials: Sequence[Material], options: Options, ttl_seconds: int
) -> CacheHandle:
    """Have the content kept for `ttl_seconds`; the handle expires when Gemini says so."""
    from google.genai import types

    asked_at = time.time()
    cache = await client.aio.caches.create(
        model=model,
        config=types.CreateCachedContentConfig(
            contents=[types.Content(role="user", parts=parts(materials))] if materials else None,
            system_instruction=options.system_instruction,
            tools=tools(options.tools),
            ttl=f"{ttl_seconds}s",
        ),
    )
    if not cache.name:
        raise UpstreamError(None, "a cache without a name")
    expires_at = cache.expire_time.timestamp() if cache.expire_time else asked_at + ttl_seconds
    return CacheHandle(name=cache.name, model=model, provider="gemini", expires_at=expires_at)
