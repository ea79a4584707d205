"""Spools: buffers that hash the bytes of an upload, and store them up to a limit."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Larger content is dropped or, where it is required, written to disk.
CONTENT_LIMIT_BYTES = 1024 * 1024
_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Mark:
    """The size and hash of a spool at some time, to rewind it to."""

    size: int
    digest: Any

    @property
    def sha256(self) -> str:
        return str(self.digest.hexdigest())


class Spool:
    """A buffer for any number of bytes in bounded memory.

    The disk is written to from the event loop: this only fills the page cache, and only for files that must be read
    again.
    """

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()
        self._content: tempfile.SpooledTemporaryFile[bytes] | None = tempfile.SpooledTemporaryFile(CONTENT_LIMIT_BYTES)  # noqa: SIM115 (it lives as long as its file does)
        self._stores_all = True

    @property
    def sha256(self) -> str:
        return str(self._digest.hexdigest())

    @property
    def has_content(self) -> bool:
        return self._content is not None

    @property
    def stores_all(self) -> bool:
        """Return whether all content is stored, at any size."""
        return self._stores_all

    def keep_little(self) -> None:
        """Store no content of more than `CONTENT_LIMIT_BYTES`, including what has been written already."""
        self._stores_all = False
        self._drop_large()

    def write(self, piece: bytes) -> None:
        self._digest.update(piece)
        with self._lock:
            if self._content is not None:
                self._content.seek(self.size)
                self._content.write(piece)
        self.size += len(piece)
        self._drop_large()

    def chunks(self) -> Iterator[bytes]:
        """Iterate over the stored content, piece by piece."""
        at = 0
        while at < self.size:
            piece = self.read(at, min(_PIECE, self.size - at))
            at += len(piece)
            yield piece

    def read(self, start: int, size: int) -> bytes:
        with self._lock:
            if self._content is None:
                raise LookupError("the simulator did not store the content of this file, only its hash and size")
            self._content.seek(start)
            return self._content.read(size)

    def lines(self) -> Iterator[bytes]:
        """Iterate over the lines of the content, without line breaks; an empty last line is left out."""
        begun: list[bytes] = []
        for piece in self.chunks():
            end, *more = piece.split(b"\n")
            begun.append(end)
            for beginning in more:
                yield b"".join(begun)
                begun = [beginning]
        if last := b"".join(begun):
            yield last

    def mark(self) -> Mark:
        return Mark(self.size, self._digest.copy())

    def rewind(self, mark: Mark) -> None:
        """Undo all writes since `mark`."""
        self.size, self._digest = mark.size, mark.digest.copy()

    def close(self) -> None:
        with self._lock:
            if self._content is not None:
                self._content.close()
                self._content = None

    def _drop_large(self) -> None:
        if not self._stores_all and self.size > CONTENT_LIMIT_BYTES:
            self.close()
