"""Request bodies, read as they arrive."""

from __future__ import annotations

from typing import Self

from starlette.types import Message, Receive


class ClientGone(Exception):  # noqa: N818 (it ends an exchange; nothing went wrong)
    """The client has disconnected."""


class RequestBody:
    """An async iterator over the pieces of a request body, which stores none of them."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._more:
            raise StopAsyncIteration
        message: Message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._more = message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece

    async def read_all(self) -> bytes:
        return b"".join([piece async for piece in self])

    async def drain(self) -> None:
        """Read and discard the rest: a client that is still sending would not read the response."""
        async for _ in self:
            pass
