"""Storage of files, batches and caches in a folder that several processes share.

One SQLite file has a record of each; their content lies beside it. A null field of a record is set once and never
changed again (`deleted_at`, `results`), so it does not matter which process sets it first; a cache whose lifetime is
extended is replaced. Each change has a number: a process asks for the changes since its last one.
"""

from __future__ import annotations

import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar
from urllib.parse import quote

import orjson
from typing_extensions import override

from pollux_flows.simulator.spool import Spool

Record = dict[str, Any]
Key = tuple[str, str]
"""The provider and the id."""

#: Beyond this, the oldest are deleted for all processes, and their records are removed later.
MAX_ITEMS: Final = 2_000
MAX_BYTES: Final = 500_000_000
_WAIT_S: Final = 30.0
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS items (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, provider TEXT, id TEXT, change INTEGER,
    gone INTEGER DEFAULT 0, bytes INTEGER, record BLOB, UNIQUE (kind, provider, id)
);
CREATE INDEX IF NOT EXISTS changes ON items (kind, change);
"""
_NEXT: Final = "(SELECT COALESCE(MAX(change), 0) + 1 FROM items)"


class SavedSpool(Spool):
    """Content on disk. The file is opened for each read, as there may be thousands."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__()
        self._path, self.size = path, size

    @override
    def read(self, start: int, size: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                return file.read(size)
        except FileNotFoundError:
            raise LookupError("this content is gone: another process has deleted it, or it was too old") from None


class Storage:
    """The items of one kind in a folder, which is created with the first item; without a folder, none are saved."""

    def __init__(self, folder: Path | None, kind: str, clock: Callable[[], float]) -> None:
        self._is_shared = folder is not None
        self._folder, self._kind, self._clock = folder or Path(), kind, clock
        self._database = self._folder / "world.db"
        self._last_change = 0

    def add(self, key: Key, record: Record, contents: Mapping[str, Spool]) -> None:
        """Save an item, unless there is one with that key already."""
        if not self._is_shared:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        size = sum(spool.size for spool in contents.values())
        with self._transaction() as database:
            added = database.execute(
                f"INSERT OR IGNORE INTO items (kind, provider, id, bytes, record, change) VALUES (?, ?, ?, ?, ?, {_NEXT})",  # noqa: S608, E501
                (self._kind, *key, size, orjson.dumps(record)),
            ).rowcount
            if added:
                self._save(key, contents)
                self._tidy(database)

    def set(self, key: Key, contents: Mapping[str, Spool] | None = None, **fields: Any) -> Record | None:
        """Set those fields that are still null, and return the record; None if there is no such item."""
        if not self._exists():
            return None
        with self._transaction() as database:
            record = self._read(database, key)
            if record is None:
                return None
            changed = {name: value for name, value in fields.items() if record.get(name) is None}
            if changed:
                self._save(key, contents or {})
                self._write(database, key, {**record, **changed})
            return {**record, **changed}

    def replace(self, key: Key, record: Record) -> None:
        """Replace the record of an item, unless it has been deleted."""
        if not self._exists():
            return
        with self._transaction() as database:
            before = self._read(database, key)
            if before is not None and before.get("deleted_at") is None:
                self._write(database, key, record)

    def changed(self) -> Iterator[Record]:
        """Iterate over the records that are new or changed since the last call."""
        if not self._exists():
            return
        with closing(self._connect()) as database:
            rows = database.execute(
                "SELECT change, record FROM items WHERE kind = ? AND change > ? ORDER BY arrival",
                (self._kind, self._last_change),
            ).fetchall()
        self._last_change = max([self._last_change, *(change for change, _ in rows)])
        for _, record in rows:
            yield orjson.loads(record)

    def content(self, key: Key, name: str, size: int) -> Spool:
        return SavedSpool(self._path(key, name), size)

    def clear(self) -> None:
        """Remove all items of this kind."""
        if not self._exists():
            return
        with self._transaction() as database:
            for provider, item in database.execute(
                "SELECT provider, id FROM items WHERE kind = ?", (self._kind,)
            ).fetchall():
                self._remove_content((provider, item))
            database.execute("DELETE FROM items WHERE kind = ?", (self._kind,))

    def _exists(self) -> bool:
        return self._is_shared and self._database.exists()

    def _read(self, database: sqlite3.Connection, key: Key) -> Record | None:
        found = database.execute(
            "SELECT record FROM items WHERE kind = ? AND provider = ? AND id = ?", (self._kind, *key)
        ).fetchone()
        return None if found is None else orjson.loads(found[0])

    def _write(self, database: sqlite3.Connection, key: Key, record: Record) -> None:
        gone = record.get("deleted_at") is not None
        if gone:
            self._remove_content(key)
        database.execute(
            f"UPDATE items SET record = ?, gone = ?, change = {_NEXT} WHERE kind = ? AND provider = ? AND id = ?",  # noqa: S608
            (orjson.dumps(record), gone, self._kind, *key),
        )

    def _tidy(self, database: sqlite3.Connection) -> None:
        rows = database.execute(
            "SELECT arrival, provider, id, gone, bytes FROM items WHERE kind = ? ORDER BY arrival DESC", (self._kind,)
        ).fetchall()
        size = 0
        for count, (arrival, provider, item, gone, item_size) in enumerate(rows, start=1):
            size += 0 if gone else item_size
            if count > 2 * MAX_ITEMS:
                database.execute("DELETE FROM items WHERE arrival = ?", (arrival,))
            elif count > 1 and not gone and (count > MAX_ITEMS or size > MAX_BYTES):  # the newest stays, at any size
                (record,) = database.execute("SELECT record FROM items WHERE arrival = ?", (arrival,)).fetchone()
                self._write(database, (provider, item), {**orjson.loads(record), "deleted_at": self._clock()})

    def _save(self, key: Key, contents: Mapping[str, Spool]) -> None:
        for name, spool in contents.items():
            with self._path(key, name).open("wb") as file:
                file.writelines(spool.chunks())

    def _remove_content(self, key: Key) -> None:
        for path in self._folder.glob(f"{self._path(key, '').name}*"):
            path.unlink(missing_ok=True)

    def _path(self, key: Key, name: str) -> Path:
        return self._folder / f"{self._kind}-{quote('-'.join(key), safe='')}.{name}"

    def _connect(self) -> sqlite3.Connection:
        # One for each operation, so that threads, event loops and forked processes do not share one.
        database = sqlite3.connect(self._database, timeout=_WAIT_S, isolation_level=None)
        database.execute("PRAGMA synchronous = OFF")  # a simulation may lose its last writes in a power cut
        return database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connect()) as database:
            database.execute("BEGIN IMMEDIATE")
            for statement in _TABLE.split(";"):
                database.execute(statement)
            yield database
            database.execute("COMMIT")


Item = TypeVar("Item")


class Store(ABC, Generic[Item]):
    """The items of one kind of one simulator, which processes may share."""

    #: The name of the kind in the storage.
    kind: ClassVar[str]
    #: The fields of an item that are saved under their own names.
    saved: ClassVar[tuple[str, ...]]

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: In order of arrival.
        self._items: dict[Key, Item] = {}
        self._storage = Storage(None, self.kind, clock)

    def share(self, folder: Path) -> None:
        """Share the items with all processes that use this folder, from now on."""
        with self._lock:
            self._storage = Storage(folder, self.kind, self._clock)

    def clear(self) -> None:
        """Remove all items, as a provider may."""
        with self._lock:
            for item in self._items.values():
                self._release(item)
            self._items.clear()
            self._storage.clear()

    def _release(self, item: Item) -> None:
        """Close the content of an item."""

    def _record(self, item: Item) -> Record:
        return {name: getattr(item, name) for name in self.saved}

    def _saved_fields(self, record: Record) -> dict[str, Any]:
        return {name: record[name] for name in self.saved}

    def _load(self) -> None:
        """Load the changes of other processes."""
        for record in self._storage.changed():
            self._apply(record)

    @abstractmethod
    def _apply(self, record: Record) -> None:
        """Add or change the item of a record that another process may have written."""
