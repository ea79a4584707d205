"""The behaviour of all kinds of stores."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from functools import partial

import pytest

from pollux_flows.errors import InternalError
from pollux_flows.state.disk import DiskStore
from pollux_flows.state.store import Json, Store
from tests.state.places import add_all, count_up, damage, list_keys, list_rows, open_store_at, run_at_once

ODD: Json = {
    "text": "½ € 漢 \U0001f600 \x00 \" ' \\ \n",
    "numbers": [0, -1, 2**53 + 1, 10**30, 0.1, 1e-300, 1.0],
    "none": None,
    "flags": [True, False],
    "deep": {"": {"a b": [[], {}]}},
}


# --- One record -------------------------------------------------------------------------------------------------


async def test_a_record_can_be_read_until_it_is_deleted(store: Store, address: str) -> None:
    """Another store on the same data reads the record as well."""
    assert await store.get("a") is None
    await store.put("a", ODD)
    assert await store.get("a") == ODD
    assert await open_store_at(address).get("a") == ODD
    await store.put("a", {})
    assert await store.get("a") == {}
    await store.delete("a")
    assert await store.get("a") is None


@pytest.mark.parametrize("key", ["a/b", "%_*?[a]", "漢/½", "x" * 500, "a'b\"c", " ", "a\nb"])
async def test_any_text_is_a_key(store: Store, key: str) -> None:
    await store.put(key, {"key": key})
    await store.put(f"{key}!", {})
    assert await store.get(key) == {"key": key}
    assert [found async for found, _ in store.scan(key)] == [key, f"{key}!"]


async def test_a_record_may_be_large(store: Store) -> None:
    record = {"answer": "½" * 2_000_000}
    await store.put("large", record)
    assert await store.get("large") == record


async def test_one_of_many_callers_adds_a_record(store: Store) -> None:
    assert await store.add("a", {"by": 0}) is True
    assert await store.add("a", {"by": 1}) is False
    assert await store.get("a") == {"by": 0}
    await store.delete("a")
    assert sum(await asyncio.gather(*(store.add("a", {"by": index}) for index in range(50)))) == 1


@pytest.mark.parametrize(
    ("there", "old", "new", "swapped"),
    [
        ({"a": 1}, {"a": 1}, {"a": 2}, True),
        ({"a": 1, "b": [{"d": 4, "c": 3}]}, {"b": [{"c": 3, "d": 4}], "a": 1}, {"a": 2}, True),
        ({"a": 1}, {"a": 2}, {"a": 3}, False),
        ({"a": 1}, {"a": 1, "b": None}, {"a": 3}, False),
        ({"a": 1}, {"a": True}, {"a": 3}, False),
        ({"a": 1}, None, {"a": 3}, False),
        ({"a": 1}, {"a": 1}, None, True),
        ({"a": 1}, {"a": 2}, None, False),
        ({}, None, {"a": 3}, False),
        (None, None, {"a": 3}, True),
        (None, {"a": 1}, {"a": 3}, False),
        (None, {}, {"a": 3}, False),
        (None, None, None, True),
    ],
)
async def test_a_swap_compares_the_complete_record(
    store: Store, there: Json | None, old: Json | None, new: Json | None, swapped: bool
) -> None:
    """The order of keys does not count; None stands for no record."""
    if there is not None:
        await store.put("a", there)
    assert await store.swap("a", old, new) is swapped
    assert await store.get("a") == (new if swapped else there)


async def test_a_record_that_is_not_json_is_refused(store: Store) -> None:
    """The error does not show the record."""
    for record in ({"a": b"secret"}, {"a": math.nan}, {"a": "secret \ud800"}, {"a": {"secret"}}):
        with pytest.raises(InternalError) as caught:
            await store.put("a", record)
        assert "secret" not in str(caught.value)
    assert await store.get("a") is None


# --- Many records -----------------------------------------------------------------------------------------------


async def test_many_records_are_written_read_and_deleted_at_once(store: Store) -> None:
    records = {f"a/{index:04}": {"index": index} for index in range(1000)}
    await store.put_many(records)
    assert await store.get_many([*records, "b"]) == records
    assert await store.get_many([]) == {}
    await store.put_many({})
    await store.delete(*records, "b")
    await store.delete()
    assert await store.get_many(records) == {}


async def test_a_scan_yields_all_records_with_the_prefix_in_order(store: Store) -> None:
    records = {f"a/{index:04}": {"index": index} for index in range(600)}
    await store.put_many({**records, "a": {}, "a.": {}, "a0": {}, "A/1": {}, "b/1": {}, "%": {}})
    assert [pair async for pair in store.scan("a/")] == sorted(records.items())
    assert len([key async for key, _ in store.scan("")]) == 606
    assert [name async for name in store.list_keys("a/")] == sorted(records)
    assert [key async for key, _ in store.scan("c")] == []


@pytest.mark.parametrize("prefix", ["a*", "a?", "a[b]", "a[^b]", "a\\", "a%", "a_"])
async def test_a_prefix_is_not_a_pattern(store: Store, prefix: str) -> None:
    await store.put_many({f"{prefix}c": {}, "abc": {}, "ab": {}, "a": {}, "a[c": {}, "A": {}})
    assert [key async for key, _ in store.scan(prefix)] == [f"{prefix}c"]


async def test_records_may_be_deleted_during_a_scan(store: Store) -> None:
    await store.put_many({f"a/{index:04}": {} for index in range(600)})
    async for key, _ in store.scan("a/"):
        await store.delete(key)
    assert [key async for key, _ in store.scan("a/")] == []


# --- Listing ------------------------------------------------------------------------------------------------------


async def test_all_records_are_listed(store: Store) -> None:
    """Rows have sizes; on a disk, the oldest comes first."""
    records = {f"{index % 7}/{index}": {"at": float(index), "text": "x" * index} for index in range(600)}
    for key, record in records.items():
        await store.put(key, record)
    rows = [row async for row in store.list_rows()]
    expected = list(records.items()) if isinstance(store, DiskStore) else sorted(records.items())
    assert [(row.key, row.record) for row in rows] == expected
    assert all(len(row.key) + 600 > row.size - len(row.record["text"]) > 0 for row in rows if row.record)
    assert not any(row.expired for row in rows)


async def test_unreadable_records_are_listed(store: Store, address: str) -> None:
    for key in ("a", "b", "c"):
        await store.put(key, {"at": 1.0})
    for data in (b"{", b"\xff", b""):
        damage(address, "b", data)
        assert {row.key: row.record for row in await list_rows(store)} == {
            "a": {"at": 1.0},
            "b": None,
            "c": {"at": 1.0},
        }
    assert await store.delete_rows(await list_rows(store)) != []
    assert await list_rows(store) == []


async def test_listed_records_are_deleted_unless_they_changed(store: Store) -> None:
    await store.put_many({f"a/{index:04}": {"index": index} for index in range(600)})
    rows = await list_rows(store)
    await store.put("a/0007", {"index": "new"})
    await store.delete("a/0008")
    deleted = await store.delete_rows(rows)
    assert {row.key for row in rows} - {row.key for row in deleted} == {"a/0007", "a/0008"}
    assert await list_keys(store) == ["a/0007"]
    assert await store.delete_rows(deleted) == []
    assert await store.delete_rows([]) == []


async def test_records_may_be_deleted_while_they_are_listed(store: Store) -> None:
    await store.put_many({f"a/{index:04}": {} for index in range(600)})
    async for row in store.list_rows():
        await store.delete_rows([row])
    assert await list_keys(store) == []


async def test_a_store_may_know_its_size(store: Store) -> None:
    if (empty := await store.size()) is None:
        return
    await store.put_many({f"a/{index:04}": {"text": "x" * 1000} for index in range(1000)})
    full = await store.size()
    assert full is not None
    assert full > empty + 1_000_000
    await store.delete_rows(await list_rows(store))
    assert await store.size() in range(empty - 20_000, empty + 20_000)


# --- Time ---------------------------------------------------------------------------------------------------------


async def test_a_redis_removes_expired_records(redis_place: str) -> None:
    """Their keys can be added again. For a disk, see test_clock_check.py."""
    store = open_store_at(f"redis:{redis_place}")
    await store.put("put", {}, ttl_s=0.1)
    await store.put_many({"many": {}}, ttl_s=0.1)
    assert await store.add("added", {}, ttl_s=0.1)
    assert await store.swap("swapped", None, {"a": 1}, ttl_s=0.1)
    await store.put("stays", {}, ttl_s=0.1)
    await store.put("stays", {})
    keys = ["put", "many", "added", "swapped"]
    give_up = time.monotonic() + 10
    while await store.get_many(keys):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    assert [key async for key, _ in store.scan("")] == ["stays"]
    assert await store.swap("swapped", {"a": 1}, {}) is False
    assert await store.add("added", {}) is True


# --- Concurrency --------------------------------------------------------------------------------------------------


def test_one_of_many_processes_adds_a_record(address: str) -> None:
    added = run_at_once(4, partial(add_all, address, 50))
    assert sum(added) == 50


def test_no_swap_of_many_processes_is_lost(address: str) -> None:
    run_at_once(4, partial(count_up, address, 50))
    assert asyncio.run(open_store_at(address).get("counter")) == {"count": 200}


def test_loops_and_threads_share_a_store(store: Store) -> None:
    results: list[bool] = []

    async def work() -> None:
        results.extend(await asyncio.gather(*(store.add(f"a/{index}", {}) for index in range(50))))

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(results), sum(results)) == (400, 50)


async def test_operations_of_cancelled_callers_are_executed(store: Store) -> None:
    """They are executed before later operations."""
    puts = [asyncio.ensure_future(store.put(f"a/{index}", {})) for index in range(20)]
    await asyncio.sleep(0)
    for each in puts:
        each.cancel()
    await store.delete("a/0")
    assert len([key async for key, _ in store.scan("a/")]) == 19
    assert all(each.cancelled() for each in await asyncio.gather(*(_wait_for_end(each) for each in puts)))


async def _wait_for_end(task: asyncio.Future[None]) -> asyncio.Future[None]:
    await asyncio.wait([task])
    return task
