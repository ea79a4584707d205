"""What OpenAI's batches do in their own way."""

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
from tests.providers.batching import Batching, batching
from tests.providers.test_batch_all import session_at


@pytest.fixture
async def b(config: MakeConfig, sim: Simulator, tmp_path: Path) -> AsyncIterator[Batching]:
    async with batching(config("openai"), sim, tmp_path) as opened:
        yield opened


async def test_what_is_sent(b: Batching) -> None:
    """A row is a call of its own, and the batch carries our name and count."""
    rows = b.rows("Hello?", "And you?")
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
    file_id = await b.file(rows, "run-7.jsonl")
    await b.session.submit_batch("tag-7", rows, file_id)
    assert b.sim.requests[-1].body == {
        "input_file_id": file_id,
        "endpoint": "/v1/responses",
        "completion_window": "24h",
        "metadata": {"pollux_tag": "tag-7", "pollux_rows": "2"},
    }
    (file,) = b.sim.files
    assert (file.purpose, file.filename, file.mime_type) == ("batch", "run-7.jsonl", "application/jsonl")


async def test_a_batch_that_somebody_else_made_has_no_tag(b: Batching) -> None:
    """Nor rows, until OpenAI has counted them."""
    rows = b.rows("Hello?")
    body = {"input_file_id": await b.file(rows), "endpoint": "/v1/responses", "completion_window": "24h"}
    await b.session.client.post("/batches", body=body, cast_to=object)
    ((listed,),) = await b.listed()
    assert (listed.tag, listed.total) == (None, None)
    assert (await b.after(listed)).total == 1


async def test_results_are_in_two_files(b: Batching) -> None:
    """One after the other, each ending with the end of a line."""
    batch = await b.ended("Fine", "[[simulate: status=400]]")
    assert len(batch.results) == 2
    results = await b.results(batch)
    assert [(each.key, each.status) for each in results] == [("r0", "succeeded"), ("r1", "failed")]


async def test_a_file_without_a_last_end_of_line_gets_one() -> None:
    """Or else two results would be in one line."""
    line = b'{"custom_id": "r0", "response": {"status_code": 200, "body": {}}}'
    async with scripted(http(line)) as server, session_at(server, "openai") as session:
        batch = module._batch({"id": "b1", "status": "completed", "output_file_id": "f1", "error_file_id": "f2"})
        taken = io.BytesIO()
        await session.download_batch(batch, taken)
    assert taken.getvalue() == (line + b"\n") * 2


async def test_a_file_is_asked_for_by_its_name_alone() -> None:
    """Not by a way to somewhere else."""
    asked: list[bytes] = []

    async with scripted(http(b"")) as server, session_at(server, "openai") as session:
        serve = server._answer

        async def noted(head: bytes, body: bytes, writer: Any) -> None:
            asked.append(head.split()[1])
            await serve(head, body, writer)

        server._answer = noted  # type: ignore[method-assign]  # to see the path
        await session.download_batch(module._batch({"id": "b1", "output_file_id": "../models?x"}), io.BytesIO())
        with pytest.raises(APIError, match="cannot be read"):
            await session.inspect_batch("../models?x")
    assert len(asked) == 2
    assert all(b"?" not in path and b"/models" not in path.replace(b"%2F", b"") for path in asked)


async def test_a_batch_says_which_line_is_wrong(b: Batching) -> None:
    """And that it was not the queue."""
    rows = b.write(b'{"custom_id": "r0"}')
    batch = await b.after(await b.submit(rows))
    assert (batch.state, batch.queue_full) == ("failed", False)
    assert str(batch.problem).startswith("line 1: ")


def test_a_queue_that_is_full_is_the_only_problem() -> None:
    """With another, handing it in again is of no use."""

    def told(*codes: str | None) -> bool:
        problems = [{"code": code, "message": "x"} for code in codes]
        return module._batch({"id": "b", "status": "failed", "errors": {"data": problems}}).queue_full

    assert told("token_limit_exceeded")
    assert told("token_limit_exceeded", "token_limit_exceeded")
    assert not told("token_limit_exceeded", "invalid_json_line")
    assert not told(None)
    assert not told()


@pytest.mark.parametrize("errors", [None, 5, [], {}, {"data": None}, {"data": 5}, {"data": [None, 5]}, {"data": {}}])
def test_errors_that_are_none_cost_nothing(errors: Any) -> None:
    batch = module._batch({"id": "b", "status": "failed", "errors": errors, "request_counts": 5, "metadata": []})
    assert (batch.state, batch.queue_full) == ("failed", False)


LINES: dict[str, tuple[Any, tuple[str, str | None, bool | None]]] = {
    "expired": ({"error": {"code": "batch_expired", "message": "m"}}, ("expired", "batch_expired", True)),
    "cancelled": ({"error": {"code": "batch_cancelled", "message": "m"}}, ("cancelled", "batch_cancelled", True)),
    "canceled": ({"error": {"code": "batch_canceled", "message": "m"}}, ("cancelled", "batch_canceled", True)),
    "a word of its own": ({"error": {"code": "moon_phase", "message": "m"}}, ("failed", "moon_phase", None)),
    "a code that is known": ({"error": {"code": "server_error", "message": "m"}}, ("failed", "server_error", True)),
    "out of funds": (
        {"response": {"status_code": 429, "body": {"error": {"code": "insufficient_quota", "message": "m"}}}},
        ("failed", "insufficient_quota", False),
    ),
    "a type": (
        {"response": {"status_code": 400, "body": {"error": {"code": None, "type": "bad", "message": "m"}}}},
        ("failed", "bad", False),
    ),
    "a status alone": ({"response": {"status_code": 502, "body": "m"}}, ("failed", "502", True)),
    "no status": ({"response": {"body": {"error": {"message": "m"}}}}, ("failed", None, None)),
    "an error that is text": ({"error": "m"}, ("failed", None, None)),
}


@pytest.mark.parametrize("name", LINES)
def test_a_row_that_failed_says_how(name: str) -> None:
    said, expected = LINES[name]
    result = module.result(json.dumps({"custom_id": "r0", "response": None, "error": None, **said}).encode())
    assert (result.key, result.error, result.response) == ("r0", "m", None)
    assert (result.status, result.code, result.retryable) == expected


async def test_a_response_that_failed_is_for_the_reader_of_answers(b: Batching) -> None:
    """It came under 200, and has its tokens."""
    b.sim.fail(Fault(kind="error_200"), operation="batch.row")
    (result,) = await b.results(await b.ended("Hello?"))
    assert (result.status, result.code) == ("succeeded", "failed")
    with pytest.raises(UpstreamError):
        b.answer(result)


async def test_two_kinds_of_files_are_listed(b: Batching) -> None:
    """Those of calls, and those with rows; not the results."""
    await b.upload("source.txt", "text/plain", b"Hello")
    await b.ended("Hello?")
    names = [name async for _, name in b.session.files.names(b.session.client)]
    assert sorted(names) == ["rows.jsonl", "source.txt"]
