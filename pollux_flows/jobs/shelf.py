"""Shelf: what jobs ask, and their answers, in the result storage of the Prefect flows that submit and collect them."""

from __future__ import annotations

from typing import Any, Final, cast

from prefect.results import ResultStore, aget_default_result_storage

from pollux_flows.serializer import DOCUMENTS

_FOLDER: Final = "pollux-deferred"


class ResultShelf:
    """Values by name, where the worker keeps its results. Workers that share jobs share that."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store

    @classmethod
    async def open(cls) -> ResultShelf:
        storage = await aget_default_result_storage()
        return cls(ResultStore(result_storage=storage, serializer=DOCUMENTS, cache_result_in_memory=False))

    @property
    def where(self) -> str:
        """In words for people."""
        storage = self._store.result_storage
        return str(getattr(storage, "basepath", None) or getattr(storage, "_block_document_name", None) or storage)

    async def put(self, name: str, value: Any) -> None:
        """Keep the value, whatever was there."""
        await self._store.awrite(value, key=f"{_FOLDER}/{name}")

    async def has(self, name: str) -> bool:
        """Return whether there is a value of that name."""
        return await self._store.aexists(f"{_FOLDER}/{name}")

    async def get(self, name: str) -> Any:
        """The value of that name, or None."""
        key = f"{_FOLDER}/{name}"
        if not await self._store.aexists(key):
            return None
        return cast(Any, await self._store.aread(key)).result
