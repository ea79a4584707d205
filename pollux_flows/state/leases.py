"""Leases: exclusive rights to work on a record, which the owner renews and others acquire once they have expired.

A lease is stored in its record, and every write of the owner checks it in the same swap. So an owner that seemed dead
and comes back late cannot overwrite the record of its successor: it gets a LeaseLostError. If the owner was a process
on this machine and has died, its lease ends at once.

Leases use the wall clock: the clocks of machines that share a store must differ by much less than a lease.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import uuid4

from pollux_flows.errors import PolluxError
from pollux_flows.state.process import is_dead, this_process
from pollux_flows.state.store import Json, Store

T = TypeVar("T")
Clock = Callable[[], float]
Change = Callable[[Json], Json | None]
"""A function from the old content of a record to the new, both without the lease; None deletes the record."""

TtlOf = Callable[[Json], float | None]
"""A function that returns for how many seconds a record is stored; None: without a limit."""

LEASE_S: Final = 20.0
_LEASE: Final = "lease"


def _no_ttl(_: Json) -> None:
    return None


def _unless_empty(record: Json) -> Json | None:
    return record or None


class LeaseLostError(Exception):
    """The lease had expired, and another owner has acquired it."""


@dataclass
class Lease:
    """A lease of this process on the record `key`."""

    store: Store
    key: str
    owner: str
    lease_s: float
    clock: Clock
    token: str
    until: float = 0.0
    """The end of the lease by the clock, before which no other process can have acquired it."""

    async def write(self, change: Callable[[Json], Json]) -> None:
        """Change the content of the record and renew the lease, or raise LeaseLostError."""
        until = self._next_end()
        await self._write(lambda record, lease: {**change(record), _LEASE: {**lease, "until": until}})
        self.until = until

    async def finish(self, change: Change, *, ttl_of: TtlOf = _no_ttl) -> Json | None:
        """Change the record and release the lease in one write, or raise LeaseLostError. Return the new content."""
        return await self._write(lambda record, _: change(record), ttl_of)

    async def release(self, change: Change = _unless_empty, *, ttl_of: TtlOf = _no_ttl) -> None:
        """Release the lease, and apply `change` to the record. A lease that was lost needs no release."""
        with suppress(LeaseLostError):
            await self.finish(change, ttl_of=ttl_of)

    async def renew(self) -> None:
        """Extend the lease by its full duration from now, or raise LeaseLostError."""
        await self.write(dict)

    @asynccontextmanager
    async def keep_alive(self) -> AsyncIterator[None]:
        """Renew the lease in the background until the block ends."""
        renewing = asyncio.create_task(self._renew_repeatedly())
        try:
            yield
        finally:
            # Not awaited, as a cancellation during the wait would hide the outcome of the work. A renewal that is
            # still running compares with the old record, so it cannot overwrite a later write.
            renewing.cancel()

    async def acquire(self, found: Json | None, record: Json) -> bool:
        """Write `record` with the lease in place of `found`; return False if the record has changed meanwhile."""
        self.until = self._next_end()
        lease = {"owner": self.owner, "token": self.token, "until": self.until, "process": this_process()}
        swapping = asyncio.ensure_future(self.store.swap(self.key, found, {**record, _LEASE: lease}))

        async def undo() -> None:
            if await swapping:
                with suppress(LeaseLostError):
                    await self.finish(lambda _: strip_lease(found) or None)

        try:
            return await asyncio.shield(swapping)
        except asyncio.CancelledError:  # the lease may have been acquired nevertheless
            await run_to_completion(undo())
            raise

    async def _renew_repeatedly(self) -> None:
        with suppress(LeaseLostError):
            while True:
                await asyncio.sleep(self.lease_s / 4)
                with suppress(PolluxError):  # the store may work again at the next renewal
                    await self.renew()

    async def _write(self, change: Callable[[Json, Json], Json | None], ttl_of: TtlOf = _no_ttl) -> Json | None:
        while True:
            found = await self.store.get(self.key)
            lease = (found or {}).get(_LEASE, {})
            if found is None or lease.get("token") != self.token:
                raise LeaseLostError(self.key)
            record = change(strip_lease(found), lease)
            if await self.store.swap(self.key, found, record, ttl_of(record) if record else None):
                return record

    def _next_end(self) -> float:
        return self.clock() + self.lease_s


@asynccontextmanager
async def use_lease(lease: Lease, change: Change = _unless_empty, *, ttl_of: TtlOf = _no_ttl) -> AsyncIterator[None]:
    """Renew the lease until the block ends, then release it; `change` is applied to the record with the release."""
    try:
        async with lease.keep_alive():
            yield
    finally:
        with suppress(PolluxError):  # the store is unavailable, and the lease expires by itself
            await run_to_completion(lease.release(change, ttl_of=ttl_of))


async def acquire_lease(
    store: Store,
    key: str,
    owner: str,
    lease_s: float = LEASE_S,
    *,
    clock: Clock = time.time,
    intent: Change = dict,
) -> Lease | None:
    """Acquire the lease on `key`, or return None while another owner has it. Of concurrent callers, exactly one wins.

    `intent` changes the content of the record in the same write; if it returns None, the lease is not acquired.
    """
    while True:
        found = await store.get(key)
        if get_owner(found, clock()) is not None or (record := intent(strip_lease(found))) is None:
            return None
        lease = Lease(store, key, owner, lease_s, clock, uuid4().hex)
        if await lease.acquire(found, record):
            return lease


def get_owner(record: Json | None, now: float) -> str | None:
    """Return the owner of the lease on the record; None if it has expired, was released, or its owner has died."""
    lease = (record or {}).get(_LEASE)
    if lease is None or lease["until"] <= now or ("process" in lease and is_dead(lease["process"])):
        return None
    owner: str = lease["owner"]
    return owner


def has_lease(record: Json) -> bool:
    """Return whether the record contains a lease, even an expired one."""
    return _LEASE in record


def strip_lease(record: Json | None) -> Json:
    """Return the content of the record without the lease; empty for no record."""
    return {name: value for name, value in (record or {}).items() if name != _LEASE}


async def change_record(
    store: Store,
    key: str,
    change: Callable[[Json, bool], Json | None],
    *,
    clock: Clock = time.time,
    ttl_of: TtlOf = _no_ttl,
) -> Json | None:
    """Change the content of a record without having its lease, and return the new content.

    `change` also receives whether the lease has an owner. Such a lease stays; an expired one is removed, so that its
    late owner gets a LeaseLostError.
    """
    while True:
        found = await store.get(key)
        is_leased = found is not None and get_owner(found, clock()) is not None
        record = change(strip_lease(found), is_leased)
        if found is not None and is_leased:
            record = {**(record or {}), _LEASE: found[_LEASE]}
        ttl_s = ttl_of(record) if record and not is_leased else None
        if found == record or await store.swap(key, found, record, ttl_s):
            return strip_lease(record) or None


async def wait_for_release(
    store: Store, key: str, *, clock: Clock = time.time, patience_s: float | None = None
) -> Json | None:
    """Wait until the lease has no owner; return the content of the record, or raise TimeoutError."""
    async for _ in retry_until(patience_s):
        record = await store.get(key)
        if get_owner(record, clock()) is None:
            break
    return strip_lease(record) or None


async def retry_until(patience_s: float | None = None, longest_pause_s: float = 0.5) -> AsyncIterator[None]:
    """Yield at once, and again after growing pauses; raise TimeoutError once `patience_s` would be exceeded."""
    deadline = math.inf if patience_s is None else time.monotonic() + patience_s
    for pause in backoff_pauses(longest_s=longest_pause_s):
        yield
        if time.monotonic() + pause > deadline:
            raise TimeoutError
        await asyncio.sleep(pause)


def backoff_pauses(first_s: float = 0.01, longest_s: float = 0.5) -> Iterator[float]:
    """Yield pauses that grow up to `longest_s`, with jitter, so that waiting processes do not ask in step."""
    pause = first_s
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 (not a secret)
        pause = min(pause * 1.5, longest_s)


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; if the caller is cancelled, finish it first and then raise the cancellation."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn about it
        raise
