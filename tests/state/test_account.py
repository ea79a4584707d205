"""The account in the ledger: the same for all who share a store, and no way back to the key."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from pollux_flows.state.account import derive_account
from pollux_flows.state.store import Store
from tests.state.places import opened

KEY = "sk-a-key-that-opens-nothing"


async def test_a_key_has_one_account(address: str) -> None:
    """In all processes, and from the first moment on, when all of them make the salt."""
    made = await asyncio.gather(*(derive_account(opened(address), KEY) for _ in range(8)))
    assert len(set(made)) == 1
    assert await derive_account(opened(address), "another") not in made


async def test_another_store_has_other_accounts(store: Store, tmp_path: Path) -> None:
    """Whoever sees two ledgers cannot tell whether they are of one account."""
    assert await derive_account(store, KEY) != await derive_account(opened(f"disk:{tmp_path / 'other'}"), KEY)


async def test_there_is_no_way_back_to_the_key(store: Store) -> None:
    """No hash that is quick to try for all the words there are, and not the key itself in any form."""
    made = await derive_account(store, KEY)
    assert KEY not in made
    quick = {
        hashlib.new(name, salt + KEY.encode()).hexdigest()[: len(made)]
        for name in ("md5", "sha1", "sha256", "blake2b")
        for salt in (b"", *[str(record["salt"]).encode() async for _, record in store.scan("salt/")])
    }
    assert made not in quick
    assert KEY not in str([record async for _, record in store.scan("")])


async def test_who_has_no_key_is_nobody(store: Store) -> None:
    """A server that asks for none; and an empty key is a key."""
    assert await derive_account(store, None) == "nobody"
    assert await derive_account(store, "") != "nobody"
