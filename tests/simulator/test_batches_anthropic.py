"""Anthropic's Message Batches API: behaviour that other batch systems do not share."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import httpx
import pytest

from pollux_flows.simulator import Simulator, serve

from .batchers import Anthropic
from .conftest import Clock

BATCHES = "/anthropic/v1/messages/batches"
PARAMS: Any = {"model": "claude-haiku-4-5", "max_tokens": 99, "messages": [{"role": "user", "content": "Hello?"}]}
DAY = 86_400


@pytest.fixture
async def batcher(sim: Simulator, origin: str) -> AsyncIterator[Anthropic]:
    async with AsyncExitStack() as stack:
        yield await Anthropic.open(sim.base_url("anthropic", origin), stack)


def rows(count: int) -> list[Any]:
    return [{"custom_id": f"r{number}", "params": PARAMS} for number in range(count)]


async def test_request_counts_change_when_the_batch_ends(batcher: Anthropic, sim: Simulator, clock: Clock) -> None:
    """All rows count as processing until the batch ends; the sum is always the number of rows."""
    sim.batch_s = 100
    batch_id = await batcher.submit("Fine", "[[simulate: status=529]]", "[[simulate: hang]]", "Fine, too")
    batches = batcher.sdk.messages.batches
    for passes, counts in ((99, (4, 0, 0, 0, 0)), (1, (0, 2, 1, 0, 1))):
        clock.now += passes
        current = (await batches.retrieve(batch_id)).request_counts
        assert (current.processing, current.succeeded, current.errored, current.canceled, current.expired) == counts
    results = await batcher.results_by_key(batch_id)
    assert results["r1"].message == "Overloaded"


async def test_a_row_is_billed_as_part_of_a_batch(batcher: Anthropic, clock: Clock) -> None:
    """The usage of a row has the service tier `batch`."""
    batch_id = await batcher.submit("Hello?")
    clock.now += 1
    (line,) = [line async for line in await batcher.sdk.messages.batches.results(batch_id)]
    assert line.result.type == "succeeded"
    assert line.result.message.usage.service_tier == "batch"


async def test_rows_read_caches_of_batches_that_ended_before(batcher: Anthropic, clock: Clock) -> None:
    """Rows read no cache that their own batch, or one that runs at the same time, writes."""
    document = {"type": "text", "text": "x" * 40_000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    messages: Any = [{"role": "user", "content": [document, {"type": "text", "text": "four"}]}]
    batches = batcher.sdk.messages.batches

    async def submit(count: int) -> str:
        params = {**PARAMS, "messages": messages}
        requests: list[Any] = [{**row, "params": params} for row in rows(count)]
        return (await batches.create(requests=requests)).id

    async def usages(batch_id: str) -> list[tuple[int, int]]:
        lines = [line async for line in await batches.results(batch_id)]
        found = [line.result.message.usage for line in lines if line.result.type == "succeeded"]
        return [(usage.cache_creation_input_tokens or 0, usage.cache_read_input_tokens or 0) for usage in found]

    first, concurrent = await submit(1), await submit(3)
    clock.now += 1
    assert await usages(first) == [(10_000, 0)]
    assert await usages(concurrent) == [(10_000, 0)] * 3
    later = await submit(3)
    clock.now += 1
    assert await usages(later) == [(0, 10_000)] * 3
    clock.now += 3601
    too_late = await submit(2)
    clock.now += 1
    assert await usages(too_late) == [(10_000, 0)] * 2


async def test_a_batch_returns_nothing_that_the_client_set(batcher: Anthropic, http: httpx.AsyncClient) -> None:
    """A batch has no name or metadata: only its creation time and row count identify it."""
    await batcher.submit("Hello?", label="run-7")
    (batch,) = (await http.get(BATCHES)).json()["data"]
    assert set(batch) == {
        "id", "type", "processing_status", "request_counts", "created_at", "expires_at", "ended_at",
        "cancel_initiated_at", "archived_at", "results_url",
    }  # fmt: skip
    assert "run-7" not in str(batch)


async def test_results_are_not_available_before_the_end(
    batcher: Anthropic, sim: Simulator, clock: Clock, http: httpx.AsyncClient
) -> None:
    """A batch has no results URL before it ends, and the endpoint answers 404."""
    sim.batch_s = 100
    batch_id = await batcher.submit("Hello?")
    with pytest.raises(anthropic.AnthropicError, match="No `results_url`"):
        await batcher.results(batch_id)
    assert (await http.get(f"{BATCHES}/{batch_id}/results")).status_code == 404
    clock.now += 100
    assert len(await batcher.results(batch_id)) == 1
    assert sim.requests[-1].operation == "batch.results"


async def test_results_are_available_for_29_days(batcher: Anthropic, clock: Clock, http: httpx.AsyncClient) -> None:
    """After 29 days the batch is archived: its metadata can be read, its results cannot."""
    batch_id = await batcher.submit("Hello?")
    clock.now += 29 * DAY - 1
    batch = await batcher.sdk.messages.batches.retrieve(batch_id)
    assert batch.results_url
    assert batch.archived_at is None
    clock.now += 1
    batch = await batcher.sdk.messages.batches.retrieve(batch_id)
    assert (batch.results_url, batch.processing_status) == (None, "ended")
    assert batch.archived_at
    assert (await http.get(f"{BATCHES}/{batch_id}/results")).status_code == 404


async def test_an_ended_batch_can_be_deleted(batcher: Anthropic, sim: Simulator, clock: Clock) -> None:
    """A running batch cannot be deleted; a deleted one is not found any more."""
    sim.batch_s = 100
    batches = batcher.sdk.messages.batches
    batch_id = await batcher.submit("Hello?")
    with pytest.raises(anthropic.BadRequestError, match="Cancel it first"):
        await batches.delete(batch_id)
    clock.now += 100
    assert (await batches.delete(batch_id)).id == batch_id
    for attempt in (batches.retrieve(batch_id), batches.cancel(batch_id), batches.delete(batch_id)):
        with pytest.raises(anthropic.NotFoundError):
            await attempt
    assert await batcher.list_ids(10) == []
    assert sim.batches[0].deleted_at == clock.now


async def test_a_list_can_be_read_backwards(batcher: Anthropic) -> None:
    """The page before a batch has the batches right before it."""
    oldest, *_ = batch_ids = [await batcher.submit("Hello?") for _ in range(5)]
    batches = batcher.sdk.messages.batches
    page = await batches.list(before_id=oldest, limit=2)
    assert [batch.id for batch in page.data] == [batch_ids[2], batch_ids[1]]
    assert (page.first_id, page.last_id, page.has_more) == (batch_ids[2], batch_ids[1], True)
    ids = [batch.id async for batch in batches.list(before_id=oldest, limit=2)]
    assert sorted(ids) == sorted(batch_ids[1:])


async def test_a_plan_can_set_the_results_url(batcher: Anthropic, sim: Simulator, clock: Clock) -> None:
    """The SDK fetches the results from the planned URL, and sends the key there."""
    other = Simulator()
    with serve(other) as elsewhere:
        sim.batch(results_url=f"{elsewhere}/anthropic/v1/messages/batches/x/results")
        batch_id = await batcher.submit("Hello?")
        clock.now += 1
        with pytest.raises(anthropic.NotFoundError, match="No batch found"):
            await batcher.results(batch_id)
    assert [entry.operation for entry in other.requests] == ["batch.results"]


async def test_a_row_is_checked_by_the_api_version_of_its_batch(batcher: Anthropic, clock: Clock) -> None:
    """A row may set a temperature only if its batch was created with an older API version."""
    batches = batcher.sdk.messages.batches
    hot: Any = [{"custom_id": "r0", "params": {**PARAMS, "temperature": 0.5}}]
    older = await batches.create(requests=hot, extra_headers={"anthropic-version": "2023-06-01"})
    current = await batches.create(requests=hot)
    clock.now += 1
    assert [result.outcome for result in await batcher.results(older.id)] == ["succeeded"]
    assert [result.outcome for result in await batcher.results(current.id)] == ["errored"]


REFUSED_REQUESTS: dict[str, tuple[Any, str]] = {
    "empty object": ({}, "requests: Field required"),
    "requests that are not a list": ({"requests": {}}, "requests: Input should be a valid array"),
    "no requests": ({"requests": []}, "requests: List should have at least 1 item after validation, not 0"),
    "request that is not an object": ({"requests": ["r0"]}, "requests.0: Input should be a valid object"),
    "no custom_id": ({"requests": [{"params": PARAMS}]}, "requests.0.custom_id: Field required"),
    "no params": ({"requests": [{"custom_id": "r0"}]}, "requests.0.params: Field required"),
    "empty custom_id": (
        {"requests": [{"custom_id": "", "params": PARAMS}]},
        "requests.0.custom_id: String should have at least 1 character",
    ),
    "custom_id that is too long": (
        {"requests": [{"custom_id": "r" * 65, "params": PARAMS}]},
        "requests.0.custom_id: String should have at most 64 characters",
    ),
    "custom_id with invalid characters": (
        {"requests": [*rows(1), {"custom_id": "r.1", "params": PARAMS}]},
        "requests.1.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    "duplicate custom_id": ({"requests": rows(2) + rows(1)}, "requests.2.custom_id: custom_id 'r0' is not unique"),
    "unknown field": ({"requests": [{**rows(1)[0], "a": 1}]}, "requests.0.a: Extra inputs are not permitted"),
    "metadata": ({"requests": rows(1), "metadata": {}}, "metadata: Extra inputs are not permitted"),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
async def test_anthropic_refuses_a_batch(name: str, http: httpx.AsyncClient, sim: Simulator) -> None:
    """An invalid batch is refused completely, with an error that names the place."""
    body, words = REFUSED_REQUESTS[name]
    answer = await http.post(BATCHES, json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert sim.batches == []


async def test_invalid_json_is_refused(http: httpx.AsyncClient, sim: Simulator) -> None:
    """A body that is not JSON creates no batch, even if some rows could be parsed."""
    good = json.dumps({"requests": rows(2)}).encode()
    for body in (b"", good[:-1], good[:-20], good + b"x", good.replace(b"Hello", b"\\ud800")):
        assert (await http.post(BATCHES, content=body)).status_code == 400
    assert sim.batches == []


@pytest.mark.parametrize("limit", [("LIMIT_ROWS", 2, 400), ("LIMIT_BYTES", 300, 413)])
async def test_a_batch_can_be_too_large(
    limit: tuple[str, int, int], http: httpx.AsyncClient, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch with too many rows or bytes is refused (the API's limits: 100,000 requests, 256 MB)."""
    name, value, status = limit
    monkeypatch.setattr(f"pollux_flows.simulator.anthropic.batch_input.{name}", value)
    for count, expected in ((2, 200), (3, status)):
        answer = await http.post(BATCHES, content=json.dumps({"requests": rows(count)}, separators=(",", ":")))
        assert answer.status_code == expected, answer.text
    assert [batch.rows for batch in sim.batches] == [2]


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after_id": "x"}, {"before_id": "x"}]
)
async def test_an_invalid_list_query_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    """An invalid list query is refused with the name of the parameter."""
    answer = await http.get(BATCHES, params=query)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(next(iter(query)))


async def test_every_endpoint_requires_the_version_header(http: httpx.AsyncClient, batcher: Anthropic) -> None:
    batch_id = await batcher.submit("Hello?")
    del http.headers["anthropic-version"]
    for method, path in (
        ("POST", ""),
        ("GET", ""),
        ("GET", f"/{batch_id}"),
        ("POST", f"/{batch_id}/cancel"),
        ("GET", f"/{batch_id}/results"),
        ("DELETE", f"/{batch_id}"),
    ):
        answer = await http.request(method, BATCHES + path)
        assert (answer.status_code, "anthropic-version" in answer.text) == (400, True), path


async def test_the_log_shortens_a_long_batch_body(batcher: Anthropic, sim: Simulator) -> None:
    """The log has all rows of a short body and the first row of a long one, so that faults can match it."""
    await batcher.submit(*["Hello?"] * 3)
    assert [row["custom_id"] for row in sim.requests[-1].body["requests"]] == ["r0", "r1", "r2"]
    await batcher.submit(*["x" * 500_000] * 3)
    assert [row["custom_id"] for row in sim.requests[-1].body["requests"]] == ["r0"]
    assert sim.batches[-1].rows == 3
