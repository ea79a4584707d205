"""Response bodies: decompressed piece by piece, and read up to a limit that no real answer reaches.

A server that sends without end, or compresses gigabytes into a megabyte, fails its own call and takes no memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, cast

import httpx2

from pollux_flows.files.decompress import UNPACKED, Unpacker

LARGEST_ANSWER: Final = 64 << 20
"""The most bytes that one answer may have, once it is decompressed."""
ACCEPTED: Final = "gzip"
"""The accepted content encoding. httpx2 would decompress others in one piece of any size."""


class BodyError(Exception):
    """A response body was not read to its end; the message says why."""


async def bound(response: httpx2.Response) -> None:
    """Decompress the body of a response under the size limit. An event hook: the body has not been read yet."""
    packed = response.headers.pop("content-encoding", "identity").strip().lower()
    if packed not in {"", "identity", *UNPACKED}:
        raise BodyError(f"it is compressed with {packed[:40]!r}, which was not asked for")
    # What is fetched, such as the results of a batch, is written to disk as it arrives.
    largest = None if response.request.method == "GET" else LARGEST_ANSWER
    response.stream = _Bounded(cast(httpx2.AsyncByteStream, response.stream), packed in UNPACKED, largest)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, is_packed: bool, largest: int | None) -> None:
        self._stream, self._is_packed, self._largest = stream, is_packed, largest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        came = read = 0
        unpack = Unpacker() if self._is_packed else None
        async for block in self._stream:
            came += len(block)  # bytes after the end of a compressed body count, too
            for piece in unpack.pieces(block) if unpack else (block,):
                read += len(piece)
                if self._largest is not None and max(came, read) > self._largest:
                    raise BodyError(f"it is larger than {LARGEST_ANSWER >> 20} MiB")
                yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
