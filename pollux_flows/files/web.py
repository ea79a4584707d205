"""Web files: read http and https addresses as streams, as a server may not support ranges or lengths."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from pollux_flows.access import current_restrictions
from pollux_flows.files import file_threads
from pollux_flows.files.decompress import UNPACKED, Unpacker

if TYPE_CHECKING:
    import httpx

# Asks for the uncompressed bytes: compressed ones may differ each time.
_UNPACKED: Final = {"accept-encoding": "identity"}
_LARGEST: Final = 2 << 30
_GONE: Final = {404, 410}
_FORBIDDEN: Final = {401, 403}


def _is_loggable(_: logging.LogRecord) -> bool:
    return not file_threads.is_reading()


# These libraries log each address with its query, which may hold secrets.
for _name in ("httpx", "httpcore.http11"):
    logging.getLogger(_name).addFilter(_is_loggable)


class WebFile(io.RawIOBase):
    """The body of a response, which can be read once, forward."""

    def __init__(self, answer: httpx.Response, connection: ExitStack) -> None:
        self._pieces, self._connection = _pieces(answer), connection
        self._rest, self._room = b"", _LARGEST

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            return self.readall()
        while not self._rest:
            if (piece := next(self._pieces, None)) is None:
                return b""
            self._rest, self._room = piece, self._room - len(piece)
            if self._room < 0:
                raise OSError(f"it is larger than {_LARGEST >> 30} GiB, which no provider accepts")
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def close(self) -> None:
        self._connection.close()
        super().close()


def open_web_file(address: str) -> WebFile:
    """Open the file at an address. Raises an OSError if the server refuses it."""
    with ExitStack() as stack:
        client = stack.enter_context(_client(file_threads.STALL_S))
        answer = client.send(client.build_request("GET", address, headers=_UNPACKED), stream=True)
        stack.callback(answer.close)
        if answer.is_success:
            return WebFile(answer, stack.pop_all())
    raise _refusal(answer.status_code)


def headers(address: str) -> dict[str, Any]:
    """Return the headers of a HEAD request; an empty dict if the server refuses it."""
    with _client(file_threads.STALL_S) as client:
        answer = client.head(address, headers=_UNPACKED)
    return dict(answer.headers) if answer.is_success else {}


def _client(timeout_s: float) -> httpx.Client:
    """Return a client for web files, which follows redirects; in a restricted run, only to allowed hosts."""
    if (restrictions := current_restrictions()) is not None:
        from pollux_flows.files.hosts import limited_client

        client = limited_client(restrictions, timeout_s)
    else:
        import httpx

        client = httpx.Client(timeout=timeout_s, follow_redirects=True)
    client.event_hooks["response"].append(_drop_redirect_body)
    return client


def _drop_redirect_body(response: httpx.Response) -> None:
    """Drop the body of a redirect, which httpx would read to its end, however long it is."""
    if response.has_redirect_location:
        import httpx

        response.stream.close()  # type: ignore[union-attr]  # a synchronous client's stream
        response.stream = httpx.ByteStream(b"")


def _pieces(answer: httpx.Response) -> Iterator[bytes]:
    """Iterate over the decompressed body in pieces of limited size, which httpx does not limit."""
    if answer.headers.get("content-encoding", "").strip().lower() not in UNPACKED:
        yield from answer.iter_bytes()
        return
    unpacker = Unpacker()
    for block in answer.iter_raw():
        yield from unpacker.pieces(block)
        if unpacker.is_done:
            return


def _refusal(status: int) -> OSError:
    if status in _GONE:
        return FileNotFoundError(status)
    if status in _FORBIDDEN:
        return PermissionError(f"the server answers {status}")
    return OSError(f"the server answers {status}")
