"""Accounts: equal for equal keys in one store, and useless for recovering the key."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from pollux_flows.state.account import derive_account
from pollux_flows.state.store import Store
from tests.state.places import open_store_at

KEY = "sk-a-key-that-opens-nothing"


async def test_a_key_has_one_account(address: str) -> None:
    """The account is the same if many stores create the salt at once."""
    made = await asyncio.gather(*(derive_account(open_store_at(address), KEY) for _ in range(8)))
    assert len(set(made)) == 1
    assert await derive_account(open_store_at(address), "another") not in made


async def test_accounts_differ_between_stores(store: Store, tmp_path: Path) -> None:
    """Otherwise two ledgers would show that they belong to one key."""
    assert await derive_account(store, KEY) != await derive_account(open_store_at(f"disk:{tmp_path / 'other'}"), KEY)


async def test_a_key_cannot_be_recovered_from_its_account(store: Store) -> None:
    """The account contains neither a fast hash of the key nor the key itself."""
    made = await derive_account(store, KEY)
    assert KEY not in made
    quick = {
        hashlib.new(name, salt + KEY.encode()).hexdigest()[: len(made)]
        for name in ("md5", "sha1", "sha256", "blake2b")
        for salt in (b"", *[str(record["salt"]).encode() async for _, record in store.scan("salt/")])
    }
    assert made not in quick
    assert KEY not in str([record async for _, record in store.scan("")])


async def test_no_key_and_an_empty_key_differ(store: Store) -> None:
    assert await derive_account(store, None) == "nobody"
    assert await derive_account(store, "") != "nobody"
