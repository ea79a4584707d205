"""Pruning: records that are removed, records that stay, and concurrent runs."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.result import Answer, Outcome
from pollux_flows.state import maintenance
from pollux_flows.state.identity import digest
from pollux_flows.state.journal import Journal
from pollux_flows.state.leases import acquire_lease
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.maintenance import Pruned, prune
from pollux_flows.state.slots import RunScope, Slots
from pollux_flows.state.store import Row, Store
from tests.state.places import (
    DAY,
    KEY,
    Clock,
    Provider,
    damage,
    hold_run_lease,
    list_keys,
    list_rows,
    open_store_at,
    run,
    run_at_once,
    sleep_until,
)
from tests.state.test_slots import Question

TEXT = "x" * 2000


async def save_run(store: Store, clock: Clock, name: str, *calls: str, text: str = TEXT) -> Journal:
    """Save a run with an answer to each of its calls."""
    journal = Journal(store, name, clock)
    await journal.begin()
    for call in calls:
        answer = Answer(text=text, finish_reason="stop")
        await journal.save_answer(call, Outcome(index=0, identity=call, answer=answer, attempts=1))
    return journal


async def fill(store: Store, clock: Clock, days: int) -> list[Journal]:
    """Save a run a day, with ten answers each."""
    journals = []
    for day in range(days):
        journals.append(await save_run(store, clock, f"run {day}", *(f"{day}/{n}" for n in range(10))))
        clock.now += DAY
    return journals


async def count_answers(journals: list[Journal]) -> list[int]:
    """Return the number of remaining answers of each run, and check that other runs can reuse the same ones."""
    counts = []
    for day, journal in enumerate(journals):
        calls = [f"{day}/{n}" for n in range(10)]
        own = await journal.load_own(calls)
        assert set(await journal.load_reusable(calls, None)) == set(own)
        counts.append(len(own))
    return counts


# --- Removed records ----------------------------------------------------------------------------------------------


async def test_old_answers_are_removed_with_their_pointers_and_runs(store: Store, clock: Clock) -> None:
    journals = await fill(store, clock, 5)
    pruned = await prune(store, older_than_s=3.5 * DAY, clock=clock)
    assert (pruned.answers, pruned.runs, pruned.others) == (20, 2, 20)
    assert pruned.freed_bytes > 20 * len(TEXT)
    assert await count_answers(journals) == [0, 0, 10, 10, 10]
    assert len(await list_keys(store)) == 3 * (1 + 10 + 10)


async def test_the_oldest_answers_are_removed_until_the_size_is_reached(store: Store, clock: Clock) -> None:
    """At most a few more answers than necessary are removed."""
    journals = await fill(store, clock, 20)
    size = await store.size() or sum(row.size for row in await list_rows(store))
    pruned = await prune(store, max_size=size / 2, clock=clock)
    left = await count_answers(journals)
    assert 80 <= pruned.answers <= 110
    assert sum(left) == 200 - pruned.answers
    assert left == sorted(left)
    assert (await store.size() or sum(row.size for row in await list_rows(store))) <= size / 2
    rest = await list_rows(store)
    assert sum(row.key.startswith("answer/") for row in rest) == sum(left)
    assert sum(row.key.count("/") == 1 and row.key.startswith("run/") for row in rest) == sum(map(bool, left))


async def test_a_small_state_is_not_pruned(store: Store, clock: Clock) -> None:
    journals = await fill(store, clock, 2)
    assert await prune(store, max_size=10_000_000, clock=clock) == Pruned()
    assert await count_answers(journals) == [10, 10]


async def test_one_run_is_removed_by_name_or_by_a_prefix_of_names(store: Store, clock: Clock) -> None:
    journals = [await save_run(store, clock, name, "c") for name in ("flow/0", "flow/1", "flow", "flower", "flow/1")]
    assert (await prune(store, run="flow/0", clock=clock)).answers == 1
    assert [len(await journal.load_own(["c"])) for journal in journals] == [0, 1, 1, 1, 1]
    assert (await prune(store, run="flow", clock=clock)).runs == 2
    assert [len(await journal.load_own(["c"])) for journal in journals] == [0, 0, 0, 1, 0]
    assert await prune(store, run="unknown", clock=clock) == Pruned()


async def test_a_dry_run_counts_without_removing(store: Store, clock: Clock) -> None:
    journals = await fill(store, clock, 10)
    before = await list_rows(store)
    size = await store.size() or sum(row.size for row in before)
    for age, most in ((4.5 * DAY, None), (None, size / 2)):
        pruned = await prune(store, older_than_s=age, max_size=most, dry_run=True, clock=clock)
        assert await list_rows(store) == before
        assert 40 <= pruned.answers <= 60
        assert 0.4 * size <= pruned.freed_bytes <= 0.6 * size
    assert await count_answers(journals) == [10] * 10
    assert (await prune(store, older_than_s=4.5 * DAY, clock=clock)).answers == 60


async def test_the_pointer_of_a_call_stays_with_its_latest_answer(store: Store, clock: Clock) -> None:
    first = await save_run(store, clock, "first", "c", text="first")
    clock.now += 2 * DAY
    second = await save_run(store, clock, "second", "c", text="second")
    clock.now += DAY
    assert (await prune(store, older_than_s=2 * DAY, clock=clock)).answers == 1
    assert await first.load_own(["c"]) == {}
    found = (await second.load_reusable(["c"], None))["c"].answer
    assert found is not None
    assert found.text == "second"


async def test_dangling_pointers_and_dead_leases_are_removed(store: Store, clock: Clock) -> None:
    journal = await save_run(store, clock, "one", "a", "b")
    await store.delete(*[key for key in await list_keys(store) if key.endswith("/a")][1:])
    await acquire_lease(store, "asking/dead", "dead run", lease_s=1, clock=clock)
    await acquire_lease(store, "asking/alive", "run", lease_s=10 * DAY, clock=clock)
    clock.now += 2 * DAY
    assert (await prune(store, older_than_s=30 * DAY, clock=clock)).others == 1
    assert "asking/alive" in await list_keys(store)
    assert len(await journal.load_own(["b"])) == 1
    await prune(store, older_than_s=DAY, clock=clock)
    assert await list_keys(store) == ["asking/alive"]


# --- Records that stay --------------------------------------------------------------------------------------------


async def test_records_about_providers_are_never_removed(
    store: Store, clock: Clock, ledger: Ledger, provider: Provider
) -> None:
    """Without these records, the files at the provider would never be deleted."""
    await ledger.derive_account("key")
    provider.lifetime_s = None
    uploaded = await ledger.acquire(KEY, "run", provider.upload, keep_s=None, owner_s=None)
    await save_run(store, clock, "run", "a")
    await store.put("hash/1", {"sha256": "a", "size_bytes": 1, "mime_type": "text/plain"})
    await store.put("of a later version", {"at": 1.0})
    clock.now += 400 * DAY
    pruned = await prune(store, older_than_s=DAY, max_size=0, clock=clock)
    assert (pruned.answers, pruned.runs) == (1, 1)
    assert {name.partition("/")[0] for name in await list_keys(store)} == {
        "hash", "of a later version", "owner", "salt", "upload",
    }  # fmt: skip
    assert await ledger.acquire(KEY, "other", provider.upload) == uploaded


async def test_answers_of_a_run_at_work_stay(store: Store, clock: Clock) -> None:
    """Old answers stay as well, because a retry needs them if the run is killed."""
    journals = await fill(store, clock, 4)
    for by_name in (True, False):
        lease: Any = hold_run_lease(store, "run 1", clock) if by_name else journals[1].lease_call("more")
        async with lease as work:
            if not by_name:
                await work()
            pruned = await prune(store, older_than_s=DAY, max_size=0, dry_run=by_name, clock=clock)
            assert (pruned.answers, pruned.runs, pruned.spared_runs) == (30, 3, 1)
            with pytest.raises(ConfigurationError, match="run 1 is still running"):
                await prune(store, run="run 1", clock=clock)
    assert await count_answers(journals) == [0, 10, 0, 0]
    assert (await prune(store, max_size=0, clock=clock)).answers == 10


async def test_records_that_are_written_during_the_pruning_stay(
    store: Store, clock: Clock, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await save_run(store, clock, "one", "a", "b", text="old")
    clock.now += DAY
    other = open_store_at(address)
    delete_rows = type(store).delete_rows

    async def write_and_delete_rows(self: Store, rows: list[Row]) -> list[Row]:
        await save_run(other, clock, "one", "a", "c", text="new")
        return await delete_rows(self, rows)

    monkeypatch.setattr(type(store), "delete_rows", write_and_delete_rows)
    assert (await prune(store, older_than_s=0, clock=clock)).answers == 1
    monkeypatch.undo()
    assert {
        call: each.answer.text for call, each in (await journal.load_own(["a", "b", "c"])).items() if each.answer
    } == {
        "a": "new",
        "c": "new",
    }
    assert set(await journal.load_reusable(["a", "b", "c"], None)) == {"a", "c"}


async def test_damaged_records_are_not_removed_by_age(store: Store, clock: Clock, address: str) -> None:
    """A run with damaged answers does not count as empty."""
    await save_run(store, clock, "one", "a", "b", "c")
    run_ = f"run/{digest('run', 'one')}"
    damage(address, f"{run_}/a", b"{")
    damage(address, f"{run_}/b", b'{"at":"yesterday"}')
    damage(address, "answer/b", b"[]")
    clock.now += DAY
    assert (await prune(store, older_than_s=0, max_size=0, clock=clock)).answers == 1
    assert {row.key for row in await list_rows(store)} >= {run_, f"{run_}/a", f"{run_}/b", "answer/b"}


async def test_a_lease_that_cannot_be_read_is_an_error(store: Store, clock: Clock) -> None:
    """Without the lease, the answers of the run at work are unknown."""
    await fill(store, clock, 1)
    await store.put("taker/odd", {"lease": {"owner": "other"}})
    with pytest.raises(ConfigurationError, match=r"record taker/odd in .* is damaged.*prune --damaged"):
        await prune(store, older_than_s=0, clock=clock)


# --- Concurrency --------------------------------------------------------------------------------------------------


def prune_half(address: str, size: float, now: float, _me: int, moment: float) -> int:
    sleep_until(moment)
    return run(prune(open_store_at(address), max_size=size / 2, clock=Clock(now))).answers


def test_two_concurrent_prunings_remove_no_more_than_one(
    address: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_BATCH", 10)
    store = open_store_at(address)
    journals = run(fill(store, clock, 60))

    async def measure() -> int:
        return await store.size() or sum(row.size for row in await list_rows(store))

    size = run(measure())
    removed = run_at_once(2, partial(prune_half, address, size, clock.now))
    left = run(count_answers(journals))
    assert sum(left) == 600 - sum(removed)
    assert left == sorted(left)
    assert 0.35 * size < run(measure()) <= size / 2


async def test_concurrent_writers_lose_nothing(store: Store, clock: Clock, address: str) -> None:
    journals = await fill(store, clock, 10)
    other = Journal(open_store_at(address), "new", clock)

    async def write() -> None:
        for index in range(100):
            answer = Answer(text=TEXT, finish_reason="stop")
            await other.save_answer(f"{index}", Outcome(index=0, identity="a", answer=answer, attempts=1))

    pruned, _ = await asyncio.gather(prune(store, max_size=0, clock=clock), write())
    assert pruned.answers == 100
    assert await count_answers(journals) == [0] * 10
    assert len(await other.load_reusable([f"{index}" for index in range(100)], None)) == 100


# --- Runs that may be retried -------------------------------------------------------------------------------------


async def save_run_with_slots(store: Store, clock: Clock, name: str, *, complete: bool) -> Journal:
    """Save a run with slots and ten answers that completes or fails."""
    slots = Slots(store, RunScope(name), clock)
    journal = await save_run(store, clock, name)
    calls = [Question(n, f"{name} {n}") for n in range(10)]
    for slot in (await slots.acquire(calls)).values():
        answer = Answer(text=TEXT, finish_reason="stop")
        await journal.save_answer(slot.identity, Outcome(index=0, identity=slot.identity, answer=answer, attempts=1))
    await slots.close(complete=complete)
    return journal


async def count_saved(store: Store, journal: Journal) -> int:
    return len([key async for key in store.list_keys(f"run/{journal._name}/")])


async def test_answers_of_a_failed_run_stay_for_a_day(store: Store, clock: Clock) -> None:
    """They stay although the size exceeds the limit."""
    failed = await save_run_with_slots(store, clock, "failed", complete=False)
    clock.now += 60
    completed = await save_run_with_slots(store, clock, "completed", complete=True)
    clock.now += DAY - 61
    assert (await prune(store, max_size=0, dry_run=True, clock=clock)).answers == 10
    pruned = await prune(store, max_size=0, clock=clock)
    assert (pruned.answers, pruned.spared_runs) == (10, 1)
    assert await count_saved(store, completed) == 0
    assert await count_saved(store, failed) == 10
    calls = [Question(n, f"failed {n}") for n in range(10)]
    assert all(slot.outcome for slot in (await Slots(store, RunScope("failed"), clock).acquire(calls)).values())


async def test_answers_of_a_failed_run_are_removed_after_a_day(store: Store, clock: Clock) -> None:
    failed = await save_run_with_slots(store, clock, "failed", complete=False)
    clock.now += DAY + 1
    await prune(store, max_size=0, clock=clock)
    assert await count_saved(store, failed) == 0


async def test_answers_of_a_killed_run_stay_for_a_day(store: Store, clock: Clock) -> None:
    slots = Slots(store, RunScope("killed"), clock, lease_s=20)
    journal = await save_run(store, clock, "killed")
    call = Question(0, "why")
    slot = (await slots.acquire([call]))[0]
    await journal.save_answer(
        slot.identity,
        Outcome(index=0, identity=slot.identity, answer=Answer(text=TEXT, finish_reason="stop"), attempts=1),
    )
    clock.now += 3600
    await prune(store, max_size=0, clock=clock)
    assert await count_saved(store, journal) == 1
    await slots.close()


async def test_answers_of_a_run_completed_by_its_retry_are_removed(store: Store, clock: Clock) -> None:
    await save_run_with_slots(store, clock, "run", complete=False)
    journal = await save_run_with_slots(store, clock, "run", complete=True)
    clock.now += 60
    await prune(store, max_size=0, clock=clock)
    assert await count_saved(store, journal) == 0


@pytest.mark.parametrize("complete", [True, False])
async def test_a_run_without_slots_records_whether_it_is_complete(store: Store, clock: Clock, complete: bool) -> None:
    journal = Journal(store, "run", clock)
    await journal.begin(complete=False)
    await journal.save_answer(
        "a", Outcome(index=0, identity="a", answer=Answer(text=TEXT, finish_reason="stop"), attempts=1)
    )
    if complete:
        await journal.end()
    clock.now += 60
    await prune(store, max_size=0, clock=clock)
    assert await count_saved(store, journal) == (0 if complete else 1)


async def test_pruning_by_age_removes_incomplete_runs_at_once(store: Store, clock: Clock) -> None:
    failed = await save_run_with_slots(store, clock, "failed", complete=False)
    clock.now += 3600
    assert (await prune(store, older_than_s=60, clock=clock)).answers == 10
    assert await count_saved(store, failed) == 0
