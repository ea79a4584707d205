"""Disk: the store on this machine, one SQLite file that diskcache keeps, shared by all processes.

A thread per store does the work, so that no event loop waits for a disk. What has gathered while it was busy goes into
its next transaction: the more there is to write, the fewer commits it takes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from diskcache import Cache, Disk, Timeout

from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.state import expiry
from pollux_flows.state.expiry import Expiry
from pollux_flows.state.home import disk_full_error, folder_error, prepare_folder
from pollux_flows.state.leases import Clock
from pollux_flows.state.store import Json, Row, decode_record, encode_record, try_decode_record

T = TypeVar("T")

SETTINGS: Final[dict[str, Any]] = {
    "eviction_policy": "none",  # a paid answer never makes room for another
    "size_limit": 2**62,
    "cull_limit": 0,  # expired records are removed as `expiry` says, and not by whoever writes
    "disk_min_file_size": 2**62,  # no files beside the database: those would neither commit nor roll back with it
    "sqlite_auto_vacuum": 1,  # what is pruned makes the file smaller
    "sqlite_journal_mode": "wal",
    "sqlite_synchronous": 1,  # while it is set up, which takes some 50 commits; see _DURABLE
    "sqlite_mmap_size": 0,  # a damaged file is to be an error, not a SIGBUS
    "sqlite_cache_size": 2**11,  # pages: 8 MiB at most
}
# From then on each commit survives a power cut, too. One sync serves all that has gathered.
_DURABLE: Final = 2
# Left to itself, SQLite waits for a lock in steps of up to 100 ms; ours are shorter, and random.
BUSY_S: Final = 0.01
_PATIENCE_S: Final = 60.0
_TOGETHER: Final = 250  # operations in a transaction, so that other processes get their turn
# Another process is at it, or is just setting the file up.
_LATER: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
# Which records were written first is asked for when the state grows too large.
_BY_AGE: Final = "CREATE INDEX IF NOT EXISTS Cache_store_time ON Cache (store_time)"
_PAGES: Final = ("page_count", "freelist_count", "page_size")
_SELECT: Final = "SELECT key, mode, filename, value FROM Cache WHERE key IN ({}) AND raw = 1"
_ROW: Final = "(?, 1, ?, ?, ?, 0, NULL, 0, 1, NULL, ?)"
_INSERT: Final = (
    "INSERT INTO Cache"
    " (key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value) VALUES {}"
)
_ADD: Final = f"{_INSERT} ON CONFLICT (key, raw) DO NOTHING"
_UPSERT: Final = (
    f"{_INSERT} ON CONFLICT (key, raw) DO UPDATE SET"
    " store_time = excluded.store_time, expire_time = excluded.expire_time, access_time = excluded.access_time,"
    " access_count = 0, tag = NULL, size = 0, mode = 1, filename = NULL, value = excluded.value"
)
_DELETE: Final = "DELETE FROM Cache WHERE key = ? AND raw = 1"
# A few at a time, as diskcache does it: whoever writes tidies up.
_GONE: Final = "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache WHERE expire_time < ? LIMIT 250)"
_TIDY_EVERY: Final = 25  # times that rows are written
_RAW: Final = 1  # what diskcache calls a value that stands in its row as it is


# Held while a thread is within SQLite, or at the list of what waits: a process that is forked just then would be left
# with locks that nobody opens.
_in_sqlite: Final = threading.RLock()
_at_the_list: Final = threading.Lock()


def _hold() -> None:
    _in_sqlite.acquire()
    _at_the_list.acquire()


def _go_on() -> None:
    _at_the_list.release()
    _in_sqlite.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_go_on, after_in_child=_go_on)


class PlainDisk(Disk):  # type: ignore[misc]  # diskcache has no types
    """Text for keys, bytes for values, and pickle nowhere: a row of another kind is not looked into."""

    def put(self, key: str) -> tuple[str, bool]:
        return key, True

    def get(self, key: object, raw: object) -> object:
        return key if raw else None

    def store(self, value: bytes, _read: bool, **_: object) -> tuple[int, int, None, bytes]:
        return 0, _RAW, None, value

    def fetch(self, mode: int, filename: str | None, value: object, _read: bool) -> object:
        return _data(mode, filename, value)


class _Waiter:
    """The coroutine that waits for an operation, on its own event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Any] = self.loop.create_future()

    def resolve(self, outcome: Any) -> None:
        if self.done.done():  # cancelled
            return
        if isinstance(outcome, Exception):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


@dataclass
class _Work:
    """An operation that waits for the store's thread."""

    do: Callable[[Any], Any]
    writes: bool
    waiter: _Waiter = field(default_factory=_Waiter)


class _LockedError(ConfigurationError):
    """Another process is at it."""


class _NewRow(NamedTuple):
    key: str
    data: bytes
    ttl_s: float | None


@dataclass
class _Put:
    """Rows that wait to be written, together with those of whoever else waits."""

    rows: list[_NewRow]
    writes: ClassVar = True
    waiter: _Waiter = field(default_factory=_Waiter)


class DiskStore:
    """The Store of a folder, which is touched at the first operation."""

    def __init__(self, folder: Path, *, clock: Clock = time.time, monotonic: Clock = time.monotonic) -> None:
        self.folder = folder
        self.where = str(folder)
        self._clock = clock
        self._expiry = Expiry(folder / expiry.FILE, clock=clock, monotonic=monotonic)
        self._start()

    async def get(self, key: str) -> Json | None:
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Json]:
        wanted = list(keys)
        return await self._ask(lambda cache: self._read(cache, wanted))

    async def put(self, key: str, record: Json, ttl_s: float | None = None) -> None:
        await self.put_many({key: record}, ttl_s)

    async def put_many(self, records: Mapping[str, Json], ttl_s: float | None = None) -> None:
        await self._settled(_Put([_NewRow(key, encode_record(key, record), ttl_s) for key, record in records.items()]))

    async def add(self, key: str, record: Json, ttl_s: float | None = None) -> bool:
        row = _NewRow(key, encode_record(key, record), ttl_s)
        return await self._ask(lambda cache: self._write([row], cache, _ADD) == 1, writes=True)

    async def swap(self, key: str, old: Json | None, new: Json | None, ttl_s: float | None = None) -> bool:
        expected = None if old is None else encode_record(key, old)
        data = None if new is None else encode_record(key, new)

        def swap(cache: Any) -> bool:
            # Only what was read can be compared: a damaged record is an error here, too.
            now = None if (found := self._read(cache, [key]).get(key)) is None else encode_record(key, found)
            if now != expected:
                return False
            if data is not None:
                self._write([_NewRow(key, data, ttl_s)], cache)
            else:
                cache._sql(_DELETE, (key,))  # noqa: SLF001
            return True

        return await self._ask(swap, writes=True)

    async def swap_many(self, changes: Mapping[str, tuple[Json | None, Json]], ttl_s: float | None = None) -> set[str]:
        def swap(some: Sequence[str], cache: Any) -> list[str]:
            found = self._read(cache, some)
            done = [key for key in some if found.get(key) == changes[key][0]]
            self._write([_NewRow(key, encode_record(key, changes[key][1]), ttl_s) for key in done], cache)
            return done

        keys, done = list(changes), set[str]()
        for start in range(0, len(keys), _TOGETHER):
            some = keys[start : start + _TOGETHER]
            done.update(await self._ask(partial(swap, some), writes=True))
        return done

    async def delete(self, *keys: str) -> None:
        await self._ask(lambda cache: [cache._sql(_DELETE, (key,)) for key in keys], writes=True)  # noqa: SLF001

    async def list_keys(self, prefix: str) -> AsyncIterator[str]:
        async for keys in self._pages(prefix):
            for key in keys:
                yield key

    async def scan(self, prefix: str) -> AsyncIterator[tuple[str, Json]]:
        async for keys in self._pages(prefix):
            found = await self.get_many(keys)
            for key in keys:
                if key in found:
                    yield key, found[key]

    async def _pages(self, prefix: str) -> AsyncIterator[list[str]]:
        # diskcache lists all its keys or none; the index that it keeps can do better.
        query = "SELECT key FROM Cache WHERE key > ? AND key >= ? AND key < ? ORDER BY key LIMIT ?"
        last, end = "", prefix + "\U0010ffff"

        def page(cache: Any) -> list[str]:
            return [key for (key,) in cache._sql(query, (last, prefix, end, _TOGETHER)).fetchall()]  # noqa: SLF001

        while keys := await self._ask(page):
            last = keys[-1]
            yield keys

    async def list_rows(self) -> AsyncIterator[Row]:
        query = (
            "SELECT rowid, store_time, expire_time, key, mode, filename, value FROM Cache"
            " WHERE raw = 1 AND typeof(key) = 'text' AND (store_time, rowid) > (?, ?)"
            " ORDER BY store_time, rowid LIMIT ?"
        )
        last = (0.0, 0)

        def page(cache: Any) -> list[Any]:
            return cache._sql(query, (*last, _TOGETHER)).fetchall()  # type: ignore[no-any-return]  # noqa: SLF001

        while rows := await self._ask(page):
            for number, written_at, expires_at, key, mode, filename, value in rows:
                last = (written_at, number)
                data = _data(mode, filename, value)
                size = len(key.encode()) + (len(value) if isinstance(value, bytes) else 0)
                expired = expires_at is not None and expires_at <= self._clock()
                yield Row(key, try_decode_record(data), size, written_at, expired)

    async def delete_rows(self, rows: Sequence[Row]) -> list[Row]:
        gone: list[Row] = []
        for start in range(0, len(rows), _TOGETHER):
            gone += await self._ask(partial(_drop_all, rows[start : start + _TOGETHER]), writes=True)
        return gone

    async def size(self) -> int:
        def size(cache: Any) -> int:
            pages, unused, each = (cache._sql(f"PRAGMA {name}").fetchone()[0] for name in _PAGES)  # noqa: SLF001
            return int((pages - unused) * each)

        return await self._ask(size)

    def close(self) -> None:
        """Let go of the file, once nobody waits for anything. The next operation opens it again."""
        self._executor.submit(self._let_go)
        self._executor.shutdown(wait=True)
        self._start()

    # --- The thread -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._process = os.getpid()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pollux-state")
        self._waiting: deque[_Work | _Put] = deque()
        self._busy = False
        self._untidy = _TIDY_EVERY  # so that a process which writes little does so at once
        self._cache: Any = None
        self._inode = 0

    async def _ask(self, do: Callable[[Any], T], *, writes: bool = False) -> T:
        answer: T = await self._settled(_Work(do, writes))
        return answer

    async def _settled(self, work: _Work | _Put) -> Any:
        with _at_the_list:
            if self._process != os.getpid():  # the thread did not come along when this process was forked
                self._start()
            self._waiting.append(work)
            if not self._busy:
                self._executor.submit(self._work)
                self._busy = True
        return await work.waiter.done  # cancelled or not, the operation is carried out

    def _work(self) -> None:
        while True:
            with _at_the_list:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _TOGETHER))]
                if not batch:
                    self._busy = False
                    return
            self._settle(batch)
            self._tidy_up()

    def _settle(self, batch: list[_Work | _Put]) -> None:
        try:
            outcomes = self._together(batch)
        except Exception as error:  # noqa: BLE001 (whoever waits is told; the thread goes on)
            # One of them may be too large, or damaged: each gets its own answer. A lock is the same for all.
            if len(batch) > 1 and not isinstance(error, _LockedError):
                for work in batch:
                    self._settle([work])
                return
            outcomes = [error] * len(batch)
        _wake([(work.waiter, outcome) for work, outcome in zip(batch, outcomes, strict=True)])

    def _together(self, batch: list[_Work | _Put]) -> list[Any]:
        """Do all of them, in one transaction if any of them writes."""
        steps = [list(works) for _, works in groupby(batch, type)]
        one_statement = all(isinstance(work, _Put) for work in batch) and len(_rows(batch)) <= _TOGETHER
        # which is a transaction by itself
        transaction = any(work.writes for work in batch) and not one_statement
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                with _in_sqlite:
                    cache = self._opened()
                    with cache.transact() if transaction else nullcontext():
                        return [outcome for step in steps for outcome in self._outcomes(step, cache)]
            except OSError as error:
                self._let_go()
                raise folder_error(self.folder, error) from error
            except (sqlite3.Error, Timeout) as error:
                cause = _cause(error)
                code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
                # Reading goes on when the disk is full or locked. Opening writes, so what is open and well stays open.
                if code not in _LATER | {sqlite3.SQLITE_FULL} or not self._is_well():
                    self._let_go()
                if code not in _LATER or time.monotonic() > give_up:
                    raise self._translate(code, cause) from error
            time.sleep(random.uniform(0.0005, 0.005))  # noqa: S311 (to part those who collide, not to keep a secret)

    def _outcomes(self, step: Sequence[_Work | _Put], cache: Any) -> list[Any]:
        """What comes of operations that are all of one kind."""
        self._write(_rows(step), cache)
        return [None if isinstance(work, _Put) else self._outcome(work, cache) for work in step]

    def _outcome(self, work: _Work, cache: Any) -> Any:
        try:
            return work.do(cache)
        except PolluxError as error:  # that record cannot be read; the others can
            return error

    def _read(self, cache: Any, keys: Sequence[str]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for start in range(0, len(keys), _TOGETHER):
            some = keys[start : start + _TOGETHER]
            rows = cache._sql(_SELECT.format(", ".join("?" * len(some))), some).fetchall()  # noqa: SLF001
            found |= {
                key: decode_record(key, _data(mode, filename, value), self.where) for key, mode, filename, value in rows
            }
        return found

    def _write(self, rows: Sequence[_NewRow], cache: Any, statement: str = _UPSERT) -> int:
        """Write the rows and return how many were written, in a statement for all instead of three for each.

        After each, this thread has to get Python's lock back from an event loop that is reading answers: with the
        slots of fifty calls held until theirs are written, that decides how fast a run is.
        """
        now, count = self._clock(), 0
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            values = [
                value
                for key, data, ttl_s in some
                for value in (key, now, None if ttl_s is None else now + ttl_s, now, data)
            ]
            count += cache._sql(statement.format(", ".join([_ROW] * len(some))), values).rowcount  # noqa: SLF001
            self._untidy += 1
        return count

    def _tidy_up(self) -> None:
        """Now and then, and when nobody waits for it. If it is not possible now, it will be another time."""
        if self._untidy > _TIDY_EVERY and self._cache is not None:
            self._untidy = 0
            if (cutoff := self._expiry.cutoff()) is not None:
                with suppress(sqlite3.Error), _in_sqlite:
                    self._cache._sql(_GONE, (cutoff,))  # noqa: SLF001

    def _opened(self) -> Any:
        file = self.folder / "cache.db"
        # Somebody may have moved or removed the folder: what is written to the old file would be lost.
        if self._cache is not None and _inode(file) != self._inode:
            self._let_go()
        if self._cache is None:
            prepare_folder(self.folder)
            self._cache = Cache(str(self.folder), timeout=BUSY_S, disk=PlainDisk, **SETTINGS)
            self._cache._sql(_BY_AGE)  # noqa: SLF001
            self._cache.reset("sqlite_synchronous", _DURABLE, update=False)
            self._inode = _inode(file)
        return self._cache

    def _is_well(self) -> bool:
        """Whether the connection is in no transaction. One whose commit failed may still be."""
        return self._cache is not None and not self._cache._con.in_transaction  # noqa: SLF001

    def _let_go(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            with suppress(sqlite3.Error), _in_sqlite:
                cache.close()

    def _translate(self, code: int, cause: BaseException) -> ConfigurationError:
        match code:
            case sqlite3.SQLITE_FULL:
                return disk_full_error(self.folder)
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return folder_error(self.folder, PermissionError(errno.EACCES, str(cause)))
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_ERROR:
                return ConfigurationError(
                    f"The state in {self.folder} is damaged ({cause}).",
                    hint="Restore that folder from a copy, or move it away to begin afresh without what it knew.",
                )
            case _ if code in _LATER:
                return _LockedError(
                    f"Another process has kept the state in {self.folder} locked for {_PATIENCE_S:.0f} seconds.",
                    hint="See whether one that uses it is stopped or stuck, and end it.",
                )
            case _:
                return ConfigurationError(
                    f"The disk failed under the state in {self.folder} ({cause}): this was not recorded.",
                    hint="See whether that disk is disk_full_error, over a quota or broken.",
                )


def _wake(outcomes: Sequence[tuple[_Waiter, Any]]) -> None:
    """Wake those who wait, each event loop once: a loop takes Python's lock with each wake-up, for milliseconds."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[_Waiter, Any]]] = defaultdict(list)
    for waiter, outcome in outcomes:
        by_loop[waiter.loop].append((waiter, outcome))
    for loop, of_loop in by_loop.items():
        with suppress(RuntimeError):  # the loop was closed meanwhile, and its coroutines with it
            loop.call_soon_threadsafe(_resolve_all, of_loop)


def _resolve_all(outcomes: Sequence[tuple[_Waiter, Any]]) -> None:
    for waiter, outcome in outcomes:
        waiter.resolve(outcome)


def _rows(works: Sequence[_Work | _Put]) -> list[_NewRow]:
    return [row for work in works if isinstance(work, _Put) for row in work.rows]


def _cause(error: BaseException) -> BaseException:
    """What SQLite said first: diskcache turns it into a Timeout, or fails to roll back what SQLite has rolled back."""
    while error.__context__ is not None and isinstance(error.__context__, sqlite3.Error):
        error = error.__context__
    return error


def _data(mode: int, filename: str | None, value: object) -> object:
    return value if mode == _RAW and filename is None else None


def _drop_all(rows: Sequence[Row], cache: Any) -> list[Row]:
    query = "DELETE FROM Cache WHERE key = ? AND raw = 1 AND store_time = ?"
    return [row for row in rows if cache._sql(query, (row.key, row.version)).rowcount]  # noqa: SLF001


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return 0
