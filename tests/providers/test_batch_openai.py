"""Behaviour of OpenAI's batches that differs from other providers."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import APIError
from pollux_flows.providers.base import UpstreamError
from pollux_flows.providers.openai import batch as module
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import MakeConfig, http, scripted
from tests.providers.batching import BatchSession, open_batch_session
from tests.providers.test_batch_all import open_session_at


@pytest.fixture
async def b(config: MakeConfig, sim: Simulator, tmp_path: Path) -> AsyncIterator[BatchSession]:
    async with open_batch_session(config("openai"), sim, tmp_path) as session:
        yield session


async def test_creating_a_batch_sends_rows_tag_and_count(b: BatchSession) -> None:
    """A row is a POST to /v1/responses; the batch carries the tag and the number of rows as metadata."""
    rows = b.make_rows("Hello?", "And you?")
    first = json.loads(rows.path.read_bytes().splitlines()[0])
    assert first == {
        "custom_id": "r0",
        "method": "POST",
        "url": "/v1/responses",
        "body": {
            "model": "gpt-4.1-mini",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello?"}]}],
        },
    }
    file_id = await b.upload_rows(rows, "run-7.jsonl")
    await b.session.submit_batch("tag-7", rows, file_id)
    assert b.sim.requests[-1].body == {
        "input_file_id": file_id,
        "endpoint": "/v1/responses",
        "completion_window": "24h",
        "metadata": {"pollux_tag": "tag-7", "pollux_rows": "2"},
    }
    (file,) = b.sim.files
    assert (file.purpose, file.filename, file.mime_type) == ("batch", "run-7.jsonl", "application/jsonl")


async def test_a_batch_created_elsewhere_has_no_tag(b: BatchSession) -> None:
    """The total of such a batch is None until OpenAI has counted its rows."""
    rows = b.make_rows("Hello?")
    body = {"input_file_id": await b.upload_rows(rows), "endpoint": "/v1/responses", "completion_window": "24h"}
    await b.session.client.post("/batches", body=body, cast_to=object)
    ((listed,),) = await b.list_pages()
    assert (listed.tag, listed.total) == (None, None)
    assert (await b.inspect_after(listed)).total == 1


async def test_results_are_read_from_the_output_and_the_error_file(b: BatchSession) -> None:
    batch = await b.run_batch("Fine", "[[simulate: status=400]]")
    assert len(batch.results) == 2
    results = await b.download_results(batch)
    assert [(each.key, each.status) for each in results] == [("r0", "succeeded"), ("r1", "failed")]


async def test_a_missing_newline_between_two_result_files_is_added() -> None:
    """Without the newline, the last line of one file and the first of the next would be one line."""
    line = b'{"custom_id": "r0", "response": {"status_code": 200, "body": {}}}'
    async with scripted(http(line)) as server, open_session_at(server, "openai") as session:
        batch = module._batch({"id": "b1", "status": "completed", "output_file_id": "f1", "error_file_id": "f2"})
        downloaded = io.BytesIO()
        await session.download_batch(batch, downloaded)
    assert downloaded.getvalue() == (line + b"\n") * 2


async def test_a_file_id_cannot_change_the_path_of_a_request() -> None:
    """Slashes and question marks in an id are escaped."""
    paths: list[bytes] = []

    async with scripted(http(b"")) as server, open_session_at(server, "openai") as session:
        serve = server._answer

        async def note_path(head: bytes, body: bytes, writer: Any) -> None:
            paths.append(head.split()[1])
            await serve(head, body, writer)

        server._answer = note_path  # type: ignore[method-assign]  # to see the path
        await session.download_batch(module._batch({"id": "b1", "output_file_id": "../models?x"}), io.BytesIO())
        with pytest.raises(APIError, match="cannot be read"):
            await session.inspect_batch("../models?x")
    assert len(paths) == 2
    assert all(b"?" not in path and b"/models" not in path.replace(b"%2F", b"") for path in paths)


async def test_an_invalid_row_fails_the_batch_with_its_line_number(b: BatchSession) -> None:
    """An invalid row does not set `queue_full`."""
    rows = b.write_rows(b'{"custom_id": "r0"}')
    batch = await b.inspect_after(await b.submit(rows))
    assert (batch.state, batch.queue_full) == ("failed", False)
    assert str(batch.problem).startswith("line 1: ")


def test_queue_full_is_set_only_without_other_errors() -> None:
    """With another error, submitting the batch again would not help."""

    def is_queue_full(*codes: str | None) -> bool:
        problems = [{"code": code, "message": "x"} for code in codes]
        return module._batch({"id": "b", "status": "failed", "errors": {"data": problems}}).queue_full

    assert is_queue_full("token_limit_exceeded")
    assert is_queue_full("token_limit_exceeded", "token_limit_exceeded")
    assert not is_queue_full("token_limit_exceeded", "invalid_json_line")
    assert not is_queue_full(None)
    assert not is_queue_full()


@pytest.mark.parametrize("errors", [None, 5, [], {}, {"data": None}, {"data": 5}, {"data": [None, 5]}, {"data": {}}])
def test_malformed_errors_of_a_batch_are_ignored(errors: Any) -> None:
    batch = module._batch({"id": "b", "status": "failed", "errors": errors, "request_counts": 5, "metadata": []})
    assert (batch.state, batch.queue_full) == ("failed", False)


LINES: dict[str, tuple[Any, tuple[str, str | None, bool | None]]] = {
    "expired": ({"error": {"code": "batch_expired", "message": "m"}}, ("expired", "batch_expired", True)),
    "cancelled": ({"error": {"code": "batch_cancelled", "message": "m"}}, ("cancelled", "batch_cancelled", True)),
    "canceled": ({"error": {"code": "batch_canceled", "message": "m"}}, ("cancelled", "batch_canceled", True)),
    "an unknown code": ({"error": {"code": "moon_phase", "message": "m"}}, ("failed", "moon_phase", None)),
    "a known code": ({"error": {"code": "server_error", "message": "m"}}, ("failed", "server_error", True)),
    "out of funds": (
        {"response": {"status_code": 429, "body": {"error": {"code": "insufficient_quota", "message": "m"}}}},
        ("failed", "insufficient_quota", False),
    ),
    "a type": (
        {"response": {"status_code": 400, "body": {"error": {"code": None, "type": "bad", "message": "m"}}}},
        ("failed", "bad", False),
    ),
    "only a status": ({"response": {"status_code": 502, "body": "m"}}, ("failed", "502", True)),
    "no status": ({"response": {"body": {"error": {"message": "m"}}}}, ("failed", None, None)),
    "an error that is text": ({"error": "m"}, ("failed", None, None)),
}


@pytest.mark.parametrize("name", LINES)
def test_a_failed_row_has_status_code_and_retryable(name: str) -> None:
    fields, expected = LINES[name]
    result = module.result(json.dumps({"custom_id": "r0", "response": None, "error": None, **fields}).encode())
    assert (result.key, result.error, result.response) == ("r0", "m", None)
    assert (result.status, result.code, result.retryable) == expected


async def test_a_failed_response_under_status_200_raises_when_it_is_read(b: BatchSession) -> None:
    """The row succeeded over HTTP and its tokens were billed."""
    b.sim.fail(Fault(kind="error_200"), operation="batch.row")
    (result,) = await b.download_results(await b.run_batch("Hello?"))
    assert (result.status, result.code) == ("succeeded", "failed")
    with pytest.raises(UpstreamError):
        b.read_answer(result)


async def test_uploads_and_batch_rows_are_listed_but_not_results(b: BatchSession) -> None:
    await b.upload("source.txt", "text/plain", b"Hello")
    await b.run_batch("Hello?")
    names = [name async for _, name in b.session.files.names(b.session.client)]
    assert sorted(names) == ["rows.jsonl", "source.txt"]
