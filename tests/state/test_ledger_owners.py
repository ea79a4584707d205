"""Ledger: files stay while they have owners, and are deleted after the last release."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.store import Json, Store
from tests.state.places import DAY, KEY, Clock, Provider, delete_due_files, list_keys
from tests.state.servers import connect

# --- Owners -------------------------------------------------------------------------------------------------------


async def test_a_file_is_due_after_the_release_of_its_last_owner(
    ledger: Ledger, provider: Provider, store: Store
) -> None:
    for owner in ("a", "b"):
        await ledger.acquire(KEY, owner, provider.upload)
    assert await ledger.release("a") == []
    assert await ledger.release("a") == []
    assert await ledger.release("unknown") == []
    assert await ledger.list_due() == []
    (due,) = await ledger.release("b")
    assert (due.key, due.reason, due.marker) == (KEY, "idle", provider.markers[0])
    assert due.uploaded is not None
    assert await ledger.list_due() == [due]
    assert await delete_due_files(ledger, [due]) == ["file-1"]
    assert await list_keys(store) == []


async def test_a_release_covers_all_files_of_an_owner(ledger: Ledger, provider: Provider) -> None:
    keys = [KEY.model_copy(update={"sha256": str(index)}) for index in range(30)]
    await asyncio.gather(*(ledger.acquire(key, "run", provider.upload) for key in keys))
    await ledger.acquire(keys[0], "run/other", provider.upload)
    dues = await ledger.release("run")
    assert {due.key.sha256 for due in dues} == {str(index) for index in range(1, 30)}


async def test_a_file_stays_for_a_while_for_other_owners(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    await ledger.acquire(KEY, "a", provider.upload, keep_s=3600)
    assert await ledger.release("a") == []
    clock.now += 3000
    assert (await ledger.acquire(KEY, "b", provider.upload)).file_id == "file-1"
    clock.now += 3000
    assert await ledger.list_due() == []
    assert [due.reason for due in await ledger.release("b")] == ["idle"]


async def test_the_longest_keep_time_of_all_owners_counts(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    for owner, keep_s in (("a", 3600), ("b", None), ("c", 0)):
        await ledger.acquire(KEY, owner, provider.upload, owner_s=None, keep_s=keep_s)
    await ledger.release("a")
    await ledger.release("b")
    assert await ledger.release("c") == []
    clock.now += 2 * DAY - 1
    assert await ledger.list_due() == []


async def test_a_file_that_expired_is_not_due(ledger: Ledger, provider: Provider, clock: Clock, store: Store) -> None:
    await ledger.acquire(KEY, "a", provider.upload, keep_s=None)
    assert await ledger.release("a") == []
    clock.now += 2 * DAY
    assert await ledger.list_due() == []
    assert await list_keys(store) == []


async def test_an_owner_that_is_not_renewed_counts_as_released(
    ledger: Ledger, provider: Provider, clock: Clock
) -> None:
    await ledger.acquire(KEY, "a", provider.upload, owner_s=1000, keep_s=500)
    clock.now += 999
    assert await ledger.list_due() == []
    clock.now += 500
    assert await ledger.list_due() == []
    clock.now += 2
    assert [due.reason for due in await ledger.list_due()] == ["idle"]


@pytest.mark.parametrize("sign", ["acquire", "renew"])
async def test_an_owner_that_is_renewed_keeps_its_files(
    ledger: Ledger, provider: Provider, clock: Clock, sign: str
) -> None:
    await ledger.acquire(KEY, "a", provider.upload, owner_s=1000)
    for _ in range(5):
        clock.now += 900
        if sign == "acquire":
            await ledger.acquire(KEY, "a", provider.upload, owner_s=1000)
        else:
            await ledger.renew("a", owner_s=1000)
        assert await ledger.list_due() == []
    clock.now += 1001
    assert len(await ledger.list_due()) == 1


async def test_the_files_of_a_deferred_job_are_found_at_its_release(
    ledger: Ledger, provider: Provider, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of its files do not expire, even if a run of the same name has used the files."""
    ttls: dict[str, float | None] = {}
    put = store.put

    async def put_and_note(key: str, record: Json, ttl_s: float | None = None) -> None:
        ttls[key] = ttl_s
        await put(key, record, ttl_s)

    monkeypatch.setattr(store, "put", put_and_note)
    await ledger.acquire(KEY, "job", provider.upload, owner_s=None)
    await ledger.acquire(KEY, "job", provider.upload, owner_s=10, keep_s=3600)
    await ledger.renew("job", owner_s=10)
    assert list(ttls.values()) == [None]


async def test_a_deferred_job_owns_its_files_without_an_end(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    provider.lifetime_s = 30 * DAY
    await ledger.acquire(KEY, "job", provider.upload, owner_s=None)
    await ledger.acquire(KEY, "job", provider.upload, owner_s=10, keep_s=3600)
    await ledger.renew("job", owner_s=10)
    clock.now += 20 * DAY
    assert await ledger.list_due() == []
    assert await ledger.release("job") == []
    clock.now += 3600
    assert len(await ledger.list_due()) == 1


# --- Deleting -----------------------------------------------------------------------------------------------------


async def test_a_file_that_is_being_deleted_is_not_used(ledger: Ledger, provider: Provider) -> None:
    await ledger.acquire(KEY, "a", provider.upload)
    (due,) = await ledger.release("a")
    assert await ledger.begin_deletion(due)
    assert (await ledger.acquire(KEY, "b", provider.upload)).file_id == "file-2"
    await ledger.finish_deletion(due)
    assert (await ledger.acquire(KEY, "b", provider.upload)).file_id == "file-2"


async def test_a_file_that_has_an_owner_again_is_not_deleted(ledger: Ledger, provider: Provider) -> None:
    await ledger.acquire(KEY, "a", provider.upload)
    (due,) = await ledger.release("a")
    await ledger.acquire(KEY, "b", provider.upload)
    assert not await ledger.begin_deletion(due)
    assert (await ledger.acquire(KEY, "c", provider.upload)).file_id == "file-1"


async def test_one_of_many_sweeps_deletes_a_file(ledger: Ledger, provider: Provider) -> None:
    await ledger.acquire(KEY, "a", provider.upload)
    (due,) = await ledger.release("a")
    assert sum(await asyncio.gather(*(ledger.begin_deletion(due) for _ in range(20)))) == 1
    assert await ledger.list_due() == []


async def test_a_deletion_without_an_outcome_is_due_again(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    await ledger.acquire(KEY, "a", provider.upload)
    (due,) = await ledger.release("a")
    assert await ledger.begin_deletion(due)
    clock.now += 121
    (again,) = await ledger.list_due()
    assert (again.reason, again.uploaded) == ("retry", due.uploaded)
    assert await delete_due_files(ledger, [again]) == ["file-1"]


async def test_a_deletion_that_failed_is_due_again(ledger: Ledger, provider: Provider, clock: Clock) -> None:
    """The pauses grow, and end when the file has expired."""
    await ledger.acquire(KEY, "a", provider.upload)
    dues = await ledger.release("a")
    waits = []
    for _ in range(3):
        assert await ledger.begin_deletion(dues[0])
        await ledger.postpone_deletion(dues[0], "500: not today")
        before = clock.now
        while not (dues := await ledger.list_due()):
            clock.now += 10
        waits.append(clock.now - before)
        assert (dues[0].reason, dues[0].why) == ("retry", "500: not today")
    assert waits == [60, 120, 240]
    clock.now += 2 * DAY
    assert await ledger.list_due() == []


async def test_due_files_can_be_listed_by_account(ledger: Ledger, provider: Provider) -> None:
    other = KEY.model_copy(update={"account": "other"})
    gemini = KEY.model_copy(update={"provider": "gemini"})
    for key in (KEY, other, gemini):
        await ledger.acquire(key, "run", provider.upload)
    await ledger.release("run")
    assert len(await ledger.list_due()) == 3
    assert {due.key.account for due in await ledger.list_due("openai")} == {"acme", "other"}
    assert [due.key for due in await ledger.list_due(account="other")] == [other]
    assert [due.key for due in await ledger.list_due("gemini", "acme")] == [gemini]


async def test_an_entry_that_cannot_be_read_is_an_error(ledger: Ledger, provider: Provider, store: Store) -> None:
    """No second file is uploaded, because the first would never be deleted."""
    await store.put(KEY.name, {"key": "is no key", "marker": 7})
    with pytest.raises(ConfigurationError, match="cannot be read: UploadKey is not usable"):
        await ledger.acquire(KEY, "run", provider.upload)
    assert provider.markers == []


def damage_entry(address: str, key: str) -> None:
    """Overwrite the data of a record, bypassing the store."""
    kind, _, place = address.partition(":")
    if kind == "disk":
        with sqlite3.connect(Path(place) / "cache.db", isolation_level=None) as database:
            assert database.execute("UPDATE Cache SET value = ? WHERE key = ?", (b"{", key)).rowcount == 1
    else:
        url, _, prefix = place.partition("#")
        with connect(url) as redis:
            assert redis.set(f"{prefix}record:{key}", b"{", xx=True)


async def test_an_entry_that_cannot_be_read_does_not_hide_others(
    ledger: Ledger, provider: Provider, store: Store, address: str
) -> None:
    keys = [KEY.model_copy(update={"sha256": f"{index}"}) for index in range(6)]
    for key in keys:
        await ledger.acquire(key, "run", provider.upload)
    await ledger.release("run")
    damage_entry(address, keys[1].name)
    await store.put(keys[2].name, {"key": "is no key", "marker": 7})
    unreadable: list[str] = []
    due = await ledger.list_due(unreadable=unreadable)
    assert {each.key for each in due} == set(keys) - {keys[1], keys[2]}
    assert len(unreadable) == 2
    assert any(keys[1].name in problem and "damaged" in problem for problem in unreadable)
    assert any("cannot be read: UploadKey" in problem for problem in unreadable)


async def test_a_deferred_job_keeps_its_file_when_its_process_ends(
    ledger: Ledger, provider: Provider, clock: Clock
) -> None:
    provider.lifetime_s = 30 * DAY
    await ledger.acquire(KEY, "job", provider.upload, keep_s=3600, owner_s=3 * DAY)
    for _ in range(12):  # each listing could wrongly begin its last hour
        clock.now += 2 * 3600
        assert await ledger.list_due() == []
    clock.now += 3 * DAY
    await ledger.list_due()
    clock.now += 3601
    assert [due.reason for due in await ledger.list_due()] == ["idle"]
