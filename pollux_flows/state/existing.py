"""Existing: the store as it is, for a person to look at and to prune, without creating or setting up anything.

Opening a DiskStore needs a disk that can be written to. To look at a state, that is not needed; and to make room on a
full disk, only as much as one record takes: it is removed first, then more at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from shutil import disk_usage
from typing import Final

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.disk import FILE, DiskStore, connect, error_code
from pollux_flows.state.home import folder_error
from pollux_flows.state.store import STATE_URL, Row, Store, local_folder, open_store
from pollux_flows.state.units import format_size

# The codes of SQLite where it cannot create its working files.
_NO_PLACE: Final = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL}
# With so much free, one record can be removed; each gives back more than that takes.
_ENOUGH: Final = 200_000


def open_existing_store(*, writes: bool) -> Store | None:
    """Return the store of this process, or None if nothing was ever saved on this machine."""
    if os.environ.get(STATE_URL, "").strip():
        return open_store()
    folder = local_folder()
    try:
        (folder / FILE).stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise folder_error(folder, error) from error
    return ExistingStore(folder, writes=writes)


class NoRoomError(ConfigurationError):
    """The disk has not even room to remove a record."""


class ExistingStore(DiskStore):
    """The Store in an existing folder. Without `writes` it can only be read."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        super().__init__(folder)
        self.writes = writes

    async def delete_rows(self, rows: Sequence[Row]) -> list[Row]:
        deleted: list[Row] = []
        done, step = 0, max(1, len(rows))
        while done < len(rows):
            try:
                # Merging the log frees its space on the disk: room for the next step.
                await self._run(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
                deleted += await super().delete_rows(rows[done : done + step])
            except NoRoomError:
                if step == 1:
                    raise
                step = max(1, step // 8)
            else:
                done, step = done + step, step * 2
        return deleted

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            file = self.folder / FILE
            self._connection = connect(file, "mode=rw") if self.writes else _connect_read_only(file)
        return self._connection

    def _translate(self, code: int, error: sqlite3.Error) -> ConfigurationError:
        # Where there is no room for its working files, SQLite reports a broken disk.
        if code == sqlite3.SQLITE_FULL or (code in _NO_PLACE and disk_usage(self.folder).free < _ENOUGH):
            enough = format_size(_ENOUGH + _log_size(self.folder))
            return NoRoomError(
                f"The disk of {self.folder} has not even room to remove a record ({error}).",
                hint=f"Remove something else from it first, so that {enough} are free; then prune again.",
            )
        if code == sqlite3.SQLITE_CANTOPEN and not self.writes:
            return ConfigurationError(
                f"The state in {self.folder} cannot be read there ({error}): its latest records are in a log that must"
                " be merged into the file, but nothing can be written.",
                hint="Copy the folder to a place where you may write, and set POLLUX_HOME to its parent folder.",
            )
        return super()._translate(code, error)


def _connect_read_only(file: Path) -> sqlite3.Connection:
    connection = connect(file, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM Cache LIMIT 1")
    except sqlite3.Error as error:
        connection.close()
        if error_code(error) not in _NO_PLACE or _log_size(file.parent):
            raise
        return connect(file, "mode=ro&immutable=1")  # no process has it open, and no file can be created beside it
    return connection


def _log_size(folder: Path) -> int:
    """Return how many bytes of the latest writes are not merged into the file yet."""
    try:
        return (folder / f"{FILE}-wal").stat().st_size
    except FileNotFoundError:
        return 0
