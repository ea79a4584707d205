"""Store: defines the protocol for persistent JSON records by key, and opens the store of this process."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic_core import from_json

from pollux_flows.errors import ConfigurationError, InternalError
from pollux_flows.plain import canonical
from pollux_flows.state.home import home
from pollux_flows.state.kinds import is_removable, kind_of

Json = dict[str, Any]

STATE_URL: Final = "POLLUX_STATE_URL"


@dataclass(frozen=True)
class Row:
    """A record in a listing. It may be unreadable, or expired by the clock of this process."""

    key: str
    record: Json | None
    """None if it cannot be read."""
    size: int
    """The number of bytes, including the key."""
    version: object
    """A value that changes when the record is written with other content."""
    expired: bool = False


class Store(Protocol):
    """JSON records by key, for many processes, threads and event loops at once.

    Each operation on one record is atomic, and visible to all processes when it returns. An operation that has begun
    is completed, even if its caller is cancelled while it waits. A record that cannot be read raises a
    ConfigurationError; it is never treated as absent. A record with `ttl_s` is stored for at least that long and then
    removed, as `clock_check` explains; every write sets or clears `ttl_s`.
    """

    where: str
    """The location, for people, without a password."""

    async def get(self, key: str) -> Json | None:
        """Return the record, or None if there is none."""
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Json]:
        """Return the records that exist, by key."""
        ...

    async def put(self, key: str, record: Json, ttl_s: float | None = None) -> None:
        """Write the record, replacing an earlier one."""
        await self.put_many({key: record}, ttl_s)

    async def put_many(self, records: Mapping[str, Json], ttl_s: float | None = None) -> None:
        """Write many records. Each is written completely or not at all; a crash may leave some unwritten."""
        ...

    async def add(self, key: str, record: Json, ttl_s: float | None = None) -> bool:
        """Write the record if there is none, and return whether it was written. Of concurrent callers, one wins."""
        ...

    async def swap(self, key: str, old: Json | None, new: Json | None, ttl_s: float | None = None) -> bool:
        """Write `new` if the record equals `old`, and return whether it did. None means no record."""
        ...

    async def swap_many(self, changes: Mapping[str, tuple[Json | None, Json]], ttl_s: float | None = None) -> set[str]:
        """Swap many records, each in an operation of its own, and return the keys that were written."""
        ...

    async def delete(self, *keys: str) -> None:
        """Remove the records, even unreadable ones."""
        ...

    def list_keys(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys with this prefix, sorted, including those of unreadable records."""
        ...

    def scan(self, prefix: str) -> AsyncIterator[tuple[str, Json]]:
        """Yield all records whose keys have this prefix, by key. Records written meanwhile may be among them."""
        ...

    def list_rows(self) -> AsyncIterator[Row]:
        """Yield all records, including unreadable ones; the oldest first if the store has an order."""
        ...

    async def delete_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Remove listed records, except those that have changed since, and return those that were removed."""
        ...

    async def size(self) -> int | None:
        """Return the size of the store in bytes; None if only a listing can determine it."""
        ...


class StateLostError(ConfigurationError):
    """The store has lost its records."""


_stores: Final[dict[str, Store]] = {}
_opening: Final = threading.Lock()


def open_store() -> Store:
    """Return the store of this process: the Redis at `POLLUX_STATE_URL`, or else the folder on this machine.

    The store connects, or creates files, at its first operation.
    """
    place = os.environ.get(STATE_URL, "").strip() or str(local_folder())
    with _opening:
        if place not in _stores:
            _stores[place] = _make_store(place)
        return _stores[place]


def open_existing_store() -> Store | None:
    """Return the store of this process, or None if nothing has been saved on this machine yet."""
    from pollux_flows.state.disk import FILE

    with suppress(PermissionError, NotADirectoryError):  # the first operation raises the error
        if not os.environ.get(STATE_URL, "").strip() and not (local_folder() / FILE).exists():
            return None
    return open_store()


def local_folder() -> Path:
    """Return the folder of the store on this machine."""
    return home() / "state"


def _make_store(place: str) -> Store:
    # Imported only when needed: each kind of store has its own dependency.
    if place.startswith(("redis://", "rediss://", "unix://")):
        try:
            from pollux_flows.state.redis import RedisStore
        except ImportError as error:
            raise ConfigurationError(
                f"{STATE_URL} is the address of a Redis, but the package `redis` is not installed.",
                hint="Install it: pip install 'pollux-flows[redis]'",
            ) from error
        return RedisStore(place)
    if os.environ.get(STATE_URL, "").strip():
        raise ConfigurationError(
            f"{STATE_URL} is not the address of a store.",  # the address is not shown: it may contain a password
            hint="Use an address that begins with redis://, rediss:// or unix://, or unset it to store the state on"
            " this machine.",
        )
    from pollux_flows.state.disk import DiskStore

    return DiskStore(Path(place))


def encode_record(key: str, record: Json) -> bytes:
    """Return the record as bytes to store. Equal records have equal bytes, which `swap` compares."""
    try:
        return canonical(record).encode()
    except (TypeError, ValueError, RecursionError) as error:
        # The content is not shown: it may be confidential.
        raise InternalError(f"The record {key} is not JSON ({type(error).__name__}), so it was not saved.") from None


def decode_record(key: str, data: object, where: str) -> Json:
    """Return the record that was stored as `data`, or raise a ConfigurationError if it is damaged."""
    record = try_decode_record(data)
    if record is None:
        raise damaged_record_error(key, where)
    return record


def try_decode_record(data: object) -> Json | None:
    """Return the record that was stored as `data`, or None if it is damaged."""
    try:
        # Equal strings share one object, which saves memory when a thousand answers are read.
        record = from_json(data) if isinstance(data, bytes) else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def damaged_record_error(key: str, where: str, why: str | None = None) -> ConfigurationError:
    """Return the error for a damaged record, with the ways to repair it."""
    ways = "move it away to start without its records."
    if is_removable(key):
        ways = "remove damaged records: pollux-flows state prune --damaged. A removed answer is paid for again."
    elif kind_of(key) == "conversation":
        ways = f"delete the conversation: pollux-flows conversations delete {key}"
    return ConfigurationError(
        f"The record {key} in {where} is damaged{f' ({why})' if why else ''}.",
        hint=f"Restore the state from a backup, or {ways}",
    )
