"""Cache use: the cache of a plan while its calls are made.

A caller's handle is used unchanged. If the plan has a cache request, the cache is created when the first call needs it,
extended when it would expire before the end of the run, and created again when it has expired or, once, when the
provider has lost it earlier.
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

    A cache of the plan's own sources is optional: if it cannot be created, the sources are sent with each call.
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
        """The registered caches that this execution used, for its metrics."""
        self.expired: list[CacheRecord] = []
        """Caches that had expired or were lost, and were created again by this execution or another."""
        self.refusal: PolluxError | None = None
        """Why an optional cache is no longer used."""
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
        """Locked by the call that reserves budget for the cache, so that no other call does."""
        self._renewing = asyncio.Lock()
        self._failure: PolluxError | None = None

    @property
    def holds_sources(self) -> bool:
        """Return whether the sources of the plan's calls are in the cache."""
        return self._callers_handle is None and self.handle is not None

    async def open(self) -> None:
        """Check the caller's handle before anything is sent, and record that its cache is used."""
        async with self._opening:
            if self._is_open or self._callers_handle is None:
                return
            await self._check_account(self._callers_handle)
            if self._registry is not None and self._callers_handle.identity is not None:
                with suppress(PolluxError):  # the calls only need the handle
                    self._record = await record_use(self._registry, self._callers_handle.identity)
            self._is_open = True

    async def _check_account(self, handle: CacheHandle) -> None:
        """Refuse a handle that was created with another key or at another address."""
        if handle.identity is None or handle.contents is None:
            return
        account = await derive_shared_account(self._config.key())
        if cache_identity(self._config.target, account, handle.contents) != handle.identity:
            raise ConfigurationError(
                f"The cache handle {handle.name} was created with another API key, or at another address.",
                hint="Use the key and the base_url that it was created with, or create another with create_cache.",
            )

    async def acquire(self) -> CacheHandle | None:
        """Return the handle to use now; None if the calls have no cache."""
        if self._is_renewable and (self.handle is None or self._is_short_lived(self.handle)):
            await self._renew(None)
        return self.handle

    async def replace_lost(self, used: CacheHandle | None, error: PolluxError | None) -> bool:
        """Replace a cache that a call found lost, and return whether the call can be repeated with `handle`."""
        if used is None or error is None or not is_lost(error):
            return False
        if self.handle is None or self.handle.name != used.name:
            return True  # another call was quicker
        if not self._is_renewable:
            return False
        if not self._renewing.locked() and self.handle.expires_at > time.time():
            if self._was_lost_early:  # lost for the second time
                return self.give_up(error)
            self._was_lost_early = True
        await self._renew(used.name)
        return True

    @property
    def is_to_create(self) -> bool:
        """Return whether the first call has to create the cache."""
        return self._is_renewable and self.handle is None

    @property
    def ttl_s(self) -> int:
        """Return the lifetime of the cache; 0 if the calls have none, or one that is not created here."""
        return 0 if self._request is None else self._request.ttl_seconds

    @property
    def _is_renewable(self) -> bool:
        return self._request is not None and self._registry is not None and self.refusal is None

    def give_up(self, error: PolluxError) -> bool:
        """Stop using an optional cache. Return False if the calls cannot do without it."""
        if self._callers_handle is not None:
            return False
        if self.refusal is None:
            _log.warning("The sources are sent with each call, because their cache cannot be used: %s", error)
        self.handle, self.refusal = None, error
        return True

    @property
    def _needed_s(self) -> float:
        """Return how many seconds the cache must still live when a call is sent."""
        # A cache that the run deletes at its end is extended after half of its lifetime.
        return self.ttl_s / 2 if self._callers_handle is None else min(MARGIN_S, self.ttl_s / 10)

    def _is_short_lived(self, handle: CacheHandle) -> bool:
        return handle.expires_at - time.time() <= self._needed_s

    async def _renew(self, lost: str | None) -> None:
        """Create, extend or replace the cache, or give it up if possible. A failure is raised in all later calls."""
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
        self._record_use(obtained)

    def _record_use(self, obtained: ObtainedCache) -> None:
        """Record the size and the lifetime of a cache, for the metrics of the run."""
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
        """Record that caches of these names are deleted, so that their storage is no longer billed."""
        self.used = [
            each.model_copy(update={"ends_at": min(each.ends_at, now)}) if each.name in names else each
            for each in self.used
        ]

    async def _find_or_create(self, lost: str | None) -> ObtainedCache:
        if self._request is None or self._registry is None:
            raise CacheError("The contents of the cache are unknown.", hint="Create a cache with create_cache.")
        if lost is not None:
            _log.warning("The provider has lost the cache %s: it is created again.", lost)
        prepared = await prepare_cache(self._request, self._config)
        if self._callers_handle is not None and self._callers_handle.contents not in {None, prepared.contents_identity}:
            raise CacheError(
                f"The cache {self._callers_handle.name} cannot be created again: its sources have changed since.",
                hint="Create another with create_cache, and ask again with its handle.",
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
