"""Damaged records: errors name them and say what to do, and one command removes them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.result import Answer, Outcome
from pollux_flows.state.identity import digest
from pollux_flows.state.journal import Journal
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.maintenance import DamageReport, remove_damaged
from pollux_flows.state.store import Store
from tests.state.places import KEY, Clock, Provider, damage, hold_run_lease, list_keys, list_rows

RUN = f"run/{digest('run', 'one')}"
ANSWER = Outcome(index=0, identity="a", answer=Answer(text="forty-two", finish_reason="stop"), attempts=1, cost_usd=0.5)
Change = Callable[[bytes], bytes]


@pytest.fixture
async def journal(store: Store, clock: Clock) -> Journal:
    journal = Journal(store, "one", clock)
    await journal.begin()
    for call in ("a", "b"):
        await journal.save_answer(call, ANSWER)
    return journal


def drop(name: str) -> Change:
    """Return a change that removes a field from a record."""
    return lambda data: json.dumps({key: value for key, value in json.loads(data).items() if key != name}).encode()


def overwrite(**fields: object) -> Change:
    """Return a change that overwrites fields of a record."""
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


def replace(old: bytes, new: bytes) -> Change:
    """Return a change that replaces bytes of a record."""
    return lambda data: data.replace(old, new)


async def change_record(store: Store, address: str, key: str, change: Change) -> None:
    found = json.dumps(await store.get(key)).encode()
    changed = change(found)
    assert changed != found
    damage(address, key, changed)


# --- Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda _: b"[]",
        drop("at"),
        drop("outcome"),
        drop("check"),
        overwrite(at="yesterday"),
        overwrite(at=1.0),
        overwrite(outcome=[]),
        overwrite(outcome={}),
        replace(b"forty-two", b"forty-six"),
        replace(b"0.5", b"0.1"),
        replace(b"stop", b"stoq"),
    ],
)
async def test_a_damaged_answer_is_an_error_that_names_it(
    journal: Journal, store: Store, address: str, change: Change
) -> None:
    """Its own run and other runs get the error, which does not show the answer."""
    await change_record(store, address, f"{RUN}/a", change)
    lookups: list[Callable[[], Awaitable[object]]] = [
        lambda: journal.load_own(["b", "a"]),
        lambda: Journal(store, "another").load_reusable(["b", "a"], None),
    ]
    for look_up in lookups:
        with pytest.raises(
            ConfigurationError, match=rf"record {RUN}/a in .* is damaged.*prune --damaged.*paid"
        ) as caught:
            await look_up()
        assert "forty" not in str(caught.value)
    assert set(await journal.load_own(["b"])) == {"b"}


async def test_an_answer_under_the_key_of_another_is_damaged(journal: Journal, store: Store, address: str) -> None:
    await journal.save_answer("c", ANSWER.model_copy(update={"cost_usd": 1.0}))
    record = await store.get(f"{RUN}/c")
    damage(address, f"{RUN}/a", json.dumps(record).encode())
    with pytest.raises(ConfigurationError, match="is damaged"):
        await journal.load_own(["a"])


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        drop("place"),
        drop("at"),
        overwrite(place=7),
        overwrite(place="run/1"),
        overwrite(place=f"{RUN}/b"),
        overwrite(place=f"rum/{RUN[4:]}/a"),
        overwrite(at=None),
    ],
)
async def test_a_damaged_pointer_is_an_error(journal: Journal, store: Store, address: str, change: Change) -> None:
    """The pointer is neither ignored nor followed to another answer."""
    await change_record(store, address, "answer/a", change)
    for max_age_s in (None, 60.0):
        with pytest.raises(ConfigurationError, match=r"record answer/a in .* is damaged.*prune --damaged"):
            await journal.load_reusable(["b", "a"], max_age_s)
    assert set(await journal.load_own(["a"])) == {"a"}


async def test_the_error_about_a_damaged_upload_does_not_advise_pruning(store: Store, address: str) -> None:
    await store.put("upload/1", {})
    damage(address, "upload/1", b"{")
    with pytest.raises(ConfigurationError, match=r"record upload/1 .* is damaged.*backup, or move it away") as caught:
        await store.get("upload/1")
    assert "prune" not in str(caught.value)


# --- Removal ------------------------------------------------------------------------------------------------------


async def test_only_damaged_records_are_removed(journal: Journal, store: Store, address: str) -> None:
    valid = {row.key for row in await list_rows(store)}
    await store.put("taker/1", {"lease": {"until": "soon"}})
    await journal.save_answer("c", ANSWER)
    await change_record(store, address, f"{RUN}/c", replace(b"forty-two", b"forty-six"))
    await change_record(store, address, "answer/c", drop("place"))
    damaged = {"taker/1", f"{RUN}/c", "answer/c"}
    report = await remove_damaged(store, dry_run=True)
    assert set(report.removed) == damaged
    assert {row.key for row in await list_rows(store)} == valid | damaged
    assert set((await remove_damaged(store)).removed) == damaged
    assert set(await list_keys(store)) == valid
    assert await remove_damaged(store) == DamageReport()
    assert set(await journal.load_own(["a", "b", "c"])) == {"a", "b"}
    assert set(await journal.load_reusable(["a", "b", "c"], None)) == {"a", "b"}


async def test_no_valid_record_of_any_kind_counts_as_damaged(
    journal: Journal, store: Store, ledger: Ledger, provider: Provider
) -> None:
    await ledger.derive_account("key")
    await ledger.acquire(KEY, "run", provider.upload)
    await store.put("hash/1", {"sha256": "a", "size_bytes": 1, "mime_type": "text/plain"})
    await store.put("of a later version", {"what": "ever"})
    async with hold_run_lease(store, "run"), journal.lease_call("d") as take:
        await take()
        await ledger._acquire_upload(None, KEY.model_copy(update={"sha256": "new"}), "run", "marker")
        assert await remove_damaged(store) == DamageReport()


async def test_damaged_records_about_providers_are_reported_and_not_removed(
    store: Store, address: str, ledger: Ledger, provider: Provider
) -> None:
    await ledger.derive_account("key")
    await ledger.acquire(KEY, "run", provider.upload)
    keys = [row.key for row in await list_rows(store)]
    for key in keys:
        damage(address, key, b"{")
    await store.put("of a later version", {})
    damage(address, "of a later version", b"{")
    report = await remove_damaged(store)
    assert (report.removed, set(report.left)) == ([], {*keys, "of a later version"})
    assert len(keys) == 3
    assert len(await list_rows(store)) == 4
