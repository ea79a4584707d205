"""The content cache: documents that can be computed again, in a diskcache of limited size."""

from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.state import content_cache
from pollux_flows.state.content_cache import ContentCache, open_content_cache


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("exploded",)


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path / "contents")


async def test_documents_are_cached_until_they_are_deleted(cache: ContentCache) -> None:
    await cache.put_many({"a": {"n": 1}, "b": {"n": 2}})
    assert await ContentCache(cache.folder).get_many(["a", "b", "c"]) == {"a": {"n": 1}, "b": {"n": 2}}
    await cache.delete("a")
    assert await cache.get_many(["a", "b"]) == {"b": {"n": 2}}


async def test_each_home_has_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))
    assert open_content_cache() is open_content_cache()
    assert open_content_cache().folder == tmp_path / "contents"


async def test_old_documents_are_evicted_when_the_cache_is_full(
    cache: ContentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_cache, "_SIZE_LIMIT", 200_000)
    for part in range(100):
        await cache.put_many({f"{part}/{number}": {"text": os.urandom(500).hex()} for number in range(10)})
    found = await cache.get_many([f"{part}/0" for part in range(100)])
    assert 0 < len(found) < 50
    assert "99/0" in found


async def test_a_pickle_in_the_file_is_not_loaded(
    cache: ContentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await cache.put_many({"a": {"n": 1}})
    with closing(sqlite3.connect(cache.folder / "cache.db", isolation_level=None)) as database:
        database.execute("UPDATE Cache SET mode = 4, value = ?", (pickle.dumps(Bomb()),))
    with pytest.raises(ConfigurationError, match=r"cache in .* cannot be used.*Remove that folder"):
        await cache.get_many(["a"])
    assert not (tmp_path / "exploded").exists()


async def test_many_tasks_share_a_cache(cache: ContentCache) -> None:
    await asyncio.gather(*(cache.put_many({f"{number}": {"n": number}}) for number in range(50)))
    assert len(await cache.get_many([f"{number}" for number in range(50)])) == 50
