"""What Anthropic's Message Batches API does in its own way."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import httpx
import pytest

from pollux_flows.simulator import Simulator, serve

from .batchers import Anthropic
from .conftest import Time

BATCHES = "/anthropic/v1/messages/batches"
PARAMS: Any = {"model": "claude-haiku-4-5", "max_tokens": 99, "messages": [{"role": "user", "content": "Hello?"}]}
DAY = 86_400


@pytest.fixture
async def batcher(sim: Simulator, origin: str) -> AsyncIterator[Anthropic]:
    async with AsyncExitStack() as stack:
        yield await Anthropic.open(sim.base_url("anthropic", origin), stack)


def rows(count: int) -> list[Any]:
    return [{"custom_id": f"r{number}", "params": PARAMS} for number in range(count)]


async def test_counts_are_told_at_the_end(batcher: Anthropic, sim: Simulator, clock: Time) -> None:
    """Until then all rows are processing; the sum is always that of the rows."""
    sim.batch_s = 100
    batch_id = await batcher.submit("Fine", "[[simulate: status=529]]", "[[simulate: hang]]", "Fine, too")
    batches = batcher.sdk.messages.batches
    for passes, counts in ((99, (4, 0, 0, 0, 0)), (1, (0, 2, 1, 0, 1))):
        clock.now += passes
        told = (await batches.retrieve(batch_id)).request_counts
        assert (told.processing, told.succeeded, told.errored, told.canceled, told.expired) == counts
    results = await batcher.by_key(batch_id)
    assert results["r1"].message == "Overloaded"


async def test_a_row_is_billed_as_part_of_a_batch(batcher: Anthropic, clock: Time) -> None:
    """Its usage says so."""
    batch_id = await batcher.submit("Hello?")
    clock.now += 1
    (line,) = [line async for line in await batcher.sdk.messages.batches.results(batch_id)]
    assert line.result.type == "succeeded"
    assert line.result.message.usage.service_tier == "batch"


async def test_rows_read_what_a_batch_wrote_that_ended_before(batcher: Anthropic, clock: Time) -> None:
    """And nothing that other rows of their own batch write, or that a batch beside theirs does."""
    document = {"type": "text", "text": "x" * 40_000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    asks: Any = [{"role": "user", "content": [document, {"type": "text", "text": "four"}]}]
    batches = batcher.sdk.messages.batches

    async def submit(count: int) -> str:
        params = {**PARAMS, "messages": asks}
        requests: list[Any] = [{**row, "params": params} for row in rows(count)]
        return (await batches.create(requests=requests)).id

    async def usages(batch_id: str) -> list[tuple[int, int]]:
        lines = [line async for line in await batches.results(batch_id)]
        found = [line.result.message.usage for line in lines if line.result.type == "succeeded"]
        return [(usage.cache_creation_input_tokens or 0, usage.cache_read_input_tokens or 0) for usage in found]

    first, beside = await submit(1), await submit(3)
    clock.now += 1
    assert await usages(first) == [(10_000, 0)]
    assert await usages(beside) == [(10_000, 0)] * 3
    later = await submit(3)
    clock.now += 1
    assert await usages(later) == [(0, 10_000)] * 3
    clock.now += 3601
    too_late = await submit(2)
    clock.now += 1
    assert await usages(too_late) == [(10_000, 0)] * 2


async def test_nothing_of_the_clients_own_comes_back_before_the_end(
    batcher: Anthropic, http: httpx.AsyncClient
) -> None:
    """No name, no metadata, no ids: only a time and a number tell batches apart."""
    await batcher.submit("Hello?", label="run-7")
    (batch,) = (await http.get(BATCHES)).json()["data"]
    assert set(batch) == {
        "id", "type", "processing_status", "request_counts", "created_at", "expires_at", "ended_at",
        "cancel_initiated_at", "archived_at", "results_url",
    }  # fmt: skip
    assert "run-7" not in str(batch)


async def test_results_wait_for_the_end(
    batcher: Anthropic, sim: Simulator, clock: Time, http: httpx.AsyncClient
) -> None:
    """There is no address for them before, and nothing at it."""
    sim.batch_s = 100
    batch_id = await batcher.submit("Hello?")
    with pytest.raises(anthropic.AnthropicError, match="No `results_url`"):
        await batcher.results(batch_id)
    assert (await http.get(f"{BATCHES}/{batch_id}/results")).status_code == 404
    clock.now += 100
    assert len(await batcher.results(batch_id)) == 1
    assert sim.requests[-1].operation == "batch.results"


async def test_results_are_there_for_29_days(batcher: Anthropic, clock: Time, http: httpx.AsyncClient) -> None:
    """Then the batch is archived, and still known."""
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


async def test_a_batch_can_be_deleted_when_it_has_ended(batcher: Anthropic, sim: Simulator, clock: Time) -> None:
    """Not before; and then it is gone."""
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
    assert await batcher.ids(10) == []
    assert sim.batches[0].deleted_at == clock.now


async def test_a_list_can_be_read_backwards(batcher: Anthropic) -> None:
    """The page before a batch is the one right before it."""
    oldest, *_ = batch_ids = [await batcher.submit("Hello?") for _ in range(5)]
    batches = batcher.sdk.messages.batches
    page = await batches.list(before_id=oldest, limit=2)
    assert [batch.id for batch in page.data] == [batch_ids[2], batch_ids[1]]
    assert (page.first_id, page.last_id, page.has_more) == (batch_ids[2], batch_ids[1], True)
    seen = [batch.id async for batch in batches.list(before_id=oldest, limit=2)]
    assert sorted(seen) == sorted(batch_ids[1:])


async def test_the_results_can_be_said_to_be_elsewhere(batcher: Anthropic, sim: Simulator, clock: Time) -> None:
    """The SDK goes there, and takes the key along."""
    stranger = Simulator()
    with serve(stranger) as elsewhere:
        sim.batch(results_url=f"{elsewhere}/anthropic/v1/messages/batches/x/results")
        batch_id = await batcher.submit("Hello?")
        clock.now += 1
        with pytest.raises(anthropic.NotFoundError, match="No batch found"):
            await batcher.results(batch_id)
    assert [entry.operation for entry in stranger.requests] == ["batch.results"]


async def test_a_row_has_the_version_of_its_batch(batcher: Anthropic, clock: Time) -> None:
    """An older one still takes a temperature."""
    batches = batcher.sdk.messages.batches
    hot: Any = [{"custom_id": "r0", "params": {**PARAMS, "temperature": 0.5}}]
    older = await batches.create(requests=hot, extra_headers={"anthropic-version": "2023-06-01"})
    current = await batches.create(requests=hot)
    clock.now += 1
    assert [result.outcome for result in await batcher.results(older.id)] == ["succeeded"]
    assert [result.outcome for result in await batcher.results(current.id)] == ["errored"]


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "requests: Field required"),
    "no list": ({"requests": {}}, "requests: Input should be a valid array"),
    "no rows": ({"requests": []}, "requests: List should have at least 1 item after validation, not 0"),
    "no row": ({"requests": ["r0"]}, "requests.0: Input should be a valid object"),
    "no id": ({"requests": [{"params": PARAMS}]}, "requests.0.custom_id: Field required"),
    "no params": ({"requests": [{"custom_id": "r0"}]}, "requests.0.params: Field required"),
    "an empty id": (
        {"requests": [{"custom_id": "", "params": PARAMS}]},
        "requests.0.custom_id: String should have at least 1 character",
    ),
    "a long id": (
        {"requests": [{"custom_id": "r" * 65, "params": PARAMS}]},
        "requests.0.custom_id: String should have at most 64 characters",
    ),
    "an odd id": (
        {"requests": [*rows(1), {"custom_id": "r.1", "params": PARAMS}]},
        "requests.1.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    "an id twice": ({"requests": rows(2) + rows(1)}, "requests.2.custom_id: custom_id 'r0' is not unique"),
    "a field too many": ({"requests": [{**rows(1)[0], "a": 1}]}, "requests.0.a: Extra inputs are not permitted"),
    "a name": ({"requests": rows(1), "metadata": {}}, "metadata: Extra inputs are not permitted"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_anthropic_refuses_a_batch(name: str, http: httpx.AsyncClient, sim: Simulator) -> None:
    """As a whole, and says where it is wrong."""
    body, words = REFUSED[name]
    answer = await http.post(BATCHES, json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert sim.batches == []


async def test_a_body_that_is_no_json_is_refused(http: httpx.AsyncClient, sim: Simulator) -> None:
    """However far it could be read."""
    good = json.dumps({"requests": rows(2)}).encode()
    for body in (b"", good[:-1], good[:-20], good + b"x", good.replace(b"Hello", b"\\ud800")):
        assert (await http.post(BATCHES, content=body)).status_code == 400
    assert sim.batches == []


@pytest.mark.parametrize("limit", [("LIMIT_ROWS", 2, 400), ("LIMIT_BYTES", 300, 413)])
async def test_a_batch_can_be_too_large(
    limit: tuple[str, int, int], http: httpx.AsyncClient, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100,000 requests, or 256 MB."""
    name, value, status = limit
    monkeypatch.setattr(f"pollux_flows.simulator.anthropic.batch_input.{name}", value)
    for count, expected in ((2, 200), (3, status)):
        answer = await http.post(BATCHES, content=json.dumps({"requests": rows(count)}, separators=(",", ":")))
        assert answer.status_code == expected, answer.text
    assert [batch.rows for batch in sim.batches] == [2]


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after_id": "x"}, {"before_id": "x"}],
)
async def test_a_list_that_makes_no_sense_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    """Not answered with whatever comes to mind."""
    answer = await http.get(BATCHES, params=query)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(next(iter(query)))


async def test_without_a_version_nothing_works(http: httpx.AsyncClient, batcher: Anthropic) -> None:
    """As with everything else of this API."""
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


async def test_the_log_keeps_short_bodies_and_a_row_of_long_ones(batcher: Anthropic, sim: Simulator) -> None:
    """So that a fault can wait for what all rows have in common."""
    await batcher.submit(*["Hello?"] * 3)
    assert [row["custom_id"] for row in sim.requests[-1].body["requests"]] == ["r0", "r1", "r2"]
    await batcher.submit(*["x" * 500_000] * 3)
    assert [row["custom_id"] for row in sim.requests[-1].body["requests"]] == ["r0"]
    assert sim.batches[-1].rows == 3
