"""Response bodies: read piece by piece, up to a limit that no real answer reaches.

A server that sends data endlessly, or compresses gigabytes into a megabyte, only fails its own call and takes no
memory. A server that sends millions of values, which would take seconds to parse, delays no other call. Only the
results of a batch may be larger, as they are written to disk when they arrive: see `downloading`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, cast

import httpx2

from pollux_flows.files.decompress import UNPACKED, Unpacker
from pollux_flows.providers.base import LARGEST_ANSWER, MOST_VALUES, SMALL_ANSWER, count_values

ACCEPTED: Final = "gzip"
"""The accepted content encoding. httpx2 would decompress others in one piece of any size."""
_is_downloading: ContextVar[bool] = ContextVar("pollux_flows_downloading", default=False)


class BodyError(Exception):
    """A response body was not read to its end; the message says why."""


@contextmanager
def downloading() -> Iterator[None]:
    """Lift the size limit of responses, for callers that hold no more than a piece in memory."""
    token = _is_downloading.set(True)
    try:
        yield
    finally:
        _is_downloading.reset(token)


async def limit_body(response: httpx2.Response) -> None:
    """Decompress the body of a response under the size limit. This event hook is called before the body is read."""
    packed = response.headers.pop("content-encoding", "identity").strip().lower()
    if packed not in {"", "identity", *UNPACKED}:
        raise BodyError(f"it is compressed with {packed[:40]!r}, which was not requested")
    largest = None if _is_downloading.get() else LARGEST_ANSWER
    length = response.headers.get("content-length", "")
    if largest is not None and length.isdecimal() and int(length) > largest:
        raise _too_large()
    stream = _Bounded(cast(httpx2.AsyncByteStream, response.stream), packed in UNPACKED, largest)
    response.stream = _Cut(stream) if response.is_error else stream


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, is_packed: bool, largest: int | None) -> None:
        self._stream, self._is_packed, self._largest = stream, is_packed, largest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = read = values = 0
        unpack = Unpacker() if self._is_packed else None
        async for block in self._stream:
            received += len(block)  # including bytes after the end of a compressed body
            for piece in unpack.pieces(block) if unpack else (block,):
                read += len(piece)
                if self._largest is not None and max(received, read) > self._largest:
                    raise _too_large()
                if self._largest is not None and read > SMALL_ANSWER:
                    values += count_values(piece)
                    if values > MOST_VALUES:
                        raise BodyError(f"it has more than {MOST_VALUES:,} values")
                yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Cut(httpx2.AsyncByteStream):
    """The first part of an error's body, of which the SDKs would read everything, and people read a few lines."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for piece in self._stream:
            yield piece
            read += len(piece)
            if read > SMALL_ANSWER:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()


def _too_large() -> BodyError:
    return BodyError(f"it is larger than {LARGEST_ANSWER >> 20} MiB")
