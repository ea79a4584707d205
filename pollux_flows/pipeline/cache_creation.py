"""Cache creation: find a cache in the registry or create it, once for all processes that need it at the same time.

The steps of a creation, and what the next owner of the lease does if the creating process dies after each:

1. The intent is saved, under a new display name. Nothing was requested: create the cache.
2. The sources are uploaded. The files belong to the identity: create the cache from them.
3. `asked_at` is saved, then the provider is asked. Look for the display name until the provider's lists are settled,
   and adopt the cache if it is found. Otherwise create one, and record the old name as abandoned, for a sweep.
4. The reply is saved.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Final
from uuid import uuid4

from pollux_flows import capabilities
from pollux_flows.config import Config
from pollux_flows.errors import APIError, CacheError, ConfigurationError, PolluxError
from pollux_flows.handles import CacheHandle
from pollux_flows.options import Options
from pollux_flows.pipeline.attach import Attachments, FileOwner
from pollux_flows.pipeline.cache_calls import CacheCalls, look_for_cache
from pollux_flows.pipeline.caches import CacheLock, CacheRecord, CacheRegistry, CacheRequest
from pollux_flows.pipeline.cleanup import open_ledger, release_owner
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.pipeline.retry import Attempts, attempt
from pollux_flows.providers.caches import CacheToCreate, ProviderCache
from pollux_flows.providers.session import Session, open_session
from pollux_flows.state.account import derive_shared_account
from pollux_flows.state.identity import cache_contents_identity, cache_identity, source_identity
from pollux_flows.state.leases import Clock, LeaseLostError, run_to_completion
from pollux_flows.state.upload import Failure

MARGIN_S: Final = 60.0
"""A cache with less time left than this, or than a tenth of its lifetime, is extended before it is used."""

SETTLED_S: Final = 30.0
"""So long after the request, a cache that the provider does not list counts as not created."""

# After a lost reply, the cache is usually listed at once.
_LOOKS_S: Final = (0.5, 1.0, 2.0)
# A creation in progress is paid for, so a cancelled process waits a moment longer for the reply.
_GRACE_S: Final = 5.0
_USED_EVERY_S: Final = 600.0
_LARGEST_REQUEST: Final = 1_000_000
# The files of a cache stay until the record is retired, as the provider does not document whether it copies them.
_OWNED_S: Final = None
_FILE_MARGIN_S: Final = 600.0
_MOST_ABANDONED: Final = 20
_log: Final = logging.getLogger("pollux_flows")


@dataclass(frozen=True)
class PreparedCache:
    """A cache request whose sources have been read, with its identity."""

    request: CacheRequest
    plan: Plan
    options: Options
    account: str
    contents_identity: str
    identity: str


async def prepare_cache(request: CacheRequest, config: Config) -> PreparedCache:
    """Check the request, read the sources, and return the request with its identity. Nothing is sent."""
    capabilities.require_cache(config.target)
    options = Options(system_instruction=request.system_instruction, tools=request.tools)
    checked = make_request([], target=config.target, sources=request.sources, options=options)
    if any(source.gemini_url_context for source in checked.sources):
        raise ConfigurationError(
            "An address that Gemini opens while it answers cannot be cached.", hint="Leave out with_gemini_url_context."
        )
    if not checked.sources and not request.system_instruction and not request.tools:
        raise ConfigurationError("There is nothing to cache.", hint="Pass sources, a system_instruction or tools.")
    plan = make_plan(checked, await read_sources(checked, limit_s=config.timeout_s))
    names = [
        source_identity(source, config.provider, (content.sha256, content.mime_type) if content else None)
        for source, content in zip(plan.sources, plan.contents, strict=True)
    ]
    contents = cache_contents_identity(request.system_instruction, request.tools, names)
    account = await derive_shared_account(config.key())
    return PreparedCache(request, plan, options, account, contents, cache_identity(config.target, account, contents))


@dataclass(frozen=True)
class ObtainedCache:
    """A living cache, created or found."""

    record: CacheRecord
    is_new: bool
    """True if this call created it, and so paid for it."""

    @property
    def handle(self) -> CacheHandle:
        """The handle for the options of calls."""
        return self.record.handle()


async def create_or_find(
    prepared: PreparedCache,
    config: Config,
    registry: CacheRegistry,
    *,
    needed_s: float = 0.0,
    lost: str | None = None,
    verify: bool = False,
    pin: bool = False,
    created_by: str | None = None,
    is_temporary: bool = False,
    clock: Clock = time.time,
) -> ObtainedCache:
    """Return the registry's living cache, extended if it expires soon, or a new one.

    Of all processes that share the registry and need the cache at the same time, one creates it and the others wait. If
    the creation fails, its error is raised in all that waited; the next call tries again.

    `needed_s` is how long the cache has to live. `lost` names a cache that the provider no longer has. With `verify`,
    the provider is asked whether it still has the registered cache. With `pin`, a sweep does not delete the cache as
    unused, because a caller has its handle. The run `created_by` deletes a temporary cache at its end; requested
    without `is_temporary`, the cache becomes a permanent one.
    """
    creation = _Creation(prepared, config, registry, needed_s, lost, verify, pin, created_by, is_temporary, clock)
    try:
        return await creation.obtain()
    except APIError as error:
        error.provider, error.phase = error.provider or config.provider, error.phase or "cache"
        raise


async def record_use(registry: CacheRegistry, identity: str, clock: Clock = time.time) -> CacheRecord | None:
    """Record that a registered cache is used, so that no sweep deletes it as unused, and return its record."""
    record = await registry.find(identity)
    if record is None or clock() - record.last_used_at < _USED_EVERY_S:
        return record
    with suppress(LeaseLostError, TimeoutError):  # another process has the lease, and records the use as well
        async with registry.lock(identity, patience_s=0) as lock:
            if lock.record is not None:
                await lock.save(lock.record.change(last_used_at=clock()))
                return lock.record
    return record


async def release_files(session: Session, record: CacheRecord) -> None:
    """Release the files that were uploaded for a cache, best effort."""
    await release_owner(session, open_ledger(session.config), record.file_owner)


def mark_living(record: CacheRecord, cache: ProviderCache, now: float) -> CacheRecord:
    """Return the record of a cache that the provider has."""
    return record.change(
        state="living",
        name=cache.name,
        expires_at=cache.expires_at,
        tokens=cache.tokens if cache.tokens is not None else record.tokens,
        last_used_at=now,
        failure=None,
    )


@dataclass
class _Creation:
    """One call of `create_or_find`."""

    prepared: PreparedCache
    config: Config
    registry: CacheRegistry
    needed_s: float
    lost: str | None
    verify: bool
    pin: bool
    created_by: str | None
    is_temporary: bool
    clock: Clock

    def __post_init__(self) -> None:
        self._is_new = False
        self._began = self.clock()
        self._seen: str | None = None  # the display name of the creation that this one waits for
        self._unsaved: str | None = None  # a cache that was created, and is not in the registry yet
        self._stack = AsyncExitStack()
        self._session_or_none: Session | None = None
        ttl_s = float(self.prepared.request.ttl_seconds)
        self._margin_s = min(MARGIN_S, ttl_s / 10)
        self._needed_s = max(self.needed_s, self._margin_s)

    async def obtain(self) -> ObtainedCache:
        identity = self.prepared.identity
        async with self._stack:
            while True:
                record = await self.registry.find(identity)
                if record is not None and record.state == "creating" and record.failure is None:
                    self._seen = record.display_name
                if record is not None and self._is_usable(record) and not self.verify:
                    break
                try:
                    async with self.registry.lock(identity) as lock:
                        record = await self._obtain(lock)
                    break
                except LeaseLostError:  # another process has taken over: look again
                    continue
            if self._unsaved is not None and record.name != self._unsaved:
                await (await self._calls()).delete_quietly(self._unsaved)
            return ObtainedCache(record, self._is_new)

    def _is_usable(self, record: CacheRecord) -> bool:
        """Return whether the record can be used without changes."""
        now = self.clock()
        return (
            record.name not in {None, self.lost}
            and record.remaining_s(now) > self._needed_s
            and now - record.last_used_at < _USED_EVERY_S
            and (record.is_pinned or not self.pin)
            and (self.is_temporary or not record.is_temporary)
        )

    # --- With the lease -------------------------------------------------------------------------------------

    async def _obtain(self, lock: CacheLock) -> CacheRecord:
        record = lock.record
        if record is not None and record.failure is not None and self._waited_for(record, record.failure):
            raise record.failure.to_error()
        if record is not None and record.may_exist:
            record = await self._adopt(lock, record)
        if record is not None and record.state == "living" and record.name != self.lost:
            living = await self._refresh(record)
            if living is not None:
                if living != record:
                    await lock.save(living)
                return living
        return await self._create(lock, record)

    def _waited_for(self, record: CacheRecord, failure: Failure) -> bool:
        return record.display_name == self._seen or failure.at > self._began

    async def _adopt(self, lock: CacheLock, record: CacheRecord) -> CacheRecord:
        """Look for a cache whose reply was lost; save it if the provider has it."""
        until = (record.asked_at or 0.0) + SETTLED_S
        # Also the longest wait if the clock was set back.
        until = min(until, self.clock() + SETTLED_S)
        found = await look_for_cache(await self._calls(), record.display_name, until, self.clock)
        if found is None:
            return record
        record = mark_living(record, found, self.clock())
        await lock.save(record)
        return record

    async def _refresh(self, record: CacheRecord) -> CacheRecord | None:
        """Return the record of a living cache, verified and extended if necessary; None if it has expired."""
        now, fresh = self.clock(), record.last_used_at >= self._began  # used by another process while this one waited
        if record.remaining_s(now) <= 0:
            return None
        name = record.name or ""
        if self.verify and not fresh:
            cache = await self._unless_unreachable(record, (await self._calls()).get(name))
            if cache is None:
                return None
            record = mark_living(record, cache, now)
        if record.remaining_s(now) <= self._needed_s:
            ttl_seconds = max(self.prepared.request.ttl_seconds, int(self.needed_s + self._margin_s) + 1)
            cache = await self._unless_unreachable(record, (await self._calls()).extend(name, ttl_seconds))
            if cache is None:
                return None
            record = mark_living(record, cache, now).change(ttl_seconds=ttl_seconds)
        if now - record.last_used_at >= _USED_EVERY_S:
            record = record.change(last_used_at=now)
        if record.is_temporary and not self.is_temporary:
            record = record.change(is_temporary=False, created_by=self.created_by)
        return record.change(is_pinned=True) if self.pin and not record.is_pinned else record

    async def _unless_unreachable(
        self, record: CacheRecord, request: Coroutine[Any, Any, ProviderCache | None]
    ) -> ProviderCache | None:
        """Return the result of a request; if it fails and the cache should still live, its registered description."""
        try:
            return await request
        except APIError:
            if record.remaining_s(self.clock()) <= self._margin_s:
                raise
            return ProviderCache(record.name or "", record.display_name, record.expires_at or 0.0, record.tokens)

    # --- Creating -------------------------------------------------------------------------------------------

    async def _create(self, lock: CacheLock, before: CacheRecord | None) -> CacheRecord:
        now, prepared = self.clock(), self.prepared
        is_remade = before is not None and before.state == "living" and not before.is_temporary
        display_name = f"pollux-{uuid4().hex}"
        record = CacheRecord(
            identity=prepared.identity,
            contents_identity=prepared.contents_identity,
            target=self.config.target,
            account=prepared.account,
            display_name=display_name,
            ttl_seconds=max(prepared.request.ttl_seconds, int(self.needed_s) + 1 if self.needed_s else 0),
            contents=describe_contents(prepared),
            request=_make_storable(prepared.request),
            # Equal for each creation of this cache, so that a repeated creation uses the same files.
            file_owner=f"cache/{prepared.identity}",
            # A cache that is created again still belongs to its first creator, who knows it by its name.
            created_by=before.created_by if is_remade and before is not None else self.created_by,
            is_temporary=self.is_temporary and not is_remade,
            created_at=now,
            last_used_at=now,
            is_pinned=self.pin,
            abandoned=_list_abandoned(before, now),
        )
        await lock.save(record)
        session = await self._session()
        creating = asyncio.ensure_future(self._create_at_provider(lock, record, session))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await run_to_completion(self._end(lock, creating))
            raise

    async def _end(self, lock: CacheLock, creating: asyncio.Task[CacheRecord]) -> None:
        """End the creation of a cancelled process. If the provider was asked, its reply is waited for briefly."""
        asked = lock.record is not None and lock.record.may_exist
        await asyncio.wait([creating], timeout=_GRACE_S if asked else 0)
        creating.cancel()
        await asyncio.wait([creating])
        if not creating.cancelled():
            creating.exception()  # retrieved here: waiting processes read it from the record

    async def _create_at_provider(self, lock: CacheLock, record: CacheRecord, session: Session) -> CacheRecord:
        ledger = open_ledger(self.config)
        owner = FileOwner(
            ledger,
            await ledger.derive_account(self.config.key()),
            record.file_owner,
            owner_s=_OWNED_S,
            margin_s=_FILE_MARGIN_S,
        )
        attachments = Attachments(self.prepared.plan, session, owner)
        try:
            attempts, record = await self._ask(lock, record, session, attachments)
        except PolluxError as error:  # an upload failed: the provider was not asked for a cache
            await self._save_failure(lock, record, error, session)
            raise
        finally:
            await attachments.close()
        cache, failure = attempts.result, attempts.error
        if cache is None and failure is not None and failure.outcome_unknown:
            cache = await self._find_lost_reply(record, session)
        elif cache is not None and attempts.number > 1:  # a failed attempt may have created a cache nevertheless
            with suppress(PolluxError):
                cache = await CacheCalls(session).find(record.display_name) or cache
        if cache is not None and cache.expires_at <= self.clock():
            await CacheCalls(session).delete_quietly(cache.name)
            failure = _expired_error(cache, record)
            cache = None
        if cache is None:
            failure = failure or CacheError("No cache was created.")
            await self._save_failure(lock, record, failure, session)
            raise failure
        return await self._save_created(lock, record, cache)

    async def _ask(
        self, lock: CacheLock, record: CacheRecord, session: Session, attachments: Attachments
    ) -> tuple[Attempts[ProviderCache], CacheRecord]:
        prepared, everything = self.prepared, range(len(self.prepared.plan.sources))
        materials = await attachments.materials(everything)
        for last_try in (False, True):
            files = [material.file.file_id for material in materials if material.file is not None]
            record = record.change(asked_at=self.clock(), file_ids=files)
            await lock.save(record)  # the intent, and a check that the lease still holds after the uploads
            wanted = CacheToCreate(
                self.config.model, materials, prepared.options, record.ttl_seconds, record.display_name
            )
            attempts: Attempts[ProviderCache] = await attempt(
                partial(_create, session, wanted),
                policy=self.config.retry,
                timeout_s=self.config.timeout_s,
                slot=session.slot,
                # An interrupted creation may have succeeded: repeating it could pay for the same content twice.
                repeatable=False,
            )
            if last_try or not await attachments.has_lost_files(attempts.error, everything, materials):
                break
            materials = await attachments.materials(everything)
        return attempts, record

    async def _find_lost_reply(self, record: CacheRecord, session: Session) -> ProviderCache | None:
        """Look briefly for a cache whose reply was lost. If it is not found, the outcome stays unknown."""
        until = self.clock() + sum(_LOOKS_S)
        with suppress(PolluxError):
            return await look_for_cache(CacheCalls(session), record.display_name, until, self.clock, _LOOKS_S)
        return None

    async def _save_created(self, lock: CacheLock, record: CacheRecord, cache: ProviderCache) -> CacheRecord:
        self._unsaved, self._is_new = cache.name, True
        living = mark_living(record, cache, self.clock())
        try:
            await lock.save(living)
        except PolluxError as error:
            # The registry has its display name, so the next process that needs it adopts it.
            _log.warning("The cache %s could not be saved: %s", cache.name, error)
        self._unsaved = None
        return living

    async def _save_failure(self, lock: CacheLock, record: CacheRecord, error: PolluxError, session: Session) -> None:
        """Save the failure for waiting processes, and release the files unless the cache may exist nevertheless."""
        failure = Failure.from_error(error, record.display_name, "", self.clock())
        unknown = isinstance(error, APIError) and error.outcome_unknown and record.asked_at is not None
        with suppress(PolluxError):  # the original error matters more
            await lock.save(record.change(state="creating" if unknown else "failed", failure=failure))
        if not unknown:
            await release_files(session, record)

    async def _session(self) -> Session:
        if self._session_or_none is None:
            self._session_or_none = await self._stack.enter_async_context(open_session(self.config))
        return self._session_or_none

    async def _calls(self) -> CacheCalls:
        return CacheCalls(await self._session())


async def _create(session: Session, cache: CacheToCreate) -> ProviderCache:
    return await session.ask("cache", session.caches.create(session.client, cache))


def describe_contents(prepared: PreparedCache) -> list[str]:
    """Return the contents of a cache, in words for people."""
    words = [
        PurePath(source.identifier).name if source.source_type == "file" else source.identifier
        for source in prepared.plan.sources
    ]
    words += ["a system instruction"] if prepared.request.system_instruction else []
    words += [f"the tool {tool['name']}" for tool in prepared.request.tools or []]
    return words


def _make_storable(request: CacheRequest) -> CacheRequest | None:
    """Return the request with absolute paths, as it may be used in another folder; None if it is too large to store."""
    sources = [
        source.model_copy(update={"uri": str(Path(source.uri).absolute())})
        if source.source_type == "file" and source.uri is not None and "://" not in source.uri
        else source
        for source in request.sources
    ]
    request = request.model_copy(update={"sources": sources})
    return request if len(request.model_dump_json()) <= _LARGEST_REQUEST else None


def _list_abandoned(before: CacheRecord | None, now: float) -> list[str]:
    """Return the display names of replaced caches that the provider may still have, for a sweep to look for."""
    if before is None:
        return []
    may_exist = before.may_exist or before.remaining_s(now) > 0  # even if the provider reported it as lost
    return [*before.abandoned, *([before.display_name] if may_exist else [])][-_MOST_ABANDONED:]


def _expired_error(cache: ProviderCache, record: CacheRecord) -> CacheError:
    return CacheError(
        f"By the clock of this machine, the cache {cache.name} had expired when it was created, although its lifetime "
        f"is {record.ttl_seconds} seconds. It was deleted.",
        hint="Set the clock of this machine: it is ahead of the provider's.",
        retryable=False,
    )
