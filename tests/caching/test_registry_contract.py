"""The contract of a CacheRegistry. A new kind needs a fixture here, and its name in `KINDS`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pollux_flows.caching.registry import StoreRegistry
from pollux_flows.config import Target
from pollux_flows.errors import ConfigurationError
from pollux_flows.pipeline.caches import CacheRecord, CacheRegistry, CacheRequest, cache_name
from pollux_flows.source import Source
from pollux_flows.state.leases import LeaseLostError
from tests.state.places import open_store_at

Open = Callable[[], CacheRegistry]
"""Open another registry with the same records, with leases of LEASE_S."""

KINDS = ["disk_registry", "redis_registry"]
LEASE_S = 1.0


@pytest.fixture
def disk_registry(tmp_path: Path) -> Open:
    return lambda: open_on_store(f"disk:{tmp_path / 'state'}")


@pytest.fixture
def redis_registry(redis_place: str) -> Open:
    return lambda: open_on_store(f"redis:{redis_place}")


@pytest.fixture(params=KINDS)
def open_registry(request: pytest.FixtureRequest) -> Open:
    opener: Open = request.getfixturevalue(request.param)
    return opener


@pytest.fixture
def registry(open_registry: Open) -> CacheRegistry:
    return open_registry()


def open_on_store(address: str) -> CacheRegistry:
    return StoreRegistry(open_store_at(address), lease_s=LEASE_S)


def make_record(identity: str = "a", **fields: Any) -> CacheRecord:
    defaults: dict[str, Any] = {
        "identity": identity,
        "contents_identity": "c",
        "target": Target(provider="gemini", model="gemini-2.5-flash"),
        "account": "mine",
        "display_name": f"pollux-{identity}",
        "ttl_seconds": 60,
        "file_owner": f"cache/{identity}",
        "created_at": 1.0,
        "last_used_at": 1.0,
    }
    return CacheRecord(**{**defaults, **fields})


FULL = make_record(
    state="living",
    name="cachedContents/a",
    contents=["report.pdf", "Grüße"],
    request=CacheRequest(sources=[Source.from_text("a")], tools=[{"name": "f"}]),
    file_ids=["files/a"],
    created_by="nightly",
    asked_at=2.0,
    expires_at=4e9,
    tokens=5000,
    is_pinned=True,
    abandoned=["pollux-x"],
)


async def save(registry: CacheRegistry, *records: CacheRecord) -> None:
    for each in records:
        async with registry.lock(each.identity) as lock:
            await lock.save(each)


async def test_a_registry_describes_its_location(registry: CacheRegistry) -> None:
    assert registry.where


async def test_an_empty_registry_has_no_records(registry: CacheRegistry) -> None:
    assert await registry.find("a") is None
    assert await registry.list() == []


@pytest.mark.parametrize("saved", [make_record(), FULL])
async def test_a_saved_record_is_found_by_other_registries(
    registry: CacheRegistry, open_registry: Open, saved: CacheRecord
) -> None:
    """Another registry in the same place finds and lists an equal record."""
    await save(registry, saved)
    assert await open_registry().find("a") == saved
    assert await open_registry().list() == [saved]


async def test_a_record_is_found_by_its_name(registry: CacheRegistry) -> None:
    """People name a cache by the name of its block, with or without a Prefect server."""
    await save(registry, FULL, make_record("b"))
    assert await registry.find_named(cache_name("a")) == FULL
    assert await registry.find_named("pollux-cache-c") is None


async def test_a_record_that_cannot_be_read_is_left_out(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A record of a newer version is logged, and the others are listed."""
    store = open_store_at(f"disk:{tmp_path / 'state'}")
    registry = StoreRegistry(store)
    await save(registry, make_record("b"))
    await store.put("cache/a", {**make_record("a").model_dump(mode="json"), "version": 99})
    assert await registry.list() == [make_record("b")]
    assert "newer pollux_flows (format 99" in caplog.text


async def test_a_locked_record_can_be_read(registry: CacheRegistry, open_registry: Open) -> None:
    """Other registries see that a creation has begun, and its display name."""
    async with registry.lock("a") as lock:
        assert lock.record is None
        assert await open_registry().find("a") is None
        assert await open_registry().list() == []
        await lock.save(make_record())
        assert lock.record == make_record()
        assert await open_registry().find("a") == make_record()


async def test_a_lock_without_a_save_leaves_no_record(registry: CacheRegistry) -> None:
    async with registry.lock("a"):
        pass
    assert await registry.find("a") is None
    assert await registry.list() == []


async def test_a_saved_record_replaces_the_previous_one(registry: CacheRegistry) -> None:
    await save(registry, make_record(), FULL)
    async with registry.lock("a") as lock:
        assert lock.record == FULL
        await lock.save(FULL.change(tokens=1))
    assert await registry.find("a") == FULL.change(tokens=1)


async def test_a_removed_record_is_no_longer_found(registry: CacheRegistry) -> None:
    """A record of the same identity may be saved later."""
    await save(registry, make_record(), make_record("b"))
    async with registry.lock("a") as lock:
        await lock.remove()
        assert lock.record is None
    assert await registry.find("a") is None
    assert await registry.list() == [make_record("b")]
    await save(registry, make_record())
    assert await registry.list() == [make_record(), make_record("b")]


async def test_a_lock_excludes_others_in_one_event_loop(open_registry: Open) -> None:
    working: list[int] = []
    most = 0

    async def work(number: int) -> None:
        nonlocal most
        async with open_registry().lock("a") as lock:
            working.append(number)
            most = max(most, len(working))
            await lock.save(make_record(tokens=(lock.record.tokens or 0) + 1 if lock.record else 1))
            await asyncio.sleep(0.01)
            working.remove(number)

    async with asyncio.timeout(30):
        await asyncio.gather(*map(work, range(8)))
    found = await open_registry().find("a")
    assert found is not None
    assert (most, found.tokens) == (1, 8)


async def test_locks_on_different_identities_do_not_exclude_each_other(registry: CacheRegistry) -> None:
    async with asyncio.timeout(5), registry.lock("a"), registry.lock("b"):
        pass


async def test_the_lease_of_a_live_owner_is_renewed(registry: CacheRegistry, open_registry: Open) -> None:
    """A lock may be held for longer than its lease; a waiter with little patience times out."""
    async with registry.lock("a") as lock:
        await asyncio.sleep(2 * LEASE_S)
        with pytest.raises(TimeoutError):
            async with open_registry().lock("a", patience_s=0):
                pass
        await lock.save(make_record())
    assert await registry.find("a") == make_record()


async def test_a_waiter_gets_the_lock_and_the_saved_record(registry: CacheRegistry, open_registry: Open) -> None:
    async def wait() -> CacheRecord | None:
        async with open_registry().lock("a") as lock:
            return lock.record

    async with registry.lock("a") as lock:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await lock.save(make_record())
    assert await asyncio.wait_for(waiting, 10) == make_record()


async def test_an_error_releases_the_lease(registry: CacheRegistry) -> None:
    """A cancellation releases the lease as well, and the saved record stays."""

    async def work(*, fails: bool) -> None:
        async with registry.lock("a") as lock:
            await lock.save(make_record())
            if fails:
                raise ConfigurationError("No.")
            await asyncio.sleep(60)

    with pytest.raises(ConfigurationError):
        await work(fails=True)
    working = asyncio.create_task(work(fails=False))
    await asyncio.sleep(0.2)
    working.cancel()
    await asyncio.wait([working])
    async with asyncio.timeout(5), registry.lock("a") as lock:
        assert lock.record == make_record()


async def test_a_cancelled_waiter_does_not_affect_the_others(registry: CacheRegistry, open_registry: Open) -> None:
    async def wait() -> None:
        async with open_registry().lock("a"):
            pass

    async with registry.lock("a"):
        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0.1)
        waiting[0].cancel()
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 10)


async def test_a_late_owner_cannot_overwrite_the_record_of_its_successor(open_registry: Open) -> None:
    """The lease of the late owner has run out, so that its save and its removal fail."""
    registry = open_registry()
    if not isinstance(registry, StoreRegistry):
        pytest.skip("the clock of this registry cannot be moved")
    late = StoreRegistry(registry.store, lambda: time.time() - 3600, lease_s=LEASE_S)
    async with late.lock("a") as lock:
        await save(registry, FULL)
        with pytest.raises(LeaseLostError):
            await lock.save(make_record())
        with pytest.raises(LeaseLostError):
            await lock.remove()
    assert await registry.find("a") == FULL


def hold_until_killed(kind: str, place: str, holding: Any) -> None:
    async def hold() -> None:
        async with open_on_store(f"{kind}:{place}").lock("a") as lock:
            await lock.save(make_record())
            holding.set()
            await asyncio.sleep(600)

    asyncio.run(hold())


@pytest.mark.parametrize("kind", ["disk", "redis"])
async def test_a_killed_owner_is_succeeded_within_its_lease(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The successor finds the record that the killed owner saved."""
    place = str(tmp_path / "state") if kind == "disk" else request.getfixturevalue("redis_place")
    spawn = multiprocessing.get_context("spawn")
    holding = spawn.Event()
    holder = spawn.Process(target=hold_until_killed, args=(kind, place, holding))
    holder.start()
    assert await asyncio.to_thread(holding.wait, 60)
    os.kill(holder.pid or 0, 9)
    await asyncio.to_thread(holder.join)
    async with asyncio.timeout(LEASE_S + 1), open_on_store(f"{kind}:{place}").lock("a") as lock:
        assert lock.record == make_record()
