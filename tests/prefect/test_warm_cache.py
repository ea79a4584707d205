"""warm_cache: one cache for all who ask for it, as a block, an event and a page."""

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


def created(simulator: Simulator) -> int:
    """How many caches the provider was asked for."""
    return sum(call.method == "POST" and call.path.endswith("cachedContents") for call in simulator.requests)


def test_a_cache_is_created_once_and_used(gemini: PolluxProvider, simulator: Simulator, tmp_path: Path) -> None:
    """The second call finds it, whatever the file is called by then; its handle answers prompts."""
    file = tmp_path / "report.txt"
    file.write_text("All about bees. " * 400)
    name = warm_cache([Source.from_file(file)], gemini)
    moved = file.rename(tmp_path / "moved.txt")
    assert warm_cache([Source.from_file(moved)], gemini) == name
    assert created(simulator) == 1
    block = PolluxCache.load(name)
    assert isinstance(block, PolluxCache)
    assert (block.state, block.provider, block.model) == ("living", "gemini", "gemini-2.5-flash")
    envelope = fan_out(["Who?", "Where?"], gemini, options=Options(cache=block.handle))
    assert envelope.usage["cached_tokens"] == 2 * (block.tokens or 0)


async def test_many_runs_at_once_create_one_cache(gemini: PolluxProvider, simulator: Simulator) -> None:
    """And each gets its name."""
    source = Source.from_text("Side by side. " * 400)
    names = await asyncio.gather(*(awarm_cache([source], gemini) for _ in range(4)))
    assert len(set(names)) == 1
    assert created(simulator) == 1


async def test_its_page_says_what_is_in_it(gemini: PolluxProvider) -> None:
    """With tokens, expiry, the price of an hour, and from how many prompts it pays."""
    name = await awarm_cache([Source.from_text("On a page. " * 400)], gemini, ttl_seconds=7200)
    async with get_client() as client:
        (page,) = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[name])), limit=1
        )
    for words in ("Tokens", "Expires", "an hour", "prompts, while it lives for 2 h"):
        assert words in str(page.data)


async def test_a_provider_without_caches_is_refused(provider: PolluxProvider, simulator: Simulator) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigurationError, match="persistent_cache"):
        await awarm_cache([Source.from_text("no")], provider)
    assert simulator.requests == []


async def test_nothing_to_cache_is_refused(gemini: PolluxProvider) -> None:
    """An empty cache would be billed, too."""
    with pytest.raises(ConfigurationError):
        await awarm_cache([], gemini)


async def test_sweep_deletes_a_cache_that_expired(gemini: PolluxProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a week: until then, it can be made again by its name."""
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
