"""Content cache: stores facts about files that were read before, so that a run need not read a large file again.

These facts can be derived again, so they are not part of the state but in a diskcache, which is limited in size and
is not shared with other machines.
"""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from diskcache import Cache, JSONDisk, Timeout
from diskcache.core import MODE_RAW

from pollux_flows.errors import ConfigurationError
from pollux_flows.state.batching import unforkable
from pollux_flows.state.home import folder_error, home, prepare_folder
from pollux_flows.state.store import Json

T = TypeVar("T")

_SIZE_LIMIT: Final = 50_000_000
_MAX_AGE_S: Final = 90 * 86_400.0
_BUSY_S: Final = 5.0


class _SafeDisk(JSONDisk):  # type: ignore[misc]  # diskcache has no types
    """A disk that stores only JSON: diskcache would also load a pickle that was put into the file."""

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> Any:
        if mode != MODE_RAW or filename is not None:
            raise ValueError("a value is not JSON")
        return super().fetch(mode, filename, value, read)


class ContentCache:
    """A cache of JSON documents by key, in a folder that is created at the first operation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cache: Any = None

    async def get_many(self, keys: Iterable[str]) -> dict[str, Json]:
        """Return the documents that are cached, by key."""
        wanted = list(keys)
        found = await self._run(lambda cache: {key: cache.get(key) for key in wanted})
        return {key: document for key, document in found.items() if isinstance(document, dict)}

    async def put_many(self, documents: Mapping[str, Json]) -> None:
        """Cache the documents; old ones are evicted if they become too many."""

        def put(cache: Any) -> None:
            with cache.transact():
                for key, document in documents.items():
                    cache.set(key, document, expire=_MAX_AGE_S)

        await self._run(put)

    async def delete(self, key: str) -> None:
        await self._run(lambda cache: cache.delete(key))

    async def _run(self, function: Callable[[Any], T]) -> T:
        return await asyncio.to_thread(self._call, function)

    def _call(self, function: Callable[[Any], T]) -> T:
        try:
            with unforkable:
                return function(self._open())
        except OSError as error:
            raise folder_error(self.folder, error) from error
        except (sqlite3.Error, Timeout, ValueError, zlib.error) as error:
            raise ConfigurationError(
                f"The cache in {self.folder} cannot be used ({error}).",
                hint="Remove that folder, which will be created again, or set POLLUX_HOME to another.",
            ) from error

    def _open(self) -> Any:
        if self._cache is None:
            prepare_folder(self.folder)
            self._cache = Cache(str(self.folder), timeout=_BUSY_S, disk=_SafeDisk, size_limit=_SIZE_LIMIT)
        return self._cache


_caches: Final[dict[Path, ContentCache]] = {}


def open_content_cache() -> ContentCache:
    """Return the content cache of this process, in its home."""
    folder = home() / "contents"
    return _caches.setdefault(folder, ContentCache(folder))
