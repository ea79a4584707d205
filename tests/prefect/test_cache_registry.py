"""Tests of the cache registry of a Prefect server: the contract of all registries, and its blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from prefect.client.orchestration import get_client

from pollux_flows.blocks import PolluxCache
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.jobs import caches as jobs_caches
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.pipeline.caches import CacheRegistry, cache_name
from tests.caching import test_registry_contract as contract
from tests.caching.test_registry_contract import (  # noqa: F401 (pytest collects them)
    test_a_live_holder_keeps_its_lease,
    test_a_lock_alone_leaves_no_record,
    test_a_record_is_found_by_its_name,
    test_a_record_is_seen_while_it_is_locked,
    test_a_registry_says_where_it_is,
    test_a_removed_record_is_gone,
    test_a_saved_record_is_found_by_all,
    test_a_waiter_that_is_cancelled_disturbs_no_other,
    test_an_empty_registry_has_nothing,
    test_an_error_releases_the_lease,
    test_one_works_at_a_time,
    test_other_identities_do_not_wait,
    test_the_last_record_counts,
    test_who_waits_gets_its_turn,
)


async def _remove_blocks() -> None:
    for record in await BlockRegistry().list():
        async with get_client() as client:
            document = await client.read_block_document_by_name(
                cache_name(record.identity), PolluxCache.get_block_type_slug()
            )
            await client.delete_block_document(document.id)


@pytest.fixture
def open_registry() -> Iterator[contract.Open]:
    yield BlockRegistry
    asyncio.run(_remove_blocks())


@pytest.fixture
def registry(open_registry: contract.Open) -> CacheRegistry:
    return open_registry()


async def test_a_block_without_a_valid_record_is_refused_and_left_out_of_lists(
    registry: BlockRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """The refusal has a hint, and the list logs a warning."""
    await contract.save(registry, contract.FULL)
    block: Any = await cast(Any, PolluxCache).aload(cache_name("a"))
    assert isinstance(block, PolluxCache)
    assert block.handle.name == "cachedContents/a"
    assert (block.state, block.tokens, block.contents) == ("living", 5000, ["report.pdf", "Grüße"])
    async with get_client() as client:
        document = await client.read_block_document_by_name(cache_name("a"), "pollux-cache")
        await client.delete_block_document(document.id)
    edited = block.model_copy(update={"record": {}})
    await edited.save(cache_name("a"))
    with pytest.raises(ConfigurationError) as caught:
        await registry.find("a")
    assert caught.value.hint
    await contract.save(registry, contract.record("b"))
    assert await registry.list() == [contract.record("b")]
    assert f"skipped: The block {cache_name('a')} does not describe a cache" in caplog.text
    async with get_client() as client:
        document = await client.read_block_document_by_name(cache_name("a"), "pollux-cache")
        await client.delete_block_document(document.id)


async def test_a_block_that_is_deleted_during_a_creation_is_saved_again(registry: BlockRegistry) -> None:
    """The cache that the block describes may have been paid for."""
    async with registry.lock("a") as lock:
        await lock.save(contract.FULL)
        async with get_client() as client:
            document = await client.read_block_document_by_name(cache_name("a"), "pollux-cache")
            await client.delete_block_document(document.id)
        await lock.save(contract.FULL.change(tokens=7))
    assert await registry.find("a") == contract.FULL.change(tokens=7)


async def test_an_unavailable_server_raises_a_pollux_error(
    registry: BlockRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that can do without a cache handle a PolluxError."""

    async def raise_connect_error(*_: object) -> None:
        raise httpx.ConnectError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(jobs_caches, "read_documents", raise_connect_error)
        with pytest.raises(PolluxError, match=r"does not answer \(no route\)"):
            await registry.list()
