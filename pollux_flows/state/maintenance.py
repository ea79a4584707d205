"""Maintenance: surveys a store, removes damaged records, and prunes by age, by size or by run.

Pruning removes the oldest answers. Records about files at a provider and conversations stay. The answers of a running
run stay, too, whatever their age, as a retry may need them. Pruning by size spares the answers of an incomplete run for
a day, within which most runs are retried. A record that has changed since it was listed is not removed, so that pruning
is safe while other processes prune or write.
"""

from __future__ import annotations

import heapq
import math
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Final

from pydantic import Field

from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.state.answer_record import read_answer, read_cost, read_pointer
from pollux_flows.state.budget import read_ledger
from pollux_flows.state.conversations import is_conversation
from pollux_flows.state.identity import digest
from pollux_flows.state.kinds import is_removable, kind_of, run_of
from pollux_flows.state.leases import Clock, get_owner, strip_lease
from pollux_flows.state.retention import max_size_bytes, retention_s
from pollux_flows.state.store import Json, Row, Store, damaged_record_error
from pollux_flows.state.upload import Entry, UploadKey

_BATCH: Final = 1000
# The fraction of the limit to prune to, so that the next runs need not prune again.
_TARGET: Final = 0.9
_CHECK_EVERY_S: Final = 60.0
# For this long, pruning by size spares the answers of an incomplete run.
_RETRIED_S: Final = 86_400.0
# A disk store frees whole pages, also of its indexes: at most about this many bytes for each byte of a record.
_BYTES_FREED: Final = 3.0
_READERS: Final[dict[str, Callable[[Json], object]]] = {
    "budget": read_ledger,
    "shared budget": read_ledger,
    "owner": UploadKey.model_validate,
}
_checked_at: Final[dict[str, float]] = {}


# --- Survey -----------------------------------------------------------------------------------------------------------


class RunSummary(Record):
    """A run, with the number and the cost of its answers."""

    name: str
    began_at: float = Field(description="The last time, as a Unix time.")
    answers: int = 0
    cost_usd: float = Field(default=0.0, description="Of the answers whose cost is known.")
    cost_unknown: int = Field(default=0, description="How many of the answers have no known cost.")


class Survey(Record):
    """The contents of a store, and its location."""

    where: str
    size_bytes: int
    kept_days: float = Field(description="How long an answer is stored.")
    max_size_bytes: int | None = Field(description="None: only age bounds it.")
    records: dict[str, int] = Field(default_factory=dict, description="The number of records of each kind.")
    bytes: dict[str, int] = Field(default_factory=dict, description="The size of the records of each kind.")
    oldest_at: float | None = Field(default=None, description="When the oldest answer was saved, as a Unix time.")
    newest_at: float | None = None
    unreadable: int = 0
    expired: int = Field(default=0, description="Expired records, which are removed soon.")
    runs: list[RunSummary] = Field(default_factory=list, description="The last runs, the latest first.")


async def survey(store: Store, *, last: int = 10) -> Survey:
    """Count all records of a store, and summarize its last runs."""
    records, sizes, answers, unknown = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    costs, began = defaultdict[str, float](float), dict[str, tuple[float, str]]()
    unreadable = expired = 0
    oldest, newest = math.inf, -math.inf
    async for row in store.list_rows():
        if row.expired:
            expired += 1
            continue
        kind, run, record = kind_of(row.key), run_of(row.key) or "", row.record or {}
        records[kind] += 1
        sizes[kind] += row.size
        unreadable += row.record is None
        at = record.get("at")
        if kind == "answer":
            answers[run] += 1
            cost = read_cost(record)
            unknown[run] += cost is None
            costs[run] += cost or 0.0
            if isinstance(at, float):
                oldest, newest = min(at, oldest), max(at, newest)
        elif kind == "run" and isinstance(at, float):
            began[run] = at, str(record.get("run"))
    size = await store.size()
    return Survey(
        where=store.where,
        size_bytes=sizes.total() if size is None else size,
        kept_days=retention_s() / 86_400,
        max_size_bytes=None if size is None else max_size_bytes(),
        records=dict(records),
        bytes=dict(sizes),
        oldest_at=None if oldest > newest else oldest,
        newest_at=None if oldest > newest else newest,
        unreadable=unreadable,
        expired=expired,
        runs=[
            RunSummary(name=name, began_at=at, answers=answers[run], cost_usd=costs[run], cost_unknown=unknown[run])
            for run, (at, name) in heapq.nlargest(last, began.items(), key=lambda item: item[1][0])
        ],
    )


# --- Damage -----------------------------------------------------------------------------------------------------------


class DamageReport(Record):
    """The keys of damaged records."""

    removed: list[str] = Field(default_factory=list)
    left: list[str] = Field(default_factory=list, description="Records about providers, and conversations.")


async def remove_damaged(store: Store, *, dry_run: bool = False) -> DamageReport:
    """Remove the damaged records, except conversations and those about files, caches or batches at a provider."""
    damaged = [row async for row in store.list_rows() if not row.expired and not _is_valid(row)]
    removable = [row for row in damaged if is_removable(row.key)]
    removed = removable if dry_run else await store.delete_rows(removable)
    left = [row.key for row in damaged if not is_removable(row.key)]
    return DamageReport(removed=[row.key for row in removed], left=left)


def _is_valid(row: Row) -> bool:
    """Return whether the code that uses this record can read it."""
    key, record = row.key, row.record
    if record is None:
        return False
    try:
        get_owner(record, time.time())
        if read := _READERS.get(kind_of(key)):
            read(record)
        match kind_of(key):
            case "answer":
                read_answer(key, record, "")
            case "pointer":
                read_pointer(key, record, "")
            case "run":
                _ = record["run"] + "", record["at"] + 0.0
            case "upload" if strip_lease(record):
                Entry.from_record(record)
            case "conversation":
                return is_conversation(record)
            case "account":
                bytes.fromhex(record["salt"])
    except (ConfigurationError, LookupError, TypeError, ValueError):
        return False
    return True


# --- Pruning ----------------------------------------------------------------------------------------------------------


class Pruned(Record):
    """The numbers of records that pruning has removed, or would remove."""

    answers: int = 0
    runs: int = Field(default=0, description="Runs without answers.")
    others: int = Field(default=0, description="Records that led to those answers, or were of no use any more.")
    freed_bytes: int = 0
    spared_runs: int = Field(default=0, description="Runs at work, or incomplete for less than a day: they stay.")


async def enforce_max_size(store: Store, clock: Clock = time.time) -> None:
    """Prune the oldest answers of a store that has grown too large. Best effort: a failure is only a warning.

    A Redis cannot tell how much of its memory these records take: there, only age limits the state.
    """
    limit, now = max_size_bytes(), time.monotonic()
    if now - _checked_at.get(store.where, -_CHECK_EVERY_S) < _CHECK_EVERY_S:
        return
    _checked_at[store.where] = now
    try:
        size = await store.size()
        if size is not None and size > limit:
            await prune(store, max_size=_TARGET * limit, expired=False, clock=clock)
    except PolluxError as error:
        warnings.warn(f"The state could not be pruned to its maximum size. {error}", RuntimeWarning, stacklevel=2)


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
    """Remove answers by age, by size (the oldest first) or by run.

    `run` is the name of a run, or the common beginning of several names up to a slash, as for one flow run. Expired
    records are removed, too, unless `expired` is false: in automatic pruning, `clock_check` decides about them.
    """
    now = clock()
    at_work = await _find_runs_at_work(store, now)
    runs = set() if run is None else await _find_runs(store, run)
    if runs & at_work:
        raise ConfigurationError(f"The run {run} is still running.", hint="Wait until it ends, then prune it.")
    before = None if older_than_s is None else now - older_than_s
    pruning = _Pruning(store, now, at_work, runs, before, expired=expired, dry_run=dry_run)
    await pruning.begin(max_size)
    async for row in store.list_rows():
        if pruning.is_done(row):
            return await pruning.end(saw_all=False)
        await pruning.visit(row)
    return await pruning.end(saw_all=True)


async def _find_runs_at_work(store: Store, now: float) -> set[str]:
    """Return the runs that have a lease, as digests of their names."""
    owners = [
        _get_owner(store, key, record, now)
        for prefix in ("taker/", "asking/")
        async for key, record in store.scan(prefix)
    ]
    return {digest("run", owner) for owner in owners if owner is not None}


def _get_owner(store: Store, key: str, record: Json, now: float) -> str | None:
    try:
        return get_owner(record, now)
    except (KeyError, TypeError, ValueError):
        raise damaged_record_error(key, store.where) from None


async def _find_runs(store: Store, name: str) -> set[str]:
    """Return the runs of this name and those of its parts, as digests."""
    found = {digest("run", name)}
    async for row in store.list_rows():
        if kind_of(row.key) == "run" and row.record and str(row.record.get("run")).startswith(f"{name}/"):
            found.add(str(run_of(row.key)))
    return found


class _Pruning:
    """One pass through a store that removes records in batches; in a disk store, the oldest first."""

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
        self._removes_expired = expired
        self._runs, self._requested_cutoff, self._cutoff = runs, before, before
        self._max_size: float | None = None
        self._excess = 0.0  # by how many bytes the store is too large
        self._size: int | None = None
        self._ratio = 1.0  # bytes that a store frees for each byte of a record
        self._freed = 0
        self._batch: list[Row] = []
        self._batch_size = 0
        self._removed: Counter[str] = Counter()
        self._places: set[str] = set()  # the keys of the removed answers
        self._pointers: dict[str, Row] = {}  # by the answer they point to, with which they are removed
        self._headers: defaultdict[str, list[Row]] = defaultdict(list)  # removed with the last answer of their run
        self._remaining: set[str] = set()  # runs with answers that stay
        self._spared: set[str] = set()
        self._incomplete: dict[str, bool] = {}  # by run

    async def begin(self, max_size: float | None) -> None:
        """Determine how much to remove: from the size of the store or, if it has none, as an age limit."""
        self._size = await self._store.size()
        if self._size is None or self._dry_run:
            await self._estimate(max_size)
        elif max_size is not None:
            self._max_size, self._excess = max_size, self._size - max_size

    async def _estimate(self, max_size: float | None) -> None:
        # From one listing, so that records that a concurrent pruning removes are not replaced by others.
        listed, ages = 0, []
        async for row in self._store.list_rows():
            listed += row.size
            run, at = _run_of_row(row), self._age(row)
            if at is not None and run is not None and run not in self._at_work:
                is_spared = max_size is not None and await self._is_spared(at, run)
                ages += [] if is_spared else [(at, row.size)]
        if self._size is not None:
            self._ratio = self._size / max(1, listed)
        if max_size is None:
            return
        excess = self._ratio * listed - max_size
        for at, size in sorted(ages):
            if excess > 0:
                self._cutoff = math.nextafter(max(at, self._cutoff or at), math.inf)
            excess -= self._ratio * size

    def is_done(self, row: Row) -> bool:
        """Return whether the store is small enough, so that this answer and all later ones stay."""
        is_small_enough = self._max_size is not None and self._cutoff is None and self._excess <= 0
        return is_small_enough and kind_of(row.key) == "answer"

    async def visit(self, row: Row) -> None:
        """Remove the record, leave it, or decide later together with the records that it belongs to."""
        kind, place, run = kind_of(row.key), _answer_key(row), _run_of_row(row)
        is_over = kind == "claim" and row.record is not None
        is_over = is_over and _get_owner(self._store, row.key, row.record or {}, self._now) is None
        if (row.expired and self._removes_expired) or place in self._places or is_over:
            await self._remove(row)
        elif run is None:
            return
        elif not await self._may_remove(row, run):
            if kind == "answer":
                self._remaining.add(run)
                self._pointers.pop(place, None)
        elif kind == "answer":
            self._places.add(place)
            await self._remove(row, *filter(None, [self._pointers.pop(place, None)]))
        elif kind == "pointer":
            self._pointers[place] = row
        else:
            self._headers[run].append(row)

    async def end(self, *, saw_all: bool) -> Pruned:
        """Remove the records whose answers are all removed, and return the result."""
        if saw_all:
            await self._remove(*self._pointers.values())
        for run, headers in self._headers.items():
            if run not in self._remaining and (saw_all or await self._is_empty(run)):
                await self._remove(*headers)
        await self._flush()
        size = None if self._dry_run else await self._store.size()
        freed = self._ratio * self._freed if size is None or self._size is None else max(0, self._size - size)
        return Pruned(
            answers=self._removed["answer"],
            runs=self._removed["run"],
            others=self._removed.total() - self._removed["answer"] - self._removed["run"],
            freed_bytes=int(freed),
            spared_runs=len(self._spared),
        )

    async def _may_remove(self, row: Row, run: str) -> bool:
        at = self._age(row)
        is_old = at is not None and (self._excess > 0 or (self._cutoff is not None and at < self._cutoff))
        if run in self._at_work:
            self._spared.update({run} if is_old else ())
            return False
        is_requested = self._requested_cutoff is not None and at is not None and at < self._requested_cutoff
        if is_old and at is not None and not is_requested and await self._is_spared(at, run):
            self._spared.add(run)
            return False
        return is_old or (run in self._runs and row.record is not None)

    async def _is_spared(self, at: float, run: str) -> bool:
        """Return whether pruning by size spares a record of this time, as its run may still be retried."""
        if self._now - at >= _RETRIED_S:
            return False
        if run not in self._incomplete:
            self._incomplete[run] = not await is_complete(self._store, run)
        return self._incomplete[run]

    def _age(self, row: Row) -> float | None:
        """Return when the record was written; None if that is unknown, or later than the start of the pruning."""
        at = (row.record or {}).get("at")
        return at if isinstance(at, float) and at < self._now else None

    async def _remove(self, *rows: Row) -> None:
        for row in rows:
            self._batch.append(row)
            self._batch_size += row.size
            if len(self._batch) >= _BATCH or 0 < self._excess <= _BYTES_FREED * self._batch_size:
                await self._flush()

    async def _flush(self) -> None:
        removed = self._batch if self._dry_run else await self._store.delete_rows(self._batch)
        self._batch, self._batch_size = [], 0
        self._removed.update(kind_of(row.key) for row in removed)
        self._freed += sum(row.size for row in removed)
        if self._excess > 0:
            self._excess = (await self._store.size() or 0) - (self._max_size or 0)

    async def _is_empty(self, run: str) -> bool:
        async for _ in self._store.list_keys(f"run/{run}/"):
            return False
        return True


async def is_complete(store: Store, run: str) -> bool:
    """Return whether all calls of a run are recorded as answered. `run` is the digest of its name."""
    complete = ((await store.get(f"run/{run}")) or {}).get("complete")
    if isinstance(complete, bool):
        return complete
    takers = {key.rpartition("/")[2]: taker.get("complete") is True async for key, taker in store.scan(f"taker/{run}/")}
    incomplete = {token for token, complete in takers.items() if not complete}
    if incomplete:
        async for _, slot in store.scan(f"slot/{run}/"):
            if not incomplete.isdisjoint(slot.get("takers") or ()):
                return False
    return len(incomplete) < len(takers)


def _answer_key(row: Row) -> str:
    """Return the key of the answer that the record is about."""
    return str((row.record or {}).get("place")) if kind_of(row.key) == "pointer" else row.key


def _run_of_row(row: Row) -> str | None:
    return run_of(_answer_key(row))
