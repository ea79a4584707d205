"""create_cache: have a provider keep content that many prompts will ask about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from pollux_flows import capabilities
from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError
from pollux_flows.handles import CacheHandle
from pollux_flows.options import Options
from pollux_flows.pipeline.attach import attached
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.pipeline.retry import Attempts, attempt
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import open_session
from pollux_flows.source import Source


async def create_cache(
    sources: Sequence[Source],
    *,
    config: Config,
    system_instruction: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    ttl_seconds: int = 3600,
) -> CacheHandle:
    """Keep sources, system instruction and tools with the provider; pass the handle on in `Options(cache=…)`."""
    if not isinstance(ttl_seconds, int) or isinstance(ttl_seconds, bool) or ttl_seconds < 1:
        raise ConfigurationError(f"ttl_seconds is {ttl_seconds!r}.", hint="Write a whole number of seconds, 1 or more.")
    capabilities.require(config.provider, "persistent_cache")
    options = Options(system_instruction=system_instruction, tools=tools)
    request = make_request([], target=config.target, sources=sources, options=options)
    if any(source.gemini_url_context for source in request.sources):
        raise ConfigurationError(
            "An address that Gemini opens while it answers cannot be kept.", hint="Leave out with_gemini_url_context."
        )
    if not request.sources and not system_instruction and not tools:
        raise ConfigurationError("There is nothing to keep.", hint="Pass sources, a system_instruction or tools.")
    plan = make_plan(request, await read_sources(request, limit_s=config.timeout_s))
    async with open_session(config) as session, attached(plan, session, uuid4().hex) as attachments:
        create = session.module("caches").create

        async def kept(materials: Sequence[Material]) -> Attempts[CacheHandle]:
            # A create that broke off may have been done: asking again could pay for the same content twice.
            return await attempt(
                lambda: session.ask("cache", create(session.client, config.model, materials, options, ttl_seconds)),
                policy=config.retry,
                timeout_s=config.timeout_s,
                slot=session.slot,
                repeatable=False,
            )

        everything = range(len(plan.sources))
        materials = await attachments.materials(everything)
        attempts = await kept(materials)
        if await attachments.lost(attempts.error, everything, materials):
            attempts = await kept(await attachments.materials(everything))
    if attempts.error is not None:
        attempts.error.provider, attempts.error.phase = config.provider, "cache"
    return attempts.unwrap()
