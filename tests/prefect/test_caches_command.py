"""Tests of `pollux-flows caches` on a Prefect server: it lists and deletes PolluxCache blocks."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from pollux_flows import Source
from pollux_flows.blocks import PolluxCache, PolluxProvider
from pollux_flows.caching.create import make_cache_request
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.pipeline.cache_creation import create_or_find, prepare_cache
from pollux_flows.pipeline.caches import cache_name
from pollux_flows.simulator import Simulator
from tests.commands import Command, caches

__all__ = ["caches"]


@pytest.fixture
def gemini(world: tuple[Simulator, str], simulator: Simulator) -> PolluxProvider:
    address = simulator.base_url("gemini", origin=world[1])
    provider = PolluxProvider(provider="gemini", model="gemini-2.5-flash", api_key="gm-for-caches", base_url=address)
    provider.save("gemini-for-caches", overwrite=True)
    return cast(PolluxProvider, PolluxProvider.load("gemini-for-caches"))


async def delete_block_type() -> None:
    """Delete the block type, as if the server had never registered it."""
    async with get_client() as client:
        try:
            kind = await client.read_block_type_by_slug("pollux-cache")
        except ObjectNotFound:
            return
        await client.delete_block_type(kind.id)


async def test_a_server_without_the_block_type_has_no_caches(caches: Command) -> None:
    await delete_block_type()
    assert "none yet." in await asyncio.to_thread(caches)
    assert (await asyncio.to_thread(caches, "delete", "x")).startswith(
        "refused: No cache named 'x' is registered on the"
    )


async def make_cache(provider: PolluxProvider) -> str:
    """Make a cache as the flow warm_cache does, and return the name of its block."""
    config = await provider.config()
    bees = Source.from_text("All about bees. " * 400, identifier="Bees")
    prepared = await prepare_cache(make_cache_request(config.target, [bees], None, None, 3600), config)
    await create_or_find(prepared, config, BlockRegistry(), created_by="warm-cache of gemini-for-caches")
    return cache_name(prepared.identity)


def test_cache_blocks_are_listed_and_deleted(caches: Command, gemini: PolluxProvider, simulator: Simulator) -> None:
    """A cache is named by its block, and deleted with the key of its saved provider."""
    name = asyncio.run(make_cache(gemini))
    listed = caches()
    for words in (
        name,
        "gemini gemini-2.5-flash",
        "Bees",
        "warm-cache of gemini-for-caches",
        "on the Prefect server at",
    ):
        assert words in listed
    row = next(row for row in json.loads(caches("--json"))["caches"] if row["name"] == name)
    assert (row["state"], row["created_by"]) == ("living", "warm-cache of gemini-for-caches")
    assert caches("delete", name) == f"Deleted {name} ({row['provider_name']}).\n"
    assert simulator.gemini_caches.all(simulator.now()) == []
    with pytest.raises(ValueError, match=name):
        cast(Any, PolluxCache).load(name)
    assert caches("delete", name).startswith("refused: No cache named")


def test_caches_of_the_state_store_are_listed_on_request(caches: Command) -> None:
    assert "in the state store at" in caches("--state")


def test_a_server_that_does_not_answer_is_named(caches: Command) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert caches().startswith("refused: The Prefect server at http://127.0.0.1:9/api does not answer")
