"""The files that were uploaded to the simulated providers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pollux_flows.simulator.spool import Spool
from pollux_flows.simulator.storage import Record, Storage

State = Literal["processing", "active", "failed", "expired", "deleted"]

#: A simulator in a worker lives as long as the worker: only the last deleted and expired files are remembered.
KEEP_GONE = 10_000
#: The saved fields of a file; its content is saved only where a batch reads or writes it.
_SAVED: Final = (
    "provider", "id", "account", "filename", "mime_type", "size", "sha256", "created_at", "purpose", "expires_at",
    "deleted_at", "ready_at", "fails",
)  # fmt: skip


class NameTaken(Exception):  # noqa: N818 (turned into a provider's own error)
    """A file with that id exists already."""


@dataclass(eq=False)
class StoredFile:
    """An uploaded file or the output of a batch, also after it has expired or was deleted."""

    provider: str
    #: The id in the provider's format: `file-…`, `file_…`, `files/…`. Part of it depends on the content, so that an
    #: id from before a reset is never that of another file.
    id: str
    #: The account that owns it: a hash of the API key that uploaded it.
    account: str = field(repr=False)
    #: As the client named it; for Gemini the display name.
    filename: str
    mime_type: str
    size: int
    #: The hash of the received bytes, in hex.
    sha256: str
    created_at: float
    purpose: str | None = None
    expires_at: float | None = None
    deleted_at: float | None = None
    #: When it has been processed.
    ready_at: float = 0.0
    #: Whether its processing ends in failure.
    fails: bool = False
    spool: Spool | None = field(default=None, repr=False)
    clock: Callable[[], float] = field(default=lambda: 0.0, repr=False)

    @property
    def state(self) -> State:
        """Return its current state, by the simulator's clock."""
        now = self.clock()
        if self.deleted_at is not None and self.deleted_at <= now:
            return "deleted"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        if now < self.ready_at:
            return "processing"
        return "failed" if self.fails else "active"

    @property
    def is_there(self) -> bool:
        """Return whether it exists for its provider: neither deleted nor expired."""
        return self.state not in ("deleted", "expired")

    def chunks(self) -> Iterator[bytes]:
        """Iterate over its stored bytes: those of a small file, and of one that is meant to be read again."""
        if self.spool is None:
            raise LookupError("this file is gone, and its content with it")
        return self.spool.chunks()

    def content(self) -> bytes:
        return b"".join(self.chunks())

    def release(self) -> None:
        if self.spool is not None:
            self.spool.close()
            self.spool = None

    def as_json(self) -> dict[str, Any]:
        """Return its public fields as JSON, for clients in another process."""
        names = (
            "provider", "id", "filename", "mime_type", "size", "sha256", "purpose",
            "created_at", "expires_at", "deleted_at", "state",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class FileStore:
    """The files of all providers of one simulator."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: By provider and id. The name of a deleted or expired file may be reused.
        self._current: dict[tuple[str, str], StoredFile] = {}
        self._gone: deque[StoredFile] = deque(maxlen=KEEP_GONE)
        self._arrivals = 0
        self._order: dict[StoredFile, int] = {}
        self._sweep_at = KEEP_GONE
        #: The storage shared with other processes.
        self._storage: Storage | None = None

    def share(self, storage: Storage) -> None:
        """Share the files with other processes from now on."""
        with self._lock:
            self._storage = storage

    def add(self, file: StoredFile) -> None:
        key = (file.provider, file.id)
        with self._lock:
            self._load()
            before = self._current.get(key)
            if before is not None and before.is_there:
                raise NameTaken(file.id)
            if self._storage is not None:
                self._storage.add(key, _record(file), _content(file))
            self._remember(file)

    def find(self, provider: str, file_id: str, account: str) -> StoredFile | None:
        """Return an account's file, unless it has expired or was deleted."""
        file = self.remembered(provider, file_id, account)
        return file if file is not None and file.is_there else None

    def remembered(self, provider: str, file_id: str, account: str) -> StoredFile | None:
        """Return an account's file, even if it has expired or was deleted."""
        with self._lock:
            self._load()
            file = self._current.get((provider, file_id))
        return file if file is not None and file.account == account else None

    def owned(self, provider: str, account: str) -> list[StoredFile]:
        """Return the existing files of an account, oldest first."""
        return [file for file in self.all() if (file.provider, file.account) == (provider, account) and file.is_there]

    def delete(self, file: StoredFile) -> None:
        with self._lock:
            file.deleted_at = self._clock()
            if self._storage is not None:
                self._storage.set((file.provider, file.id), deleted_at=file.deleted_at)
            file.release()

    def all(self) -> list[StoredFile]:
        """Return all files in order of arrival, with those deleted or expired."""
        with self._lock:
            self._load()
            return sorted([*self._gone, *self._current.values()], key=self._order.__getitem__)

    def clear(self) -> None:
        with self._lock:
            for file in self._current.values():
                file.release()
            self._current.clear()
            self._gone.clear()
            self._order.clear()
            if self._storage is not None:
                self._storage.clear()

    def _load(self) -> None:
        """Load the changes of other processes."""
        if self._storage is None:
            return
        for record in self._storage.changed():
            file = self._current.get((record["provider"], record["id"]))
            if file is None or file.created_at != record["created_at"]:
                file = StoredFile(**{name: record[name] for name in _SAVED})
                if record["has_content"]:
                    file.spool = self._storage.content((file.provider, file.id), "content", file.size)
                self._remember(file)
            file.deleted_at = record["deleted_at"]

    def _remember(self, file: StoredFile) -> None:
        file.clock = self._clock
        key = (file.provider, file.id)
        if key in self._current:
            self._retire(self._current[key])
        self._current[key] = file
        self._arrivals += 1
        self._order[file] = self._arrivals
        if len(self._current) > self._sweep_at:
            self._sweep()

    def _retire(self, file: StoredFile) -> None:
        file.release()
        del self._current[file.provider, file.id]
        if len(self._gone) == KEEP_GONE:
            del self._order[self._gone[0]]
        self._gone.append(file)

    def _sweep(self) -> None:
        for file in [file for file in self._current.values() if not file.is_there]:
            self._retire(file)
        self._sweep_at = KEEP_GONE + 2 * len(self._current)


def _record(file: StoredFile) -> Record:
    return {**{name: getattr(file, name) for name in _SAVED}, "has_content": bool(_content(file))}


def _content(file: StoredFile) -> dict[str, Spool]:
    """Return the content to share with other processes: only of files that are meant to be read again."""
    return {"content": file.spool} if file.spool is not None and file.spool.keeps_all else {}
