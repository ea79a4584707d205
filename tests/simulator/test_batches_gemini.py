"""Gemini's batches: behaviour that other batch systems do not share."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from google import genai

from pollux_flows.simulator import Simulator

from .batchers import Gemini, GeminiFile, jsonl
from .conftest import Clock

BATCHES = "/gemini/v1/batches"
CREATE = "/gemini/v1/models/gemini-2.5-flash:batchGenerateContent"
REQUEST: dict[str, Any] = {"contents": [{"parts": [{"text": "Hello?"}]}]}
HOUR = 3600


@pytest.fixture
async def batcher(sim: Simulator, origin: str) -> AsyncIterator[Gemini]:
    async with AsyncExitStack() as stack:
        yield await Gemini.open(sim.base_url("gemini", origin), stack)


@pytest.fixture
def sdk(batcher: Gemini) -> genai.Client:
    return batcher.sdk


async def upload(sdk: genai.Client, content: bytes, mime_type: str = "application/jsonl") -> str:
    return str((await sdk.aio.files.upload(file=io.BytesIO(content), config={"mime_type": mime_type})).name)


def inline(*requests: Any, **more: Any) -> dict[str, Any]:
    return {"batch": {"inputConfig": {"requests": {"requests": list(requests)}}, **more}}


async def test_a_batch_returns_its_model_name_and_times(sdk: genai.Client, clock: Clock, sim: Simulator) -> None:
    """The SDK shows model, display name and times of a batch, but not its counts."""
    sim.batch_s = 100
    requests: Any = [{"contents": "Hello?"}] * 2
    job = await sdk.aio.batches.create(model="gemini-2.5-flash", src=requests, config={"display_name": "run-1"})
    assert (job.display_name, job.model, job.end_time) == ("run-1", "models/gemini-2.5-flash", None)
    clock.now += 100
    job = await sdk.aio.batches.get(name=str(job.name))
    assert job.create_time
    assert job.end_time
    assert (job.display_name, (job.end_time - job.create_time).total_seconds()) == ("run-1", 100)
    (listed,) = [job async for job in await sdk.aio.batches.list()]
    assert (listed.name, listed.display_name, listed.state) == (job.name, "run-1", job.state)
    assert job.completion_stats is None


async def test_the_wire_has_counts_and_errors(
    batcher: Gemini, sim: Simulator, clock: Clock, http: httpx.AsyncClient
) -> None:
    """The HTTP response has counts and errors that the SDK does not pass on."""
    sim.batch_s = 100
    batch_id = await batcher.submit("Fine", "[[simulate: status=500]]", "Fine, too")
    operation = (await http.get(f"/gemini/v1/{batch_id}")).json()
    assert operation["metadata"]["batchStats"] == {"requestCount": "3", "pendingRequestCount": "3"}
    assert "done" not in operation
    clock.now += 100
    operation = (await http.get(f"/gemini/v1/{batch_id}")).json()
    assert operation["metadata"]["batchStats"] == {
        "requestCount": "3", "successfulRequestCount": "2", "failedRequestCount": "1",
    }  # fmt: skip
    assert operation["done"] is True
    sim.batch(end="failed", message="It broke")
    batch_id = await batcher.submit("Hello?")
    clock.now += 100
    operation = (await http.get(f"/gemini/v1/{batch_id}")).json()
    assert (operation["done"], operation["error"]) == (True, {"code": 13, "message": "It broke"})


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_an_expired_or_cancelled_batch_has_no_results(
    end: str, batcher: Gemini, sim: Simulator, clock: Clock
) -> None:
    """The job that the SDK returns has no `dest`."""
    sim.batch(end=end)
    batch_id = await batcher.submit("Hello?")
    clock.now += 1
    job = await batcher.sdk.aio.batches.get(name=batch_id)
    assert job.dest is None


async def test_row_metadata_is_returned_unchanged(sdk: genai.Client, clock: Clock) -> None:
    """The metadata of an inline row is returned with its result."""
    requests: Any = [{"contents": "Hello?", "metadata": {"pollux_request_id": "r0", "and_more": "x"}}]
    job = await sdk.aio.batches.create(model="gemini-2.5-flash", src=requests)
    clock.now += 1
    job = await sdk.aio.batches.get(name=str(job.name))
    assert job.dest is not None
    assert job.dest.inlined_responses is not None
    assert job.dest.inlined_responses[0].metadata == {"pollux_request_id": "r0", "and_more": "x"}


async def test_rows_without_a_key_keep_their_order(sdk: genai.Client, clock: Clock) -> None:
    """Results of rows without a key come in order, inline or in a file, since nothing else identifies them."""
    prompts = [f"Question {number}" for number in range(9)]
    requests: Any = [{"contents": prompt} for prompt in prompts]
    job = await sdk.aio.batches.create(model="gemini-2.5-flash", src=requests)
    lines = [{"request": {"contents": [{"parts": [{"text": prompt}]}]}} for prompt in prompts]
    file_job = await sdk.aio.batches.create(model="gemini-2.5-flash", src=await upload(sdk, jsonl(*lines)))
    clock.now += 1
    job = await sdk.aio.batches.get(name=str(job.name))
    assert job.dest is not None
    answers = job.dest.inlined_responses or []
    assert [answer.response and answer.response.text for answer in answers] == [
        f"Simulated answer to: {prompt}" for prompt in prompts
    ]
    file_job = await sdk.aio.batches.get(name=str(file_job.name))
    assert file_job.dest is not None
    assert file_job.dest.file_name is not None
    content = await sdk.aio.files.download(file=file_job.dest.file_name)
    for line, prompt in zip(content.splitlines(), prompts, strict=True):
        assert prompt in line.decode()
        assert json.loads(line).keys() == {"response"}


async def test_a_row_may_set_its_own_model(sdk: genai.Client, clock: Clock) -> None:
    """A row with a model is answered by that model, and others by the model of the batch."""
    requests: Any = [
        {"contents": "Hello?", "metadata": {"key": "a"}, "model": "gemini-2.5-pro"},
        {"contents": "Hello?", "metadata": {"key": "b"}},
    ]
    job = await sdk.aio.batches.create(model="gemini-2.5-flash", src=requests)
    clock.now += 1
    job = await sdk.aio.batches.get(name=str(job.name))
    assert job.dest is not None
    versions = {
        answer.metadata["key"]: answer.response.model_version
        for answer in job.dest.inlined_responses or []
        if answer.metadata and answer.response
    }
    assert versions == {"a": "gemini-2.5-pro", "b": "gemini-2.5-flash"}


async def test_a_cache_must_exist_until_the_batch_ends(sdk: genai.Client, sim: Simulator, clock: Clock) -> None:
    """Rows are answered with the caches that exist when the batch ends, whenever results are fetched."""
    config: Any = {"contents": "A long story", "ttl": f"{2 * HOUR}s"}
    cache = await sdk.aio.caches.create(model="gemini-2.5-flash", config=config)
    requests: Any = [{"contents": "Who?", "config": {"cached_content": cache.name}}]
    jobs = []
    for hours in (1, 3):
        sim.batch(takes_s=hours * HOUR)
        jobs.append(await sdk.aio.batches.create(model="gemini-2.5-flash", src=requests))
    clock.now += 7 * 24 * HOUR
    answers = []
    for created in jobs:
        job = await sdk.aio.batches.get(name=str(created.name))
        assert job.dest is not None
        answers += job.dest.inlined_responses or []
    in_time, too_late = answers
    assert in_time.response is not None
    assert in_time.response.usage_metadata is not None
    assert in_time.response.usage_metadata.cached_content_token_count
    assert too_late.error is not None
    assert (too_late.error.code, too_late.response) == (7, None)


async def test_a_results_file_is_an_ordinary_file(sim: Simulator, origin: str, clock: Clock) -> None:
    """A results file can be downloaded, also in pieces, and expires after 48 hours."""
    async with AsyncExitStack() as stack:
        batcher = await GeminiFile.open(sim.base_url("gemini", origin), stack)
        batch_id = await batcher.submit("Hello?")
        clock.now += 1
        job = await batcher.sdk.aio.batches.get(name=batch_id)
        assert job.dest is not None
        name = str(job.dest.file_name)
        assert name.startswith("files/batch-")
        file = await batcher.sdk.aio.files.get(name=name)
        assert (file.source, file.mime_type) == ("GENERATED", "application/jsonl")
        streamed = io.BytesIO()
        await batcher.sdk.aio.files.download(file=name, destination=streamed)
        assert streamed.getvalue() == await batcher.sdk.aio.files.download(file=name)
        assert sim.files[-1].id == name
        clock.now += 48 * HOUR
        with pytest.raises(genai.errors.ClientError):
            await batcher.sdk.aio.files.download(file=name)


async def test_a_list_has_no_results(batcher: Gemini, clock: Clock) -> None:
    """Listed batches have no results; a single batch has them."""
    batch_id = await batcher.submit("Hello?")
    clock.now += 1
    (listed,) = [job async for job in await batcher.sdk.aio.batches.list()]
    assert listed.dest is None
    assert len(await batcher.results(batch_id)) == 1


async def test_a_batch_can_be_deleted(batcher: Gemini, sim: Simulator, http: httpx.AsyncClient) -> None:
    """A batch can be deleted at any time, and is not found any more."""
    batch_id = await batcher.submit("Hello?")
    await batcher.sdk.aio.batches.delete(name=batch_id)
    assert sim.requests[-1].operation == "batch.delete"
    for method, path in (("GET", ""), ("POST", ":cancel"), ("DELETE", "")):
        assert (await http.request(method, f"/gemini/v1/{batch_id}{path}")).status_code == 404
    assert await batcher.list_ids(10) == []


async def test_an_invalid_row_in_a_file_fails_and_others_succeed(sdk: genai.Client, clock: Clock) -> None:
    rows = [
        {"key": "good", "request": REQUEST},
        {"key": "none"},
        {"key": "odd", "request": {**REQUEST, "colour": "red"}},
        {"key": "nested", "request": {"contents": REQUEST["contents"], "generationConfig": {"systemInstruction": {}}}},
    ]
    job = await sdk.aio.batches.create(model="gemini-2.5-flash", src=await upload(sdk, jsonl(*rows)))
    clock.now += 1
    job = await sdk.aio.batches.get(name=str(job.name))
    assert job.dest is not None
    content = await sdk.aio.files.download(file=str(job.dest.file_name))
    results = {row["key"]: row for row in map(json.loads, content.splitlines())}
    assert "response" in results["good"]
    for key in ("none", "odd", "nested"):
        assert results[key]["error"]["code"] == 3, results[key]
    assert 'Unknown name "colour"' in results["odd"]["error"]["message"]


async def test_an_input_file_that_is_not_jsonl_fails_the_batch(
    sdk: genai.Client, http: httpx.AsyncClient, clock: Clock
) -> None:
    """The batch is accepted and fails later, with the number of the invalid line."""
    name = await upload(sdk, jsonl({"key": "a", "request": REQUEST}) + b"{")
    job = await sdk.aio.batches.create(model="gemini-2.5-flash", src=name)
    assert job.state is not None
    assert job.state.value == "JOB_STATE_PENDING"
    clock.now += 1
    job = await sdk.aio.batches.get(name=str(job.name))
    assert job.state is not None
    assert (job.state.value, job.error, job.dest) == ("JOB_STATE_FAILED", None, None)
    error = (await http.get(f"/gemini/v1/{job.name}")).json()["error"]
    assert error["code"] == 3
    assert "line 2" in error["message"]


REFUSED_REQUESTS: dict[str, tuple[Any, str]] = {
    "empty object": ({}, "* batch: required field is not set"),
    "no inputConfig": ({"batch": {}}, "input_config: required field is not set"),
    "no source": ({"batch": {"inputConfig": {}}}, "exactly one source"),
    "two sources": (
        {"batch": {"inputConfig": {"fileName": "files/a", "requests": {"requests": [{"request": REQUEST}]}}}},
        "exactly one source",
    ),
    "no requests": (inline(), "no requests"),
    "row without a request": (inline({}), "requests[0].request: required field is not set"),
    "request with an unknown field": (
        inline({"request": REQUEST}, {"request": {**REQUEST, "colour": "red"}}),
        "Unknown name \"colour\" at 'batch.input_config.requests.requests[1].request'",
    ),
    "row with an unknown field": (inline({"request": REQUEST, "custom_id": "r0"}), 'Unknown name "customId"'),
    "metadata that are not an object": (inline({"request": REQUEST, "metadata": "r0"}), "requests[0].metadata"),
    "unknown field": (inline({"request": REQUEST}, colour="red"), 'Unknown name "colour"'),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
async def test_gemini_refuses_a_batch(name: str, http: httpx.AsyncClient, sim: Simulator) -> None:
    """An invalid batch is refused completely, with an error that names the place."""
    body, words = REFUSED_REQUESTS[name]
    answer = await http.post(CREATE, json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert sim.batches == []


async def test_invalid_json_is_refused(http: httpx.AsyncClient, sim: Simulator) -> None:
    """A body that is not JSON creates no batch, even if some rows could be parsed."""
    good = json.dumps(inline({"request": REQUEST}, displayName="run")).encode()
    for body in (b"", good[:-1], good + b"x", good.replace(b"Hello", b"\\ud800"), good.replace(b"run", b"\\ud800")):
        assert (await http.post(CREATE, content=body)).status_code == 400
    assert sim.batches == []


async def test_field_names_may_be_in_snake_case(http: httpx.AsyncClient, sim: Simulator) -> None:
    requests = {"requests": [{"request": {**REQUEST, "generation_config": {"max_output_tokens": 9}}}]}
    body = {"batch": {"display_name": "run-1", "input_config": {"requests": requests}}}
    assert (await http.post(CREATE, json=body)).status_code == 200
    assert (sim.batches[0].name, sim.batches[0].rows) == ("run-1", 1)


async def test_a_batch_needs_a_valid_input_file_and_model(sdk: genai.Client, sim: Simulator) -> None:
    """An unknown, unprocessed or non-JSONL file is refused, and so is an unknown model."""
    content = jsonl({"key": "a", "request": REQUEST})
    pdf = await upload(sdk, content, "application/pdf")
    good = await upload(sdk, content)
    sim.processing_s = 1000
    unprocessed = await upload(sdk, content)
    sim.processing_s = 0
    for model, source, code in (
        ("gemini-2.5-flash", "files/unknown", 403),
        ("gemini-2.5-flash", unprocessed, 400),
        ("gemini-2.5-flash", pdf, 400),
        ("gpt-4.1", good, 404),
    ):
        with pytest.raises(genai.errors.ClientError) as caught:
            await sdk.aio.batches.create(model=model, src=source)
        assert caught.value.code == code
    assert sim.batches == []


async def test_inline_requests_are_limited_in_size(
    http: httpx.AsyncClient, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer body than the limit (20 MB) is refused with 413."""
    monkeypatch.setattr("pollux_flows.simulator.gemini.batch_input.LIMIT_BYTES", 200)
    for count, status in ((2, 200), (4, 413)):
        answer = await http.post(CREATE, json=inline(*[{"request": REQUEST}] * count))
        assert answer.status_code == status, answer.text
    assert "payload size exceeds" in answer.json()["error"]["message"]
    assert [batch.rows for batch in sim.batches] == [2]


@pytest.mark.parametrize("query", [{"pageSize": "x"}, {"pageSize": 101}, {"pageToken": "x"}])
async def test_an_invalid_list_query_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    assert (await http.get(BATCHES, params=query)).status_code == 400
