"""The body of a request, on its way in."""

from __future__ import annotations

from typing import Self

from starlette.types import Message, Receive


class ClientGone(Exception):  # noqa: N818 (it ends an exchange; nothing went wrong)
    """Nobody is there any more to be answered."""


class Incoming:
    """An async iterator over the pieces of a body. What it does not give out is never held."""

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

    async def whole(self) -> bytes:
        return b"".join([piece async for piece in self])

    async def drain(self) -> None:
        """Read to the end and forget it: a client that still sends would not hear the answer."""
        async for _ in self:
            pass
