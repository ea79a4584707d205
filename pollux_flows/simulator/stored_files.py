"""The files that were uploaded to the simulated providers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import override

from pollux_flows.simulator.spool import Spool
from pollux_flows.simulator.storage import Record, Store

State = Literal["processing", "active", "failed", "expired", "deleted"]

#: A simulator in a worker lives as long as the worker: only the last deleted and expired files are remembered.
MAX_GONE = 10_000


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
    #: The name that the client sent; for Gemini the display name.
    filename: str
    mime_type: str
    size: int
    #: The hash of the received bytes, in hex.
    sha256: str
    created_at: float
    purpose: str | None = None
    expires_at: float | None = None
    deleted_at: float | None = None
    #: The time at which its processing ends.
    ready_at: float = 0.0
    #: Whether its processing ends in failure.
    fails: bool = False
    spool: Spool | None = field(default=None, repr=False)
    #: Its place in the order of all files.
    arrival: int = field(default=0, repr=False)
    clock: Callable[[], float] = field(default=lambda: 0.0, repr=False)

    @classmethod
    def of(cls, spool: Spool, **fields: Any) -> StoredFile:
        """Return the file with the content of this spool."""
        return cls(size=spool.size, sha256=spool.sha256, spool=spool, **fields)

    @property
    def state(self) -> State:
        """Return the current state of the file, by the simulator's clock."""
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
        """Return whether the provider still finds the file: it is neither deleted nor expired."""
        return self.state not in ("deleted", "expired")

    def chunks(self) -> Iterator[bytes]:
        """Iterate over the stored bytes, which small files and the inputs and outputs of batches have."""
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
        """Return the public fields as JSON, for clients in another process."""
        names = (
            "provider", "id", "filename", "mime_type", "size", "sha256", "purpose",
            "created_at", "expires_at", "deleted_at", "state",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class FileStore(Store[StoredFile]):
    """The files of all providers of one simulator."""

    kind = "file"
    saved = (
        "provider", "id", "account", "filename", "mime_type", "size", "sha256", "created_at", "purpose", "expires_at",
        "deleted_at", "ready_at", "fails",
    )  # fmt: skip

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        #: Files that were deleted or expired, once their name is used again or there are many.
        self._gone: deque[StoredFile] = deque(maxlen=MAX_GONE)
        self._arrivals = 0
        self._sweep_at = MAX_GONE

    def add(self, file: StoredFile) -> None:
        key = (file.provider, file.id)
        with self._lock:
            self._load()
            before = self._items.get(key)
            if before is not None and before.is_there:
                raise NameTaken(file.id)
            content = _content(file)
            self._storage.add(key, {**self._record(file), "has_content": bool(content)}, content)
            self._remember(file)

    def find(self, provider: str, file_id: str, account: str) -> StoredFile | None:
        """Return an account's file, unless it has expired or was deleted."""
        file = self.find_any(provider, file_id, account)
        return file if file is not None and file.is_there else None

    def find_any(self, provider: str, file_id: str, account: str) -> StoredFile | None:
        """Return an account's file, even if it has expired or was deleted."""
        with self._lock:
            self._load()
            file = self._items.get((provider, file_id))
        return file if file is not None and file.account == account else None

    def list_owned(self, provider: str, account: str) -> list[StoredFile]:
        """Return the existing files of an account, oldest first."""
        return [file for file in self.all() if (file.provider, file.account) == (provider, account) and file.is_there]

    def delete(self, file: StoredFile) -> None:
        with self._lock:
            file.deleted_at = self._clock()
            self._storage.set((file.provider, file.id), deleted_at=file.deleted_at)
            file.release()

    def all(self) -> list[StoredFile]:
        """Return all files in order of arrival, with those deleted or expired."""
        with self._lock:
            self._load()
            return sorted([*self._gone, *self._items.values()], key=lambda file: file.arrival)

    @override
    def clear(self) -> None:
        super().clear()
        self._gone.clear()

    @override
    def _release(self, item: StoredFile) -> None:
        item.release()

    @override
    def _apply(self, record: Record) -> None:
        file = self._items.get((record["provider"], record["id"]))
        if file is None or file.created_at != record["created_at"]:
            file = StoredFile(**self._saved_fields(record))
            if record["has_content"]:
                file.spool = self._storage.content((file.provider, file.id), "content", file.size)
            self._remember(file)
        file.deleted_at = record["deleted_at"]

    def _remember(self, file: StoredFile) -> None:
        file.clock = self._clock
        key = (file.provider, file.id)
        if key in self._items:
            self._retire(self._items[key])
        self._items[key] = file
        self._arrivals = file.arrival = self._arrivals + 1
        if len(self._items) > self._sweep_at:
            for gone in [file for file in self._items.values() if not file.is_there]:
                self._retire(gone)
            self._sweep_at = MAX_GONE + 2 * len(self._items)

    def _retire(self, file: StoredFile) -> None:
        file.release()
        self._gone.append(self._items.pop((file.provider, file.id)))


def _content(file: StoredFile) -> dict[str, Spool]:
    """Return the content to share with other processes: only of files that are meant to be read again."""
    return {"content": file.spool} if file.spool is not None and file.spool.stores_all else {}
