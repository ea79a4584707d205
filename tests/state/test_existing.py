"""Existing stores: read where nothing can be written, and pruned where there is no room."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.disk import DiskStore
from pollux_flows.state.existing import ExistingStore, open_existing_store
from pollux_flows.state.maintenance import prune, survey
from pollux_flows.state.redis import RedisStore
from tests.state.places import Clock, damage, listed, read_only
from tests.state.test_prune import fill

SMALL_DISK_MIB = 16


def fill_up(disk: Path, left: int) -> None:
    """Fill the disk until so many bytes are free."""
    (disk / "others").write_bytes(b"x" * (shutil.disk_usage(disk).free - left))


async def state_in(folder: Path, clock: Clock, days: int = 20) -> DiskStore:
    store = DiskStore(folder)
    await fill(store, clock, days)
    return store


# --- Looking ------------------------------------------------------------------------------------------------------


async def test_without_a_store_no_folder_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))
    for writes in (True, False):
        assert open_existing_store(writes=writes) is None
    assert not (tmp_path / "home").exists()


async def test_the_existing_store_is_that_of_the_process(
    tmp_path: Path, clock: Clock, redis_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this machine or in a Redis."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "ho?me #1"))
    store = await state_in(tmp_path / "ho?me #1" / "state", clock, 2)
    for writes in (True, False):
        found = open_existing_store(writes=writes)
        assert found is not None
        assert await listed(found) == await listed(store)
    monkeypatch.setenv("POLLUX_STATE_URL", redis_place.partition("#")[0])
    assert isinstance(open_existing_store(writes=False), RedisStore)


async def test_a_read_only_store_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    """Also while others write."""
    store = await state_in(tmp_path / "state", clock, 2)
    found = ExistingStore(tmp_path / "state", writes=False)
    assert (await survey(found)).records == {"answer": 20, "pointer": 20, "run": 2}
    await store.put("more", {})
    assert len(await listed(found)) == 43
    for rows in ([], await listed(found)):
        with pytest.raises(ConfigurationError) if rows else pytest.MonkeyPatch.context():
            await found.delete_rows(rows)
    assert len(await listed(store)) == 43


async def test_a_store_on_a_read_only_disk_can_be_read(small_disk: Path, clock: Clock) -> None:
    """To prune it is an error."""
    store = await state_in(small_disk / "state", clock)
    size = await store.size()
    store.close()
    read_only(small_disk)
    found = await survey(ExistingStore(small_disk / "state", writes=False))
    assert (found.records["answer"], found.size_bytes) == (200, size)
    with pytest.raises(ConfigurationError, match=r"cannot be written to"):
        await prune(ExistingStore(small_disk / "state", writes=True), max_size=0, clock=clock)


@pytest.mark.parametrize("beside", [("-wal", "-shm"), ("-wal",)])
async def test_a_log_that_cannot_be_merged_is_read_or_is_an_error(
    small_disk: Path, tmp_path: Path, clock: Clock, beside: tuple[str, ...]
) -> None:
    await state_in(tmp_path / "state", clock, 2)  # and is left open
    (small_disk / "state").mkdir()
    for name in ("", *beside):
        shutil.copy(tmp_path / "state" / f"cache.db{name}", small_disk / "state")
    read_only(small_disk)
    found = ExistingStore(small_disk / "state", writes=False)
    if "-shm" in beside:
        assert (await survey(found)).records["answer"] == 20
    else:
        with pytest.raises(ConfigurationError, match=r"cannot be read there.*latest records.*Copy the folder"):
            await survey(found)


async def test_a_store_on_a_full_disk_can_be_read(small_disk: Path, clock: Clock) -> None:
    """Although SQLite has no room for its working files."""
    (await state_in(small_disk / "state", clock)).close()
    fill_up(small_disk, 0)
    assert (await survey(ExistingStore(small_disk / "state", writes=False))).records["answer"] == 200


async def test_a_damaged_file_is_an_error(tmp_path: Path, clock: Clock) -> None:
    (await state_in(tmp_path / "state", clock, 2)).close()
    (tmp_path / "state" / "cache.db").write_bytes(b"This is no database." * 1000)
    for writes in (True, False):
        with pytest.raises(ConfigurationError, match="is damaged"):
            await survey(ExistingStore(tmp_path / "state", writes=writes))


async def test_a_file_without_an_index_by_age_can_be_read(tmp_path: Path, clock: Clock) -> None:
    """Earlier versions had none."""
    (await state_in(tmp_path / "state", clock, 2)).close()
    with sqlite3.connect(tmp_path / "state" / "cache.db") as database:
        database.execute("DROP INDEX Cache_store_time")
    assert (await survey(ExistingStore(tmp_path / "state", writes=False))).records["answer"] == 20


async def test_a_survey_counts_records_and_names_the_last_runs(tmp_path: Path, clock: Clock) -> None:
    store = await state_in(tmp_path / "state", clock, 5)
    damage(f"disk:{tmp_path / 'state'}", "answer/4/0", b"{")
    found = await survey(store, last=2)
    assert [(run.name, run.answers, run.cost_usd, run.cost_unknown) for run in found.runs] == [
        ("run 4", 10, 0.0, 10),
        ("run 3", 10, 0.0, 10),
    ]
    assert (found.unreadable, found.expired, found.kept_days, found.max_size_bytes) == (1, 0, 90.0, 2_000_000_000)
    assert (found.oldest_at, found.newest_at) == (Clock().now, Clock().now + 4 * 86_400)


# --- Making room --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [100_000, 150_000, 400_000])
async def test_a_full_disk_can_be_pruned_with_room_for_one_record(small_disk: Path, clock: Clock, left: int) -> None:
    (await state_in(small_disk / "state", clock, 40)).close()
    fill_up(small_disk, left)
    assert (await prune(ExistingStore(small_disk / "state", writes=True), max_size=500_000, clock=clock)).answers > 200
    assert shutil.disk_usage(small_disk).free > 500_000
    kept = await DiskStore(small_disk / "state").size()
    assert 300_000 < kept <= 500_000


async def test_without_any_room_the_error_says_how_much_it_takes(small_disk: Path, clock: Clock) -> None:
    (await state_in(small_disk / "state", clock, 40)).close()
    fill_up(small_disk, 0)
    with pytest.raises(ConfigurationError, match=r"not even room to remove a record.*200.0 kB are free"):
        await prune(ExistingStore(small_disk / "state", writes=True), max_size=0, clock=clock)
    os.truncate(small_disk / "others", (small_disk / "others").stat().st_size - 200_000)
    assert (await prune(ExistingStore(small_disk / "state", writes=True), max_size=0, clock=clock)).answers == 400


async def test_a_disk_filled_by_a_running_process_can_be_pruned(small_disk: Path, clock: Clock) -> None:
    """Merging its log takes room first."""
    store = await state_in(small_disk / "state", clock, 10)
    fill_up(small_disk, 150_000)
    found = ExistingStore(small_disk / "state", writes=True)
    with pytest.raises(ConfigurationError, match=r"not even room to remove a record.* MB are free"):
        await prune(found, max_size=0, clock=clock)
    os.truncate(small_disk / "others", (small_disk / "others").stat().st_size - 1_000_000)
    assert 0 < (await prune(found, max_size=0, clock=clock)).answers <= 100
    await store.put_many({f"more/{index}": {"text": "x" * 2000} for index in range(100)})
    assert len(await listed(store)) == 100
