"""Behaviour of Anthropic's batches that differs from other providers."""

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
from tests.loopback import MakeConfig, http, make_config_at, scripted
from tests.providers.batching import BatchSession, make_call, open_batch_session


@pytest.fixture
async def b(config: MakeConfig, sim: Simulator, tmp_path: Path) -> AsyncIterator[BatchSession]:
    async with open_batch_session(config("anthropic"), sim, tmp_path) as opened:
        yield opened


async def test_a_batch_sends_the_rows_like_realtime_requests(b: BatchSession) -> None:
    """The body holds the rows unchanged, with the headers of a realtime request and a Content-Length."""
    await b.session.generate(make_call("anthropic", "Hello?"))
    await b.submit(b.make_rows("Hello?", "And you?"))
    realtime, batch = b.sim.requests[-2:]
    assert batch.body == {
        "requests": [
            {"custom_id": "r0", "params": realtime.body},
            {
                "custom_id": "r1",
                "params": {**realtime.body, "messages": batch.body["requests"][1]["params"]["messages"]},
            },
        ]
    }
    headers = {name for name in batch.headers if name.startswith("anthropic")}
    assert headers == {name for name in realtime.headers if name.startswith("anthropic")} == {"anthropic-version"}
    assert "transfer-encoding" not in batch.headers
    assert batch.headers["content-type"] == "application/json"


@pytest.mark.parametrize("key", ["", "x" * 65, "a b", "a.b", "ä", "a\n"])
async def test_a_row_key_that_anthropic_refuses_is_an_internal_error(key: str, b: BatchSession) -> None:
    with pytest.raises(InternalError, match="no row with the key"):
        b.session.batches.row(make_call("anthropic", "Hello?"), key)
    assert b.session.batches.row(make_call("anthropic", "Hello?"), "x" * 64)


async def test_a_large_batch_is_streamed_from_disk(tmp_path: Path) -> None:
    """Of 100 MB of rows, less than 20 MB are in memory at a time."""
    row = json.dumps({"custom_id": "r0", "params": {"text": "x" * 100_000}}).encode() + b"\n"
    with (tmp_path / "rows").open("wb") as file:
        file.writelines([row] * 1000)
    lengths: list[int] = []

    async def serve_counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        lengths.append(left := int(length.split(b":")[1]))
        while left:
            left -= len(await reader.read(min(left, 1 << 16)))
        writer.write(http({"id": "msgbatch_1", "processing_status": "in_progress"}))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve_counting, "127.0.0.1", 0)
    settings = make_config_at(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")("anthropic")
    async with listener, open_session(settings) as session:
        tracemalloc.start()
        try:
            batch = await session.submit_batch("tag", Rows(tmp_path / "rows", 1000))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (batch.id, lengths) == ("msgbatch_1", [1000 * len(row) + len(b'{"requests":[' + b"]}")])
    assert peak < 20_000_000


# --- The address of the results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("results_url", ["/anthropic/v1/messages/batches/{id}/results", "{id}/results"])
async def test_a_results_url_without_a_host_is_resolved_against_the_base_url(results_url: str, b: BatchSession) -> None:
    batch = await b.run_batch("Hello?")
    path = results_url.replace("{id}", batch.id)
    moved = module._batch({"id": batch.id, "processing_status": "ended", "results_url": path})
    if path.startswith("/"):
        assert [each.key for each in await b.download_results(moved)] == ["r0"]
    else:
        with pytest.raises(APIError) as caught:
            await b.download_results(moved)
        assert caught.value.status_code == 404


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
async def test_the_api_key_is_not_sent_to_another_host(elsewhere: str, b: BatchSession) -> None:
    """A batch whose results_url names another host is refused before a connection is made."""
    home = str(b.session.config.base_url).removeprefix("http://").partition("/")[0]
    async with scripted(http(b"{}")) as other:
        host = other.origin.removeprefix("http://")
        url = elsewhere.format(other=other.origin, other_host=host, home=home)
        b.sim.batch(results_url=url)
        batch = await b.run_batch("Hello?")
        with pytest.raises(APIError) as caught:
            await b.session.download_batch(batch, io.BytesIO())
        assert other.connections == 0
    if caught.value.status_code is None:
        assert "the key is only for 127.0.0.1" in caught.value.message
        assert (caught.value.retryable, caught.value.phase) == (False, "batch_collect")
    else:
        assert caught.value.status_code == 404  # the URL was a path on the right host
    assert b.count_requests("batch.results") == 0


async def test_results_are_available_from_the_end_for_29_days(b: BatchSession) -> None:
    """Before the end and after 29 days an error is raised, and no empty result is returned."""
    created = await b.submit(b.make_rows("Hello?"))
    with pytest.raises(APIError, match="has not ended"):
        await b.download_results(created)
    batch = await b.inspect_after(created, 30 * 86_400)
    assert batch.results == ()
    with pytest.raises(APIError, match="29 days") as caught:
        await b.download_results(batch)
    assert (caught.value.phase, caught.value.provider, caught.value.retryable) == ("batch_collect", "anthropic", False)


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
def test_counters_of_one_kind_give_the_final_state(counts: Any, state: str, failed: int) -> None:
    """An ended batch with counters of several kinds is completed."""
    batch = module._batch({"id": "b", "processing_status": "ended", "request_counts": counts})
    assert (batch.state, batch.failed) == (state, failed)


def test_counters_alone_do_not_end_a_batch() -> None:
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
def test_the_type_of_an_error_decides_whether_a_row_is_retryable(kind: str, retryable: bool | None) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req_1"}
    line = json.dumps({"custom_id": "r0", "result": {"type": "errored", "error": error}}).encode()
    result = module.result(line)
    assert (result.key, result.status, result.error, result.code) == ("r0", "failed", "m", kind)
    assert result.retryable == retryable


@pytest.mark.parametrize("outcome", [{"type": "sleeping"}, {"type": "succeeded"}, {"type": "errored", "error": 5}])
def test_a_row_whose_result_cannot_be_read_has_failed(outcome: Any) -> None:
    """Whether a retry of such a row can succeed is unknown."""
    result = module.result(json.dumps({"custom_id": "r0", "result": outcome}).encode())
    assert (result.status, result.retryable, result.code) == ("failed", None, outcome["type"])
