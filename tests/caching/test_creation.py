"""Creation: all concurrent and later callers get one cache, also if some of them fail or are cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import APIError, CacheError, CacheHandle, Config, Options, Source, create_cache, run_many
from pollux_flows.caching.registry import StoreRegistry, open_registry
from pollux_flows.caching.sweep import delete_cache, sweep_caches
from pollux_flows.errors import ConfigurationError
from pollux_flows.pipeline import cache_creation
from pollux_flows.pipeline.cache_creation import create_or_find, prepare_cache
from pollux_flows.pipeline.caches import CacheRecord, CacheRequest
from pollux_flows.simulator import Fault, Logged, Simulator
from tests.loopback import KEY, MakeConfig, asked, until

STORY = Source.from_text("A long story about the sea. " * 50)
PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    monkeypatch.setattr(cache_creation, "SETTLED_S", 1.0)


@pytest.fixture
def gemini(config: MakeConfig) -> Config:
    return config("gemini")


@pytest.fixture
def registry(gemini: Config) -> StoreRegistry:
    return open_registry(gemini)


@pytest.fixture
def pdf(tmp_path: Path) -> Source:
    (tmp_path / "report.pdf").write_bytes(PDF)
    return Source.from_file(tmp_path / "report.pdf")


def find_requests(sim: Simulator, operation: str) -> list[Logged]:
    return [entry for entry in sim.requests if entry.operation == operation]


def count_created(sim: Simulator) -> int:
    """Return the number of requests to create a cache."""
    return len(find_requests(sim, "cache.create"))


def list_caches(sim: Simulator) -> set[str]:
    """Return the names of the caches that exist at the provider."""
    return {cache.name for cache in sim.gemini_caches.all(sim.now())}


async def get_record(registry: StoreRegistry) -> CacheRecord:
    """Return the only record of the registry."""
    (record,) = await registry.list()
    return record


async def change_record(registry: StoreRegistry, **fields: Any) -> None:
    """Change fields of the only record of the registry."""
    async with registry.lock((await get_record(registry)).identity) as lock:
        assert lock.record is not None
        await lock.save(lock.record.change(**fields))


# --- Later calls --------------------------------------------------------------------------------------------


async def test_a_later_call_finds_the_cache(gemini: Config, sim: Simulator, pdf: Source) -> None:
    """The handle is equal, and nothing is uploaded."""
    first = await create_cache([pdf], config=gemini)
    uploaded = len(sim.files)
    assert await create_cache([pdf], config=gemini) == first
    assert (count_created(sim), len(sim.files)) == (1, uploaded)


async def test_the_record_describes_the_cache_and_how_to_recreate_it(
    gemini: Config, registry: StoreRegistry, sim: Simulator, pdf: Source
) -> None:
    """The record has a readable list of contents and the full request, and not the key."""
    tool = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}}
    handle = await create_cache([pdf, STORY], config=gemini, system_instruction="Be brief.", tools=[tool])
    record = await get_record(registry)
    assert record.handle() == handle
    assert (record.state, record.name, record.identity) == ("living", handle.name, handle.identity)
    assert [record.contents[0], *record.contents[2:]] == ["report.pdf", "a system instruction", "the tool look"]
    assert record.request is not None
    assert (await prepare_cache(record.request, gemini)).identity == record.identity
    assert record.tokens == next(iter(sim.gemini_caches.all(sim.now()))).tokens
    assert record.file_ids == [file.id for file in sim.files]
    assert KEY not in record.model_dump_json()


async def test_a_large_request_is_not_stored_in_the_record(gemini: Config, registry: StoreRegistry) -> None:
    """Only a caller with the sources can recreate such a cache."""
    await create_cache([Source.from_text("word " * 300_000)], config=gemini)
    assert (await get_record(registry)).request is None


async def test_different_contents_get_different_caches(gemini: Config, sim: Simulator) -> None:
    handles = [
        await create_cache([STORY], config=gemini),
        await create_cache([STORY, STORY], config=gemini),
        await create_cache([STORY], config=gemini, system_instruction="Be brief."),
        await create_cache([STORY], config=gemini.model_copy(update={"model": "gemini-2.5-pro"})),
    ]
    assert len({handle.name for handle in handles}) == count_created(sim) == 4


async def test_a_longer_time_to_live_extends_the_cache(gemini: Config, sim: Simulator) -> None:
    """A shorter one changes nothing."""
    first = await create_cache([STORY], config=gemini, ttl_seconds=600)
    longer = await create_cache([STORY], config=gemini, ttl_seconds=3600)
    assert (longer.name, count_created(sim), len(find_requests(sim, "cache.update"))) == (first.name, 1, 1)
    assert longer.expires_at > first.expires_at + 2900
    assert await create_cache([STORY], config=gemini, ttl_seconds=60) == longer


async def test_a_cache_that_expires_soon_is_extended(gemini: Config, sim: Simulator, registry: StoreRegistry) -> None:
    first = await create_cache([STORY], config=gemini)
    await change_record(registry, expires_at=time.time() + 30)
    now = time.time() - 3570
    sim.clock = lambda: now
    sim.gemini_caches.extend(sim.gemini_caches.all(now)[0], time.time() + 30, now)
    sim.clock = time.time
    again = await create_cache([STORY], config=gemini)
    assert (again.name, count_created(sim)) == (first.name, 1)
    assert again.expires_at > time.time() + 3500


@pytest.mark.parametrize("lost", [True, False])
async def test_a_lost_or_expired_cache_is_recreated(
    gemini: Config, sim: Simulator, registry: StoreRegistry, *, lost: bool
) -> None:
    first = await create_cache([STORY], config=gemini)
    if lost:
        sim.gemini_caches.clear()
    else:
        await change_record(registry, expires_at=time.time() - 1)
    again = await create_cache([STORY], config=gemini)
    assert again.name != first.name
    assert count_created(sim) == 2


async def test_a_cache_that_cannot_be_verified_counts_as_existing(gemini: Config, sim: Simulator) -> None:
    """While the provider is down, a cache that should live for another hour is not paid for again."""
    first = await create_cache([STORY], config=gemini)
    sim.fail(Fault(status=503), operation="cache.get", times=None)
    assert await create_cache([STORY], config=gemini) == first


@pytest.fixture
def late_listing(sim: Simulator) -> Iterator[None]:
    """A provider that lists a cache only some time after its creation."""
    sim.gemini_cache_listed_after_s = 0.6
    yield
    sim.gemini_cache_listed_after_s = 0.0


@pytest.mark.usefixtures("late_listing")
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_cache_whose_reply_was_lost_is_found_once_it_is_listed(
    gemini: Config, sim: Simulator, monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    """The search goes on until the cache is listed, in the same call or in the next."""
    monkeypatch.setattr(cache_creation, "_LOOKS_S", (0.3, 0.6) if at_once else (0.1,))
    sim.fail(Fault(kind="drop_after"), operation="cache.create")
    if not at_once:
        with pytest.raises(CacheError):
            await create_cache([STORY], config=gemini)
    handle = await create_cache([STORY], config=gemini)
    assert (count_created(sim), list_caches(sim)) == (1, {handle.name})


async def test_a_create_request_that_never_arrived_is_repeated_by_the_next_call(gemini: Config, sim: Simulator) -> None:
    """The next call first waits until the cache would be listed."""
    sim.fail(Fault(kind="drop"), operation="cache.create")
    with pytest.raises(CacheError) as caught:
        await create_cache([STORY], config=gemini)
    assert caught.value.outcome_unknown
    handle = await create_cache([STORY], config=gemini)
    assert (count_created(sim), list_caches(sim)) == (2, {handle.name})


# --- Concurrent calls ---------------------------------------------------------------------------------------


async def test_twelve_concurrent_calls_create_one_cache(gemini: Config, sim: Simulator, pdf: Source) -> None:
    """The file of the cache is uploaded once."""
    sim.latency_s = 0.05
    handles = await asyncio.gather(*(create_cache([pdf], config=gemini) for _ in range(12)))
    assert len({handle.name for handle in handles}) == count_created(sim) == len(sim.files) == 1


def test_event_loops_in_several_threads_create_one_cache(gemini: Config, sim: Simulator) -> None:
    sim.latency_s = 0.05
    handles: list[CacheHandle] = []

    async def create_three() -> list[CacheHandle]:
        return await asyncio.gather(*(create_cache([STORY], config=gemini) for _ in range(3)))

    threads = [threading.Thread(target=lambda: handles.extend(asyncio.run(create_three()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(handles) == 12
    assert len({handle.name for handle in handles}) == count_created(sim) == 1


async def test_a_failed_creation_fails_for_all_waiters_and_not_for_later_calls(gemini: Config, sim: Simulator) -> None:
    """The provider gets one create request for all waiters, and another one for the next call."""
    sim.latency_s = 0.2
    sim.fail(Fault(status=400, message="too small"), operation="cache.create")
    outcomes = await asyncio.gather(*(create_cache([STORY], config=gemini) for _ in range(8)), return_exceptions=True)
    assert [(type(each), str(each).partition(" too")[0]) for each in outcomes] == [
        (CacheError, "gemini answered 400:")
    ] * 8
    assert count_created(sim) == 1
    await create_cache([STORY], config=gemini)
    assert count_created(sim) == 2


async def test_a_failed_upload_fails_for_all_waiters(gemini: Config, sim: Simulator, pdf: Source) -> None:
    """No cache is created after a failed upload; a later call uploads again."""
    sim.fail(Fault(status=400, message="no such thing"), operation="file.upload_chunk", times=None)
    outcomes = await asyncio.gather(*(create_cache([pdf], config=gemini) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(each, APIError) for each in outcomes)
    assert count_created(sim) == 0
    sim.faults.clear()
    await create_cache([pdf], config=gemini)
    assert count_created(sim) == 1


@pytest.mark.parametrize("moment", ["upload", "reply"])
async def test_waiters_get_the_cache_although_its_creator_is_cancelled(
    gemini: Config, sim: Simulator, registry: StoreRegistry, pdf: Source, moment: str
) -> None:
    """One cache is created and paid for."""
    operation = "file.upload_chunk" if moment == "upload" else "cache.create"
    sim.fail(Fault(kind="slow", delay_s=0.6), operation=operation)
    creator = asyncio.create_task(create_cache([pdf], config=gemini))
    await until(lambda: find_requests(sim, "file.create" if moment == "upload" else "file.upload_chunk"))
    await asyncio.sleep(0.3)
    others = [asyncio.create_task(create_cache([pdf], config=gemini)) for _ in range(3)]
    await asyncio.sleep(0.1)
    creator.cancel()
    async with asyncio.timeout(20):
        handles = await asyncio.gather(*others)
    assert creator.cancelled() or (await asyncio.wait([creator]))[0].pop().cancelled()
    assert {handle.name for handle in handles} == list_caches(sim) == {(await get_record(registry)).name}
    assert count_created(sim) == 1


async def test_a_creator_that_is_cancelled_while_the_provider_hangs_ends_soon(
    gemini: Config, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The creator waits a moment for the reply; the next call searches for the cache and then creates another."""
    monkeypatch.setattr(cache_creation, "_GRACE_S", 0.2)
    sim.fail(Fault(kind="hang"), operation="cache.create")
    creator = asyncio.create_task(create_cache([STORY], config=gemini))
    await asyncio.sleep(0.6)
    began = time.monotonic()
    creator.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creator
    assert time.monotonic() - began < 2
    await create_cache([STORY], config=gemini)
    assert find_requests(sim, "cache.list")


async def test_a_cancelled_waiter_does_not_affect_the_others(gemini: Config, sim: Simulator) -> None:
    sim.fail(Fault(kind="slow", delay_s=0.5), operation="cache.create")
    tasks = [asyncio.create_task(create_cache([STORY], config=gemini)) for _ in range(4)]
    await asyncio.sleep(0.3)
    tasks[2].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in outcomes].count(CacheHandle) == 3
    assert count_created(sim) == 1


async def test_a_creator_that_was_paused_beyond_its_lease_deletes_its_cache(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """The creator uses the cache of its successor instead of its own, which no record names."""
    prepared = await prepare_cache(CacheRequest(sources=[STORY]), gemini)
    sim.fail(Fault(kind="slow", delay_s=1.5), operation="cache.create")
    slow = StoreRegistry(registry.store, lambda: time.time() - 3600)
    late = asyncio.create_task(create_or_find(prepared, gemini, slow))
    await asyncio.sleep(0)
    await asyncio.sleep(0.6)
    async with registry.lock(prepared.identity) as lock:  # as a successor does that has not found the cache
        assert lock.record is not None
        await lock.save(lock.record.change(asked_at=None))
    handle = (await create_or_find(prepared, gemini, registry)).handle
    assert (await late).handle == handle
    assert list_caches(sim) == {handle.name}


# --- Files --------------------------------------------------------------------------------------------------


async def test_files_of_a_cache_are_deleted_with_the_cache(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    """The provider does not document whether a cache copies its files, so they stay until then."""
    gemini = config("gemini", keep_files_s=0.0)
    handle = await create_cache([pdf], config=gemini)
    await run_many(["a"], sources=[pdf], config=gemini)  # a run that acquires the file as well, and releases it
    (file,) = sim.files
    assert file.is_there
    assert handle.identity is not None
    await delete_cache(open_registry(gemini), gemini, handle.identity)
    assert not file.is_there
    assert list_caches(sim) == set()


async def test_a_refused_cache_releases_its_files(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    gemini = config("gemini", keep_files_s=0.0)
    sim.fail(Fault(status=400), operation="cache.create")
    with pytest.raises(CacheError):
        await create_cache([pdf], config=gemini)
    assert [file.is_there for file in sim.files] == [False]


async def test_a_recreated_cache_uses_the_uploaded_files(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    gemini = config("gemini", keep_files_s=0.0)
    await create_cache([pdf], config=gemini)
    sim.gemini_caches.clear()
    handle = await create_cache([pdf], config=gemini)
    assert handle.identity is not None
    assert len(sim.files) == 1  # the file was not uploaded again
    await delete_cache(open_registry(gemini), gemini, handle.identity)
    assert [file for file in sim.files if file.is_there] == []


# --- Sweeps -------------------------------------------------------------------------------------------------


async def test_a_sweep_spares_caches_from_create_cache(gemini: Config, sim: Simulator, registry: StoreRegistry) -> None:
    """Callers may still hold the handle, also if it was not used for long."""
    await create_cache([STORY], config=gemini, ttl_seconds=7 * 86_400)
    assert await sweep_caches(registry, gemini) == []
    assert await sweep_caches(registry, gemini, clock=lambda: time.time() + 2 * DAY_S) == []
    assert len(list_caches(sim)) == 1


async def test_a_sweep_deletes_unused_caches(config: MakeConfig, sim: Simulator, pdf: Source) -> None:
    """The sweep deletes the cache at the provider and its record, and releases its files."""
    gemini = config("gemini", keep_files_s=0.0)
    registry = open_registry(gemini)
    request = CacheRequest(sources=[pdf], ttl_seconds=7 * 86_400)
    handle = (await create_or_find(await prepare_cache(request, gemini), gemini, registry)).handle
    (swept,) = await sweep_caches(registry, gemini, clock=lambda: time.time() + DAY_S + 1)
    assert (swept.name, swept.reason) == (handle.name, "unused")
    assert list_caches(sim) == set()
    assert await registry.list() == []
    assert [file.is_there for file in sim.files] == [False]


async def test_a_sweep_removes_records_of_expired_caches_after_a_week(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    await create_cache([STORY], config=gemini)
    sim.gemini_caches.clear()
    assert (
        await sweep_caches(registry, gemini, clock=lambda: time.time() + 3601) == []
    )  # a run may still name the cache
    (swept,) = await sweep_caches(registry, gemini, clock=lambda: time.time() + 8 * DAY_S)
    assert swept.reason == "expired"
    assert await registry.list() == []


async def test_a_sweep_does_not_change_caches_of_other_accounts(config: MakeConfig) -> None:
    await create_cache([STORY], config=config("gemini"))
    later = time.time() + 3601
    other = config("gemini", api_key="sk-another")
    assert await sweep_caches(open_registry(other), other, clock=lambda: later) == []
    assert len(await open_registry(other).list()) == 1


async def test_a_sweep_deletes_a_cache_that_was_listed_after_its_replacement(
    gemini: Config, sim: Simulator, registry: StoreRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply about the first cache was lost; the sweep knows it by its display name."""
    monkeypatch.setattr(cache_creation, "_LOOKS_S", (0.1,))
    sim.fail(Fault(kind="drop_after"), operation="cache.create")
    sim.fail(Fault(status=503), operation="cache.list", times=None)
    with pytest.raises(CacheError):
        await create_cache([STORY], config=gemini)
    (late,) = sim.gemini_caches.all(sim.now())
    sim.gemini_caches.clear()  # the provider lists the cache late
    sim.faults.clear()
    handle = await create_cache([STORY], config=gemini)
    sim.gemini_caches.add(late)
    assert (await get_record(registry)).abandoned == [late.display_name]
    swept = await sweep_caches(registry, gemini)
    assert [(each.name, each.reason) for each in swept] == [(late.name, "abandoned")]
    assert list_caches(sim) == {handle.name}


async def test_an_unknown_cache_cannot_be_deleted(gemini: Config, registry: StoreRegistry) -> None:
    with pytest.raises(ConfigurationError, match="There is no cache 'x'"):
        await delete_cache(registry, gemini, "x")


# --- The example of the seeds -------------------------------------------------------------------------------


async def test_ten_questions_about_an_hour_of_video_save_90_percent_of_the_tokens(
    gemini: Config, sim: Simulator, registry: StoreRegistry
) -> None:
    """By the provider's count, 948,300 tokens are sent instead of 9,469,500: compare_efficiency(946_800, 10)."""
    video = Source.from_text("a" * 4 * 946_800)  # as many tokens as an hour of video
    # 50 tokens each; thinking and answering take 100.
    questions = [f"{number}. {'What happens then?' * 10}"[:174].ljust(200) for number in range(10)]
    handle = await create_cache([video], config=gemini)
    options = Options(cache=handle, reasoning_budget_tokens=1024)
    usage = (await run_many(questions, config=gemini, options=options)).usage
    made = (await get_record(registry)).tokens
    assert made is not None
    sent_tokens = made + usage["input_tokens"] - usage["cached_tokens"] + usage["output_tokens"]
    naive = usage["input_tokens"] + usage["output_tokens"]
    assert (made, usage["output_tokens"], len(asked(sim))) == (946_800, 1_000, 10)
    assert (sent_tokens, naive) == (948_300, 9_469_500)
    assert f"{(naive - sent_tokens) / naive:.1%}" == "90.0%"
