"""Sweep: delete caches that have expired or are no longer used, and release their files."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from pollux_flows.config import Config
from pollux_flows.errors import APIError, CacheError, ConfigurationError, PolluxError
from pollux_flows.pipeline.cache_calls import CacheCalls, look_for_cache
from pollux_flows.pipeline.cache_creation import SETTLED_S, mark_living, release_files
from pollux_flows.pipeline.caches import CacheLock, CacheRecord, CacheRegistry
from pollux_flows.providers.session import Session, open_session
from pollux_flows.state.account import derive_shared_account
from pollux_flows.state.leases import Clock, LeaseLostError

UNUSED_S: Final = 86_400.0
# An expired cache costs nothing, and may be requested again by its name, for example on a schedule.
_REMEMBERED_S: Final = 7 * 86_400.0
# A failed creation is on record for processes that wait for it. None waits longer than this.
_FAILED_S: Final = 600.0
# The most time that a run takes at its end to delete its caches.
_DELETE_S: Final = 10.0
_PATIENCE_S: Final = 5.0
_log: Final = logging.getLogger("pollux_flows")
_BUSY_ERRORS: Final = (LeaseLostError, TimeoutError)

Reason = Literal["expired", "unused", "failed", "abandoned", "asked"]


@dataclass(frozen=True)
class SweptCache:
    """A cache that was deleted, or the remains of one."""

    identity: str
    name: str | None
    """The provider's name of the cache; None if the provider had none."""
    reason: Reason


async def sweep_caches(
    registry: CacheRegistry, config: Config, *, unused_s: float | None = UNUSED_S, clock: Clock = time.time
) -> list[SweptCache]:
    """Delete caches of this key that expired a week ago, were not used for `unused_s`, or were never created.

    The provider's copy and the record are deleted, and files that were uploaded for a cache are released. A cache whose
    handle a caller has (`is_pinned`) stays until it expires; with `unused_s=None`, every cache does. Caches that
    another process has locked are skipped. A cache that cannot be deleted now stays on record.
    """
    records = await _find_records(registry, config)
    if not records:
        return []
    swept: list[SweptCache] = []
    async with open_session(config) as session:
        sweeping = _Sweeping(session, unused_s, clock)
        for record in records:
            with suppress(*_BUSY_ERRORS, APIError):
                async with registry.lock(record.identity, patience_s=0) as lock:
                    swept += await sweeping.sweep(lock)
    return swept


async def delete_temporary(registry: CacheRegistry, config: Config, created_by: str) -> set[str]:
    """Delete, best effort, the temporary caches of this run, and return their names. A sweep deletes the rest."""
    deleted: set[str] = set()
    try:
        temporary = [record for record in await _find_records(registry, config) if _is_temporary(record, created_by)]
        if not temporary:
            return deleted
        async with asyncio.timeout(_DELETE_S), open_session(config) as session:
            sweeping = _Sweeping(session, None, time.time)
            for record in temporary:
                async with registry.lock(record.identity, patience_s=_PATIENCE_S) as lock:
                    if lock.record is not None and _is_temporary(lock.record, created_by):
                        swept = await sweeping.retire(lock, lock.record, "asked")
                        deleted |= {swept.name} if swept is not None and swept.name else set()
    except (PolluxError, *_BUSY_ERRORS) as error:
        _log.warning("A cache of this run is left for the flow `sweep` to delete: %s", error or "it is in use")
    return deleted


def _is_temporary(record: CacheRecord, created_by: str) -> bool:
    return record.is_temporary and record.created_by == created_by


async def delete_cache(registry: CacheRegistry, config: Config, identity: str) -> SweptCache:
    """Delete one cache, even if it is in use: the provider's copy and its record. Its files are released."""
    async with open_session(config) as session, registry.lock(identity) as lock:
        if lock.record is None:
            raise ConfigurationError(
                f"There is no cache {identity!r} in {registry.where}.", hint="List the caches to see their names."
            )
        if lock.record.account != await derive_shared_account(config.key()):
            raise ConfigurationError(
                f"The cache {identity} was created with another API key.", hint="Use the key that it was created with."
            )
        swept = await _Sweeping(session, None, time.time).retire(lock, lock.record, "asked")
        if swept is None:
            raise CacheError(
                f"Whether the provider has created the cache {identity} is not known yet.",
                hint=f"Try again in {SETTLED_S:.0f} seconds.",
                retryable=True,
                provider=config.provider,
                phase="cache",
            )
        return swept


async def _find_records(registry: CacheRegistry, config: Config) -> list[CacheRecord]:
    """Return the records of this key's caches at this provider and address, for any model."""
    account, records = await derive_shared_account(config.key()), await registry.list()
    place = (config.provider, config.base_url, config.use_mock, account)
    return [
        each
        for each in records
        if (each.target.provider, each.target.base_url, each.target.use_mock, each.account) == place
    ]


class _Sweeping:
    def __init__(self, session: Session, unused_s: float | None, clock: Clock) -> None:
        self._session, self._calls = session, CacheCalls(session)
        self._unused_s, self._clock = unused_s, clock

    async def sweep(self, lock: CacheLock) -> list[SweptCache]:
        if (record := lock.record) is None:
            return []
        swept = await self._sweep_abandoned(lock, record)
        record, now = lock.record or record, self._clock()
        if record.state == "creating":  # the creating process has died, or got no reply
            found = (
                await look_for_cache(self._calls, record.display_name, 0.0, self._clock) if record.may_exist else None
            )
            if found is not None:
                await lock.save(mark_living(record, found, record.created_at))
                record = lock.record or record
            elif now - (record.asked_at or record.created_at) > SETTLED_S:
                return [*swept, *filter(None, [await self.retire(lock, record, "failed")])]
        if record.state == "living" and record.remaining_s(now) <= 0:
            await release_files(self._session, record)
        if (reason := self._find_reason(record, now)) is not None:
            swept += filter(None, [await self.retire(lock, record, reason)])
        return swept

    async def retire(self, lock: CacheLock, record: CacheRecord, reason: Reason) -> SweptCache | None:
        """Delete the provider's copy, release the files and remove the record, in this order, which can be repeated.

        If the provider may still list a cache whose reply was lost, return None and leave the record to a later sweep.
        """
        names = [record.display_name, *record.abandoned] if record.may_exist else record.abandoned
        found = await self._calls.find_all(names) if names else []
        for name in {cache.name for cache in found} | ({record.name} if record.name else set()):
            await self._calls.delete(name)
        is_settled = self._clock() - (record.asked_at or record.created_at) > SETTLED_S
        if record.may_exist and not found and not is_settled:
            return None
        await release_files(self._session, record)
        await lock.remove()
        return SweptCache(record.identity, record.name, reason)

    async def _sweep_abandoned(self, lock: CacheLock, record: CacheRecord) -> list[SweptCache]:
        """Delete caches of earlier creations with an unknown outcome. Each is searched for until lists are settled."""
        if not record.abandoned:
            return []
        found = await self._calls.find_all(record.abandoned)
        for cache in found:
            await self._calls.delete(cache.name)
        if self._clock() - record.created_at > SETTLED_S:
            await lock.save(record.change(abandoned=[]))
        return [SweptCache(record.identity, cache.name, "abandoned") for cache in found]

    def _find_reason(self, record: CacheRecord, now: float) -> Reason | None:
        if record.state == "failed":
            return "failed" if now - record.created_at > _FAILED_S else None
        if record.state != "living":
            return None
        if record.remaining_s(now) <= 0:
            # The record of a named cache stays for a while, to create the cache again when it is requested.
            return "expired" if record.is_temporary or now - record.last_used_at > _REMEMBERED_S else None
        is_idle = self._unused_s is not None and now - record.last_used_at > self._unused_s
        return "unused" if is_idle and not record.is_pinned else None
