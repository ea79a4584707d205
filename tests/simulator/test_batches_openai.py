"""What OpenAI's Batch API does in its own way."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import openai
import pytest

from pollux_flows.simulator import Fault, Simulator

from .batchers import OpenAI, jsonl
from .conftest import Time

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


async def submitted(sdk: openai.AsyncOpenAI, content: bytes, **more: Any) -> str:
    file = await sdk.files.create(file=("in.jsonl", content), purpose="batch")
    batch = await sdk.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h", **more)
    return batch.id


async def test_a_batch_says_what_it_was_asked(sdk: openai.AsyncOpenAI, clock: Time) -> None:
    """Again and again: metadata, input, times."""
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


async def test_counts_times_and_usage_grow(batcher: OpenAI, sim: Simulator, clock: Time) -> None:
    """Each at its time."""
    sim.batch_s = 100
    batch_id = await batcher.submit(*["four"] * 9, "[[simulate: status=500]]")
    start = int(clock.now)
    seen = []
    for passes in (0, 50, 45, 5):
        clock.now += passes
        batch = await batcher.sdk.batches.retrieve(batch_id)
        counts = batch.request_counts
        assert counts is not None
        times = (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        seen.append(((counts.total, counts.completed, counts.failed), tuple(t and t - start for t in times)))
    assert seen == [
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


async def test_what_failed_is_in_a_file_of_its_own(batcher: OpenAI, clock: Time) -> None:
    """With the status and the body that a request of its own would have got."""
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


async def test_without_results_there_is_no_file(batcher: OpenAI, clock: Time) -> None:
    """Neither of those that succeeded, nor of those that did not."""
    good, bad = await batcher.submit("Fine"), await batcher.submit("[[simulate: status=500]]")
    clock.now += 1
    fine, broken = await batcher.sdk.batches.retrieve(good), await batcher.sdk.batches.retrieve(bad)
    assert (fine.output_file_id is None, fine.error_file_id is None) == (False, True)
    assert (broken.output_file_id is None, broken.error_file_id is None) == (True, False)


async def test_result_files_are_files(batcher: OpenAI, sim: Simulator, clock: Time) -> None:
    """They are listed, deleted, and they expire: after 30 days, unless it was said otherwise."""
    sdk = batcher.sdk
    usual = await batcher.submit("Hello?")
    lasts: Any = {"anchor": "created_at", "seconds": 3600}
    short = await submitted(sdk, jsonl(ROW), output_expires_after=lasts)
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


async def test_the_input_may_go_once_the_batch_is_there(batcher: OpenAI, clock: Time) -> None:
    """It was read when the batch was created."""
    batch_id = await batcher.submit("Hello?")
    batch = await batcher.sdk.batches.retrieve(batch_id)
    await batcher.sdk.files.delete(batch.input_file_id)
    clock.now += 1
    assert [result.outcome for result in await batcher.results(batch_id)] == ["succeeded"]


@pytest.mark.parametrize(("hours", "outcome"), [(1, "succeeded"), (20, "errored")])
async def test_rows_are_answered_when_the_batch_ends(
    hours: int, outcome: str, batcher: OpenAI, sim: Simulator, clock: Time
) -> None:
    """Not when somebody looks, a week later: a file that they need must be there until then, and no longer."""
    lasts: Any = {"anchor": "created_at", "seconds": 12 * 3600}
    file = await batcher.sdk.files.create(file=("a.pdf", b"%PDF"), purpose="user_data", expires_after=lasts)
    sim.batch(takes_s=hours * 3600)
    content = [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": "What is it?"}]
    batch_id = await submitted(
        batcher.sdk, jsonl({**ROW, "body": {**ROW["body"], "input": [{"role": "user", "content": content}]}})
    )
    clock.now += 7 * DAY
    (result,) = await batcher.results(batch_id)
    assert result.outcome == outcome


async def test_a_file_may_be_deleted_when_the_batch_has_ended(batcher: OpenAI, sim: Simulator, clock: Time) -> None:
    """Also before anybody has looked at the results; one that is deleted earlier is missed."""
    outcomes = []
    for hours in (1, 3):
        file = await batcher.sdk.files.create(file=("a.pdf", b"%PDF"), purpose="user_data")
        sim.batch(takes_s=hours * 3600)
        said = [{"role": "user", "content": [{"type": "input_file", "file_id": file.id}]}]
        batch_id = await submitted(batcher.sdk, jsonl({**ROW, "body": {**ROW["body"], "input": said}}))
        clock.now += 2 * 3600
        await batcher.sdk.files.delete(file.id)
        clock.now += DAY
        outcomes += [result.outcome for result in await batcher.results(batch_id)]
    assert outcomes == ["succeeded", "errored"]


INVALID: dict[str, tuple[bytes, str, int | None, str | None]] = {
    "a line that is no JSON": (jsonl(ROW) + b"{", "invalid_json_line", 2, None),
    "a line that is no object": (jsonl(ROW, [1]), "invalid_json_line", 2, None),
    "an empty line": (jsonl(ROW) + b"\n" + jsonl({**ROW, "custom_id": "r1"}), "invalid_json_line", 2, None),
    "no id": (jsonl({**ROW, "custom_id": ""}), "missing_required_parameter", 1, "custom_id"),
    "an id that is none": (jsonl({**ROW, "custom_id": 7}), "invalid_type", 1, "custom_id"),
    "an id twice": (jsonl(ROW, ROW), "duplicate_custom_id", 2, "custom_id"),
    "another method": (jsonl({**ROW, "method": "GET"}), "invalid_method", 1, "method"),
    "another endpoint": (jsonl({**ROW, "url": "/v1/embeddings"}), "invalid_url", 1, "url"),
    "no body": (jsonl({**ROW, "body": {}}), "missing_required_parameter", 1, "body"),
    "no model": (jsonl({**ROW, "body": {"input": "x"}}), "missing_required_parameter", 1, "body.model"),
    "an unknown model": (jsonl({**ROW, "body": {"model": "x", "input": "x"}}), "model_not_found", 1, "body.model"),
    "two models": (
        jsonl(ROW, {**ROW, "custom_id": "r1", "body": {"model": "gpt-4.1", "input": "x"}}),
        "mismatched_model",
        2,
        "body.model",
    ),
    "nothing but a line end": (b"\n", "invalid_json_line", 1, None),
}


@pytest.mark.parametrize("name", INVALID)
async def test_openai_finds_an_input_invalid(name: str, sdk: openai.AsyncOpenAI, sim: Simulator, clock: Time) -> None:
    """After it has accepted the batch, with the line that is wrong."""
    content, code, line, param = INVALID[name]
    sim.batch_s = 100
    batch_id = await submitted(sdk, content)
    assert (await sdk.batches.retrieve(batch_id)).errors is None
    clock.now += 10
    batch = await sdk.batches.retrieve(batch_id)
    assert (batch.status, batch.failed_at) == ("failed", int(clock.now))
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(e.code, e.line, e.param) for e in batch.errors.data] == [(code, line, param)]
    assert all(error.message for error in batch.errors.data)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


async def test_too_many_requests_are_invalid(
    sdk: openai.AsyncOpenAI, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 50,000."""
    monkeypatch.setattr("pollux_flows.simulator.openai.batch_input.LIMIT_ROWS", 2)
    fits, is_too_long = [
        await submitted(sdk, jsonl(*({**ROW, "custom_id": f"r{n}"} for n in range(count)))) for count in (2, 3)
    ]
    clock.now += 1
    assert (await sdk.batches.retrieve(fits)).status == "completed"
    assert (await sdk.batches.retrieve(is_too_long)).status == "failed"


async def test_a_full_queue_may_show_only_later(sdk: openai.AsyncOpenAI, sim: Simulator, clock: Time) -> None:
    """As a batch that failed, which is how the service really does it."""
    sim.batch(end="queue_full")
    batch_id = await submitted(sdk, jsonl(ROW))
    clock.now += 1
    batch = await sdk.batches.retrieve(batch_id)
    assert batch.errors is not None
    assert batch.errors.data is not None
    (error,) = batch.errors.data
    assert (batch.status, error.code) == ("failed", "token_limit_exceeded")
    assert "Enqueued token limit reached for gpt-4.1-mini" in str(error.message)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no file": ({"input_file_id": None}, "input_file_id"),
    "an unknown file": ({"input_file_id": "file-nobodys"}, "input_file_id"),
    "another window": ({"completion_window": "1h"}, "completion_window"),
    "no window": ({"completion_window": None}, "completion_window"),
    "an unknown endpoint": ({"endpoint": "/v1/anything"}, "endpoint"),
    "an endpoint that the simulator has not": ({"endpoint": "/v1/embeddings"}, "endpoint"),
    "an unknown field": ({"colour": "red"}, "colour"),
    "too much metadata": ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    "a long key": ({"metadata": {"k" * 65: "x"}}, "metadata"),
    "a long value": ({"metadata": {"k": "x" * 513}}, "metadata.k"),
    "metadata that is no text": ({"metadata": {"k": 1}}, "metadata.k"),
    "results that go too soon": (
        {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
        "output_expires_after.seconds",
    ),
    "results that stay too long": (
        {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
        "output_expires_after.seconds",
    ),
    "results without an anchor": ({"output_expires_after": {"seconds": 3600}}, "output_expires_after.anchor"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_openai_refuses_a_batch(
    name: str, http: httpx.AsyncClient, sim: Simulator, sdk: openai.AsyncOpenAI
) -> None:
    """And names the field that is wrong."""
    changes, param = REFUSED[name]
    file = await sdk.files.create(file=("in.jsonl", jsonl(ROW)), purpose="batch")
    asked = {"input_file_id": file.id, "endpoint": "/v1/responses", "completion_window": "24h", **changes}
    answer = await http.post(BATCHES, json={key: value for key, value in asked.items() if value is not None})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param
    assert sim.batches == []


async def test_a_file_for_something_else_is_refused(sdk: openai.AsyncOpenAI, sim: Simulator) -> None:
    """Although there are requests in it."""
    file = await sdk.files.create(file=("in.jsonl", jsonl(ROW)), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="expected 'batch', but got 'user_data'"):
        await sdk.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    assert sim.batches == []


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"after": "x"}])
async def test_a_list_that_makes_no_sense_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    """Not answered with whatever comes to mind."""
    answer = await http.get(BATCHES, params=query)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == next(iter(query))


async def test_a_page_is_twenty_batches(batcher: OpenAI) -> None:
    """Unless more are asked for."""
    for _ in range(21):
        await batcher.submit("Hello?")
    page = await batcher.sdk.batches.list()
    assert (len(page.data), page.has_more) == (20, True)
    page = await batcher.sdk.batches.list(after=page.data[-1].id)
    assert (len(page.data), page.has_more) == (1, False)


async def test_cancelling_twice_is_cancelling_once(batcher: OpenAI, sim: Simulator, clock: Time) -> None:
    """Whoever lost the first answer may ask again."""
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


async def test_a_row_can_come_back_cut(batcher: OpenAI, sim: Simulator, clock: Time) -> None:
    """One line of the results that is no JSON, between others that are."""
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


async def test_a_row_may_say_200_and_mean_an_error(batcher: OpenAI, clock: Time) -> None:
    """As a response that failed; it is among the good ones."""
    batch_id = await batcher.submit("[[simulate: error_200]]")
    clock.now += 1
    batch = await batcher.sdk.batches.retrieve(batch_id)
    assert batch.output_file_id
    line = json.loads((await batcher.sdk.files.content(batch.output_file_id)).text)
    assert line["response"]["body"]["status"] == "failed"
    assert batch.error_file_id is None
