"""create_cache: create a provider cache of content that many prompts will be about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pollux_flows import capabilities
from pollux_flows.caching.registry import open_registry
from pollux_flows.config import Config, Target
from pollux_flows.errors import ConfigurationError
from pollux_flows.handles import CacheHandle
from pollux_flows.options import Options
from pollux_flows.pipeline.cache_creation import create_or_find, prepare_cache
from pollux_flows.pipeline.caches import CacheRequest
from pollux_flows.pipeline.request import check_sources
from pollux_flows.source import Source


async def create_cache(
    sources: Sequence[Source],
    *,
    config: Config,
    system_instruction: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    ttl_seconds: int = 3600,
) -> CacheHandle:
    """Cache sources, system instruction and tools at the provider, and return a handle for `Options(cache=…)`.

    An existing cache with these contents, created by any process that shares the state store, is returned instead of a
    new one. It is extended if less than half of `ttl_seconds` is left.
    """
    request = make_cache_request(config.target, sources, system_instruction, tools, ttl_seconds)
    obtained = await create_or_find(
        await prepare_cache(request, config),
        config,
        open_registry(config),
        needed_s=ttl_seconds / 2,
        verify=True,
        pin=True,
    )
    return obtained.handle


def make_cache_request(
    target: Target,
    sources: Sequence[Source],
    system_instruction: str | None,
    tools: list[dict[str, Any]] | None,
    ttl_seconds: int,
) -> CacheRequest:
    """Return the request for a cache. Raises a ConfigurationError if it is invalid."""
    if not isinstance(ttl_seconds, int) or isinstance(ttl_seconds, bool) or ttl_seconds < 1:
        raise ConfigurationError(f"ttl_seconds is {ttl_seconds!r}.", hint="Write a whole number of seconds, 1 or more.")
    capabilities.require_cache(target)
    Options(system_instruction=system_instruction, tools=tools)  # validates both
    return CacheRequest(
        sources=check_sources(sources), system_instruction=system_instruction, tools=tools, ttl_seconds=ttl_seconds
    )
