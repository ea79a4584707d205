"""A file system in memory whose metadata and read errors are set by the test."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem

from pollux_flows import Source


class Shelf:
    """Files at shelf://…, all with the same metadata, that can fail or hang while they are read."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.metadata: dict[str, Any] = {}
        self.open_count = 0
        self.error: Exception | None = None
        self.hangs = False
        self.readable_bytes = 0  # bytes that come before the error or the hang
        self.failing_from = 1  # number of the first opening that fails or hangs
        self.may_return = threading.Event()
        self.is_reached = threading.Event()

    def put(self, name: str, data: bytes) -> Source:
        self.files[name] = data
        return Source.from_file(f"shelf://{name}")


class _File(io.BytesIO):
    def __init__(self, shelf: Shelf, data: bytes) -> None:
        super().__init__(data)
        self._shelf, self._number = shelf, shelf.open_count

    def read(self, size: int | None = -1, /) -> bytes:
        shelf = self._shelf
        if self._number >= shelf.failing_from and (shelf.error or shelf.hangs):
            left = shelf.readable_bytes - self.tell()
            if left <= 0:
                shelf.is_reached.set()
                if shelf.error:
                    raise shelf.error
                shelf.may_return.wait(120)
            size = left if size is None or size < 0 else min(size, left)
        return super().read(size)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("POLLUX_ALLOW_PROTOCOLS", "shelf")
    shelf = Shelf()

    class ShelfFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "shelf"
        cachable = False

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            name = self._strip_protocol(path)
            return {"name": name, "size": len(shelf.files[name]), "type": "file", **shelf.metadata}

        def _open(self, path: str, *_: Any, **__: Any) -> Any:
            name = self._strip_protocol(path)
            if name not in shelf.files:
                raise FileNotFoundError(path)
            shelf.open_count += 1
            return _File(shelf, shelf.files[name])

    fsspec.register_implementation("shelf", ShelfFileSystem, clobber=True)
    try:
        yield shelf
    finally:
        shelf.may_return.set()
        _registry.pop("shelf", None)
