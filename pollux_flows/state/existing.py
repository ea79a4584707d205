"""Found: the store as it is found, for a person to look at and to prune. Nothing is made, or set up, on the way.

Opening a DiskStore writes, so it wants a disk with room that may be written to. To look at a state, neither is needed;
and to make room on a full disk, as little as one record takes: it is removed first, then more at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Any, Final

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.disk import BUSY_S, DiskStore
from pollux_flows.state.home import folder_error
from pollux_flows.state.store import STATE_URL, Row, Store, local_folder, open_store
from pollux_flows.state.units import format_size

# What SQLite says where it cannot make the files it works with.
_NO_PLACE: Final = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}
# With so much, one record can be removed; each gives back more than that takes.
_ENOUGH: Final = 200_000


def open_existing_store(*, writes: bool) -> Store | None:
    """The store of this process, or None where nothing was ever kept."""
    if os.environ.get(STATE_URL, "").strip():
        return open_store()
    folder = local_folder()
    try:
        (folder / "cache.db").stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise folder_error(folder, error) from error
    return ExistingStore(folder, writes=writes)


class NoRoomError(ConfigurationError):
    """The disk has not even room to remove something."""


class ExistingStore(DiskStore):
    """The Store of a folder that is there. Without `writes` it can only be read."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        super().__init__(folder)
        self.writes = writes

    async def delete_rows(self, rows: Sequence[Row]) -> list[Row]:
        gone: list[Row] = []
        done, step = 0, max(1, len(rows))
        while done < len(rows):
            try:
                # What was written before, and what has gone, is given back to the disk: room for the next step.
                await self._ask(lambda cache: cache._sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())  # noqa: SLF001
                gone += await super().delete_rows(rows[done : done + step])
            except NoRoomError:
                if step == 1:
                    raise
                step = max(1, step // 8)
            else:
                done, step = done + step, step * 2
        return gone

    def _opened(self) -> Any:
        if self._cache is None:
            self._cache = _Found(_connected(self.folder / "cache.db", writes=self.writes))
        return self._cache

    def _translate(self, code: int, cause: BaseException) -> ConfigurationError:
        # Where there is no room for the files that SQLite works with, it speaks of a broken disk.
        if code == sqlite3.SQLITE_FULL or (code in _NO_PLACE and disk_usage(self.folder).free < _ENOUGH):
            enough = format_size(_ENOUGH + _unjoined(self.folder))
            return NoRoomError(
                f"The disk of {self.folder} has not even room to remove something ({cause}).",
                hint=f"Remove something else from it first, so that {enough} are free; then prune again.",
            )
        if code == sqlite3.SQLITE_CANTOPEN and not self.writes:
            return ConfigurationError(
                f"The state in {self.folder} cannot be looked at there ({cause}): what was written last is still to be"
                " joined with the rest, and nothing can be written.",
                hint="Copy the folder to where you may write, and set POLLUX_HOME to what it is in.",
            )
        return super()._translate(code, cause)


class _Found:
    """As much of a diskcache.Cache as a store asks of it to be listed, scanned and pruned."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._con = connection
        self._sql = connection.execute

    @contextmanager
    def transact(self) -> Iterator[None]:
        self._sql("BEGIN IMMEDIATE")
        try:
            yield
            self._sql("COMMIT")
        except BaseException:
            if self._con.in_transaction:
                self._sql("ROLLBACK")
            raise

    def close(self) -> None:
        self._con.close()


def _connected(file: Path, *, writes: bool) -> sqlite3.Connection:
    if writes:
        return _connection(file, "mode=rw")
    connection = _connection(file, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM Settings LIMIT 1")
    except sqlite3.Error as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_PLACE or _unjoined(file.parent):
            raise
        return _connection(file, "mode=ro&immutable=1")  # nobody has it open, and nothing can be made beside it
    return connection


def _connection(file: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.as_uri()}?{how}", uri=True, timeout=BUSY_S, isolation_level=None)


def _unjoined(folder: Path) -> int:
    """How many bytes of what was written are not in the file itself yet."""
    try:
        return (folder / "cache.db-wal").stat().st_size
    except FileNotFoundError:
        return 0
