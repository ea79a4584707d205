"""What Anthropic's batches do in their own way."""

from __future__ import annotations

import asyncio
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import APIError, InternalError
from pollux_flows.providers.anthropic import batch as module
from pollux_flows.providers.batches import Rows
from pollux_flows.providers.session import open_session
from pollux_flows.simulator import Simulator
from tests.loopback import MakeConfig, config_at, http, scripted
from tests.providers.batching import Batching, batching, call


@pytest.fixture
async def b(config: MakeConfig, sim: Simulator, tmp_path: Path) -> AsyncIterator[Batching]:
    async with batching(config("anthropic"), sim, tmp_path) as opened:
        yield opened


async def test_what_is_sent(b: Batching) -> None:
    """The rows as they are, with the headers of any call, and the length told before."""
    await b.session.generate(call("anthropic", "Hello?"))
    await b.submit(b.rows("Hello?", "And you?"))
    alone, batch = b.sim.requests[-2:]
    assert batch.body == {
        "requests": [
            {"custom_id": "r0", "params": alone.body},
            {"custom_id": "r1", "params": {**alone.body, "messages": batch.body["requests"][1]["params"]["messages"]}},
        ]
    }
    told = {name for name in batch.headers if name.startswith("anthropic")}
    assert told == {name for name in alone.headers if name.startswith("anthropic")} == {"anthropic-version"}
    assert "transfer-encoding" not in batch.headers
    assert batch.headers["content-type"] == "application/json"


@pytest.mark.parametrize("key", ["", "x" * 65, "a b", "a.b", "ä", "a\n"])
async def test_a_key_that_does_not_fit_is_a_bug(key: str, b: Batching) -> None:
    with pytest.raises(InternalError, match="no row with the key"):
        b.session.batches.row(call("anthropic", "Hello?"), key)
    assert b.session.batches.row(call("anthropic", "Hello?"), "x" * 64)


async def test_a_large_body_is_never_held(tmp_path: Path) -> None:
    """Of a hundred megabytes, a few blocks are in memory at a time."""
    row = json.dumps({"custom_id": "r0", "params": {"text": "x" * 100_000}}).encode() + b"\n"
    with (tmp_path / "rows").open("wb") as file:
        file.writelines([row] * 1000)
    lengths: list[int] = []

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        lengths.append(left := int(length.split(b":")[1]))
        while left:
            left -= len(await reader.read(min(left, 1 << 16)))
        writer.write(http({"id": "msgbatch_1", "processing_status": "in_progress"}))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(counting, "127.0.0.1", 0)
    settings = config_at(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")("anthropic")
    async with listener, open_session(settings) as session:
        tracemalloc.start()
        try:
            batch = await session.submit_batch("tag", Rows(tmp_path / "rows", 1000))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (batch.id, lengths) == ("msgbatch_1", [1000 * len(row) + len(b'{"requests":[' + b"]}")])
    assert peak < 20_000_000


# --- Where the results are ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["/anthropic/v1/messages/batches/{id}/results", "{id}/results"])
async def test_the_results_may_be_told_without_a_host(told: str, b: Batching) -> None:
    """They are where the batch is."""
    batch = await b.ended("Hello?")
    path = told.replace("{id}", batch.id)
    moved = module._batch({"id": batch.id, "processing_status": "ended", "results_url": path})
    if path.startswith("/"):
        assert [each.key for each in await b.results(moved)] == ["r0"]
    else:
        with pytest.raises(APIError) as refused:
            await b.results(moved)
        assert refused.value.status_code == 404


@pytest.mark.parametrize(
    "elsewhere",
    [
        "{other}/v1/messages/batches/x/results",
        "//{other_host}/x",
        "http://api.anthropic.com/x",
        "https://{home}/x",
        "http://{home}@{other_host}/x",
        "http://{home}.evil.example/x",
        "ftp://{home}/x",
        "http://[/x",
        "http://a b/",
        "\\\\{other_host}\\x",
    ],
)
async def test_the_key_goes_nowhere_else(elsewhere: str, b: Batching) -> None:
    """Whatever the batch says; and the error says where it would have gone."""
    home = str(b.session.config.base_url).removeprefix("http://").partition("/")[0]
    async with scripted(http(b"{}")) as other:
        host = other.origin.removeprefix("http://")
        url = elsewhere.format(other=other.origin, other_host=host, home=home)
        b.sim.batch(results_url=url)
        batch = await b.ended("Hello?")
        with pytest.raises(APIError) as told:
            await b.session.download_batch(batch, io.BytesIO())
        assert other.connections == 0
    if told.value.status_code is None:
        assert "the key is only for 127.0.0.1" in told.value.message
        assert (told.value.retryable, told.value.phase) == (False, "batch_collect")
    else:
        assert told.value.status_code == 404  # a path of ours, after all
    assert b.asked("batch.results") == 0


async def test_results_do_not_stay_for_ever(b: Batching) -> None:
    """Nor are they there before the end: neither is an empty file."""
    created = await b.submit(b.rows("Hello?"))
    with pytest.raises(APIError, match="has not ended"):
        await b.results(created)
    batch = await b.after(created, 30 * 86_400)
    assert batch.results == ()
    with pytest.raises(APIError, match="29 days") as told:
        await b.results(batch)
    assert (told.value.phase, told.value.provider, told.value.retryable) == ("batch_collect", "anthropic", False)


# --- States and rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "state", "failed"),
    [
        ({"succeeded": 3}, "completed", 0),
        ({"errored": 3}, "completed", 3),
        ({"canceled": 3}, "cancelled", 3),
        ({"expired": 3}, "expired", 3),
        ({"canceled": 1, "expired": 2}, "completed", 3),
        ({"errored": 1, "expired": 2}, "completed", 3),
        ({"succeeded": 1, "canceled": 2}, "completed", 2),
        ({}, "completed", 0),
        (None, "completed", 0),
        ({"canceled": "3"}, "completed", 0),
    ],
)
def test_the_counters_say_how_it_ended(counts: Any, state: str, failed: int) -> None:
    """Where they are of one kind."""
    batch = module._batch({"id": "b", "processing_status": "ended", "request_counts": counts})
    assert (batch.state, batch.failed) == (state, failed)


def test_counters_of_one_kind_are_no_end() -> None:
    batch = module._batch({"id": "b", "processing_status": "canceling", "request_counts": {"canceled": 3}})
    assert (batch.state, batch.is_ended) == ("cancelling", False)


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [
        ("invalid_request_error", False), ("authentication_error", False), ("permission_error", False),
        ("not_found_error", False), ("request_too_large", False), ("billing_error", False),
        ("rate_limit_error", True), ("api_error", True), ("timeout_error", True), ("overloaded_error", True),
        ("moon_error", None),
    ],
)  # fmt: skip
def test_a_row_that_failed_says_how(kind: str, retryable: bool | None) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req_1"}
    line = json.dumps({"custom_id": "r0", "result": {"type": "errored", "error": error}}).encode()
    result = module.result(line)
    assert (result.key, result.status, result.error, result.code) == ("r0", "failed", "m", kind)
    assert result.retryable == retryable


@pytest.mark.parametrize("told", [{"type": "sleeping"}, {"type": "succeeded"}, {"type": "errored", "error": 5}])
def test_a_row_that_came_to_something_new_has_failed(told: Any) -> None:
    """And nobody can tell whether it may succeed."""
    result = module.result(json.dumps({"custom_id": "r0", "result": told}).encode())
    assert (result.status, result.retryable, result.code) == ("failed", None, told["type"])
