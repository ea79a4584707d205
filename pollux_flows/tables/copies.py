"""Copies: temporary files for random access by several readers.

They are for data that can only be read from its beginning: a file on the web, a row group of a parquet file. They have
no name, so that they disappear with their process, even if it is killed.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import IO, Any, Final, Generic, TypeVar

Index = TypeVar("Index")


class Copy(Generic[Index]):
    """A temporary file that `fill` writes, and the index of its contents that `fill` returns."""

    def __init__(self, fill: Callable[[IO[bytes]], Index]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the last of its readers)
        self.index = fill(self._file)
        self._file.flush()

    def open_reader(self) -> io.RawIOBase:
        """Return a reader with its own position."""
        return _Reader(self._file)


class Copies(Generic[Index]):
    """The most recently used copies."""

    def __init__(self, most: int) -> None:
        self._most: Final = most
        self._copies: Final[OrderedDict[str, Copy[Index]]] = OrderedDict()
        self._lock: Final = Lock()

    def load(self, key: str, fill: Callable[[IO[bytes]], Index]) -> Copy[Index]:
        """Return the copy with this key, or make it with `fill`."""
        with self._lock:
            copy = self._copies.pop(key, None) or Copy(fill)
            self._copies[key] = copy
            while len(self._copies) > self._most:
                self._copies.popitem(last=False)
            return copy


class _Reader(io.RawIOBase):
    def __init__(self, file: IO[bytes]) -> None:
        self._file: Final = file  # referenced, so that it stays open as long as it is read
        self._size: Final = os.fstat(file.fileno()).st_size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = os.preadv(self._file.fileno(), [buffer], self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at
