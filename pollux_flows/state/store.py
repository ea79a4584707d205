"""Store: named JSON records that outlive a process. A small protocol, and the one of this process."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic_core import from_json

from pollux_flows.errors import ConfigurationError, InternalError
from pollux_flows.plain import canonical
from pollux_flows.state.home import home
from pollux_flows.state.kinds import may_go

Json = dict[str, Any]

STATE_URL: Final = "POLLUX_STATE_URL"


@dataclass(frozen=True)
class Row:
    """A record as it is listed: also one that cannot be read, or that has expired by the clock of this process."""

    key: str
    record: Json | None
    """None if it cannot be read."""
    size: int
    """In bytes, its name included."""
    stamp: object
    """Another one once it says something else."""
    expired: bool = False


class Store(Protocol):
    """JSON records by name, for many processes, threads and event loops at once.

    Each operation on one record is atomic, and has happened for everybody when it returns. Once asked for, it is
    carried out: whoever is cancelled while waiting for it has not undone it. A record that cannot be read is a
    ConfigurationError, never absent. A record with `ttl_s` is there for that long at least, and then goes by itself, as
    `expiry` explains; every write sets or clears that.
    """

    where: str
    """In words for people, and without a password."""

    async def get(self, key: str) -> Json | None:
        """The record, or None if there is none."""
        ...

    async def get_many(self, keys: Iterable[str]) -> dict[str, Json]:
        """Those of the records that are there."""
        ...

    async def put(self, key: str, record: Json, ttl_s: float | None = None) -> None:
        """Write the record, whatever was there."""
        ...

    async def put_many(self, records: Mapping[str, Json], ttl_s: float | None = None) -> None:
        """The same for many at once. Each is written whole; a crash may come between two."""
        ...

    async def add(self, key: str, record: Json, ttl_s: float | None = None) -> bool:
        """Write the record if there is none. Of all who try, exactly one is told True."""
        ...

    async def swap(self, key: str, old: Json | None, new: Json | None, ttl_s: float | None = None) -> bool:
        """Write `new` if the record is still `old`, and tell whether it was. None stands for no record."""
        ...

    async def swap_many(self, changes: Mapping[str, tuple[Json | None, Json]], ttl_s: float | None = None) -> set[str]:
        """`swap` for many records, each by itself: the keys of those that were written."""
        ...

    async def delete(self, *keys: str) -> None:
        """Remove the records, those that cannot be read included."""
        ...

    def names(self, prefix: str) -> AsyncIterator[str]:
        """The names that begin so, in order, also of records that cannot be read."""
        ...

    def scan(self, prefix: str) -> AsyncIterator[tuple[str, Json]]:
        """All records whose names begin so, by name. What is written meanwhile may be among them, or not."""
        ...

    def listed(self) -> AsyncIterator[Row]:
        """All records, those that cannot be read included. Those come first that were written first."""
        ...

    async def drop(self, rows: Sequence[Row]) -> list[Row]:
        """Remove what was listed, except what says something else by now. Those that went."""
        ...

    async def size(self) -> int | None:
        """How many bytes all of it takes; None where only a listing could tell."""
        ...


class LostError(ConfigurationError):
    """The store has lost what was recorded in it."""


_stores: Final[dict[str, Store]] = {}
_opening: Final = threading.Lock()


def open_store() -> Store:
    """The store of this process: in the Redis of `POLLUX_STATE_URL`, or else for `home()`.

    Nothing is touched until the first operation.
    """
    place = os.environ.get(STATE_URL, "").strip() or str(embedded())
    with _opening:
        if place not in _stores:
            _stores[place] = _opened(place)
        return _stores[place]


def embedded() -> Path:
    """The folder of the store on this machine."""
    return home() / "state"


def _opened(place: str) -> Store:
    """Each kind brings what it needs when it is needed."""
    if place.startswith(("redis://", "rediss://", "unix://")):
        try:
            from pollux_flows.state.redis import RedisStore
        except ImportError as error:
            raise ConfigurationError(
                f"{STATE_URL} is that of a Redis, and the package `redis` is not installed.",
                hint="Install it: pip install 'pollux-flows[redis]'",
            ) from error
        return RedisStore(place)
    if os.environ.get(STATE_URL, "").strip():
        raise ConfigurationError(
            f"{STATE_URL} is not the address of a store.",  # and not shown: there may be a password in it
            hint="It begins with redis://, rediss:// or unix://; without it, the state is kept on this machine.",
        )
    from pollux_flows.state.disk import DiskStore

    return DiskStore(Path(place))


def written(key: str, record: Json) -> bytes:
    """The record as it is stored. Equal records are equal bytes: `swap` compares these."""
    try:
        return canonical(record).encode()
    except (TypeError, ValueError, RecursionError) as error:
        # What it holds is not shown: it may be anything.
        raise InternalError(f"The record {key} is not JSON ({type(error).__name__}), so it was not kept.") from None


def read(key: str, data: object, where: str) -> Json:
    """The record that was stored as `data`, or a ConfigurationError: what cannot be read is not absent."""
    record = readable(data)
    if record is None:
        raise damaged(key, where)
    return record


def readable(data: object) -> Json | None:
    """The record that was stored as `data`, if it is one."""
    try:
        # It makes one string of all that say the same, which whoever looks through a thousand answers is glad of.
        record = from_json(data) if isinstance(data, bytes) else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def damaged(key: str, where: str, why: str | None = None) -> ConfigurationError:
    """What whoever meets a damaged record is told."""
    ways = "move it away to begin afresh."
    if may_go(key):
        ways = "remove what is damaged: pollux-flows state prune --damaged. An answer that so goes is paid for again."
    return ConfigurationError(
        f"The record {key} in {where} is damaged{f' ({why})' if why else ''}.",
        hint=f"Restore the state from a copy, or {ways}",
    )
