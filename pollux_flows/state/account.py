"""Account: the name of the owner of files, derived from an API key so that it cannot be turned back into the key."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
from functools import lru_cache
from typing import Final

from pollux_flows.state.store import Store

_SALT: Final = "salt/account"
_SHARED_SALT: Final = hashlib.sha256(b"pollux_flows: accounts that several stores name alike").hexdigest()
_hashing: Final = threading.Lock()


async def derive_account(store: Store, key: str | None) -> str:
    """Return the name of a key's account, equal in all processes that share the store.

    A plain hash would be enough for a key that cannot be guessed. But the keys of local servers are often words, and
    lists of provider keys have leaked: a reader of a ledger could try them all, or see that two stores use one key.
    So the hash is slow (scrypt), with a salt that is created once for each store and never leaves the store.
    """
    if key is None:
        return "nobody"
    if (record := await store.get(_SALT)) is None:
        await store.add(_SALT, {"salt": secrets.token_hex(32)})
        record = await store.get(_SALT) or {}
    return await asyncio.to_thread(_derive, key, record["salt"])


async def derive_shared_account(key: str | None) -> str:
    """Return the name of a key's account, equal in all stores and on all machines.

    Workers without a shared store find each other's caches by this name. The hash is as slow as in `derive_account`.
    """
    return "nobody" if key is None else await asyncio.to_thread(_derive, key, _SHARED_SALT)


def _derive(key: str, salt: str) -> str:
    with _hashing:  # so that only one of many concurrent callers uses the 16 MiB and the 50 ms
        return _hash(key, salt)


@lru_cache(maxsize=64)
def _hash(key: str, salt: str) -> str:
    return hashlib.scrypt(key.encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1, dklen=16).hex()
