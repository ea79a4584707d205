"""warm_cache: create a provider cache of content that many prompts will be about."""

from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger

from pollux_flows import artifacts
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.caching.create import make_cache_request
from pollux_flows.flows.restrictions import with_restrictions
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import SourceField
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.jobs.events import emit_cache_event
from pollux_flows.pipeline.cache_creation import create_or_find, prepare_cache
from pollux_flows.pipeline.caches import cache_name
from pollux_flows.source import Source


@sync_form("warm-cache")
async def warm_cache(
    sources: Sequence[SourceField],
    provider: PolluxProvider,
    system_instruction: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    ttl_seconds: int = 3600,
) -> str:
    """Create a cache with these contents, or find the existing one, and return the name of its PolluxCache.

    Run it on a schedule to keep a cache warm: a cache with less than half of its lifetime left is extended.

    Args:
        sources: The files, addresses and texts to cache.
        provider: The PolluxProvider that holds the cache: gemini.
        system_instruction: How to answer, for all prompts that use the cache.
        tools: Tools that all prompts that use the cache may call.
        ttl_seconds: The lifetime of the cache in seconds. The provider bills its storage by the hour.
    """
    return await _warm_cache(sources, provider, system_instruction, tools, ttl_seconds)


awarm_cache = async_form(warm_cache)


@with_restrictions
async def _warm_cache(
    sources: Sequence[Source],
    provider: PolluxProvider,
    system_instruction: str | None,
    tools: list[dict[str, Any]] | None,
    ttl_seconds: int,
) -> str:
    config, registry = await provider.config(), BlockRegistry()
    request = make_cache_request(config.target, sources, system_instruction, tools, ttl_seconds)
    prepared = await prepare_cache(request, config)
    obtained = await create_or_find(
        prepared, config, registry, needed_s=ttl_seconds / 2, verify=True, created_by=f"warm-cache of {provider.name}"
    )
    record, name = obtained.record, cache_name(prepared.identity)
    if obtained.is_new:
        await emit_cache_event(record, "created")
    get_run_logger().info(
        "%s %s: %s tokens in %s",
        "Created" if obtained.is_new else "Found",
        name,
        f"{record.tokens or 0:,}",
        record.name,
    )
    await artifacts.publish_cache(name, record)
    return name
