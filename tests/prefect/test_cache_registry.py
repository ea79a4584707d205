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
    test_a_cancelled_waiter_does_not_affect_the_others,
    test_a_lock_excludes_others_in_one_event_loop,
    test_a_lock_without_a_save_leaves_no_record,
    test_a_locked_record_can_be_read,
    test_a_record_is_found_by_its_name,
    test_a_registry_describes_its_location,
    test_a_removed_record_is_no_longer_found,
    test_a_saved_record_is_found_by_other_registries,
    test_a_saved_record_replaces_the_previous_one,
    test_a_waiter_gets_the_lock_and_the_saved_record,
    test_an_empty_registry_has_no_records,
    test_an_error_releases_the_lease,
    test_locks_on_different_identities_do_not_exclude_each_other,
    test_the_lease_of_a_live_owner_is_renewed,
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
    await contract.save(registry, contract.make_record("b"))
    assert await registry.list() == [contract.make_record("b")]
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
