"""Leases: one live owner at a time, and a late owner cannot overwrite the work of its successor."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.leases import (
    LeaseLostError,
    acquire_lease,
    backoff_pauses,
    change_record,
    get_owner,
    run_to_completion,
    strip_lease,
    wait_for_release,
)
from pollux_flows.state.store import Json, Store
from tests.state.places import Clock, acquire_one, open_store_at, run_at_once

# --- Acquiring ----------------------------------------------------------------------------------------------------


def test_one_of_eight_processes_acquires_the_lease(address: str) -> None:
    assert sum(run_at_once(8, partial(acquire_one, address))) == 1


async def test_one_of_fifty_coroutines_acquires_the_lease(store: Store) -> None:
    leases = await asyncio.gather(*(acquire_lease(store, "a", f"owner {index}") for index in range(50)))
    assert sum(each is not None for each in leases) == 1


async def test_the_intent_is_written_with_the_lease(store: Store, clock: Clock) -> None:
    """Lease and intent are one write."""
    await store.put("a", {"old": 1})
    lease = await acquire_lease(store, "a", "me", 10, clock=clock, intent=lambda record: {**record, "intent": 2})
    assert lease is not None
    record = await store.get("a")
    assert strip_lease(record) == {"old": 1, "intent": 2}
    assert get_owner(record, clock()) == "me"


async def test_without_an_intent_no_lease_is_acquired(store: Store) -> None:
    assert await acquire_lease(store, "a", "me", intent=lambda _: None) is None
    assert await store.get("a") is None


# --- Releasing ----------------------------------------------------------------------------------------------------


async def test_the_outcome_releases_the_lease(store: Store, clock: Clock) -> None:
    lease = await acquire_lease(store, "a", "me", 10, clock=clock)
    assert lease is not None
    await lease.finish(lambda _: {"answer": 1})
    assert await store.get("a") == {"answer": 1}
    with pytest.raises(LeaseLostError):  # the lease has ended
        await lease.finish(lambda _: {"answer": 2})
    assert await store.get("a") == {"answer": 1}


async def test_a_release_leaves_the_record_unchanged(store: Store) -> None:
    for before in ({"old": 1}, None):
        if before is not None:
            await store.put("a", before)
        lease = await acquire_lease(store, "a", "me")
        assert lease is not None
        await lease.release()
        assert await store.get("a") == before
        await lease.release()
        await store.delete("a")


async def test_the_outcome_may_delete_the_record(store: Store) -> None:
    lease = await acquire_lease(store, "a", "me", intent=lambda _: {"intent": 1})
    assert lease is not None
    await lease.finish(lambda _: None)
    assert await store.get("a") is None


# --- Running out --------------------------------------------------------------------------------------------------


async def test_a_lease_that_ran_out_is_acquired_by_another_owner(store: Store, clock: Clock) -> None:
    """Each write of the first owner then fails."""
    first = await acquire_lease(store, "a", "first", 10, clock=clock)
    clock.now += 9.9
    assert await acquire_lease(store, "a", "second", 10, clock=clock) is None
    clock.now += 0.2
    second = await acquire_lease(store, "a", "second", 10, clock=clock)
    assert first is not None
    assert second is not None
    with pytest.raises(LeaseLostError):
        await first.renew()
    with pytest.raises(LeaseLostError):
        await first.finish(lambda _: {"answer": "late"})
    await first.release()
    assert get_owner(await store.get("a"), clock()) == "second"
    await second.finish(lambda _: {"answer": "in time"})
    assert await store.get("a") == {"answer": "in time"}


async def test_owners_of_equal_names_exclude_each_other(store: Store, clock: Clock) -> None:
    """A run that starts again waits for the lease of its killed predecessor."""
    first = await acquire_lease(store, "a", "me", 10, clock=clock)
    assert await acquire_lease(store, "a", "me", 10, clock=clock) is None
    clock.now += 11
    assert await acquire_lease(store, "a", "me", 10, clock=clock) is not None
    assert first is not None
    with pytest.raises(LeaseLostError):
        await first.finish(lambda _: {"answer": "late"})


async def test_a_late_owner_without_a_successor_keeps_its_lease(store: Store, clock: Clock) -> None:
    lease = await acquire_lease(store, "a", "me", 10, clock=clock)
    clock.now += 100
    assert lease is not None
    await lease.renew()
    assert await acquire_lease(store, "a", "other", 10, clock=clock) is None
    clock.now += 100
    await lease.finish(lambda _: {"answer": 1})
    assert await store.get("a") == {"answer": 1}


async def test_a_lease_is_renewed_during_long_work(store: Store, clock: Clock) -> None:
    lease = await acquire_lease(store, "a", "me", 0.2, clock=clock)
    assert lease is not None
    async with lease.keep_alive():
        for _ in range(5):
            clock.now += 0.15
            assert await acquire_lease(store, "a", "other", 0.2, clock=clock) is None
            while get_owner(await store.get("a"), clock() + 0.1) is None:  # noqa: ASYNC110 (a renewal sets no event)
                await asyncio.sleep(0.001)
    await lease.finish(lambda _: {"answer": 1})


async def test_a_lease_survives_an_outage_of_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = await acquire_lease(store, "a", "me", 0.2)
    assert lease is not None
    swap, asked = store.swap, 0

    async def refuse_once(key: str, old: Json | None, new: Json | None, ttl_s: float | None = None) -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ConfigurationError("The disk is full.")
        return await swap(key, old, new, ttl_s)

    monkeypatch.setattr(store, "swap", refuse_once)
    async with lease.keep_alive():
        while asked < 3:  # noqa: ASYNC110 (a renewal sets no event)
            await asyncio.sleep(0.01)
    await lease.finish(lambda _: {"answer": 1})


async def test_a_cancelled_acquisition_is_undone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store had already written the lease."""
    await store.put("a", {"old": 1})
    swap, swapped, answer = store.swap, asyncio.Event(), asyncio.Event()

    async def swap_slowly(key: str, old: Json | None, new: Json | None, ttl_s: float | None = None) -> bool:
        done = await swap(key, old, new, ttl_s)
        swapped.set()
        await answer.wait()
        return done

    monkeypatch.setattr(store, "swap", swap_slowly)
    acquiring = asyncio.ensure_future(acquire_lease(store, "a", "me", intent=lambda record: {**record, "intent": 2}))
    await swapped.wait()
    acquiring.cancel()
    await asyncio.sleep(0)
    answer.set()
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    assert await store.get("a") == {"old": 1}


# --- Other processes ----------------------------------------------------------------------------------------------


async def test_others_may_change_the_record_during_a_lease(store: Store, clock: Clock) -> None:
    """The lease stays with its owner until it runs out."""
    lease = await acquire_lease(store, "a", "me", 10, clock=clock)
    assert lease is not None
    seen: list[bool] = []

    def note(record: Json, is_leased: bool) -> Json:
        seen.append(is_leased)
        return {**record, "notes": [*record.get("notes", []), 1]}

    await change_record(store, "a", note, clock=clock)
    await lease.renew()
    clock.now += 11
    await change_record(store, "a", note, clock=clock)
    assert seen == [True, False]
    with pytest.raises(LeaseLostError):
        await lease.finish(lambda _: {"answer": 1})
    assert await store.get("a") == {"notes": [1, 1]}


async def test_no_concurrent_change_is_lost(store: Store) -> None:
    def increment(record: Json, _: bool) -> Json:
        return {"count": record.get("count", 0) + 1}

    await asyncio.gather(*(change_record(store, "a", increment) for _ in range(30)))
    assert await store.get("a") == {"count": 30}
    await change_record(store, "a", lambda _, __: None)
    assert await store.get("a") is None


async def test_waiters_get_the_record_after_a_release(store: Store, address: str) -> None:
    lease = await acquire_lease(store, "a", "me")
    assert lease is not None
    waiting = [asyncio.ensure_future(wait_for_release(open_store_at(address), "a")) for _ in range(3)]
    await lease.renew()
    assert not any(each.done() for each in waiting)
    await lease.finish(lambda _: {"answer": 1})
    assert await asyncio.gather(*waiting) == [{"answer": 1}] * 3


async def test_waiters_get_the_record_when_a_lease_runs_out(store: Store, clock: Clock) -> None:
    await acquire_lease(store, "a", "me", 10, clock=clock, intent=lambda _: {"intent": 1})
    waiting = asyncio.ensure_future(wait_for_release(store, "a", clock=clock))
    await store.get("a")
    assert not waiting.done()
    clock.now += 11
    assert await waiting == {"intent": 1}


async def test_waiters_time_out(store: Store) -> None:
    await acquire_lease(store, "a", "me")
    with pytest.raises(TimeoutError):
        await wait_for_release(store, "a", patience_s=0.05)


def test_backoff_pauses_grow_and_differ() -> None:
    one, other = ([pause for pause, _ in zip(backoff_pauses(), range(30), strict=False)] for _ in range(2))
    assert one != other
    assert one[0] <= 0.01
    assert max(one) <= 0.5
    assert min(one[-5:]) >= 0.25


async def test_run_to_completion_finishes_its_work_although_it_is_cancelled() -> None:
    """The cancellation is raised after the work has ended."""
    go, done = asyncio.Event(), False

    async def work() -> None:
        nonlocal done
        await go.wait()
        done = True

    task = asyncio.ensure_future(run_to_completion(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done
