"""Claims: who does it. A lease on a record, that its holder renews while at work and others take when it stops.

The lease stands in the record that it is about, and every write of the holder checks it in the same swap. So whoever
was taken for dead and comes back late cannot overwrite what its successor wrote: it is told LeaseLostError instead.
Of a process that has died on this machine nobody waits for the lease to run out.

Leases are told by the wall clock: machines that share a store must agree on the time to well within a lease.
"""

from __future__ import annotations

import asyncio
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
"""From what a record says, lease aside, to what it is to say; None for nothing."""

Lasts = Callable[[Json], float | None]
"""For how many seconds a record is worth keeping; None: for ever."""

LEASE_S: Final = 20.0
_LEASE: Final = "lease"


def _for_ever(_: Json) -> None:
    return None


def _or_nothing(record: Json) -> Json | None:
    return record or None


class LeaseLostError(Exception):
    """The lease had run out, and somebody else took over."""


@dataclass
class Claim:
    """A lease that was won, on the record `key`."""

    store: Store
    key: str
    owner: str
    lease_s: float
    clock: Clock
    token: str
    until: float = 0.0
    """Until then, by the clock, no other process can have taken over."""

    async def write(self, change: Callable[[Json], Json]) -> None:
        """Change what the record says and go on, or raise LeaseLostError."""
        until = self._until()
        await self._write(lambda record, lease: {**change(record), _LEASE: {**lease, "until": until}})
        self.until = until

    async def settle(self, change: Change, *, lasts: Lasts = _for_ever) -> Json | None:
        """Write the outcome and end the lease, or raise LeaseLostError."""
        return await self._write(lambda record, _: change(record), lasts)

    async def release(self, change: Change = _or_nothing, *, lasts: Lasts = _for_ever) -> None:
        """End the lease, and leave the record as it is or changed. If the lease was lost, there is nothing to end."""
        with suppress(LeaseLostError):
            await self.settle(change, lasts=lasts)

    async def renew(self) -> None:
        """Make the lease last from now on, or raise LeaseLostError."""
        await self.write(dict)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renew the lease for as long as the work in here takes."""
        beating = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            # Not waited for: a cancellation that came in between would hide what the work has brought. A renewal that
            # is still on its way compares with what was there, so it changes nothing that is written after this.
            beating.cancel()

    async def _beat(self) -> None:
        with suppress(LeaseLostError):
            while True:
                await asyncio.sleep(self.lease_s / 4)
                with suppress(PolluxError):  # the store may be well again for the next beat, or for the outcome
                    await self.renew()

    async def _write(self, change: Callable[[Json, Json], Json | None], lasts: Lasts = _for_ever) -> Json | None:
        while True:
            found = await self.store.get(self.key)
            lease = (found or {}).get(_LEASE, {})
            if found is None or lease.get("token") != self.token:
                raise LeaseLostError(self.key)
            record = change(bare(found), lease)
            if await self.store.swap(self.key, found, record, lasts(record) if record else None):
                return record

    async def take(self, found: Json | None, record: Json) -> bool:
        self.until = self._until()
        lease = {"owner": self.owner, "token": self.token, "until": self.until, "process": this_process()}
        swapping = asyncio.ensure_future(self.store.swap(self.key, found, {**record, _LEASE: lease}))

        async def give_back() -> None:
            if await swapping:
                with suppress(LeaseLostError):
                    await self.settle(lambda _: bare(found) or None)

        try:
            return await asyncio.shield(swapping)
        except asyncio.CancelledError:  # the lease may have been won all the same
            await unbroken(give_back())
            raise

    def _until(self) -> float:
        return self.clock() + self.lease_s


@asynccontextmanager
async def held(claim: Claim, change: Change = _or_nothing, *, lasts: Lasts = _for_ever) -> AsyncIterator[None]:
    """Renew the lease while the work in here lasts, then end it; `change` is made to the record as it ends."""
    try:
        async with claim.kept():
            yield
    finally:
        with suppress(PolluxError):  # nothing can be written now: the lease runs out by itself
            await unbroken(claim.release(change, lasts=lasts))


async def claim(
    store: Store,
    key: str,
    owner: str,
    lease_s: float = LEASE_S,
    *,
    clock: Clock = time.time,
    intent: Change = dict,
) -> Claim | None:
    """The lease on `key`, or None when somebody alive has it. Of all who try at once, exactly one wins.

    `intent` says what the record is to say from that moment on, in the same write; None, to refrain after all.
    """
    while True:
        found = await store.get(key)
        if holder(found, clock()) is not None or (record := intent(bare(found))) is None:
            return None
        won = Claim(store, key, owner, lease_s, clock, uuid4().hex)
        if await won.take(found, record):
            return won


def holder(record: Json | None, now: float) -> str | None:
    """Who has the lease on the record and is not known to be dead."""
    lease = (record or {}).get(_LEASE)
    if lease is None or lease["until"] <= now or ("process" in lease and is_dead(lease["process"])):
        return None
    owner: str = lease["owner"]
    return owner


def has_lease(record: Json) -> bool:
    """Return whether a lease is on record, be it over or not."""
    return _LEASE in record


def bare(record: Json | None) -> Json:
    """What the record says, lease aside."""
    return {name: value for name, value in (record or {}).items() if name != _LEASE}


async def amend(
    store: Store,
    key: str,
    change: Callable[[Json, bool], Json | None],
    *,
    clock: Clock = time.time,
    lasts: Lasts = _for_ever,
) -> Json | None:
    """Change what the record says without holding the lease. `change` is told, too, whether somebody alive does.

    Who does keeps it; a lease that had run out is gone after that, and its owner will be told so.
    """
    while True:
        found = await store.get(key)
        held = found is not None and holder(found, clock()) is not None
        record = change(bare(found), held)
        if found is not None and held:
            record = {**(record or {}), _LEASE: found[_LEASE]}
        if found == record or await store.swap(key, found, record, lasts(record) if record and not held else None):
            return bare(record) or None


async def freed(store: Store, key: str, *, clock: Clock = time.time, patience_s: float | None = None) -> Json | None:
    """What the record says once nobody alive has the lease. A TimeoutError when that takes too long."""
    give_up = None if patience_s is None else time.monotonic() + patience_s
    for pause in pauses():
        record = await store.get(key)
        if holder(record, clock()) is None:
            return bare(record) or None
        if give_up is not None and time.monotonic() + pause > give_up:
            raise TimeoutError
        await asyncio.sleep(pause)
    raise AssertionError


def pauses(first_s: float = 0.01, longest_s: float = 0.5) -> Iterator[float]:
    """Short at first, then longer, and never the same for two who wait."""
    pause = first_s
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
        pause = min(pause * 1.5, longest_s)


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Carry `work` through even if whoever waits for it is cancelled, who learns of that afterwards."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen, so that nobody warns of it
        raise
