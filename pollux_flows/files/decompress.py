"""Decompression of HTTP bodies, piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

import httpx2

UNPACKED: Final = {"gzip", "x-gzip", "deflate"}
"""The content encodings that can be decompressed."""
_PIECE: Final = 1 << 20
_ZLIB_OR_GZIP: Final = zlib.MAX_WBITS | 32  # detected from the first bytes


class Unpacker:
    """Decompresses a body, at most one piece at a time."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(_ZLIB_OR_GZIP)

    @property
    def is_done(self) -> bool:
        """Return whether the compressed body has ended; later bytes are ignored."""
        return self._zlib.eof

    def pieces(self, block: bytes) -> Iterator[bytes]:
        if self.is_done:  # bytes after the end are not part of the body, and zlib would collect all of them
            return
        try:
            piece = self._zlib.decompress(block, _PIECE)
            while piece:
                yield piece
                piece = self._zlib.decompress(self._zlib.unconsumed_tail, _PIECE)
        except zlib.error as error:
            raise httpx2.DecodingError(str(error)) from error
