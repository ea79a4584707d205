"""Connection pools: many small pools reuse their connections, share the requests evenly, and are closed."""

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
def request_counts(monkeypatch: pytest.MonkeyPatch) -> Counter[object]:
    """Count the requests of each transport."""
    counts: Counter[object] = Counter()
    send = httpx2.AsyncHTTPTransport.handle_async_request

    async def count_and_send(self: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> httpx2.Response:
        counts[self] += 1
        return await send(self, request)

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", count_and_send)
    return counts


async def test_requests_are_spread_over_small_pools(request_counts: Counter[object]) -> None:
    """Each pool has as many requests as connections, and no more connections are opened."""
    arrival_count, all_arrived = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrival_count
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            arrival_count += 1
            if arrival_count == 24:
                all_arrived.set()
            await all_arrived.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx2.AsyncClient(transport=Pools(24, ssl.create_default_context())) as client:
            for _ in range(2):
                responses = await asyncio.gather(*(client.get(address) for _ in range(24)))
                assert {response.text for response in responses} == {"ok"}
    assert len(request_counts) == 24 / pools._CONNECTIONS
    assert set(request_counts.values()) == {2 * pools._CONNECTIONS}


async def test_a_failed_request_frees_its_place_in_the_pool(request_counts: Counter[object]) -> None:
    """A pool whose server refused once would otherwise count as busy for ever."""
    async with httpx2.AsyncClient(transport=Pools(16, ssl.create_default_context())) as client:
        for _ in range(6):
            with pytest.raises(httpx2.ConnectError):
                await client.get("http://127.0.0.1:9")
    assert set(request_counts.values()) == {6}, "each request went through the first pool, which was idle again"


@every_provider
async def test_pools_open_no_more_connections_than_request_concurrency(provider: ProviderName) -> None:
    async with scripted(http(good(provider))) as server:
        await run_many([f"p{n}" for n in range(60)], config=server.config(provider, request_concurrency=20))
        assert len(server.requests) == 60
        assert server.connections <= 20
