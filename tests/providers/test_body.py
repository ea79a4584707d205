"""Bodies: an answer that never ends, or swells when it is unpacked, costs its own call and neither time nor memory."""

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
from pollux_flows.providers import body, lines
from tests.loopback import Reply, every_provider, good, http, outcomes, scripted

_BLOCK = b" " * (1 << 16)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """A bound that a test reaches at once."""
    for module in (body, lines):
        monkeypatch.setattr(module, "LARGEST_ANSWER", 1 << 20)
    return 1 << 20


def endless(head: bytes) -> Callable[[asyncio.StreamWriter], object]:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(_BLOCK)
            await writer.drain()

    return send


def bomb(megabytes: int) -> bytes:
    """A good JSON string that unpacks to so much."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(b'{"content": "')
        for _ in range(megabytes):
            file.write(b"x" * (1 << 20))
        file.write(b'"}')
    return packed.getvalue()


BOMB = bomb(300)


@every_provider
@pytest.mark.parametrize("kind", ["endless", "long", "bomb"])
@pytest.mark.usefixtures("small")
async def test_a_body_beyond_the_bound_is_not_read(provider: ProviderName, kind: str) -> None:
    """An error of that call that says so, asked once: whatever it was, it may have been billed."""
    chunked = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    long = chunked.replace(b"\r\n\r\n", b"\r\ncontent-length: 999999999999\r\n\r\n")
    replies: dict[str, Reply] = {
        "endless": endless(chunked),  # type: ignore[dict-item]
        "long": endless(long),  # type: ignore[dict-item]
        "bomb": http(BOMB, content_encoding="gzip"),
    }
    async with scripted(lambda _: replies[kind], by_body=True) as server:
        (made,) = await outcomes(["p"], server.config(provider))
    assert made.failure is not None
    assert "larger than 1 MiB" in made.failure.message
    assert (made.failure.outcome_unknown, made.failure.retryable) == (True, False)
    assert len(server.requests) == 1


async def test_what_swells_is_not_in_memory() -> None:
    """A third of a megabyte that becomes 300: no more of it than the bound is ever there."""
    assert len(BOMB) < 1 << 19
    async with scripted(http(BOMB, content_encoding="gzip")) as server:
        tracemalloc.start()
        (made,) = await outcomes(["p"], server.config("local"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert made.failure is not None
    assert "larger than 64 MiB" in made.failure.message
    assert peak < 100 << 20


@every_provider
async def test_a_packed_answer_is_unpacked(provider: ProviderName) -> None:
    """As SDKs and servers do it to this day; and what a server packs otherwise is refused, not taken for an answer."""
    packed = gzip.compress(json.dumps(good(provider, "fine" * 1_000_000)).encode())
    async with scripted(http(packed, content_encoding="gzip")) as server:
        envelope = await run("p", config=server.config(provider))
    assert envelope.answers == ["fine" * 1_000_000]
    async with scripted(http(packed, content_encoding="br")) as server:
        with pytest.raises(APIError, match="compressed with 'br'"):
            await run("p", config=server.config(provider))


async def test_packed_garbage_is_an_error_of_its_call() -> None:
    """It says gzip, and is none."""
    async with scripted(http(b"no gzip at all", content_encoding="gzip")) as server:
        (made,) = await outcomes(["p"], server.config("local"))
    assert made.failure is not None
    assert made.failure.outcome_unknown is True


def test_a_line_of_results_without_end_costs_itself(small: int) -> None:
    """The lines around it are kept as they came."""
    into = io.BytesIO()
    results = lines.Lines(into)
    for block in (
        b'{"a": 1}\n{"b',
        b'": 2}\n',
        b"x" * (small - 1),
        b"y" * 10,
        b"z" * small,
        b'\n{"c": 3}',
        b"\n",
        b"d",
    ):
        results.write(block)
    results.end()
    first, second, third, fourth, fifth, end = into.getvalue().split(b"\n")
    assert (first, second, fourth, fifth, end) == (b'{"a": 1}', b'{"b": 2}', b'{"c": 3}', b"d", b"")
    assert len(third) == small


def test_an_unpacker_never_gives_more_than_a_piece() -> None:
    """However much a block holds."""
    started = time.monotonic()
    sizes = [len(piece) for piece in Unpacker().pieces(BOMB)]
    assert max(sizes) <= 1 << 20
    assert sum(sizes) > 300 << 20
    assert time.monotonic() - started < 20


def test_what_follows_a_packed_body_is_not_collected() -> None:
    """zlib keeps all of it, and copies it anew for each block."""
    unpacker = Unpacker()
    assert b"".join(unpacker.pieces(gzip.compress(b"all"))) == b"all"
    tracemalloc.start()
    for _ in range(100):
        assert list(unpacker.pieces(_BLOCK)) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
