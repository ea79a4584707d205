"""Prune: the oldest answers go, so that what is kept has a bound. What tells of files at a provider never does.

The answers of a run that is at work stay, however old: if it is killed, its retry needs them. So does all that was
written since the pruning began. Where room is made, what an incomplete run was answered in the last day stays as well:
a run that failed or was killed is most often retried within a day. And nothing goes that says something else by then
than when it was looked at. So those who prune at the same time, and those who write meanwhile, do each other no harm.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from typing import Final

from pydantic import Field

from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError
from pollux_flows.state.identity import digest
from pollux_flows.state.kinds import Kind, kind_of, run_of
from pollux_flows.state.leases import Clock, get_owner
from pollux_flows.state.store import Json, Row, Store, damaged_record_error

_TOGETHER: Final = 1000
# For so long, what an incomplete run has paid for makes no room for other answers.
_RETRIED_S: Final = 86_400.0
# A disk gives back whole pages, and those of an index: hardly more than so many bytes for each of a record.
_PAGES: Final = 3.0


class Pruned(Record):
    """What went, or would go."""

    answers: int = 0
    runs: int = Field(default=0, description="Of which nothing is left.")
    others: int = Field(default=0, description="What led to those answers, or was of no use any more.")
    freed_bytes: int = 0
    spared_runs: int = Field(
        default=0, description="At work, or not complete for less than a day, so that their answers stay."
    )


async def prune(
    store: Store,
    *,
    older_than_s: float | None = None,
    max_size: float | None = None,
    run: str | None = None,
    expired: bool = True,
    dry_run: bool = False,
    clock: Clock = time.time,
) -> Pruned:
    """Remove answers that are older; the oldest, until the rest takes no more; or those of one run.

    `run` is its name, or what several names begin with up to a slash: those of one flow run. Expired records go as well
    unless `expired` is false: where no person prunes, `expiry` says when those may go.
    """
    now = clock()
    at_work = await _at_work(store, now)
    runs = set() if run is None else await _named(store, run)
    if runs & at_work:
        raise ConfigurationError(f"The run {run} is at work.", hint="Wait for its end, then prune it.")
    before = None if older_than_s is None else now - older_than_s
    walk = _Walk(store, now, at_work, runs, before, expired=expired, dry_run=dry_run)
    await walk.begin(max_size)
    async for row in store.list_rows():
        if walk.is_done(row):
            return await walk.end(saw_all=False)
        await walk.look_at(row)
    return await walk.end(saw_all=True)


async def _at_work(store: Store, now: float) -> set[str]:
    """The runs that have claimed calls, as hashes."""
    found = set()
    for prefix in ("taker/", "asking/"):
        async for key, record in store.scan(prefix):
            if (owner := _holder(store, key, record, now)) is not None:
                found.add(digest("run", owner))
    return found


def _holder(store: Store, key: str, claim: Json, now: float) -> str | None:
    try:
        return get_owner(claim, now)
    except (KeyError, TypeError, ValueError):
        raise damaged_record_error(key, store.where) from None


async def _named(store: Store, name: str) -> set[str]:
    found = {digest("run", name)}
    async for row in store.list_rows():
        if kind_of(row.key) == "run" and row.record and str(row.record.get("run")).startswith(f"{name}/"):
            found.add(str(run_of(row.key)))
    return found


class _Walk:
    """Through a store, from the oldest record on."""

    def __init__(
        self,
        store: Store,
        now: float,
        at_work: set[str],
        runs: set[str],
        before: float | None,
        *,
        expired: bool,
        dry_run: bool,
    ) -> None:
        self._store, self._now, self._at_work, self._dry_run = store, now, at_work, dry_run
        self._takes_expired = expired
        self._runs, self._oldest, self._before = runs, before, before
        self._most: float | None = None
        self._over = 0.0  # by how many bytes the store is too large
        self._size: int | None = None
        self._room = 1.0  # that comes free for each byte of a record
        self._freed = 0
        self._going: list[Row] = []
        self._weight = 0
        self._gone: Counter[Kind] = Counter()
        self._places: set[str] = set()  # of answers that go
        self._pointers: dict[str, Row] = {}  # which go with what they lead to
        self._headers: defaultdict[str, list[Row]] = defaultdict(list)  # which go when no answer is left of their run
        self._left: set[str] = set()  # runs of which something is
        self._spared: set[str] = set()
        self._incomplete: dict[str, bool] = {}  # of the runs that were looked up

    async def begin(self, max_size: float | None) -> None:
        """Find out by how much the store is too large; or else, where only a look at all tells, how old is too old."""
        self._size = await self._store.size()
        if self._size is None or self._dry_run:
            await self._estimate(max_size)
        elif max_size is not None:
            self._most, self._over = max_size, self._size - max_size

    async def _estimate(self, max_size: float | None) -> None:
        """All in one look: what somebody else prunes meanwhile is not to be pruned a second time."""
        listed, ages = 0, []
        async for row in self._store.list_rows():
            listed += row.size
            run, at = _run(row), self._at(row)
            if at is not None and run is not None and run not in self._at_work:
                is_spared = max_size is not None and await self._is_spared(at, run)
                ages += [] if is_spared else [(at, row.size)]
        if self._size is not None:
            self._room = self._size / max(1, listed)
        if max_size is None:
            return
        over = self._room * listed - max_size
        for at, size in ages:
            if over > 0:
                self._before = math.nextafter(max(at, self._before or at), math.inf)
            over -= self._room * size

    def is_done(self, row: Row) -> bool:
        """Whether the store is small enough, and this and all that follows is younger than what went."""
        return self._most is not None and self._before is None and self._over <= 0 and kind_of(row.key) == "answer"

    async def look_at(self, row: Row) -> None:
        kind, place, run = kind_of(row.key), _place(row), _run(row)
        if (row.expired and self._takes_expired) or place in self._places or (kind == "claim" and self._is_over(row)):
            await self._go(row)
        elif run is None:
            return
        elif not await self._may_go(row, run):
            if kind == "answer":
                self._left.add(run)
                self._pointers.pop(place, None)
        elif kind == "answer":
            self._places.add(place)
            await self._go(row)
            if pointer := self._pointers.pop(place, None):
                await self._go(pointer)
        elif kind == "pointer":
            self._pointers[place] = row
        else:
            self._headers[run].append(row)

    async def end(self, *, saw_all: bool) -> Pruned:
        if saw_all:  # what still waits for what it leads to, leads nowhere
            for pointer in self._pointers.values():
                await self._go(pointer)
        for run, headers in self._headers.items():
            if run not in self._left and (saw_all or await self._is_empty(run)):
                for header in headers:
                    await self._go(header)
        await self._flush()
        size = None if self._dry_run else await self._store.size()
        freed = self._room * self._freed
        if size is not None and self._size is not None:
            freed = max(0, self._size - size)
        return Pruned(
            answers=self._gone["answer"],
            runs=self._gone["run"],
            others=self._gone.total() - self._gone["answer"] - self._gone["run"],
            freed_bytes=int(freed),
            spared_runs=len(self._spared),
        )

    def _is_over(self, claim: Row) -> bool:
        return claim.record is not None and _holder(self._store, claim.key, claim.record, self._now) is None

    async def _may_go(self, row: Row, run: str) -> bool:
        at = self._at(row)
        old = at is not None and (self._over > 0 or (self._before is not None and at < self._before))
        if run in self._at_work:
            self._spared.update({run} if old else ())
            return False
        is_too_old = self._oldest is not None and at is not None and at < self._oldest
        if old and at is not None and not is_too_old and await self._is_spared(at, run):
            self._spared.add(run)
            return False
        return old or (run in self._runs and row.record is not None)

    async def _is_spared(self, at: float, run: str) -> bool:
        """Return whether a record of that time makes no room for others, as its run has yet to be retried."""
        if self._now - at >= _RETRIED_S:
            return False
        if run not in self._incomplete:
            self._incomplete[run] = not await is_complete(self._store, run)
        return self._incomplete[run]

    def _at(self, row: Row) -> float | None:
        """When it was written, if that makes it one that may go."""
        at = (row.record or {}).get("at")
        return at if isinstance(at, float) and at < self._now else None

    async def _go(self, row: Row) -> None:
        self._going.append(row)
        self._weight += row.size
        if len(self._going) >= _TOGETHER or 0 < self._over <= _PAGES * self._weight:
            await self._flush()

    async def _flush(self) -> None:
        gone = self._going if self._dry_run else await self._store.delete_rows(self._going)
        self._going, self._weight = [], 0
        self._gone.update(kind_of(row.key) for row in gone)
        self._freed += sum(row.size for row in gone)
        if self._over > 0:
            self._over = (await self._store.size() or 0) - (self._most or 0)

    async def _is_empty(self, run: str) -> bool:
        try:
            async for _ in self._store.scan(f"run/{run}/"):
                return False
        except ConfigurationError:  # there is something, though it cannot be read
            return False
        return True


async def is_complete(store: Store, run: str) -> bool:
    """Return whether all that a run has asked is answered, as far as is on record. `run` is the hash of its name."""
    said = ((await store.get(f"run/{run}")) or {}).get("complete")
    if isinstance(said, bool):
        return said
    takers = {key.rpartition("/")[2]: taker.get("complete") is True async for key, taker in store.scan(f"taker/{run}/")}
    incomplete = {token for token, complete in takers.items() if not complete}
    if incomplete:
        async for _, slot in store.scan(f"slot/{run}/"):
            if not incomplete.isdisjoint(slot.get("takers") or ()):
                return False
    return len(incomplete) < len(takers)


def _place(row: Row) -> str:
    """Where the answer is that this is about."""
    return str((row.record or {}).get("place")) if kind_of(row.key) == "pointer" else row.key


def _run(row: Row) -> str | None:
    return run_of(_place(row))
