"""Response bodies that are endless, too long or swell when unpacked cost their own call, little time and memory."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import time
import tracemalloc
from collections.abc import Callable

import pytest

from pollux_flows import APIError, run
from pollux_flows.config import ProviderName
from pollux_flows.files.decompress import Unpacker
from pollux_flows.providers import lines, response_body
from tests.loopback import Reply, every_provider, good, http, outcomes, scripted

_BLOCK = b" " * (1 << 16)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Set the size limit of answers to 1 MiB."""
    for module in (response_body, lines):
        monkeypatch.setattr(module, "LARGEST_ANSWER", 1 << 20)
    return 1 << 20


def send_endlessly(head: bytes) -> Callable[[asyncio.StreamWriter], object]:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(_BLOCK)
            await writer.drain()

    return send


def make_bomb(megabytes: int) -> bytes:
    """Return a gzipped JSON document with a string of so many megabytes."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(b'{"content": "')
        for _ in range(megabytes):
            file.write(b"x" * (1 << 20))
        file.write(b'"}')
    return packed.getvalue()


BOMB = make_bomb(300)


@every_provider
@pytest.mark.parametrize("kind", ["endless", "long", "bomb"])
@pytest.mark.usefixtures("small_limit")
async def test_a_body_beyond_the_limit_is_an_error_without_retry(provider: ProviderName, kind: str) -> None:
    """The answer may have been billed, so the outcome is unknown."""
    chunked = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    long = chunked.replace(b"\r\n\r\n", b"\r\ncontent-length: 999999999999\r\n\r\n")
    replies: dict[str, Reply] = {
        "endless": send_endlessly(chunked),  # type: ignore[dict-item]
        "long": send_endlessly(long),  # type: ignore[dict-item]
        "bomb": http(BOMB, content_encoding="gzip"),
    }
    async with scripted(lambda _: replies[kind], by_body=True) as server:
        (outcome,) = await outcomes(["p"], server.config(provider))
    assert outcome.failure is not None
    assert "larger than 1 MiB" in outcome.failure.message
    assert (outcome.failure.outcome_unknown, outcome.failure.retryable) == (True, False)
    assert len(server.requests) == 1


async def test_a_gzip_bomb_is_not_unpacked_into_memory() -> None:
    """A third of a megabyte unpacks to 300 MB, of which no more than the limit is held."""
    assert len(BOMB) < 1 << 19
    async with scripted(http(BOMB, content_encoding="gzip")) as server:
        tracemalloc.start()
        (outcome,) = await outcomes(["p"], server.config("local"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert outcome.failure is not None
    assert "larger than 64 MiB" in outcome.failure.message
    assert peak < 100 << 20


@every_provider
async def test_a_gzipped_answer_is_unpacked(provider: ProviderName) -> None:
    """Other compressions are refused."""
    packed = gzip.compress(json.dumps(good(provider, "fine" * 1_000_000)).encode())
    async with scripted(http(packed, content_encoding="gzip")) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.answers == ["fine" * 1_000_000]
    async with scripted(http(packed, content_encoding="br")) as server:
        with pytest.raises(APIError, match="compressed with 'br'"):
            await run("p", config=server.config(provider))


async def test_a_body_that_is_not_gzip_as_declared_is_an_error() -> None:
    async with scripted(http(b"no gzip at all", content_encoding="gzip")) as server:
        (outcome,) = await outcomes(["p"], server.config("local"))
    assert outcome.failure is not None
    assert outcome.failure.outcome_unknown is True


def test_a_result_line_beyond_the_limit_is_cut(small_limit: int) -> None:
    """The lines before and after it are unchanged."""
    into = io.BytesIO()
    results = lines.Lines(into)
    for block in (
        b'{"a": 1}\n{"b',
        b'": 2}\n',
        b"x" * (small_limit - 1),
        b"y" * 10,
        b"z" * small_limit,
        b'\n{"c": 3}',
        b"\n",
        b"d",
    ):
        results.write(block)
    results.end()
    first, second, third, fourth, fifth, end = into.getvalue().split(b"\n")
    assert (first, second, fourth, fifth, end) == (b'{"a": 1}', b'{"b": 2}', b'{"c": 3}', b"d", b"")
    assert len(third) == small_limit


def test_an_unpacker_yields_pieces_of_bounded_size() -> None:
    started = time.monotonic()
    sizes = [len(piece) for piece in Unpacker().pieces(BOMB)]
    assert max(sizes) <= 1 << 20
    assert sum(sizes) > 300 << 20
    assert time.monotonic() - started < 20


def test_bytes_after_a_gzipped_body_are_dropped() -> None:
    """zlib would collect all of them, and copy them for each block."""
    unpacker = Unpacker()
    assert b"".join(unpacker.pieces(gzip.compress(b"all"))) == b"all"
    tracemalloc.start()
    for _ in range(100):
        assert list(unpacker.pieces(_BLOCK)) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
