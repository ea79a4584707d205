"""Tests of warm_cache: one cache for all runs, as a block, an event and a page."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from pollux_flows import ConfigurationError, Options, Source
from pollux_flows.blocks import PolluxCache, PolluxProvider
from pollux_flows.caching.sweep import sweep_caches
from pollux_flows.flows import asweep, awarm_cache, fan_out, warm_cache
from pollux_flows.simulator import Simulator


@pytest.fixture
def gemini(world: tuple[Simulator, str], simulator: Simulator) -> PolluxProvider:
    address = simulator.base_url("gemini", origin=world[1])
    return PolluxProvider(provider="gemini", model="gemini-2.5-flash", api_key="gm-never-saved", base_url=address)


def count_creations(simulator: Simulator) -> int:
    """Return how many caches the provider was asked to create."""
    return sum(call.method == "POST" and call.path.endswith("cachedContents") for call in simulator.requests)


def test_a_cache_is_created_once_and_used(gemini: PolluxProvider, simulator: Simulator, tmp_path: Path) -> None:
    """The second call finds the cache although the file was renamed, and a run uses its handle."""
    file = tmp_path / "report.txt"
    file.write_text("All about bees. " * 400)
    name = warm_cache([Source.from_file(file)], gemini)
    moved = file.rename(tmp_path / "moved.txt")
    assert warm_cache([Source.from_file(moved)], gemini) == name
    assert count_creations(simulator) == 1
    block = PolluxCache.load(name)
    assert isinstance(block, PolluxCache)
    assert (block.state, block.provider, block.model) == ("living", "gemini", "gemini-2.5-flash")
    envelope = fan_out(["Who?", "Where?"], gemini, options=Options(cache=block.handle))
    assert envelope.usage["cached_tokens"] == 2 * (block.tokens or 0)


async def test_concurrent_runs_create_one_cache(gemini: PolluxProvider, simulator: Simulator) -> None:
    """Each run gets the name of the cache."""
    source = Source.from_text("Side by side. " * 400)
    names = await asyncio.gather(*(awarm_cache([source], gemini) for _ in range(4)))
    assert len(set(names)) == 1
    assert count_creations(simulator) == 1


async def test_the_page_of_a_cache_shows_tokens_expiry_and_price(gemini: PolluxProvider) -> None:
    """The page also shows from how many prompts on the cache pays."""
    name = await awarm_cache([Source.from_text("On a page. " * 400)], gemini, ttl_seconds=7200)
    async with get_client() as client:
        (page,) = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[name])), limit=1
        )
    for words in ("Tokens", "Expires", "an hour", "prompts, while it lives for 2 h"):
        assert words in str(page.data)


async def test_a_provider_without_caches_is_refused_before_anything_is_sent(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    with pytest.raises(ConfigurationError, match="persistent_cache"):
        await awarm_cache([Source.from_text("no")], provider)
    assert simulator.requests == []


async def test_a_cache_without_content_is_refused(gemini: PolluxProvider) -> None:
    """A provider would bill an empty cache, too."""
    with pytest.raises(ConfigurationError):
        await awarm_cache([], gemini)


async def test_sweep_deletes_an_expired_cache_after_a_week(
    gemini: PolluxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, the cache can be created again by its name."""
    saved = gemini.model_copy(update={})
    await saved.save("gemini-for-sweep", overwrite=True)
    expires = await awarm_cache([Source.from_text("It expires. " * 400)], gemini, ttl_seconds=60)
    module, later = import_module("pollux_flows.flows.sweep"), time.time() + 120
    monkeypatch.setattr(module, "sweep_caches", partial(sweep_caches, clock=lambda: later))
    assert (await asweep()).caches == []
    await cast(Any, PolluxCache).aload(expires)
    later += 8 * 86_400
    report = await asweep()
    assert {cache.rpartition(": ")[2] for cache in report.caches} == {"expired"}
    with pytest.raises(ValueError, match=expires):
        await cast(Any, PolluxCache).aload(expires)
