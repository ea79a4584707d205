"""Existing stores: surveys, errors, and pruning on a full disk."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.disk import DiskStore
from pollux_flows.state.maintenance import prune, survey
from pollux_flows.state.redis import RedisStore
from pollux_flows.state.store import open_existing_store
from tests.state.places import DAY, Clock, damage, list_rows, remount_read_only
from tests.state.test_prune import fill

SMALL_DISK_MIB = 16


async def fill_store(folder: Path, clock: Clock, days: int = 20) -> DiskStore:
    store = DiskStore(folder)
    await fill(store, clock, days)
    return store


async def test_without_a_store_no_folder_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))
    assert open_existing_store() is None
    assert not (tmp_path / "home").exists()


async def test_the_existing_store_is_that_of_the_home_or_the_redis_address(
    tmp_path: Path, clock: Clock, redis_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "ho?me #1"))
    store = await fill_store(tmp_path / "ho?me #1" / "state", clock, 2)
    found = open_existing_store()
    assert found is not None
    assert await list_rows(found) == await list_rows(store)
    monkeypatch.setenv("POLLUX_STATE_URL", redis_place.partition("#")[0])
    assert isinstance(open_existing_store(), RedisStore)


async def test_a_store_on_a_read_only_disk_is_an_error(small_disk: Path, clock: Clock) -> None:
    (await fill_store(small_disk / "state", clock, 2)).close()
    remount_read_only(small_disk)
    with pytest.raises(ConfigurationError, match=r"cannot be written to"):
        await survey(DiskStore(small_disk / "state"))


async def test_a_damaged_file_is_an_error(tmp_path: Path, clock: Clock) -> None:
    (await fill_store(tmp_path / "state", clock, 2)).close()
    (tmp_path / "state" / "cache.db").write_bytes(b"This is no database." * 1000)
    with pytest.raises(ConfigurationError, match="is damaged"):
        await survey(DiskStore(tmp_path / "state"))


async def test_a_file_without_an_index_by_age_can_be_read(tmp_path: Path, clock: Clock) -> None:
    """Earlier versions created no such index."""
    (await fill_store(tmp_path / "state", clock, 2)).close()
    with sqlite3.connect(tmp_path / "state" / "cache.db") as database:
        database.execute("DROP INDEX Cache_store_time")
    assert (await survey(DiskStore(tmp_path / "state"))).records["answer"] == 20


async def test_a_survey_counts_records_and_names_the_last_runs(tmp_path: Path, clock: Clock) -> None:
    store = await fill_store(tmp_path / "state", clock, 5)
    damage(f"disk:{tmp_path / 'state'}", "answer/4/0", b"{")
    found = await survey(store, last=2)
    assert [(run.name, run.answers, run.cost_usd, run.cost_unknown) for run in found.runs] == [
        ("run 4", 10, 0.0, 10),
        ("run 3", 10, 0.0, 10),
    ]
    assert (found.unreadable, found.expired, found.kept_days, found.max_size_bytes) == (1, 0, 90.0, 2_000_000_000)
    assert (found.oldest_at, found.newest_at) == (Clock().now, Clock().now + 4 * DAY)


async def test_a_full_disk_can_be_pruned_with_a_few_megabytes_free(small_disk: Path, clock: Clock) -> None:
    (await fill_store(small_disk / "state", clock, 40)).close()
    (small_disk / "others").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 4_000_000))
    assert (await prune(DiskStore(small_disk / "state"), max_size=500_000, clock=clock)).answers > 200
    assert 300_000 < await DiskStore(small_disk / "state").size() <= 500_000
