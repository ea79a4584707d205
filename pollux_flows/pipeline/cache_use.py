"""Cache use: the cache of a plan while its calls are made.

A handle that the caller made is used as it is. Where the plan also says how to make the cache, it is made when the
first call needs it, extended when the run would outlive it, and made again when it ran out or, once, when the provider
has lost it before its time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from pollux_flows.config import Config
from pollux_flows.errors import CacheError, ConfigurationError, PolluxError
from pollux_flows.handles import CacheHandle
from pollux_flows.options import Options
from pollux_flows.pipeline.cache_calls import is_lost
from pollux_flows.pipeline.cache_creation import (
    MARGIN_S,
    ObtainedCache,
    create_or_find,
    prepare_cache,
    record_use,
)
from pollux_flows.pipeline.caches import CacheRecord, CacheRegistry, CacheRequest
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.savings import UsedCache
from pollux_flows.state.account import derive_shared_account
from pollux_flows.state.identity import cache_identity

_log: Final = logging.getLogger("pollux_flows")


class CacheUse:
    """The cache of one execution, for its calls about one source (None: about all of them).

    A cache that stands in for the sources of the plan is optional: where it cannot be had, they are sent along.
    """

    def __init__(
        self,
        plan: Plan,
        config: Config,
        registry: CacheRegistry | None = None,
        *,
        source: int | None = None,
        created_by: str | None = None,
    ) -> None:
        self.handle: CacheHandle | None = plan.options.cache_handle
        self.created: list[CacheRecord] = []
        """Caches that this execution created."""
        self.used: list[UsedCache] = []
        """The registered caches that this execution used, for its numbers."""
        self.expired: list[CacheRecord] = []
        """Caches that had run out or were lost, and were made again by this execution or another."""
        self.refusal: PolluxError | None = None
        """Why an optional cache is used no more."""
        self._source = source
        self._callers_handle = plan.options.cache_handle
        self._request: CacheRequest | None = plan.find_cache_request(source)
        self._config = config
        self._registry = registry
        self._created_by = created_by
        self._record: CacheRecord | None = None  # of the cache in use
        self._opening = asyncio.Lock()
        self._is_open = self._was_lost_early = False
        self.creating = asyncio.Lock()
        """Held by the call that finds room for the cache in a budget: the others need none."""
        self._renewing = asyncio.Lock()
        self._failure: PolluxError | None = None

    @property
    def holds_sources(self) -> bool:
        """Return whether the sources of the plan's calls are in the cache."""
        return self._callers_handle is None and self.handle is not None

    async def open(self) -> None:
        """Check the caller's handle before anything is sent, and note that its cache is used."""
        async with self._opening:
            if self._is_open or self._callers_handle is None:
                return
            await self._check_account(self._callers_handle)
            if self._registry is not None and self._callers_handle.identity is not None:
                with suppress(PolluxError):  # the calls need no more than the handle
                    self._record = await record_use(self._registry, self._callers_handle.identity)
            self._is_open = True

    async def _check_account(self, handle: CacheHandle) -> None:
        """Refuse a handle that was made with another key, or at another address."""
        if handle.identity is None or handle.contents is None:
            return
        account = await derive_shared_account(self._config.key())
        if cache_identity(self._config.target, account, handle.contents) != handle.identity:
            raise ConfigurationError(
                f"The cache handle {handle.name} was made with another API key, or at another address.",
                hint="Use the key and the base_url it was made with, or make another with create_cache.",
            )

    async def acquire(self) -> CacheHandle | None:
        """Return the handle to use now; None where the calls have no cache."""
        if self._is_renewable and (self.handle is None or self._is_short_lived(self.handle)):
            await self._renew(None)
        return self.handle

    async def replace_lost(self, used: CacheHandle | None, error: PolluxError | None) -> bool:
        """Return whether a call failed because its cache is lost, and can be made again: see `handle`."""
        if used is None or error is None or not is_lost(error):
            return False
        if self.handle is None or self.handle.name != used.name:
            return True  # another call was quicker
        if not self._is_renewable:
            return False
        if not self._renewing.locked() and self.handle.expires_at > time.time():
            if self._was_lost_early:  # for the second time: the provider keeps none
                return self.give_up(error)
            self._was_lost_early = True
        await self._renew(used.name)
        return True

    @property
    def is_to_create(self) -> bool:
        """Return whether the first call has to make the cache."""
        return self._is_renewable and self.handle is None

    @property
    def ttl_s(self) -> int:
        """Return for how long the cache is made; 0 where the calls have none, or one that is not made here."""
        return 0 if self._request is None else self._request.ttl_seconds

    @property
    def _is_renewable(self) -> bool:
        return self._request is not None and self._registry is not None and self.refusal is None

    def give_up(self, error: PolluxError) -> bool:
        """Return whether the calls can do without the cache, which is then used no more."""
        if self._callers_handle is not None:
            return False
        if self.refusal is None:
            _log.warning("The sources are sent along, because their cache cannot be used: %s", error)
        self.handle, self.refusal = None, error
        return True

    @property
    def _needed_s(self) -> float:
        """Return how many seconds the cache must still live when a call is sent."""
        # A cache that ends with the run is fit for half of its life.
        return self.ttl_s / 2 if self._callers_handle is None else min(MARGIN_S, self.ttl_s / 10)

    def _is_short_lived(self, handle: CacheHandle) -> bool:
        return handle.expires_at - time.time() <= self._needed_s

    async def _renew(self, lost: str | None) -> None:
        """Renew the handle, or do without it where that is possible. A failure is that of all later calls, too."""
        try:
            async with self._renewing:
                if (
                    self.handle is None
                    or self.handle.name == lost
                    or (lost is None and self._is_short_lived(self.handle))
                ):
                    await self._save_renewed(lost)
        except PolluxError as error:
            lives = lost is None and self.handle is not None and self.handle.expires_at > time.time()
            if not lives and not self.give_up(error):
                raise

    async def _save_renewed(self, lost: str | None) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            obtained = await self._find_or_create(lost)
        except PolluxError as error:
            self._failure = error
            raise
        record = obtained.record
        if obtained.is_new:
            self.created.append(record)
        if self._record is not None and self._record.name != record.name:
            self.expired.append(self._record)
        self._record, self.handle = record, record.handle()
        self._note_numbers(obtained)

    def _note_numbers(self, obtained: ObtainedCache) -> None:
        """Note the size and the lifetime of a cache for the numbers of the run."""
        record, name = obtained.record, obtained.handle.name
        before = next((each for each in self.used if each.name == name), None)
        used = UsedCache(
            name=name,
            source=self._source,
            tokens=record.tokens,
            created_at=record.created_at if obtained.is_new else before and before.created_at,
            ends_at=obtained.handle.expires_at,
        )
        self.used = [each for each in self.used if each is not before] + [used]

    def end_deleted(self, names: Collection[str], now: float) -> None:
        """Note that caches of these names are deleted, so that their storage is billed no longer."""
        self.used = [
            each.model_copy(update={"ends_at": min(each.ends_at, now)}) if each.name in names else each
            for each in self.used
        ]

    async def _find_or_create(self, lost: str | None) -> ObtainedCache:
        if self._request is None or self._registry is None:
            raise CacheError("There is nothing to make the cache from.", hint="Make one with create_cache.")
        if lost is not None:
            _log.warning("The provider has lost the cache %s: it is made again.", lost)
        prepared = await prepare_cache(self._request, self._config)
        if self._callers_handle is not None and self._callers_handle.contents not in {None, prepared.contents_identity}:
            raise CacheError(
                f"The cache {self._callers_handle.name} cannot be made again: its sources have changed since.",
                hint="Make another with create_cache, and ask again about that.",
                retryable=False,
                provider=self._config.provider,
                phase="cache",
            )
        return await create_or_find(
            prepared,
            self._config,
            self._registry,
            needed_s=self._needed_s,
            lost=lost,
            created_by=self._created_by,
            is_temporary=self._callers_handle is None,
        )


def strip_cached_options(options: Options, handle: CacheHandle) -> Options:
    """Return the options of a call whose system instruction and tools are in the cache."""
    if options.cache is handle:
        return options
    return options.model_copy(update={"cache": handle, "system_instruction": None, "tools": None})
