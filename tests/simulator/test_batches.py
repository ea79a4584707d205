"""What all batch systems do alike: a batch is accepted, works for a while, and ends with a result for each row."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from pollux_flows.simulator import Fault, Simulator

from .batchers import Batcher
from .clients import CLIENTS, Failed
from .conftest import Time

PROMPTS = tuple(f"Question {number}" for number in range(8))
KEYS = [f"r{number}" for number in range(8)]
HOUR = 3600.0


@pytest.fixture
def clock(clock: Time, sim: Simulator) -> Time:
    """In this world a batch takes 100 seconds."""
    sim.batch_s = 100
    return clock


async def test_a_batch_goes_through_its_phases(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """As the clock goes on, and only then."""
    batch_id = await batcher.submit(*PROMPTS)
    for passes, phase in ((0, "starting"), (9, "starting"), (1, "running"), (79, "running"), (1, "finishing")):
        clock.now += passes
        assert await batcher.state(batch_id) == batcher.words[phase] == words(batcher, sim)
        assert sim.batches[0].phase == phase
    clock.now += 10
    assert await batcher.state(batch_id) == batcher.words["completed"] == words(batcher, sim)
    clock.now += HOUR
    assert await batcher.state(batch_id) == batcher.words["completed"]


async def test_a_batch_has_begun_when_it_was_created(batcher: Batcher, sim: Simulator) -> None:
    """Also when it takes no time at all: nobody may rely on it to be done in the answer to the create."""
    sim.batch(takes_s=0)
    await batcher.submit("Hello?")
    assert batcher.words["completed"] not in str(sim.requests[-1])
    assert sim.batches[0].is_ended


async def test_each_row_is_answered_as_a_request_of_its_own(
    batcher: Batcher, sim: Simulator, origin: str, clock: Time
) -> None:
    """Same text, same tokens."""
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 100
    results = await batcher.by_key(batch_id)
    async with AsyncExitStack() as stack:
        client = await CLIENTS[batcher.provider].open(sim.base_url(batcher.provider, origin), stack)
        for key, prompt in zip(KEYS, PROMPTS, strict=True):
            said, result = await client.ask(prompt), results[key]
            assert (result.outcome, result.text) == ("succeeded", said.text)
            assert (result.input_tokens, result.output_tokens) == (said.input_tokens, said.output_tokens)


async def test_results_come_in_an_order_of_their_own(batcher: Batcher, clock: Time) -> None:
    """Even of two: who goes by the place is always wrong."""
    batch_ids = [await batcher.submit(*PROMPTS[:count]) for count in (2, 3, 8)]
    clock.now += 100
    for batch_id, count in zip(batch_ids, (2, 3, 8), strict=True):
        keys = [str(result.key) for result in await batcher.results(batch_id)]
        assert sorted(keys) == KEYS[:count]
        assert keys != KEYS[:count]
        assert [result.key for result in await batcher.results(batch_id)] == keys


async def test_a_batch_can_be_cancelled(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """It stops a little later; what it had done by then is kept, except by Gemini."""
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 50
    await batcher.cancel(batch_id)
    assert await batcher.state(batch_id) == batcher.words["cancelling"]
    assert sim.batches[0].phase == "cancelling"
    clock.now += 10
    assert await batcher.state(batch_id) == batcher.words["cancelled"]
    results = await batcher.by_key(batch_id)
    left = {"cancelled"} if batcher.tells_what_is_left else set()
    assert {results[key].outcome for key in KEYS[:4] if key in results} == ({"succeeded"} if left else set())
    assert {results[key].outcome for key in KEYS[4:] if key in results} == left


async def test_what_has_ended_cannot_be_cancelled(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """It is too late, and everything stays."""
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 100
    with pytest.raises(Failed) as failed:
        await batcher.cancel(batch_id)
    assert failed.value.status in (400, 409)
    assert sim.batches[0].ending == "completed"
    assert len(await batcher.results(batch_id)) == len(KEYS)


async def test_a_batch_that_takes_too_long_expires(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """A day has room for half of a batch of two days. Gemini waits for two, and then gives nothing."""
    sim.batch_s = 48 * HOUR if batcher.tells_what_is_left else 96 * HOUR
    batch_id = await batcher.submit(*PROMPTS)
    clock.now = sim.batches[0].expires_at - 1
    assert await batcher.state(batch_id) == batcher.words["running"]
    clock.now += 1
    assert await batcher.state(batch_id) == batcher.words["expired"]
    assert sim.batches[0].phase == "expired"
    outcomes = [result.outcome for result in await batcher.results(batch_id)]
    assert sorted(outcomes) == (["expired"] * 4 + ["succeeded"] * 4 if batcher.tells_what_is_left else [])


async def test_the_list_is_read_page_by_page(batcher: Batcher, clock: Time) -> None:
    """The newest first, finished or not."""
    batch_ids = []
    for prompt in PROMPTS[:5]:
        batch_ids.append(await batcher.submit(prompt))
        clock.now += 30
    for size in (1, 2, 5, 10):
        assert await batcher.ids(size) == batch_ids[::-1]


async def test_nobody_sees_the_batches_of_another(batcher: Batcher, sim: Simulator, origin: str, clock: Time) -> None:
    """They belong to a key."""
    batch_id = await batcher.submit("Hello?")
    clock.now += 100
    async with AsyncExitStack() as stack:
        other = await type(batcher).open(sim.base_url(batcher.provider, origin), stack, key="another key")
        assert await other.ids(10) == []
        for attempt in (other.state(batch_id), other.cancel(batch_id)):
            with pytest.raises(Failed) as failed:
                await attempt
            assert failed.value.status == 404
    assert await batcher.ids(10) == [batch_id]


async def test_a_prompt_can_ask_for_its_own_fault(batcher: Batcher, clock: Time) -> None:
    """What would happen to a connection happens to the row: it fails, it expires, it does not come back."""
    batch_id = await batcher.submit(
        "Fine",
        "[[simulate: status=429 times=1]] One",
        "[[simulate: hang]] Two",
        "[[simulate: drop]] Three",
        "[[simulate: empty]] Four",
        "[[simulate: nonsense]] Five",
    )
    clock.now += 100
    results = await batcher.by_key(batch_id)
    outcomes = {key: result.outcome for key, result in results.items()}
    assert outcomes == {"r0": "succeeded", "r1": "errored", "r2": "expired", "r4": "succeeded", "r5": "errored"}
    assert results["r4"].text == ""
    again = await batcher.submit("[[simulate: status=429 times=1]] One")
    clock.now += 100
    assert [result.outcome for result in await batcher.results(again)] == ["succeeded"]


async def test_a_fault_can_wait_for_a_row(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """A fault for a request is none for a row, and the other way round."""
    sim.fail(Fault(status=500))
    sim.fail(Fault(status=503, message="Not now"), operation="batch.row", contains="Question 3")
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 100
    failed = [result for result in await batcher.results(batch_id) if result.outcome == "errored"]
    assert [(result.key, result.message) for result in failed] == [("r3", "Not now")]


async def test_a_row_that_is_no_good_fails_alone(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """In the words that it would be refused with as a request of its own."""
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


async def test_a_batch_remembers_what_it_was_asked(batcher: Batcher, sim: Simulator) -> None:
    """For whoever wants to know what really arrived."""
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


async def test_looking_at_a_batch_from_many_sides_settles_it_once(
    batcher: Batcher, sim: Simulator, clock: Time
) -> None:
    """Each row is answered once, whoever asks first."""
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 100
    sim.fail(Fault(status=500), operation="batch.row", times=3)
    for outcomes in await asyncio.gather(*(batcher.results(batch_id) for _ in range(6))):
        assert sorted(result.outcome for result in outcomes) == ["errored"] * 3 + ["succeeded"] * 5


async def test_what_was_asked_of_a_batch_is_in_the_log(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """Each operation under a name that faults can wait for."""
    batch_id = await batcher.submit("Hello?")
    await batcher.state(batch_id)
    await batcher.ids(10)
    await batcher.cancel(batch_id)
    clock.now += 100
    operations = [entry.operation for entry in sim.requests if entry.operation.startswith("batch.")]
    assert operations == ["batch.create", "batch.get", "batch.list", "batch.cancel"]
    for operation in ("batch.get", "batch.list"):
        sim.fail(Fault(status=503), operation=operation)
        with pytest.raises(Failed) as failed:
            await batcher.ids(10) if operation == "batch.list" else await batcher.state(batch_id)
        assert failed.value.status == 503


async def test_after_a_reset_there_are_no_batches(batcher: Batcher, sim: Simulator) -> None:
    """Nor plans for the next."""
    sim.batch(end="failed")
    await batcher.submit("Hello?")
    sim.batch(end="failed")
    sim.reset()
    assert sim.batches == []
    assert await batcher.ids(10) == []
    await batcher.submit("Hello?")
    assert sim.batches[0].plan.end == "completed"


def words(batcher: Batcher, sim: Simulator) -> str:
    """What the simulator says of the state, as the SDK would."""
    state = sim.batches[0].state
    return state.replace("BATCH_", "JOB_") if batcher.provider == "gemini" else state
