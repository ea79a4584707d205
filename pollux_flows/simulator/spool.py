"""Bytes on their way into a store: hashed as they pass, and kept while they are few."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: More than this is not kept; or, where all must be kept, it goes to disk.
KEEP_BYTES = 1024 * 1024
_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a spool was filled at some time."""

    size: int
    digest: Any

    @property
    def sha256(self) -> str:
        return str(self.digest.hexdigest())


class Spool:
    """Takes any number of bytes in a bounded amount of memory.

    The disk is written to from the event loop: it is the page cache that takes it, and only for files
    that must be read again.
    """

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()
        self._content: tempfile.SpooledTemporaryFile[bytes] | None = tempfile.SpooledTemporaryFile(KEEP_BYTES)  # noqa: SIM115 (it lives as long as its file does)
        self._whole = True

    @property
    def sha256(self) -> str:
        return str(self._digest.hexdigest())

    @property
    def is_kept(self) -> bool:
        return self._content is not None

    @property
    def keeps_all(self) -> bool:
        """Was it meant to be read again, however much it is?"""
        return self._whole

    def keep_little(self) -> None:
        """From now on (and for what is in it already), do without the content of more than `KEEP_BYTES`."""
        self._whole = False
        self._forget_much()

    def write(self, piece: bytes) -> None:
        self._digest.update(piece)
        with self._lock:
            if self._content is not None:
                self._content.seek(self.size)
                self._content.write(piece)
        self.size += len(piece)
        self._forget_much()

    def chunks(self) -> Iterator[bytes]:
        """The content, piece by piece, when it was kept."""
        at = 0
        while at < self.size:
            piece = self.read(at, min(_PIECE, self.size - at))
            at += len(piece)
            yield piece

    def read(self, start: int, size: int) -> bytes:
        with self._lock:
            if self._content is None:
                raise LookupError("the simulator did not keep the content of this file, only its hash and size")
            self._content.seek(start)
            return self._content.read(size)

    def lines(self) -> Iterator[bytes]:
        """The content line by line, without the line ends. A last line that is empty is none."""
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
        """Undo what was written since `mark`."""
        self.size, self._digest = mark.size, mark.digest.copy()

    def close(self) -> None:
        with self._lock:
            if self._content is not None:
                self._content.close()
                self._content = None

    def _forget_much(self) -> None:
        if not self._whole and self.size > KEEP_BYTES:
            self.close()
