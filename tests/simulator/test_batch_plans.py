"""Batch plans: each way in which a test can make a batch end differently."""

import json
from typing import Any

import httpx
import pytest

from pollux_flows.simulator import Fault, Simulator

from .batchers import Batcher
from .clients import DROPPED, ErrorResponse
from .conftest import Clock

PROMPTS = tuple(f"Question {number}" for number in range(8))
KEYS = [f"r{number}" for number in range(8)]


async def submit_and_end(batcher: Batcher, clock: Clock) -> str:
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 1
    return batch_id


async def test_a_batch_can_be_completed_in_part(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """In a partial batch the unanswered rows fail, but the batch is completed."""
    sim.batch(end="partial", answered=0.25, message="We are sorry")
    batch_id = await submit_and_end(batcher, clock)
    assert await batcher.state(batch_id) == batcher.state_names["completed"]
    results = await batcher.results_by_key(batch_id)
    assert [results[key].outcome for key in KEYS] == ["succeeded"] * 2 + ["errored"] * 6
    assert results["r7"].message == "We are sorry"


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_a_batch_can_end_early(end: str, batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """A planned early end leaves half of the rows answered; at Gemini none, unless the plan sets a share."""
    sim.batch(end=end)
    batch_id = await submit_and_end(batcher, clock)
    assert await batcher.state(batch_id) == batcher.state_names[end]
    outcomes = sorted(result.outcome for result in await batcher.results(batch_id))
    assert outcomes == (sorted(["succeeded", end] * 4) if batcher.returns_unanswered_rows else [])
    sim.batch(end=end, answered=0.75)
    results = await batcher.results_by_key(await submit_and_end(batcher, clock))
    assert [results[key].outcome for key in KEYS] == ["succeeded"] * 6 + [end] * 2


async def test_a_batch_planned_to_expire_announces_that_time(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """The `expires_at` of a batch that is planned to expire is the time at which it does."""
    sim.batch(end="expired", takes_s=1000)
    batch_id = await batcher.submit("Hello?")
    assert sim.batches[0].expires_at == clock.now + 1000
    clock.now += 999
    assert await batcher.state(batch_id) != batcher.state_names["expired"]
    clock.now += 1
    assert await batcher.state(batch_id) == batcher.state_names["expired"]


@pytest.mark.parametrize("end", ["failed", "queue_full"])
async def test_a_batch_can_fail_after_it_was_accepted(end: str, batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """A batch fails when it starts. Anthropic has no such state, so all rows fail when the batch ends."""
    sim.batch(end=end, takes_s=100)
    batch_id = await batcher.submit(*PROMPTS)
    assert await batcher.state(batch_id) == batcher.state_names["starting"]
    clock.now += 10
    if batcher.provider != "anthropic":
        assert await batcher.state(batch_id) == batcher.state_names["failed"]
        assert sim.batches[0].phase == "failed"
        assert await batcher.results(batch_id) == []
    clock.now += 90
    assert {result.outcome for result in await batcher.results(batch_id)} <= {"errored"}
    await batcher.submit("Hello?")
    assert sim.batches[1].ending == "completed"


async def test_results_can_be_in_order(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """With `shuffled=False` results come in the order of the rows, as Gemini documents it."""
    sim.batch(shuffled=False)
    assert [result.key for result in await batcher.results(await submit_and_end(batcher, clock))] == KEYS


async def test_results_can_be_missing(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """Planned results are missing although the counts include them."""
    sim.batch(missing=3)
    batch_id = await submit_and_end(batcher, clock)
    keys = [str(result.key) for result in await batcher.results(batch_id)]
    assert len(keys) == len(set(keys)) == 5
    assert set(keys) < set(KEYS)
    results = sim.batches[0].results
    assert results is not None
    assert results.counts == {"succeeded": 8}


async def test_results_can_come_twice(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """Planned duplicates of results come at other places among the results."""
    sim.batch(duplicates=2)
    results = await batcher.results(await submit_and_end(batcher, clock))
    assert len(results) == 10
    twice = [result for place, result in enumerate(results) if result in results[:place]]
    assert len(twice) == 2
    assert {result.key for result in results} == set(KEYS)


async def test_results_can_have_unknown_keys(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """Planned foreign results look like the others, but their keys belong to no row."""
    sim.batch(unknown=2, missing=1)
    results = await batcher.results(await submit_and_end(batcher, clock))
    strangers = [result for result in results if result.key not in KEYS]
    assert [result.key for result in strangers] == ["unknown-0", "unknown-1"]
    assert {result.outcome for result in strangers} == {"succeeded"}
    assert len(results) == 9


@pytest.mark.filterwarnings("ignore:RESTING is not a valid:UserWarning")
async def test_a_state_can_be_an_unknown_word(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """A running batch can have a state that the SDKs do not know; they accept it unless they are strict."""
    batcher.sdk._strict_response_validation = False
    sim.batch(status="RESTING", takes_s=100)
    batch_id = await batcher.submit("Hello?")
    for _ in range(2):
        assert await batcher.state(batch_id) == sim.batches[0].state == "RESTING"
        clock.now += 50
    assert await batcher.state(batch_id) == batcher.state_names["completed"]


async def test_a_plan_applies_to_matching_batches_only(batcher: Batcher, sim: Simulator) -> None:
    """A plan applies to one provider and a number of batches; the oldest matching plan comes first."""
    sim.batch(end="failed", provider="anthropic" if batcher.provider != "anthropic" else "openai")
    sim.batch(end="expired", times=2, provider=batcher.provider)
    sim.batch(end="cancelled", times=None)
    for _ in range(4):
        await batcher.submit("Hello?")
    assert [batch.plan.end for batch in sim.batches] == ["expired", "expired", "cancelled", "cancelled"]


async def test_a_full_queue_refuses_new_batches(batcher: Batcher, sim: Simulator) -> None:
    """A full queue refuses new batches in the provider's words, as many times as the fault says."""
    sim.fail(Fault(kind="queue_full"), operation="batch.create", times=2)
    for _ in range(2):
        with pytest.raises(ErrorResponse) as caught:
            await batcher.submit("Hello?")
        assert caught.value.status == 429
        words = {"openai": "Enqueued token limit", "anthropic": "processing queue", "gemini": "current quota"}
        assert words[batcher.provider] in str(caught.value.body)
    assert sim.batches == []
    await batcher.submit("Hello?")
    assert len(sim.batches) == 1


@pytest.mark.parametrize("kind", ["drop_after", "malformed", "cut"])
async def test_a_batch_whose_answer_is_lost_was_accepted(
    kind: str, batcher: Batcher, sim: Simulator, clock: Clock
) -> None:
    """The client cannot know that the batch was accepted, but finds it in the list."""
    sim.fail(Fault(kind=kind), operation="batch.create", provider=batcher.provider)
    with pytest.raises((*DROPPED, json.JSONDecodeError)):
        await batcher.submit(*PROMPTS)
    (batch,) = sim.batches
    clock.now += 1
    assert await batcher.list_ids(10) == [batch.id]
    assert len(await batcher.results(batch.id)) == len(PROMPTS)


async def test_a_dropped_batch_request_creates_no_batch(batcher: Batcher, sim: Simulator) -> None:
    """A request whose socket closes creates no batch and uses up no plan."""
    sim.batch(end="expired")
    sim.fail(Fault(kind="drop"), operation="batch.create")
    with pytest.raises(DROPPED):
        await batcher.submit(*PROMPTS)
    assert sim.batches == []
    await batcher.submit(*PROMPTS)
    assert [batch.plan.end for batch in sim.batches] == ["expired"]


async def test_a_download_can_break_off(batcher: Batcher, sim: Simulator, clock: Clock) -> None:
    """A download can end half-way; the next download is complete."""
    batch_id = await submit_and_end(batcher, clock)
    sim.fail(Fault(kind="cut"), operation=batcher.results_operation)
    with pytest.raises(DROPPED):
        await batcher.results(batch_id)
    assert len(await batcher.results(batch_id)) == len(PROMPTS)


@pytest.mark.parametrize(
    "plan",
    [
        {"end": "happily"},
        {"answered": 2},
        {"missing": -1},
        {"takes_s": -1},
        {"colour": "red"},
        {"provider": "unknown"},
        {"times": 0},
        [],
        3,
    ],
)
async def test_an_invalid_plan_is_refused(plan: Any, http: httpx.AsyncClient) -> None:
    """An invalid plan is refused with an error text."""
    answer = await http.post("/_simulator/batches", json=plan)
    assert (answer.status_code, bool(answer.json()["error"])) == (400, True)


async def test_another_process_can_plan_and_list_batches(
    batcher: Batcher, sim: Simulator, http: httpx.AsyncClient
) -> None:
    """The control endpoint takes the arguments of `Simulator.batch` as JSON, and lists the batches."""
    assert (await http.post("/_simulator/batches", json={"end": "expired", "takes_s": 0})).status_code == 201
    batch_id = await batcher.submit(*PROMPTS)
    (batch,) = (await http.get("/_simulator/batches")).json()["batches"]
    assert (batch["id"], batch["rows"], batch["state"]) == (batch_id, 8, sim.batches[0].words["expired"])
