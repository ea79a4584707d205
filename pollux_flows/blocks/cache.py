"""PolluxCache: a provider's cache, as a block by which any worker finds it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from pollux_flows.handles import CacheHandle
from pollux_flows.pipeline.caches import CacheRecord, cache_name


class PolluxCache(Block):
    """A cache at a provider: what is in it, how large it is and how long it lives. The flow `warm_cache` makes it.

    Example:
        Ask about what is in a cache, by the name that `warm_cache` returned:

        ```python
        from pollux_flows.blocks import PolluxCache, PolluxProvider
        from pollux_flows.flows import fan_out

        cache = PolluxCache.load("BLOCK_NAME")
        print(cache.contents, cache.tokens, cache.expires)
        fan_out(["Who speaks?", "Where?"], PolluxProvider.load("gemini"), cache="BLOCK_NAME")
        ```
    """

    _block_type_name = "Pollux Cache"
    _block_type_slug = "pollux-cache"
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
    _description = "Content that a provider holds for many prompts. Made by the flow warm_cache; not to be edited."

    # Field order is part of the block schema's checksum: append new fields, and give them defaults.
    state: str = Field(description="creating, living or failed.")
    provider: str = Field(description="The provider that holds it.")
    model: str = Field(description="The only model that can read it.")
    provider_name: str | None = Field(default=None, description="The provider's name for the cache.")
    expires: str | None = Field(default=None, description="When it is gone, by the provider's clock.")
    tokens: int | None = Field(default=None, description="How many it holds; empty where the provider did not say.")
    contents: list[str] = Field(default_factory=list, description="What is in it, in words.")
    created_by: str | None = Field(default=None, description="Who made it.")
    last_used: str | None = Field(default=None, description="When it was last handed out, to within ten minutes.")
    record: dict[str, Any] = Field(description="All that is known of it.")

    @classmethod
    def of(cls, record: CacheRecord) -> PolluxCache:
        """Return the block that describes a cache."""
        return cls(
            state=record.state,
            provider=record.target.provider,
            model=record.target.model,
            provider_name=record.name,
            expires=None if record.expires_at is None else format_time(record.expires_at),
            tokens=record.tokens,
            contents=record.contents,
            created_by=record.created_by,
            last_used=format_time(record.last_used_at),
            record=record.model_dump(mode="json"),
        )

    @property
    def handle(self) -> CacheHandle:
        """The handle for `Options(cache=…)`."""
        return CacheRecord.model_validate(self.record).handle()

    @property
    def cache_name(self) -> str:
        """The name of this block, which is derived from the contents of the cache."""
        return cache_name(CacheRecord.model_validate(self.record).identity)


def format_time(timestamp: float) -> str:
    """Return a time, in seconds since 1970, for people."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
