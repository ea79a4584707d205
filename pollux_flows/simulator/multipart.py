"""A streaming parser of `multipart/form-data`, which holds no more than one piece in memory.

Starlette's own parser needs an extra package, and writes each file to disk.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import unquote

_HEADERS_LIMIT = 16 * 1024
_PARAMETER = re.compile(r';\s*([\w*]+)\s*=\s*(?:"([^"]*)"|([^\s;]+))')


class BadMultipart(ValueError):  # noqa: N818 (turned into a provider's own error)
    """The body is not valid `multipart/form-data`."""


@dataclass(frozen=True, slots=True)
class Part:
    """The headers of a part."""

    name: str
    filename: str | None = None
    content_type: str | None = None


def boundary_of(content_type: str) -> bytes:
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise BadMultipart(f"expected multipart/form-data, but got {kind.strip() or 'no content type'}")
    boundary = _parameters(";" + parameters).get("boundary")
    if not boundary:
        raise BadMultipart("the boundary is missing")
    return boundary.encode("latin-1")


async def read_parts(incoming: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[tuple[Part, bytes]]:
    """Iterate over the parts, with each piece of their content; an empty part has one empty piece."""
    delimiter = b"\r\n--" + boundary
    # The first boundary has no line break before it; with one, it looks like all others.
    buffer = bytearray(b"\r\n")
    part: Part | None = None
    while True:
        end = buffer.find(delimiter)
        if end < 0:
            # The end of the buffer may be the beginning of a boundary.
            safe = max(0, len(buffer) - len(delimiter) + 1)
            if part is not None and safe:
                yield part, bytes(buffer[:safe])
            del buffer[:safe]
            await _read_more(incoming, buffer)
            continue
        if part is not None:
            yield part, bytes(buffer[:end])
        del buffer[: end + len(delimiter)]
        while len(buffer) < len(b"--"):
            await _read_more(incoming, buffer)
        if buffer.startswith(b"--"):
            return
        while (stop := buffer.find(b"\r\n\r\n")) < 0:
            if len(buffer) > _HEADERS_LIMIT:
                raise BadMultipart("the headers of a part do not end")
            await _read_more(incoming, buffer)
        part = _part(bytes(buffer[:stop]))
        del buffer[: stop + len(b"\r\n\r\n")]


async def _read_more(incoming: AsyncIterator[bytes], buffer: bytearray) -> None:
    try:
        buffer += await anext(incoming)
    except StopAsyncIteration:
        raise BadMultipart("it ends in the middle of a part") from None


def _part(block: bytes) -> Part:
    headers: dict[str, str] = {}
    for line in block.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    disposition = _parameters(headers.get("content-disposition", ""))
    if "name" not in disposition:
        raise BadMultipart("a part has no name")
    return Part(disposition["name"], disposition.get("filename"), headers.get("content-type"))


def _parameters(header: str) -> dict[str, str]:
    """Parse the parameters after a header's value, in which quotes and line breaks are percent-encoded."""
    found = {}
    for name, quoted, bare in _PARAMETER.findall(header):
        found[name.lower()] = re.sub(
            r"%(22|0[AD])", lambda match: unquote(match[0]), quoted or bare, flags=re.IGNORECASE
        )
    return found
