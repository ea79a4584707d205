"""The common behaviour of all batch systems: a batch is accepted, runs, and ends with a result for each row."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from pollux_flows.simulator import Fault, Simulator

from .batchers import Batcher
from .clients import CLIENTS, ErrorResponse
from .conftest import Clock

PROMPTS = tuple(f"Question {number}" for number in range(8))
KEYS = [f"r{number}" for number in range(8)]
HOUR = 3600.0


@pytest.fixture
def clock(clock: Clock, sim: Simulator) -> Clock:
    """Return the clock, with batches that take 100 seconds by it."""
    sim.batch_s = 100
    return clock


async def test_a_batch_goes_through_its_phases(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """A batch changes its phase as the clock moves, and only then."""
    batch_id = await batcher.submit(*PROMPTS)
    for passes, phase in ((0, "starting"), (9, "starting"), (1, "running"), (79, "running"), (1, "finishing")):
        clock.now += passes
        assert await batcher.state(batch_id) == batcher.state_names[phase] == state_of(batcher, sim)
        assert sim.batches[0].phase == phase
    clock.now += 10
    assert await batcher.state(batch_id) == batcher.state_names["completed"] == state_of(batcher, sim)
    clock.now += HOUR
    assert await batcher.state(batch_id) == batcher.state_names["completed"]


async def test_a_create_never_returns_a_completed_batch(batcher: Batcher, sim: Simulator) -> None:
    """The response to a create shows a batch in progress, even if the batch takes no time."""
    sim.batch(takes_s=0)
    await batcher.submit("Hello?")
    assert batcher.state_names["completed"] not in str(sim.requests[-1])
    assert sim.batches[0].is_ended


async def test_a_row_is_answered_like_a_realtime_request(
    batcher: Batcher, sim: Simulator, origin: str, clock: Clock
) -> None:
    """A row and a realtime request with one prompt get equal texts and token counts."""
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 100
    results = await batcher.results_by_key(batch_id)
    async with AsyncExitStack() as stack:
        client = await CLIENTS[batcher.provider].open(sim.base_url(batcher.provider, origin), stack)
        for key, prompt in zip(KEYS, PROMPTS, strict=True):
            answer, result = await client.ask(prompt), results[key]
            assert (result.outcome, result.text) == ("succeeded", answer.text)
            assert (result.input_tokens, result.output_tokens) == (answer.input_tokens, answer.output_tokens)


async def test_results_are_not_in_the_order_of_the_rows(batcher: Batcher, clock: Clock) -> None:
    """Even two results are shuffled, so a client that goes by position always fails."""
    batch_ids = [await batcher.submit(*PROMPTS[:count]) for count in (2, 3, 8)]
    clock.now += 100
    for batch_id, count in zip(batch_ids, (2, 3, 8), strict=True):
        keys = [str(result.key) for result in await batcher.results(batch_id)]
        assert sorted(keys) == KEYS[:count]
        assert keys != KEYS[:count]
        assert [result.key for result in await batcher.results(batch_id)] == keys


async def test_a_batch_can_be_cancelled(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """A cancelled batch stops a little later and returns the rows answered by then; at Gemini none."""
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 50
    await batcher.cancel(batch_id)
    assert await batcher.state(batch_id) == batcher.state_names["cancelling"]
    assert sim.batches[0].phase == "cancelling"
    clock.now += 10
    assert await batcher.state(batch_id) == batcher.state_names["cancelled"]
    results = await batcher.results_by_key(batch_id)
    left = {"cancelled"} if batcher.returns_unanswered_rows else set()
    assert {results[key].outcome for key in KEYS[:4] if key in results} == ({"succeeded"} if left else set())
    assert {results[key].outcome for key in KEYS[4:] if key in results} == left


async def test_an_ended_batch_cannot_be_cancelled(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """Cancelling an ended batch is an error, and the results stay."""
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 100
    with pytest.raises(ErrorResponse) as caught:
        await batcher.cancel(batch_id)
    assert caught.value.status in (400, 409)
    assert sim.batches[0].ending == "completed"
    assert len(await batcher.results(batch_id)) == len(KEYS)


async def test_a_batch_that_takes_too_long_expires(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """A batch expires after a day with half of its rows answered; at Gemini after two days with no results."""
    sim.batch_s = 48 * HOUR if batcher.returns_unanswered_rows else 96 * HOUR
    batch_id = await batcher.submit(*PROMPTS)
    clock.now = sim.batches[0].expires_at - 1
    assert await batcher.state(batch_id) == batcher.state_names["running"]
    clock.now += 1
    assert await batcher.state(batch_id) == batcher.state_names["expired"]
    assert sim.batches[0].phase == "expired"
    outcomes = [result.outcome for result in await batcher.results(batch_id)]
    assert sorted(outcomes) == (["expired"] * 4 + ["succeeded"] * 4 if batcher.returns_unanswered_rows else [])


async def test_batches_are_listed_page_by_page(batcher: Batcher, clock: Clock) -> None:
    """Batches are listed newest first, ended or not."""
    batch_ids = []
    for prompt in PROMPTS[:5]:
        batch_ids.append(await batcher.submit(prompt))
        clock.now += 30
    for size in (1, 2, 5, 10):
        assert await batcher.list_ids(size) == batch_ids[::-1]


async def test_batches_of_another_account_are_not_found(
    batcher: Batcher, sim: Simulator, origin: str, clock: Clock
) -> None:
    """Batches belong to the account of their API key."""
    batch_id = await batcher.submit("Hello?")
    clock.now += 100
    async with AsyncExitStack() as stack:
        other = await type(batcher).open(sim.base_url(batcher.provider, origin), stack, key="another key")
        assert await other.list_ids(10) == []
        for attempt in (other.state(batch_id), other.cancel(batch_id)):
            with pytest.raises(ErrorResponse) as caught:
                await attempt
            assert caught.value.status == 404
    assert await batcher.list_ids(10) == [batch_id]


async def test_a_directive_in_a_row_applies_to_that_row(batcher: Batcher, clock: Clock) -> None:
    """A fault that would break a connection makes its row fail, expire, or have no result."""
    batch_id = await batcher.submit(
        "Fine",
        "[[simulate: status=429 times=1]] One",
        "[[simulate: hang]] Two",
        "[[simulate: drop]] Three",
        "[[simulate: empty]] Four",
        "[[simulate: nonsense]] Five",
    )
    clock.now += 100
    results = await batcher.results_by_key(batch_id)
    outcomes = {key: result.outcome for key, result in results.items()}
    assert outcomes == {"r0": "succeeded", "r1": "errored", "r2": "expired", "r4": "succeeded", "r5": "errored"}
    assert results["r4"].text == ""
    again = await batcher.submit("[[simulate: status=429 times=1]] One")
    clock.now += 100
    assert [result.outcome for result in await batcher.results(again)] == ["succeeded"]


async def test_a_fault_for_rows_applies_to_rows_only(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """A fault for requests does not apply to rows, and a fault for rows not to requests."""
    sim.fail(Fault(status=500))
    sim.fail(Fault(status=503, message="Not now"), operation="batch.row", contains="Question 3")
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 100
    failed = [result for result in await batcher.results(batch_id) if result.outcome == "errored"]
    assert [(result.key, result.message) for result in failed] == [("r3", "Not now")]


async def test_an_invalid_row_fails_and_the_batch_completes(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """An invalid row fails with the error message of a realtime request."""
    bad: dict[str, tuple[dict[str, Any], str]] = {
        "openai": ({"max_output_tokens": 15}, "below minimum value"),
        "anthropic": ({"max_tokens": 1_000_000}, "which is the maximum allowed number of output tokens"),
        "gemini": ({"response_mime_type": "text/html"}, "allowed mimetypes are"),
    }
    params, words = bad[batcher.provider]
    batch_id = await batcher.submit("Hello?", **params)
    clock.now += 100
    (result,) = await batcher.results(batch_id)
    assert result.outcome == "errored"
    assert words in str(result.message)
    assert sim.batches[0].phase == "completed"


async def test_a_batch_records_its_requests(batcher: Batcher, sim: Simulator) -> None:
    """A test can read the requests, name and metadata with which a batch arrived."""
    batch_id = await batcher.submit(*PROMPTS, label="run-7")
    (batch,) = sim.batches
    assert (batch.id, batch.provider, batch.rows) == (batch_id, batcher.provider, len(PROMPTS))
    assert (batch.name, batch.metadata) == (
        "run-7" if batcher.provider == "gemini" else None,
        {"run": "run-7"} if batcher.provider == "openai" else None,
    )
    for sent, prompt in zip(batch.requests(), PROMPTS, strict=True):
        assert prompt in str(sent)
    assert sim.requests[-1].operation == "batch.create"
    assert sim.requests[-1].stored == batch_id


async def test_concurrent_readers_settle_a_batch_once(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """Each row is answered once, even if several clients ask for the results at a time."""
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 100
    sim.fail(Fault(status=500), operation="batch.row", times=3)
    for outcomes in await asyncio.gather(*(batcher.results(batch_id) for _ in range(6))):
        assert sorted(result.outcome for result in outcomes) == ["errored"] * 3 + ["succeeded"] * 5


async def test_batch_operations_are_logged_and_can_fail(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """Each batch operation has a name in the log, for which faults can be queued."""
    batch_id = await batcher.submit("Hello?")
    await batcher.state(batch_id)
    await batcher.list_ids(10)
    await batcher.cancel(batch_id)
    clock.now += 100
    operations = [entry.operation for entry in sim.requests if entry.operation.startswith("batch.")]
    assert operations == ["batch.create", "batch.get", "batch.list", "batch.cancel"]
    for operation in ("batch.get", "batch.list"):
        sim.fail(Fault(status=503), operation=operation)
        with pytest.raises(ErrorResponse) as caught:
            await batcher.list_ids(10) if operation == "batch.list" else await batcher.state(batch_id)
        assert caught.value.status == 503


async def test_a_reset_removes_batches_and_plans(batcher: Batcher, sim: Simulator) -> None:
    """A reset removes all batches, and the plans for the next ones."""
    sim.batch(end="failed")
    await batcher.submit("Hello?")
    sim.batch(end="failed")
    sim.reset()
    assert sim.batches == []
    assert await batcher.list_ids(10) == []
    await batcher.submit("Hello?")
    assert sim.batches[0].plan.end == "completed"


def state_of(batcher: Batcher, sim: Simulator) -> str:
    """Return the simulator's state of the first batch, spelled as the SDK spells it."""
    state = sim.batches[0].state
    return state.replace("BATCH_", "JOB_") if batcher.provider == "gemini" else state
