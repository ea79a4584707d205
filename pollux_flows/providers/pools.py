"""Connection pools: a transport that distributes a client's connections over several small pools.

For each request, httpcore scans all connections of its pool, and polls the sockets of the idle ones. With fifty in one
pool, this is a sixth of all the work of a call.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from math import ceil
from typing import Final, cast

import httpx2

_CONNECTIONS: Final = 8  # in a pool


class Pools(httpx2.AsyncBaseTransport):
    """A transport that sends each request through the pool with the fewest requests in flight."""

    def __init__(self, connections: int, verify: ssl.SSLContext) -> None:
        self._pools = [_Pool(verify) for _ in range(ceil(connections / _CONNECTIONS))]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request."""
        return await min(self._pools, key=lambda pool: pool.under_way).send(request)

    async def aclose(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(pool.transport.aclose() for pool in self._pools))


class _Pool:
    def __init__(self, verify: ssl.SSLContext) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=_CONNECTIONS)
        self.transport = httpx2.AsyncHTTPTransport(verify=verify, limits=limits)
        self.under_way = 0

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        self.under_way += 1
        try:
            response = await self.transport.handle_async_request(request)
        except BaseException:
            self.under_way -= 1
            raise
        response.stream = _Body(cast(httpx2.AsyncByteStream, response.stream), self)
        return response


class _Body(httpx2.AsyncByteStream):
    """The body of a response, whose request is in flight until it is closed."""

    def __init__(self, stream: httpx2.AsyncByteStream, pool: _Pool) -> None:
        self._stream, self._pool = stream, pool
        self._is_open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._pool.under_way -= 1
        await self._stream.aclose()
