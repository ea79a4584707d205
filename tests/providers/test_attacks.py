"""Answers that are made to block the process: each call ends in time, and the event loop keeps running."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pollux_flows import APIError, Options, run
from pollux_flows.config import ProviderName
from pollux_flows.providers import lines
from tests.loopback import MODELS, Reply, every_provider, good, http, scripted
from tests.providers.test_hostile_answers import BACKTRACKING, TREE, assert_responsive, make_nested
from tests.providers.test_response_body import BOMB

TIMEOUT_S = 0.5
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
SCHEMAS: dict[str, dict[str, Any]] = {
    "union": {"type": "object", "properties": {"tree": {"$ref": "#/$defs/node"}}, "$defs": TREE["$defs"]},
    "pattern": {"type": "object", "properties": {"a": {"type": "string", "pattern": BACKTRACKING}}},
}
TEXTS = {
    "union": json.dumps({"tree": make_nested(30, {"kind": "b", "note": 5})}),
    "pattern": json.dumps({"a": "a" * 60 + "!"}),
}
# Python's json reads it in 0.3 seconds without yielding; code in Python would take several seconds.
FLAT_LIST = b"[" + b"1," * 2_500_000 + b"1]"


@contextmanager
def assert_within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


async def send_endlessly(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    while True:
        writer.write(b" " * (1 << 16))
        await writer.drain()


async def send_bytes_slowly(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


def answer_with_flat_list(provider: ProviderName) -> bytes:
    """Return a good answer with a list of millions of numbers beside its text."""
    answers: dict[ProviderName, dict[str, Any]] = {
        "gemini": {"candidates": [{"content": {"parts": [{"text": "fine"}, "HERE"]}, "finishReason": "STOP"}]},
        "openai": good("openai", output=[*good("openai")["output"], "HERE"]),
        "anthropic": good("anthropic", content=[{"type": "text", "text": "fine"}, "HERE"]),
        "openrouter": {"choices": [{"message": {"content": "fine", "annotations": "HERE"}}]},
        "local": {"choices": [{"message": {"content": "fine", "reasoning_details": "HERE"}}]},
    }
    return http(json.dumps(answers[provider]).encode().replace(b'"HERE"', FLAT_LIST))


def make_reply(provider: ProviderName, kind: str) -> Reply:
    match kind:
        case "endless":
            return send_endlessly
        case "dripping":
            return send_bytes_slowly
        case "bomb":
            return http(BOMB, content_encoding="gzip")
        case "flat":
            return answer_with_flat_list(provider)
        case _:
            return http(good(provider, TEXTS[kind]))


@every_provider
@pytest.mark.parametrize("kind", ["endless", "dripping", "bomb", "flat", "union", "pattern"])
async def test_a_hostile_answer_ends_in_time_without_blocking_the_loop(provider: ProviderName, kind: str) -> None:
    """The call ends in an error, or in an answer that has its text."""
    options = Options(response_schema=SCHEMAS.get(kind))
    attack = make_reply(provider, kind)
    async with scripted(lambda body: http(good(provider)) if b"warm up" in body else attack, by_body=True) as server:
        server.listing = http({"data": [{"id": MODELS["openrouter"], "supported_parameters": ["structured_outputs"]}]})
        await run("warm up", config=server.config(provider))  # importing an SDK takes a second
        config = server.config(provider, timeout_s=TIMEOUT_S)
        asking = asyncio.create_task(run("p", config=config, options=options))
        with assert_within(20):  # on a busy machine, the time that a pattern computes is less than the time that passes
            async with assert_responsive(1):
                await asyncio.wait([asking])
    if kind in TEXTS:
        envelope = asking.result()
        assert (envelope.answers, envelope.structured) == ([TEXTS[kind]], [None])
        assert len(envelope.diagnostics["warnings"]) == 1
    elif kind != "flat" or asking.exception() is not None:
        assert isinstance(asking.exception(), APIError)


@every_provider
async def test_the_text_beside_millions_of_values_is_returned(provider: ProviderName) -> None:
    """The raw response says that the values were left out."""
    async with scripted(answer_with_flat_list(provider)) as server, assert_responsive(1):
        envelope = await run("p", config=server.config(provider))
    assert envelope.answers == ["fine"]
    assert "100,000 values" in envelope.diagnostics["raw_responses"][0]["artifacts"]["unreadable"][0]
    assert len(envelope.model_dump_json()) < 10_000


@every_provider
async def test_a_response_with_six_million_values_is_refused_unparsed(provider: ProviderName) -> None:
    """Parsing would block every thread for seconds."""
    body = b'{"a": [' + b'{"b":{}},' * 1_000_000 + b"{}]}"
    async with scripted(http(body)) as server, assert_responsive(1):
        with pytest.raises(APIError, match="6,000,000 values"):
            await run("p", config=server.config(provider))
    with pytest.raises(ValueError, match="6,000,000 values"):
        lines.read(body)


@every_provider
async def test_only_the_quoted_part_of_a_huge_error_body_is_read(provider: ProviderName) -> None:
    """The error keeps its status."""
    body = b'{"error": {"message": "' + b"no " * 5_000_000 + b'"}}'
    async with scripted(http(body, status=400)) as server, assert_responsive(1):
        with pytest.raises(APIError, match="answered 400") as caught:
            await run("p", config=server.config(provider))
    assert len(str(caught.value)) < 1_000


async def test_a_large_body_that_is_not_an_answer_is_quoted_in_part() -> None:
    async with scripted(http(FLAT_LIST)) as server, assert_responsive(1):
        with pytest.raises(APIError, match=r"\[1, 1, 1"):
            await run("p", config=server.config("openai"))


async def test_a_text_of_60_mib_does_not_block_the_loop() -> None:
    """Reading the answer and saving it both leave the event loop responsive."""
    async with scripted(http(good("openai", "a" * (60 << 20)))) as server, assert_responsive(1):
        envelope = await run("p", config=server.config("openai"))
    assert len(envelope.answers[0]) == 60 << 20
