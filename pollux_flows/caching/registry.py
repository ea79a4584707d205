"""Registry: the cache records of those who share a state store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final
from uuid import uuid4

from pollux_flows.config import Config
from pollux_flows.errors import PolluxError
from pollux_flows.pipeline.caches import CacheLock, CacheRecord, cache_name, load_readable
from pollux_flows.pipeline.cleanup import store_of
from pollux_flows.state import leases
from pollux_flows.state.leases import LEASE_S, Clock, Lease, LeaseLostError
from pollux_flows.state.store import Json, Store

_PREFIX: Final = "cache/"
# A failure matters to those who wait for it; a cache that expired, until a sweep has released its files.
_FAILED_S: Final = 86_400.0
_EXPIRED_S: Final = 30 * 86_400.0


def open_registry(config: Config) -> StoreRegistry:
    """Return the registry in the state store of this process, or in the simulator's."""
    return StoreRegistry(store_of(config))


class StoreRegistry:
    """The CacheRegistry of those who have no Prefect server."""

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
        lease = await self._acquire(_PREFIX + identity, patience_s)
        lock = _StoreLock(lease, self._clock)
        try:
            async with lease.keep_alive():
                lock.record = _read(await self.store.get(lease.key))
                yield lock
        finally:
            await leases.run_to_completion(lock.release())

    async def _acquire(self, key: str, patience_s: float | None) -> Lease:
        give_up = None if patience_s is None else time.monotonic() + patience_s
        for pause in leases.backoff_pauses():
            lease = await leases.acquire_lease(self.store, key, uuid4().hex, self._lease_s, clock=self._clock)
            if lease is not None:
                return lease
            if give_up is not None and time.monotonic() + pause > give_up:
                raise TimeoutError
            await asyncio.sleep(pause)
        raise AssertionError


class _StoreLock:
    """A CacheLock on a record of the store."""

    record: CacheRecord | None = None

    def __init__(self, lease: Lease, clock: Clock) -> None:
        self._lease = lease
        self._clock = clock

    async def save(self, record: CacheRecord) -> None:
        await self._lease.write(lambda _: record.model_dump(mode="json"))
        self.record = record

    async def remove(self) -> None:
        await self._lease.write(lambda _: {})
        self.record = None

    async def release(self) -> None:
        with suppress(LeaseLostError, PolluxError):  # else it runs out by itself
            await self._lease.finish(lambda record: record or None, ttl_of=self._ttl_of)

    def _ttl_of(self, record: Json) -> float | None:
        match record["state"]:
            case "living":
                return max(0.0, (record["expires_at"] or 0.0) - self._clock()) + _EXPIRED_S
            case "failed":
                return _FAILED_S
            case _:
                return None


def _read(record: Json | None) -> CacheRecord | None:
    content = leases.strip_lease(record)
    return CacheRecord.model_validate(content) if content else None
