"""Registry: the cache records in a state store, for use without a Prefect server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import uuid4

from pollux_flows.config import Config
from pollux_flows.pipeline.caches import CacheLock, CacheRecord, cache_name, load_readable
from pollux_flows.pipeline.cleanup import store_of
from pollux_flows.state import leases
from pollux_flows.state.leases import LEASE_S, Clock, Lease
from pollux_flows.state.store import Json, Store

_PREFIX: Final = "cache/"
# A failed creation is on record for processes that wait for it, and an expired cache until a sweep releases its files.
_FAILED_S: Final = 86_400.0
_EXPIRED_S: Final = 30 * 86_400.0


def open_registry(config: Config) -> StoreRegistry:
    """Return the registry in the state store of this process, or in the simulator's."""
    return StoreRegistry(store_of(config))


class StoreRegistry:
    """The CacheRegistry in a state store."""

    def __init__(self, store: Store, clock: Clock = time.time, *, lease_s: float = LEASE_S) -> None:
        self.store = store
        self.where = store.where
        self._clock = clock
        self._lease_s = lease_s

    async def find(self, identity: str) -> CacheRecord | None:
        return _read(await self.store.get(_PREFIX + identity))

    async def find_named(self, name: str) -> CacheRecord | None:
        return next((record for record in await self.list() if cache_name(record.identity) == name), None)

    async def list(self) -> list[CacheRecord]:
        contents = [leases.strip_lease(record) async for _, record in self.store.scan(_PREFIX)]
        return load_readable(filter(None, contents), CacheRecord.model_validate)

    @asynccontextmanager
    async def lock(self, identity: str, *, patience_s: float | None = None) -> AsyncIterator[CacheLock]:
        key = _PREFIX + identity
        async for _ in leases.retry_until(patience_s):
            lease = await leases.acquire_lease(self.store, key, uuid4().hex, self._lease_s, clock=self._clock)
            if lease is not None:
                async with leases.use_lease(lease, ttl_of=self._ttl_of):
                    yield _StoreLock(lease, _read(await self.store.get(key)))
                return

    def _ttl_of(self, record: Json) -> float | None:
        match record["state"]:
            case "living":
                return max(0.0, (record["expires_at"] or 0.0) - self._clock()) + _EXPIRED_S
            case "failed":
                return _FAILED_S
            case _:
                return None


class _StoreLock:
    """A CacheLock on a record of the store."""

    def __init__(self, lease: Lease, record: CacheRecord | None) -> None:
        self._lease = lease
        self.record = record

    async def save(self, record: CacheRecord) -> None:
        await self._lease.write(lambda _: record.model_dump(mode="json"))
        self.record = record

    async def remove(self) -> None:
        await self._lease.write(lambda _: {})
        self.record = None


def _read(record: Json | None) -> CacheRecord | None:
    content = leases.strip_lease(record)
    return CacheRecord.model_validate(content) if content else None
