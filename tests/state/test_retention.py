"""Retention: the age and the total size of answers are limited without explicit pruning."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.result import Answer, Outcome
from pollux_flows.state import maintenance
from pollux_flows.state.disk import DiskStore
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import Store
from tests.state.places import DAY, Clock, damage, hold_run_lease, open_store_at

ANSWER = Outcome(index=0, identity="a", answer=Answer(text="x" * 2000, finish_reason="stop"), attempts=1)
CALLS = [f"{index}" for index in range(100)]


@pytest.fixture(autouse=True)
def _check_size_at_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_CHECK_EVERY_S", 0.0)


@pytest.fixture
def disk(tmp_path: Path) -> DiskStore:
    return DiskStore(tmp_path / "state")


async def run_for_a_day(store: Store, clock: Clock, name: str) -> Journal:
    """Run for a day, with an answer to each call."""
    journal = Journal(store, name, clock)
    await journal.begin()
    for call in CALLS:
        await journal.save_answer(f"{name} {call}", ANSWER)
    clock.now += DAY
    return journal


async def count_saved(journal: Journal) -> int:
    return len(await journal.load_own([f"{journal.run} {call}" for call in CALLS]))


# --- Age ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "setting"), [(90, ""), (7, "7"), (0.5, " 0.5 ")])
async def test_answers_and_their_pointers_expire_after_the_configured_days(
    disk: DiskStore, days: float, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLLUX_STATE_KEEP_DAYS", setting)
    journal = Journal(disk, "run")
    await journal.begin()
    await journal.save_answer("a", ANSWER)
    query = "SELECT expire_time - store_time FROM Cache"
    lifetimes = [lifetimes for (lifetimes,) in await disk._run(lambda connection: connection.execute(query).fetchall())]
    assert lifetimes == [pytest.approx(days * DAY)] * 3


@pytest.mark.parametrize("setting", ["soon", "0", "-1", "nan", "inf", "30d", "1e9"])
def test_an_invalid_number_of_days_is_refused_at_once(
    disk: DiskStore, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLLUX_STATE_KEEP_DAYS", setting)
    with pytest.raises(ConfigurationError, match="POLLUX_STATE_KEEP_DAYS is not a number of days"):
        Journal(disk, "run")


# --- Size ---------------------------------------------------------------------------------------------------------


async def test_a_run_that_begins_prunes_the_oldest_answers(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are removed until the size is somewhat below the limit."""
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "1.5MB")
    journals = [await run_for_a_day(disk, clock, f"run {day}") for day in range(10)]
    await Journal(disk, "next", clock).begin()
    assert 1_300_000 < await disk.size() <= 1_500_000
    left = [await count_saved(journal) for journal in journals]
    assert left == sorted(left)
    assert left[0] == 0
    assert left[-2:] == [100, 100]


async def test_a_small_state_is_not_listed(disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = await run_for_a_day(disk, clock, "run")
    monkeypatch.setattr(DiskStore, "list_rows", None)
    monkeypatch.setattr(DiskStore, "scan", None)
    await Journal(disk, "next", clock).begin()
    assert await count_saved(journal) == 100


async def test_the_size_is_checked_once_a_minute(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    size = DiskStore.size

    async def count_and_measure(self: DiskStore) -> int:
        nonlocal asked
        asked += 1
        return await size(self)

    monkeypatch.setattr(DiskStore, "size", count_and_measure)
    monkeypatch.setattr(maintenance, "_CHECK_EVERY_S", 3600.0)
    for index in range(5):
        await Journal(disk, f"run {index}", clock).begin()
    assert asked == 1


async def test_answers_of_a_run_at_work_are_not_pruned_by_another_run(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay although they are the oldest ones and the limit is exceeded."""
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "300kB")
    journal = Journal(disk, "run", clock)
    async with hold_run_lease(disk, "run", clock, 100 * DAY):
        await run_for_a_day(disk, clock, "run")
        others = [await run_for_a_day(disk, clock, f"other {day}") for day in range(3)]
        await Journal(disk, "next", clock).begin()
        assert await count_saved(journal) == 100
    assert [await count_saved(other) for other in others] == [0, 0, 0]


async def test_a_failure_to_prune_is_a_warning(disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = await run_for_a_day(disk, clock, "run")
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "1kB")
    await disk.put("taker/odd", {})
    damage(f"disk:{disk.folder}", "taker/odd", b"{")
    with pytest.warns(RuntimeWarning, match=r"could not be pruned.*record taker/odd.*prune --damaged"):
        await Journal(disk, "next", clock).begin()
    assert await count_saved(journal) == 100


@pytest.mark.parametrize("setting", ["much", "-1GB", "2"])
async def test_an_invalid_size_is_refused(disk: DiskStore, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", setting)
    with pytest.raises(ConfigurationError, match="POLLUX_STATE_MAX_SIZE is not a size"):
        await Journal(disk, "run").begin()


async def test_concurrent_runs_prune_little_more_than_one(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run may measure the size before another has pruned."""
    journals = [await run_for_a_day(disk, clock, f"run {day}") for day in range(10)]
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "3MB")
    before = await disk.size()
    assert before > 3_000_000
    stores = [DiskStore(disk.folder) for _ in range(4)]
    await asyncio.gather(*(Journal(store, f"next {store}", clock).begin() for store in stores))
    assert 2_000_000 < await disk.size() <= 2_700_000
    left = [await count_saved(journal) for journal in journals]
    assert left == sorted(left)


async def test_a_redis_is_bounded_only_by_age(redis_place: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a Redis is unknown without a listing."""
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "1kB")
    store = open_store_at(f"redis:{redis_place}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        journal = await run_for_a_day(store, clock, "run")
        await Journal(store, "next", clock).begin()
    assert await count_saved(journal) == 100
