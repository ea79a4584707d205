"""Disk: stores records in one SQLite file on this machine, shared by all processes.

A write is on the disk when it returns (synchronous=FULL), and survives a kill and a power cut. All writes that arrive
while another is committed share the next commit.

The table has the layout of diskcache, which earlier versions of this package used. So their files need no migration,
and processes with both versions can share a file.
"""

from __future__ import annotations

import errno
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.state import clock_check
from pollux_flows.state.batching import Batcher, unforkable
from pollux_flows.state.clock_check import Expiry
from pollux_flows.state.home import disk_full_error, folder_error, prepare_folder
from pollux_flows.state.leases import Clock
from pollux_flows.state.store import Json, Row, Store, decode_record, encode_record, try_decode_record

T = TypeVar("T")

FILE: Final = "cache.db"
_PRAGMAS: Final = (
    "auto_vacuum = full",  # pruning makes the file smaller
    "journal_mode = wal",
    "synchronous = full",
    "mmap_size = 0",  # so that a damaged file causes an error, not a SIGBUS
    "cache_size = 2048",  # pages: 8 MiB at most
)
_SCHEMA: Final = {
    "Cache": "CREATE TABLE IF NOT EXISTS Cache (rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL,"
    " expire_time REAL, access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB, size INTEGER DEFAULT 0,"
    " mode INTEGER DEFAULT 0, filename TEXT, value BLOB)",
    "Cache_key_raw": "CREATE UNIQUE INDEX IF NOT EXISTS Cache_key_raw ON Cache (key, raw)",
    "Cache_expire_time": "CREATE INDEX IF NOT EXISTS Cache_expire_time ON Cache (expire_time)",
    # Used to find the oldest records when the state grows too large.
    "Cache_store_time": "CREATE INDEX IF NOT EXISTS Cache_store_time ON Cache (store_time)",
}
# SQLite itself waits for a lock in steps of up to 100 ms. The steps below are shorter, and random.
_BUSY_S: Final = 0.01
_PATIENCE_S: Final = 60.0
_BATCH: Final = 250  # operations in a transaction, so that other processes get their turn
# Another process has the lock, or is creating the file.
_LOCKED: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_SELECT: Final = "SELECT key, mode, filename, value FROM Cache WHERE key IN ({}) AND raw = 1"
_VALUES: Final = "(?, 1, ?, ?, 1, ?)"
_INSERT: Final = "INSERT INTO Cache (key, raw, store_time, expire_time, mode, value) VALUES {}"
_ADD: Final = f"{_INSERT} ON CONFLICT (key, raw) DO NOTHING"
_UPSERT: Final = (
    f"{_INSERT} ON CONFLICT (key, raw) DO UPDATE SET store_time = excluded.store_time,"
    " expire_time = excluded.expire_time, mode = 1, filename = NULL, value = excluded.value"
)
_DELETE: Final = "DELETE FROM Cache WHERE key = ? AND raw = 1"
_LIST_KEYS: Final = "SELECT key FROM Cache WHERE key > ? AND key >= ? AND key < ? ORDER BY key LIMIT ?"
_LIST_ROWS: Final = (
    "SELECT rowid, store_time, expire_time, key, mode, filename, value FROM Cache"
    " WHERE raw = 1 AND typeof(key) = 'text' AND (store_time, rowid) > (?, ?) ORDER BY store_time, rowid LIMIT ?"
)
_DELETE_EXPIRED: Final = "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache WHERE expire_time < ? LIMIT 250)"
_CLEAN_EVERY: Final = 25  # writes
_RAW: Final = 1  # the mode of a value that is stored in its row, as bytes


class _NewRow(NamedTuple):
    key: str
    data: bytes
    ttl_s: float | None


@dataclass
class _Put:
    """Rows to write, which share a statement with those of other operations."""

    rows: list[_NewRow]
    writes = True


@dataclass
class _Call:
    """A function to call with the connection."""

    function: Callable[[sqlite3.Connection], Any]
    writes: bool


class _LockedError(ConfigurationError):
    """Another process holds the lock of the file."""


class DiskStore(Store):
    """The Store in a folder, which is created at the first operation."""

    def __init__(self, folder: Path, *, clock: Clock = time.time, monotonic: Clock = time.monotonic) -> None:
        self.folder = folder
        self.where = str(folder)
        self._clock = clock
        self._expiry = Expiry(folder / clock_check.FILE, clock=clock, monotonic=monotonic)
        self._batcher: Batcher[_Put | _Call] = Batcher(
            self._execute_batch, limit=_BATCH, after_batch=self._remove_expired, after_fork=self._disconnect
        )
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._writes_until_clean = 0  # at first, so that a process with few writes cleans up, too

    def __del__(self) -> None:
        self._disconnect()  # explicitly, under `unforkable`; a close by the garbage collector could run during a fork

    async def get_many(self, keys: Iterable[str]) -> dict[str, Json]:
        wanted = list(keys)
        return await self._run(lambda connection: self._select(connection, wanted))

    async def put_many(self, records: Mapping[str, Json], ttl_s: float | None = None) -> None:
        rows = [_NewRow(key, encode_record(key, record), ttl_s) for key, record in records.items()]
        await self._batcher.run(_Put(rows))

    async def add(self, key: str, record: Json, ttl_s: float | None = None) -> bool:
        row = _NewRow(key, encode_record(key, record), ttl_s)
        return await self._run(lambda connection: self._write(connection, [row], _ADD) == 1, writes=True)

    async def swap(self, key: str, old: Json | None, new: Json | None, ttl_s: float | None = None) -> bool:
        expected = None if old is None else encode_record(key, old)
        data = None if new is None else encode_record(key, new)

        def swap(connection: sqlite3.Connection) -> bool:
            # The record is decoded for the comparison, so a damaged record raises its error here, too.
            found = self._select(connection, [key]).get(key)
            if (None if found is None else encode_record(key, found)) != expected:
                return False
            if data is not None:
                self._write(connection, [_NewRow(key, data, ttl_s)])
            else:
                connection.execute(_DELETE, (key,))
            return True

        return await self._run(swap, writes=True)

    async def swap_many(self, changes: Mapping[str, tuple[Json | None, Json]], ttl_s: float | None = None) -> set[str]:
        def swap(part: Sequence[str], connection: sqlite3.Connection) -> list[str]:
            found = self._select(connection, part)
            equal = [key for key in part if found.get(key) == changes[key][0]]
            self._write(connection, [_NewRow(key, encode_record(key, changes[key][1]), ttl_s) for key in equal])
            return equal

        return {key for part in _split(list(changes)) for key in await self._run(partial(swap, part), writes=True)}

    async def delete(self, *keys: str) -> None:
        await self._run(lambda connection: connection.executemany(_DELETE, [(key,) for key in keys]), writes=True)

    async def list_keys(self, prefix: str) -> AsyncIterator[str]:
        async for keys in self._list_pages(prefix):
            for key in keys:
                yield key

    async def scan(self, prefix: str) -> AsyncIterator[tuple[str, Json]]:
        async for keys in self._list_pages(prefix):
            found = await self.get_many(keys)
            for key in keys:
                if key in found:
                    yield key, found[key]

    async def _list_pages(self, prefix: str) -> AsyncIterator[list[str]]:
        last, end = "", prefix + "\U0010ffff"

        def list_page(connection: sqlite3.Connection) -> list[str]:
            return [key for (key,) in connection.execute(_LIST_KEYS, (last, prefix, end, _BATCH))]

        while keys := await self._run(list_page):
            last = keys[-1]
            yield keys

    async def list_rows(self) -> AsyncIterator[Row]:
        last = (0.0, 0)

        def list_page(connection: sqlite3.Connection) -> list[Any]:
            return connection.execute(_LIST_ROWS, (*last, _BATCH)).fetchall()

        while rows := await self._run(list_page):
            for number, written_at, expires_at, key, mode, filename, value in rows:
                last = (written_at, number)
                record = try_decode_record(_inline_value(mode, filename, value))
                size = len(key.encode()) + (len(value) if isinstance(value, bytes) else 0)
                yield Row(key, record, size, written_at, expires_at is not None and expires_at <= self._clock())

    async def delete_rows(self, rows: Sequence[Row]) -> list[Row]:
        query = "DELETE FROM Cache WHERE key = ? AND raw = 1 AND store_time = ?"

        def delete(part: Sequence[Row], connection: sqlite3.Connection) -> list[Row]:
            return [row for row in part if connection.execute(query, (row.key, row.version)).rowcount]

        return [row for part in _split(rows) for row in await self._run(partial(delete, part), writes=True)]

    async def size(self) -> int:
        def size(connection: sqlite3.Connection) -> int:
            names = ("page_count", "freelist_count", "page_size")
            pages, unused, page_size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
            return int((pages - unused) * page_size)

        return await self._run(size)

    def close(self) -> None:
        """Close the file once all operations are done. The next operation opens it again."""
        self._batcher.close(self._disconnect)

    async def _run(self, function: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T:
        outcome: T = await self._batcher.run(_Call(function, writes))
        return outcome

    # --- On the batcher's thread ------------------------------------------------------------------------------

    def _execute_batch(self, batch: list[_Put | _Call]) -> list[Any]:
        try:
            return self._execute(batch)
        except Exception as error:  # noqa: BLE001 (which the callers get; the thread goes on)
            # One record may be too large, or damaged, so each operation is repeated alone. A lock affects all of them.
            if len(batch) > 1 and not isinstance(error, _LockedError):
                return [outcome for work in batch for outcome in self._execute_batch([work])]
            return [error] * len(batch)

    def _execute(self, batch: list[_Put | _Call]) -> list[Any]:
        """Execute a batch of operations, in one transaction if any of them writes."""
        steps = [list(works) for _, works in groupby(batch, type)]
        # One statement is a transaction by itself.
        is_one_statement = all(isinstance(work, _Put) for work in batch) and len(_rows_of(batch)) <= _BATCH
        in_transaction = any(work.writes for work in batch) and not is_one_statement
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                with unforkable:
                    connection = self._connect()
                    with transaction(connection) if in_transaction else nullcontext():
                        return [outcome for step in steps for outcome in self._execute_step(step, connection)]
            except OSError as error:
                self._disconnect()
                raise folder_error(self.folder, error) from error
            except sqlite3.Error as error:
                code = error_code(error)
                # A working connection stays open, so that reads go on when the disk is full or locked.
                if code not in _LOCKED | {sqlite3.SQLITE_FULL} or not self._is_usable():
                    self._disconnect()
                if code not in _LOCKED or time.monotonic() > deadline:
                    raise self._translate(code, error) from error
            time.sleep(random.uniform(0.0005, 0.005))  # noqa: S311 (jitter, no secret)

    def _execute_step(self, step: Sequence[_Put | _Call], connection: sqlite3.Connection) -> list[Any]:
        """Execute successive operations of one type."""
        self._write(connection, _rows_of(step))
        return [self._call(work, connection) if isinstance(work, _Call) else None for work in step]

    def _call(self, work: _Call, connection: sqlite3.Connection) -> Any:
        try:
            return work.function(connection)
        except PolluxError as error:  # only this record is unreadable
            return error

    def _select(self, connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for part in _split(keys):
            for key, *columns in connection.execute(_SELECT.format(", ".join("?" * len(part))), part).fetchall():
                found[key] = decode_record(key, _inline_value(*columns), self.where)
        return found

    def _write(self, connection: sqlite3.Connection, rows: Sequence[_NewRow], statement: str = _UPSERT) -> int:
        """Write the rows in one statement, and return how many were written.

        After each statement, this thread waits for the GIL, which an event loop that reads answers holds. While fifty
        calls wait for their writes, the number of statements decides how fast a run is.
        """
        now, count = self._clock(), 0
        for part in _split(rows):
            values = [
                value for key, data, ttl_s in part for value in (key, now, None if ttl_s is None else now + ttl_s, data)
            ]
            count += connection.execute(statement.format(", ".join([_VALUES] * len(part))), values).rowcount
            self._writes_until_clean -= 1
        return count

    def _remove_expired(self) -> None:
        """Remove some expired records every few writes. Best effort: a failure is ignored, and tried again later."""
        if self._writes_until_clean < 0 and self._connection is not None:
            self._writes_until_clean = _CLEAN_EVERY
            if (cutoff := self._expiry.cutoff()) is not None:
                with suppress(sqlite3.Error), unforkable:
                    self._connection.execute(_DELETE_EXPIRED, (cutoff,))

    def _connect(self) -> sqlite3.Connection:
        file = self.folder / FILE
        # If the folder was moved or removed, writes to the old file would be lost.
        if self._connection is not None and _inode(file) != self._inode:
            self._disconnect()
        if self._connection is None:
            prepare_folder(self.folder)
            self._connection = connect(file, "mode=rwc")
            _set_up(self._connection)
            self._inode = _inode(file)
        return self._connection

    def _is_usable(self) -> bool:
        """Return whether a connection is open without a transaction; a failed commit may leave one behind."""
        return self._connection is not None and not self._connection.in_transaction

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error), unforkable:
                connection.close()

    def _translate(self, code: int, error: sqlite3.Error) -> ConfigurationError:
        match code:
            case sqlite3.SQLITE_FULL:
                return disk_full_error(self.folder)
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return folder_error(self.folder, PermissionError(errno.EACCES, str(error)))
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_ERROR:
                return ConfigurationError(
                    f"The state in {self.folder} is damaged ({error}).",
                    hint="Restore that folder from a backup, or move it away to start without its records.",
                )
            case _ if code in _LOCKED:
                return _LockedError(
                    f"Another process has locked the state in {self.folder} for {_PATIENCE_S:.0f} seconds.",
                    hint="Check whether a process that uses it is stopped or hangs, and end that process.",
                )
            case _:
                return ConfigurationError(
                    f"The disk with the state in {self.folder} failed ({error}). The record was not saved.",
                    hint="Check whether that disk is full, over a quota or broken.",
                )


def connect(file: Path, options: str) -> sqlite3.Connection:
    """Open an SQLite file with these URI options, without implicit transactions."""
    uri = f"{file.as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit the writes of the block together, or none of them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def error_code(error: BaseException) -> int:
    """Return the primary result code of an SQLite error; 0 for any other error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _set_up(connection: sqlite3.Connection) -> None:
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if _SCHEMA.keys() - found:  # no write unless it is needed, so that a full disk can still be read
        with transaction(connection):
            for statement in _SCHEMA.values():
                connection.execute(statement)


def _split(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]


def _rows_of(works: Sequence[_Put | _Call]) -> list[_NewRow]:
    return [row for work in works if isinstance(work, _Put) for row in work.rows]


def _inline_value(mode: int, filename: str | None, value: object) -> object:
    """Return the data of a row; None for values in other files and for pickles, which are never read."""
    return value if mode == _RAW and filename is None else None


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return 0
