"""How long answers are kept and how much room they take, without anybody doing anything."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.result import Answer, Outcome
from pollux_flows.state import bounds
from pollux_flows.state.disk import DiskStore
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import Store
from tests.state.places import DAY, Clock, at_work, damage, opened

ANSWER = Outcome(index=0, identity="a", answer=Answer(text="x" * 2000, finish_reason="stop"), attempts=1)
CALLS = [f"{index}" for index in range(100)]


@pytest.fixture(autouse=True)
def _look(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every run."""
    monkeypatch.setattr(bounds, "_CHECK_EVERY_S", 0.0)


@pytest.fixture
def disk(tmp_path: Path) -> DiskStore:
    return DiskStore(tmp_path / "state")


async def ran(store: Store, clock: Clock, name: str) -> Journal:
    """A run of a day, which was answered."""
    journal = Journal(store, name, clock)
    await journal.begin()
    for call in CALLS:
        await journal.save_answer(f"{name} {call}", ANSWER)
    clock.now += DAY
    return journal


async def kept(journal: Journal) -> int:
    return len(await journal.load_own([f"{journal.run} {call}" for call in CALLS]))


# --- Age ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "said"), [(90, ""), (7, "7"), (0.5, " 0.5 ")])
async def test_an_answer_is_kept_for_ninety_days(
    disk: DiskStore, days: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or as many as the variable says; and what leads to it as long."""
    monkeypatch.setenv("POLLUX_STATE_KEEP_DAYS", said)
    journal = Journal(disk, "run")
    await journal.begin()
    await journal.save_answer("a", ANSWER)
    query = "SELECT expire_time - store_time FROM Cache"
    lasts = [lasts for (lasts,) in await disk._run(lambda connection: connection.execute(query).fetchall())]
    assert lasts == [pytest.approx(days * DAY)] * 3


@pytest.mark.parametrize("said", ["soon", "0", "-1", "nan", "inf", "30d", "1e9"])
def test_what_is_no_number_of_days_is_refused(disk: DiskStore, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is asked."""
    monkeypatch.setenv("POLLUX_STATE_KEEP_DAYS", said)
    with pytest.raises(ConfigurationError, match="POLLUX_STATE_KEEP_DAYS is no number of days"):
        Journal(disk, "run")


# --- Size ---------------------------------------------------------------------------------------------------------


async def test_the_oldest_answers_go_when_a_run_begins(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there is too much, until there is somewhat less."""
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "1.5MB")
    journals = [await ran(disk, clock, f"run {day}") for day in range(10)]
    await Journal(disk, "next", clock).begin()
    assert 1_300_000 < await disk.size() <= 1_500_000
    left = [await kept(journal) for journal in journals]
    assert left == sorted(left)
    assert left[0] == 0
    assert left[-2:] == [100, 100]


async def test_what_is_small_enough_is_left_alone(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is even looked at."""
    journal = await ran(disk, clock, "run")
    monkeypatch.setattr(DiskStore, "list_rows", None)
    monkeypatch.setattr(DiskStore, "scan", None)
    await Journal(disk, "next", clock).begin()
    assert await kept(journal) == 100


async def test_the_size_is_asked_for_once_in_a_while(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    size = DiskStore.size

    async def counting(self: DiskStore) -> int:
        nonlocal asked
        asked += 1
        return await size(self)

    monkeypatch.setattr(DiskStore, "size", counting)
    monkeypatch.setattr(bounds, "_CHECK_EVERY_S", 3600.0)
    for index in range(5):
        await Journal(disk, f"run {index}", clock).begin()
    assert asked == 1


async def test_a_run_at_work_loses_nothing_to_another(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its answers are the oldest, and the limit is far too low for all."""
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "300kB")
    journal = Journal(disk, "run", clock)
    async with at_work(disk, "run", clock, 100 * DAY):
        await ran(disk, clock, "run")
        others = [await ran(disk, clock, f"other {day}") for day in range(3)]
        await Journal(disk, "next", clock).begin()
        assert await kept(journal) == 100
    assert [await kept(other) for other in others] == [0, 0, 0]


async def test_what_cannot_be_pruned_costs_nobody_anything(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and the run goes on."""
    journal = await ran(disk, clock, "run")
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "1kB")
    await disk.put("taker/odd", {})
    damage(f"disk:{disk.folder}", "taker/odd", b"{")
    with pytest.warns(RuntimeWarning, match=r"could not be pruned.*record taker/odd.*prune --damaged"):
        await Journal(disk, "next", clock).begin()
    assert await kept(journal) == 100


@pytest.mark.parametrize("said", ["much", "-1GB", "2"])
async def test_what_is_no_size_is_refused(disk: DiskStore, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", said)
    with pytest.raises(ConfigurationError, match="POLLUX_STATE_MAX_SIZE is no size"):
        await Journal(disk, "run").begin()


async def test_many_runs_that_begin_at_once_prune_once(
    disk: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nearly so: one that looked before another was done may remove a run more."""
    journals = [await ran(disk, clock, f"run {day}") for day in range(10)]
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "3MB")
    before = await disk.size()
    assert before > 3_000_000
    stores = [DiskStore(disk.folder) for _ in range(4)]
    await asyncio.gather(*(Journal(store, f"next {store}", clock).begin() for store in stores))
    assert 2_000_000 < await disk.size() <= 2_700_000
    left = [await kept(journal) for journal in journals]
    assert left == sorted(left)


async def test_a_redis_is_bounded_by_age_alone(redis_place: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of it is ours only a look at everything tells."""
    monkeypatch.setenv("POLLUX_STATE_MAX_SIZE", "1kB")
    store = opened(f"redis:{redis_place}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        journal = await ran(store, clock, "run")
        await Journal(store, "next", clock).begin()
    assert await kept(journal) == 100
