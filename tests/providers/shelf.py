"""A file system of a test's own: it says of its files what the test wants said, and reads as badly as that wants."""

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
    """Files at shelf://…, all with the same words about them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.told: dict[str, Any] = {}
        self.opened = 0
        self.fails: Exception | None = None
        self.hangs = False
        self.after = 0  # bytes that come before it fails or hangs
        self.at_open = 1  # the opening from which on it does
        self.released = threading.Event()
        self.reading = threading.Event()

    def put(self, name: str, data: bytes) -> Source:
        self.files[name] = data
        return Source.from_file(f"shelf://{name}")


class _File(io.BytesIO):
    def __init__(self, shelf: Shelf, data: bytes) -> None:
        super().__init__(data)
        self._shelf, self._number = shelf, shelf.opened

    def read(self, size: int | None = -1, /) -> bytes:
        shelf = self._shelf
        if self._number >= shelf.at_open and (shelf.fails or shelf.hangs):
            left = shelf.after - self.tell()
            if left <= 0:
                shelf.reading.set()
                if shelf.fails:
                    raise shelf.fails
                shelf.released.wait(120)
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
            return {"name": name, "size": len(shelf.files[name]), "type": "file", **shelf.told}

        def _open(self, path: str, *_: Any, **__: Any) -> Any:
            name = self._strip_protocol(path)
            if name not in shelf.files:
                raise FileNotFoundError(path)
            shelf.opened += 1
            return _File(shelf, shelf.files[name])

    fsspec.register_implementation("shelf", ShelfFileSystem, clobber=True)
    try:
        yield shelf
    finally:
        shelf.released.set()
        _registry.pop("shelf", None)
