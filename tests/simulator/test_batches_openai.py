"""OpenAI's Batch API: behaviour that other batch systems do not share."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import openai
import pytest

from pollux_flows.simulator import Fault, Simulator

from .batchers import OpenAI, jsonl
from .conftest import Clock

BATCHES = "/openai/v1/batches"
ROW: dict[str, Any] = {
    "custom_id": "r0",
    "method": "POST",
    "url": "/v1/responses",
    "body": {"model": "gpt-4.1-mini", "input": "Hello?"},
}
DAY = 86_400


@pytest.fixture
async def batcher(sim: Simulator, origin: str) -> AsyncIterator[OpenAI]:
    async with AsyncExitStack() as stack:
        yield await OpenAI.open(sim.base_url("openai", origin), stack)


@pytest.fixture
def sdk(batcher: OpenAI) -> openai.AsyncOpenAI:
    return batcher.sdk


async def submit(sdk: openai.AsyncOpenAI, content: bytes, **more: Any) -> str:
    file = await sdk.files.create(file=("in.jsonl", content), purpose="batch")
    batch = await sdk.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h", **more)
    return batch.id


async def test_a_batch_returns_its_metadata_input_and_times(sdk: openai.AsyncOpenAI, clock: Clock) -> None:
    """The create response and the list return the metadata, the input file and the times."""
    file = await sdk.files.create(file=("in.jsonl", jsonl(ROW)), purpose="batch")
    created = await sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/responses", completion_window="24h", metadata={"run": "a", "part": "1"}
    )
    now = int(clock.now)
    assert (created.status, created.input_file_id, created.created_at) == ("validating", file.id, now)
    assert (created.expires_at, created.metadata) == (now + DAY, {"run": "a", "part": "1"})
    clock.now += 1
    (listed,) = (await sdk.batches.list()).data
    assert (listed.id, listed.metadata, listed.model) == (created.id, created.metadata, "gpt-4.1-mini")


async def test_counts_times_and_usage_grow(batcher: OpenAI, sim: Simulator, clock: Clock) -> None:
    """Counts and times appear as the batch proceeds, and the usage is the sum of its rows."""
    sim.batch_s = 100
    batch_id = await batcher.submit(*["four"] * 9, "[[simulate: status=500]]")
    start = int(clock.now)
    progress = []
    for passes in (0, 50, 45, 5):
        clock.now += passes
        batch = await batcher.sdk.batches.retrieve(batch_id)
        counts = batch.request_counts
        assert counts is not None
        times = (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        progress.append(((counts.total, counts.completed, counts.failed), tuple(t and t - start for t in times)))
    assert progress == [
        ((0, 0, 0), (None, None, None)),
        ((10, 5, 0), (10, None, None)),
        ((10, 9, 0), (10, 90, None)),
        ((10, 9, 1), (10, 90, 100)),
    ]
    results = await batcher.results(batch_id)
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(result.input_tokens for result in results) == 9
    assert batch.usage.output_tokens == sum(result.output_tokens for result in results)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens


async def test_failed_rows_are_in_the_error_file(batcher: OpenAI, clock: Clock) -> None:
    """A failed row has the status and body of a realtime error response."""
    batch_id = await batcher.submit("Fine", "[[simulate: status=429 retry_after=3]]")
    clock.now += 1
    batch = await batcher.sdk.batches.retrieve(batch_id)
    assert batch.output_file_id
    assert batch.error_file_id
    (good,) = [json.loads(line) for line in (await batcher.sdk.files.content(batch.output_file_id)).text.splitlines()]
    (bad,) = [json.loads(line) for line in (await batcher.sdk.files.content(batch.error_file_id)).text.splitlines()]
    assert (good["custom_id"], good["response"]["status_code"], good["error"]) == ("r0", 200, None)
    assert (bad["custom_id"], bad["response"]["status_code"], bad["error"]) == ("r1", 429, None)
    assert bad["response"]["body"]["error"]["code"] == "rate_limit_exceeded"
    assert good["id"] != bad["id"]


async def test_a_results_file_without_rows_is_not_created(batcher: OpenAI, clock: Clock) -> None:
    """A batch without failed rows has no error file, and one without succeeded rows no output file."""
    good, bad = await batcher.submit("Fine"), await batcher.submit("[[simulate: status=500]]")
    clock.now += 1
    fine, broken = await batcher.sdk.batches.retrieve(good), await batcher.sdk.batches.retrieve(bad)
    assert (fine.output_file_id is None, fine.error_file_id is None) == (False, True)
    assert (broken.output_file_id is None, broken.error_file_id is None) == (True, False)


async def test_results_files_are_ordinary_files(batcher: OpenAI, sim: Simulator, clock: Clock) -> None:
    """Results files are listed, can be deleted, and expire: after 30 days unless the batch sets a time."""
    sdk = batcher.sdk
    usual = await batcher.submit("Hello?")
    expires_after: Any = {"anchor": "created_at", "seconds": 3600}
    short = await submit(sdk, jsonl(ROW), output_expires_after=expires_after)
    clock.now += 1
    for batch_id, seconds in ((usual, 30 * DAY), (short, 3600)):
        batch = await sdk.batches.retrieve(batch_id)
        assert batch.completed_at
        assert batch.output_file_id
        file = await sdk.files.retrieve(batch.output_file_id)
        assert (file.purpose, file.expires_at) == ("batch_output", batch.completed_at + seconds)
        assert file.filename == f"{batch_id}_output.jsonl"
    listed = [file.id async for file in sdk.files.list(purpose="batch_output")]
    assert len(listed) == 2
    assert set(listed) <= {file.id for file in sim.files}
    clock.now += 3601
    batch = await sdk.batches.retrieve(short)
    assert batch.output_file_id
    with pytest.raises(openai.NotFoundError):
        await sdk.files.content(batch.output_file_id)
    batch = await sdk.batches.retrieve(usual)
    assert batch.output_file_id
    await sdk.files.delete(batch.output_file_id)
    with pytest.raises(openai.NotFoundError):
        await sdk.files.content(batch.output_file_id)


async def test_the_input_file_may_be_deleted_after_the_create(batcher: OpenAI, clock: Clock) -> None:
    """A batch reads its input file when it is created."""
    batch_id = await batcher.submit("Hello?")
    batch = await batcher.sdk.batches.retrieve(batch_id)
    await batcher.sdk.files.delete(batch.input_file_id)
    clock.now += 1
    assert [result.outcome for result in await batcher.results(batch_id)] == ["succeeded"]


@pytest.mark.parametrize(("hours", "outcome"), [(1, "succeeded"), (20, "errored")])
async def test_rows_are_answered_when_the_batch_ends(
    hours: int, outcome: str, batcher: OpenAI, sim: Simulator, clock: Clock
) -> None:
    """Rows are answered as of the end of the batch, with the files that exist then, whenever results are fetched."""
    expires_after: Any = {"anchor": "created_at", "seconds": 12 * 3600}
    file = await batcher.sdk.files.create(file=("a.pdf", b"%PDF"), purpose="user_data", expires_after=expires_after)
    sim.batch(takes_s=hours * 3600)
    content = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": "What is it?"}]
    batch_id = await submit(
        batcher.sdk, jsonl({**ROW, "body": {**ROW["body"], "input": [{"role": "user", "content": content}]}})
    )
    clock.now += 7 * DAY
    (result,) = await batcher.results(batch_id)
    assert result.outcome == outcome


async def test_a_file_may_be_deleted_once_the_batch_has_ended(batcher: OpenAI, sim: Simulator, clock: Clock) -> None:
    """A row fails if its file is deleted before the end; after the end the file is not needed."""
    outcomes = []
    for hours in (1, 3):
        file = await batcher.sdk.files.create(file=("a.pdf", b"%PDF"), purpose="user_data")
        sim.batch(takes_s=hours * 3600)
        messages = [{"role": "user", "content": [{"type": "input_file", "file_id": file.id}]}]
        batch_id = await submit(batcher.sdk, jsonl({**ROW, "body": {**ROW["body"], "input": messages}}))
        clock.now += 2 * 3600
        await batcher.sdk.files.delete(file.id)
        clock.now += DAY
        outcomes += [result.outcome for result in await batcher.results(batch_id)]
    assert outcomes == ["succeeded", "errored"]


INVALID_FILES: dict[str, tuple[bytes, str, int | None, str | None]] = {
    "line that is not JSON": (jsonl(ROW) + b"{", "invalid_json_line", 2, None),
    "line that is not an object": (jsonl(ROW, [1]), "invalid_json_line", 2, None),
    "empty line": (jsonl(ROW) + b"\n" + jsonl({**ROW, "custom_id": "r1"}), "invalid_json_line", 2, None),
    "no custom_id": (jsonl({**ROW, "custom_id": ""}), "missing_required_parameter", 1, "custom_id"),
    "custom_id that is not a string": (jsonl({**ROW, "custom_id": 7}), "invalid_type", 1, "custom_id"),
    "duplicate custom_id": (jsonl(ROW, ROW), "duplicate_custom_id", 2, "custom_id"),
    "unsupported method": (jsonl({**ROW, "method": "GET"}), "invalid_method", 1, "method"),
    "endpoint of another batch": (jsonl({**ROW, "url": "/v1/embeddings"}), "invalid_url", 1, "url"),
    "no body": (jsonl({**ROW, "body": {}}), "missing_required_parameter", 1, "body"),
    "no model": (jsonl({**ROW, "body": {"input": "x"}}), "missing_required_parameter", 1, "body.model"),
    "unknown model": (jsonl({**ROW, "body": {"model": "x", "input": "x"}}), "model_not_found", 1, "body.model"),
    "two models": (
        jsonl(ROW, {**ROW, "custom_id": "r1", "body": {"model": "gpt-4.1", "input": "x"}}),
        "mismatched_model",
        2,
        "body.model",
    ),
    "only a line break": (b"\n", "invalid_json_line", 1, None),
}


@pytest.mark.parametrize("name", INVALID_FILES)
async def test_an_invalid_input_file_fails_the_batch(
    name: str, sdk: openai.AsyncOpenAI, sim: Simulator, clock: Clock
) -> None:
    """The batch is accepted and fails later, with the number of the invalid line."""
    content, code, line, param = INVALID_FILES[name]
    sim.batch_s = 100
    batch_id = await submit(sdk, content)
    assert (await sdk.batches.retrieve(batch_id)).errors is None
    clock.now += 10
    batch = await sdk.batches.retrieve(batch_id)
    assert (batch.status, batch.failed_at) == ("failed", int(clock.now))
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(e.code, e.line, e.param) for e in batch.errors.data] == [(code, line, param)]
    assert all(error.message for error in batch.errors.data)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


async def test_an_input_file_with_too_many_rows_fails_the_batch(
    sdk: openai.AsyncOpenAI, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API's limit is 50,000 rows."""
    monkeypatch.setattr("pollux_flows.simulator.openai.batch_input.LIMIT_ROWS", 2)
    fits, too_long = [
        await submit(sdk, jsonl(*({**ROW, "custom_id": f"r{n}"} for n in range(count)))) for count in (2, 3)
    ]
    clock.now += 1
    assert (await sdk.batches.retrieve(fits)).status == "completed"
    assert (await sdk.batches.retrieve(too_long)).status == "failed"


async def test_a_full_queue_may_fail_an_accepted_batch(sdk: openai.AsyncOpenAI, sim: Simulator, clock: Clock) -> None:
    """A batch can be accepted and fail later because the queue is full, as in the real service."""
    sim.batch(end="queue_full")
    batch_id = await submit(sdk, jsonl(ROW))
    clock.now += 1
    batch = await sdk.batches.retrieve(batch_id)
    assert batch.errors is not None
    assert batch.errors.data is not None
    (error,) = batch.errors.data
    assert (batch.status, error.code) == ("failed", "token_limit_exceeded")
    assert "Enqueued token limit reached for gpt-4.1-mini" in str(error.message)


REFUSED_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no file": ({"input_file_id": None}, "input_file_id"),
    "unknown file": ({"input_file_id": "file-unknown"}, "input_file_id"),
    "unsupported completion window": ({"completion_window": "1h"}, "completion_window"),
    "no completion window": ({"completion_window": None}, "completion_window"),
    "unknown endpoint": ({"endpoint": "/v1/anything"}, "endpoint"),
    "endpoint that the simulator does not have": ({"endpoint": "/v1/embeddings"}, "endpoint"),
    "unknown field": ({"colour": "red"}, "colour"),
    "too much metadata": ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    "metadata key that is too long": ({"metadata": {"k" * 65: "x"}}, "metadata"),
    "metadata value that is too long": ({"metadata": {"k": "x" * 513}}, "metadata.k"),
    "metadata value that is not a string": ({"metadata": {"k": 1}}, "metadata.k"),
    "lifetime of results below the minimum": (
        {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
        "output_expires_after.seconds",
    ),
    "lifetime of results above the maximum": (
        {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
        "output_expires_after.seconds",
    ),
    "lifetime of results without an anchor": (
        {"output_expires_after": {"seconds": 3600}},
        "output_expires_after.anchor",
    ),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
async def test_openai_refuses_a_batch(
    name: str, http: httpx.AsyncClient, sim: Simulator, sdk: openai.AsyncOpenAI
) -> None:
    """An invalid batch request is refused with the name of the field."""
    changes, param = REFUSED_REQUESTS[name]
    file = await sdk.files.create(file=("in.jsonl", jsonl(ROW)), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": "/v1/responses", "completion_window": "24h", **changes}
    answer = await http.post(BATCHES, json={key: value for key, value in body.items() if value is not None})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param
    assert sim.batches == []


async def test_a_file_of_another_purpose_is_refused(sdk: openai.AsyncOpenAI, sim: Simulator) -> None:
    """A file of another purpose is refused even if its content is valid batch input."""
    file = await sdk.files.create(file=("in.jsonl", jsonl(ROW)), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="expected 'batch', but got 'user_data'"):
        await sdk.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    assert sim.batches == []


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"after": "x"}])
async def test_an_invalid_list_query_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    """An invalid list query is refused with the name of the parameter."""
    answer = await http.get(BATCHES, params=query)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == next(iter(query))


async def test_a_page_has_twenty_batches_by_default(batcher: OpenAI) -> None:
    for _ in range(21):
        await batcher.submit("Hello?")
    page = await batcher.sdk.batches.list()
    assert (len(page.data), page.has_more) == (20, True)
    page = await batcher.sdk.batches.list(after=page.data[-1].id)
    assert (len(page.data), page.has_more) == (1, False)


async def test_cancelling_twice_has_the_effect_of_once(batcher: OpenAI, sim: Simulator, clock: Clock) -> None:
    """A client that lost the first response may repeat the request."""
    sim.batch_s = 100
    batch_id = await batcher.submit("Hello?")
    first = await batcher.sdk.batches.cancel(batch_id)
    clock.now += 5
    second = await batcher.sdk.batches.cancel(batch_id)
    assert (second.status, second.cancelling_at) == ("cancelling", first.cancelling_at)
    clock.now += 5
    batch = await batcher.sdk.batches.retrieve(batch_id)
    assert (batch.status, batch.cancelled_at) == ("cancelled", int(clock.now))
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'cancelled'"):
        await batcher.sdk.batches.cancel(batch_id)


async def test_a_result_line_can_be_cut(batcher: OpenAI, sim: Simulator, clock: Clock) -> None:
    """A fault can make one line of the results invalid JSON, among valid ones."""
    sim.fail(Fault(kind="malformed"), operation="batch.row")
    batch_id = await batcher.submit(*["Hello?"] * 5)
    clock.now += 1
    batch = await batcher.sdk.batches.retrieve(batch_id)
    assert batch.output_file_id
    bad = 0
    for line in (await batcher.sdk.files.content(batch.output_file_id)).text.splitlines():
        try:
            json.loads(line)
        except json.JSONDecodeError:
            bad += 1
    assert bad == 1


async def test_a_row_with_status_200_may_contain_an_error(batcher: OpenAI, clock: Clock) -> None:
    """A response that failed is in the output file with status 200, not in the error file."""
    batch_id = await batcher.submit("[[simulate: error_200]]")
    clock.now += 1
    batch = await batcher.sdk.batches.retrieve(batch_id)
    assert batch.output_file_id
    line = json.loads((await batcher.sdk.files.content(batch.output_file_id)).text)
    assert line["response"]["body"]["status"] == "failed"
    assert batch.error_file_id is None
