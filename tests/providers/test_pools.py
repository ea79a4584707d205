"""Pools: many connections in small pools are reused, spread evenly, and closed."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter

import httpx2
import pytest

from pollux_flows import run_many
from pollux_flows.config import ProviderName
from pollux_flows.providers import pools
from pollux_flows.providers.pools import Pools
from tests.loopback import every_provider, good, http, scripted


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[object]:
    """How many requests each transport was given, and the most that one had under way."""
    counted: Counter[object] = Counter()
    send = httpx2.AsyncHTTPTransport.handle_async_request

    async def count(self: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> httpx2.Response:
        counted[self] += 1
        return await send(self, request)

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", count)
    return counted


async def test_requests_are_spread_over_small_pools(sent: Counter[object]) -> None:
    """Each pool gets as many as it has connections, and no connection is opened beyond those."""
    arrived, all_here = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            arrived += 1
            if arrived == 24:
                all_here.set()
            await all_here.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx2.AsyncClient(transport=Pools(24, ssl.create_default_context())) as client:
            for _ in range(2):
                responses = await asyncio.gather(*(client.get(address) for _ in range(24)))
                assert {response.text for response in responses} == {"ok"}
    assert len(sent) == 24 / pools._CONNECTIONS
    assert set(sent.values()) == {2 * pools._CONNECTIONS}


async def test_a_request_that_fails_leaves_its_pool(sent: Counter[object]) -> None:
    """Otherwise a pool whose server refused once would count as busy for ever."""
    async with httpx2.AsyncClient(transport=Pools(16, ssl.create_default_context())) as client:
        for _ in range(6):
            with pytest.raises(httpx2.ConnectError):
                await client.get("http://127.0.0.1:9")
    assert set(sent.values()) == {6}, "each of them was sent through the first pool, which was idle again"


@every_provider
async def test_calls_beyond_a_pool_share_no_more_connections_than_calls(provider: ProviderName) -> None:
    """Pools do not add up to more connections than calls may be under way."""
    async with scripted(http(good(provider))) as server:
        await run_many([f"p{n}" for n in range(60)], config=server.config(provider, request_concurrency=20))
        assert len(server.requests) == 60
        assert server.connections <= 20
