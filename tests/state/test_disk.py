"""The store on a disk: damage, locks, forks and kills."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.state import disk
from pollux_flows.state.disk import DiskStore
from tests.state.places import list_rows, write_in_a_fork

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> DiskStore:
    return DiskStore(tmp_path / "state")


def connect(store: DiskStore) -> sqlite3.Connection:
    """Connect to the database file of the store, bypassing the store."""
    return sqlite3.connect(store.folder / "cache.db", isolation_level=None)


# --- Damage -------------------------------------------------------------------------------------------------------


async def test_a_damaged_file_is_an_error(store: DiskStore) -> None:
    """A damaged file does not count as empty, and is not overwritten."""
    await store.put("a", {"answer": 1})
    store.close()
    file = store.folder / "cache.db"
    file.write_bytes(b"This is no database." * 1000)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"state.*is damaged.*backup"):
            await store.get("a")
    assert file.read_bytes().startswith(b"This is no database.")


async def test_damage_to_an_open_file_is_an_error(store: DiskStore) -> None:
    await store.put_many({f"a/{index:04}": {"answer": "x" * 1000} for index in range(500)})
    with connect(store) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (store.folder / "cache.db").open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(200_000))
    with pytest.raises(ConfigurationError, match="is damaged"):
        await store.get_many([f"a/{index:04}" for index in range(500)])


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b"null", "{}", 7, b"[" * 100_000])
async def test_a_damaged_record_is_an_error_that_names_it(store: DiskStore, data: object) -> None:
    """Other records can be read, and this one can be replaced."""
    await store.put("a", {"answer": 1})
    await store.put("b", {"answer": 2})
    connect(store).execute("UPDATE Cache SET value = ? WHERE key = 'a'", (data,))
    error, other = await asyncio.gather(store.get("a"), store.get("b"), return_exceptions=True)
    assert isinstance(error, ConfigurationError)
    assert "The record a in" in str(error)
    assert other == {"answer": 2}
    with pytest.raises(ConfigurationError, match="record a"):
        await store.get_many(["b", "a"])
    with pytest.raises(ConfigurationError, match="record a"):
        await store.swap("a", {"answer": 1}, {"answer": 3})
    with pytest.raises(ConfigurationError, match="record a"):
        assert [key async for key, _ in store.scan("")]
    assert await store.add("a", {}) is False  # the record is damaged, not absent
    await store.delete("a")
    assert await store.get("a") is None


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("column", ["value", "key"])
async def test_a_pickle_in_the_file_is_not_loaded(
    store: DiskStore, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await store.put("a", {})
    connect(store).execute(f"UPDATE Cache SET {column} = ?, mode = 4, raw = 1", (pickle.dumps(Bomb()),))  # noqa: S608
    if column == "key":
        connect(store).execute("UPDATE Cache SET raw = 0, mode = 1")
        assert await store.get("a") is None
        assert [key async for key, _ in store.scan("")] == []
    else:
        with pytest.raises(ConfigurationError, match="damaged"):
            await store.get("a")
    assert not (tmp_path / "exploded").exists()


async def test_a_table_of_another_layout_is_an_error(store: DiskStore) -> None:
    store.folder.mkdir()
    connect(store).execute("CREATE TABLE Cache (something)")
    with pytest.raises(ConfigurationError, match="is damaged"):
        await store.get("a")


async def test_a_folder_that_was_moved_away_is_created_again(store: DiskStore) -> None:
    """Later writes do not go to the moved file."""
    await store.put("a", {})
    store.folder.rename(store.folder.with_name("moved"))
    await store.put("b", {})
    assert await DiskStore(store.folder).get_many(["a", "b"]) == {"b": {}}
    assert await DiskStore(store.folder.with_name("moved")).get_many(["a", "b"]) == {"a": {}}


async def test_each_commit_is_synced(store: DiskStore) -> None:
    """Each connection has these settings, so that answers survive a power cut."""
    for _ in range(2):
        await store.put("a", {})
        assert await store._run(lambda connection: connection.execute("PRAGMA synchronous").fetchone()) == (2,)
        assert await store._run(lambda connection: connection.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
        store._disconnect()


# --- Listing and size ---------------------------------------------------------------------------------------------


async def test_an_expired_record_is_listed_as_expired(store: DiskStore) -> None:
    await store.put("b", {"at": 1.0})
    await store.put("a", {"at": 2.0}, ttl_s=0.01)
    await asyncio.sleep(0.02)
    rows = await list_rows(store)
    assert [(row.key, row.expired) for row in rows] == [("b", False), ("a", True)]
    assert len(await store.delete_rows(rows[1:])) == 1
    assert [row.key for row in await list_rows(store)] == ["b"]


async def test_a_record_that_is_written_again_is_listed_last(store: DiskStore) -> None:
    for key in ("a", "b", "a"):
        await store.put(key, {})
    assert [row.key for row in await list_rows(store)] == ["b", "a"]


async def test_deleting_records_makes_the_file_smaller(store: DiskStore) -> None:
    await store.put_many({f"a/{index:04}": {"text": "x" * 1000} for index in range(2000)})
    rows = await list_rows(store)
    store.close()
    file = store.folder / "cache.db"
    full = file.stat().st_size
    await store.delete_rows(rows[:1000])
    store.close()
    assert file.stat().st_size < 0.6 * full


# --- Locks --------------------------------------------------------------------------------------------------------


async def test_a_write_lock_of_another_process_blocks_neither_loop_nor_readers(store: DiskStore) -> None:
    await store.put("a", {})
    reader = DiskStore(store.folder)
    await reader.get("a")
    other = connect(store)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.gather(*(store.put(f"b/{index}", {}) for index in range(100)))
    for _ in range(20):  # if the loop waited for the lock, this test would deadlock, because it has the lock itself
        await asyncio.sleep(0.002)
    assert await reader.get("a") == {}
    assert not writing.done()
    other.execute("COMMIT")
    await writing


async def test_a_lock_that_lasts_too_long_is_an_error(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.put("a", {})
    monkeypatch.setattr(disk, "_PATIENCE_S", 0.05)
    other = connect(store)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConfigurationError, match=r"locked.*stopped or hangs"):
        await store.put("a", {"b": 1})
    other.execute("COMMIT")
    await store.put("a", {"b": 2})


async def test_operations_of_one_batch_are_executed_in_order(store: DiskStore) -> None:
    await store.put("a", {"n": 0})
    other = connect(store)
    other.execute("BEGIN IMMEDIATE")
    tasks = [
        asyncio.create_task(each)
        for each in (
            store.put("b", {"n": 1}),
            store.delete("a"),
            store.put("a", {"n": 2}),
            store.put("b", {"n": 3}),
            store.delete("b"),
            store.add("b", {"n": 4}),
        )
    ]
    await asyncio.sleep(0)  # so that each task has begun
    other.rollback()
    await asyncio.gather(*tasks)
    assert await store.get_many(["a", "b"]) == {"a": {"n": 2}, "b": {"n": 4}}


async def test_many_writes_take_few_commits(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that gather during one transaction share the next."""
    await store.put("a", {})
    sizes: list[int] = []
    execute = store._execute

    def execute_and_count(batch: list[disk._Put | disk._Call]) -> list[object]:
        sizes.append(len(batch))
        return execute(batch)

    monkeypatch.setattr(store, "_execute", execute_and_count)
    other = connect(store)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.gather(*(store.put(f"b/{index}", {}) for index in range(200)))
    await asyncio.sleep(0)
    other.execute("COMMIT")
    await writing
    assert sum(sizes) == 200
    assert len(sizes) < 20


async def test_a_failed_write_does_not_fail_others_of_its_batch(store: DiskStore) -> None:
    await store.put("a", {})
    other = connect(store)
    other.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON Cache WHEN NEW.key = 'bad' BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
    )
    results = await asyncio.gather(*(store.put(key, {}) for key in ("b", "bad", "c")), return_exceptions=True)
    assert [isinstance(each, ConfigurationError) for each in results] == [False, True, False]
    assert sorted(await store.get_many(["b", "bad", "c"])) == ["b", "c"]


# --- Processes ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking with threads: that is the point
def test_a_store_works_in_a_fork(store: DiskStore) -> None:
    """The thread of the parent does not exist in the fork."""
    write_in_a_fork(store)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_may_happen_while_another_thread_is_within_sqlite(store: DiskStore) -> None:
    """The test needs its own process, because connections of earlier tests could be closed during a fork."""
    process = multiprocessing.get_context("spawn").Process(target=fork_while_writing, args=(store.folder,))
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0


def fork_while_writing(folder: Path) -> None:
    """Fork twenty times while another thread writes."""
    store, done = DiskStore(folder), threading.Event()

    async def write() -> None:
        while not done.is_set():
            await asyncio.gather(*(store.put(f"x/{index}", {}) for index in range(20)))

    writing = threading.Thread(target=asyncio.run, args=(write(),))
    writing.start()
    try:
        for _ in range(20):
            write_in_a_fork(store)
    finally:
        done.set()
        writing.join()


@pytest.mark.parametrize("waiting", [1, 8])
async def test_concurrent_writers_wait_for_a_lock_together(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """The waits of several writers do not add up."""
    await store.put("a", {})
    monkeypatch.setattr(disk, "_PATIENCE_S", 0.3)
    other = connect(store)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    results = await asyncio.gather(*(store.put(f"b/{index}", {}) for index in range(waiting)), return_exceptions=True)
    assert all("locked" in str(each) for each in results)
    assert time.monotonic() - began < 0.3 * 3
    other.rollback()


def test_acknowledged_writes_survive_a_kill(store: DiskStore) -> None:
    script = f"from tests.state.places import *; write_until_killed('disk:{store.folder}')"
    for round_ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        for _ in range(20 + 7 * round_):
            acknowledged = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split("\n")[:-1])])
        process.wait()
        process.stdout.close()
        found = asyncio.run(store.get_many([f"paid/{index}" for index in range(acknowledged)]))
        assert len(found) == acknowledged >= 100
        asyncio.run(store.delete(*found))
