"""The contract of a CacheRegistry. Whoever writes another kind adds a fixture, and its name to `KINDS`."""

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
from tests.state.places import opened

Open = Callable[[], CacheRegistry]
"""Opens a registry of its own on one place, with leases of LEASE_S."""

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
    return StoreRegistry(opened(address), lease_s=LEASE_S)


def record(identity: str = "a", **fields: Any) -> CacheRecord:
    given: dict[str, Any] = {
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
    return CacheRecord(**{**given, **fields})


FULL = record(
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


async def test_a_registry_says_where_it_is(registry: CacheRegistry) -> None:
    assert registry.where


async def test_an_empty_registry_has_nothing(registry: CacheRegistry) -> None:
    assert await registry.find("a") is None
    assert await registry.list() == []


@pytest.mark.parametrize("saved", [record(), FULL])
async def test_a_saved_record_is_found_by_all(registry: CacheRegistry, open_registry: Open, saved: CacheRecord) -> None:
    """As it was saved, by every other registry on this place."""
    await save(registry, saved)
    assert await open_registry().find("a") == saved
    assert await open_registry().list() == [saved]


async def test_a_record_is_found_by_its_name(registry: CacheRegistry) -> None:
    """People name a cache by the name of its block, with or without a Prefect server."""
    await save(registry, FULL, record("b"))
    assert await registry.find_named(cache_name("a")) == FULL
    assert await registry.find_named("pollux-cache-c") is None


async def test_a_record_that_cannot_be_read_is_left_out(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """One that a newer version wrote hides none of the others, and is reported."""
    store = opened(f"disk:{tmp_path / 'state'}")
    registry = StoreRegistry(store)
    await save(registry, record("b"))
    await store.put("cache/a", {**record("a").model_dump(mode="json"), "version": 99})
    assert await registry.list() == [record("b")]
    assert "newer pollux_flows (format 99" in caplog.text


async def test_a_record_is_seen_while_it_is_locked(registry: CacheRegistry, open_registry: Open) -> None:
    """Others see that a creation has begun, and under which display name."""
    async with registry.lock("a") as lock:
        assert lock.record is None
        assert await open_registry().find("a") is None
        assert await open_registry().list() == []
        await lock.save(record())
        assert lock.record == record()
        assert await open_registry().find("a") == record()


async def test_a_lock_alone_leaves_no_record(registry: CacheRegistry) -> None:
    async with registry.lock("a"):
        pass
    assert await registry.find("a") is None
    assert await registry.list() == []


async def test_the_last_record_counts(registry: CacheRegistry) -> None:
    await save(registry, record(), FULL)
    async with registry.lock("a") as lock:
        assert lock.record == FULL
        await lock.save(FULL.change(tokens=1))
    assert await registry.find("a") == FULL.change(tokens=1)


async def test_a_removed_record_is_gone(registry: CacheRegistry) -> None:
    """And may be saved again, in that lock or in the next."""
    await save(registry, record(), record("b"))
    async with registry.lock("a") as lock:
        await lock.remove()
        assert lock.record is None
    assert await registry.find("a") is None
    assert await registry.list() == [record("b")]
    await save(registry, record())
    assert await registry.list() == [record(), record("b")]


async def test_one_works_at_a_time(open_registry: Open) -> None:
    """In one loop, of many who ask."""
    at_work: list[int] = []
    most = 0

    async def work(number: int) -> None:
        nonlocal most
        async with open_registry().lock("a") as lock:
            at_work.append(number)
            most = max(most, len(at_work))
            await lock.save(record(tokens=(lock.record.tokens or 0) + 1 if lock.record else 1))
            await asyncio.sleep(0.01)
            at_work.remove(number)

    async with asyncio.timeout(30):
        await asyncio.gather(*map(work, range(8)))
    found = await open_registry().find("a")
    assert found is not None
    assert (most, found.tokens) == (1, 8)


async def test_other_identities_do_not_wait(registry: CacheRegistry) -> None:
    async with asyncio.timeout(5), registry.lock("a"), registry.lock("b"):
        pass


async def test_a_live_holder_keeps_its_lease(registry: CacheRegistry, open_registry: Open) -> None:
    """For longer than a lease lasts; who waits with little patience is told."""
    async with registry.lock("a") as lock:
        await asyncio.sleep(2 * LEASE_S)
        with pytest.raises(TimeoutError):
            async with open_registry().lock("a", patience_s=0):
                pass
        await lock.save(record())
    assert await registry.find("a") == record()


async def test_who_waits_gets_its_turn(registry: CacheRegistry, open_registry: Open) -> None:
    async def wait() -> CacheRecord | None:
        async with open_registry().lock("a") as lock:
            return lock.record

    async with registry.lock("a") as lock:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await lock.save(record())
    assert await asyncio.wait_for(waiting, 10) == record()


async def test_an_error_releases_the_lease(registry: CacheRegistry) -> None:
    """So does a cancellation; what was saved stays."""

    async def work(*, fails: bool) -> None:
        async with registry.lock("a") as lock:
            await lock.save(record())
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
        assert lock.record == record()


async def test_a_waiter_that_is_cancelled_disturbs_no_other(registry: CacheRegistry, open_registry: Open) -> None:
    async def wait() -> None:
        async with open_registry().lock("a"):
            pass

    async with registry.lock("a"):
        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0.1)
        waiting[0].cancel()
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 10)


async def test_a_holder_taken_for_dead_writes_nothing(open_registry: Open) -> None:
    """It comes back late, and its successor's record stands."""
    registry = open_registry()
    if not isinstance(registry, StoreRegistry):
        pytest.skip("the clock of this registry cannot be moved")
    late = StoreRegistry(registry.store, lambda: time.time() - 3600, lease_s=LEASE_S)
    async with late.lock("a") as lock:
        await save(registry, FULL)
        with pytest.raises(LeaseLostError):
            await lock.save(record())
        with pytest.raises(LeaseLostError):
            await lock.remove()
    assert await registry.find("a") == FULL


def hold_until_killed(kind: str, place: str, holding: Any) -> None:
    async def hold() -> None:
        async with open_on_store(f"{kind}:{place}").lock("a") as lock:
            await lock.save(record())
            holding.set()
            await asyncio.sleep(600)

    asyncio.run(hold())


@pytest.mark.parametrize("kind", ["disk", "redis"])
async def test_a_dead_holder_is_succeeded(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """After kill -9, within the lease; what it had saved is there."""
    place = str(tmp_path / "state") if kind == "disk" else request.getfixturevalue("redis_place")
    spawn = multiprocessing.get_context("spawn")
    holding = spawn.Event()
    holder = spawn.Process(target=hold_until_killed, args=(kind, place, holding))
    holder.start()
    assert await asyncio.to_thread(holding.wait, 60)
    os.kill(holder.pid or 0, 9)
    await asyncio.to_thread(holder.join)
    async with asyncio.timeout(LEASE_S + 1), open_on_store(f"{kind}:{place}").lock("a") as lock:
        assert lock.record == record()
