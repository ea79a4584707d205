"""Each way in which a batch can go differently, because a test has planned it."""

import json
from typing import Any

import httpx
import pytest

from pollux_flows.simulator import Fault, Simulator

from .batchers import Batcher
from .clients import DROPPED, Failed
from .conftest import Time

PROMPTS = tuple(f"Question {number}" for number in range(8))
KEYS = [f"r{number}" for number in range(8)]


async def ended(batcher: Batcher, clock: Time) -> str:
    batch_id = await batcher.submit(*PROMPTS)
    clock.now += 1
    return batch_id


async def test_a_batch_can_be_completed_in_part(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """The rows that were not answered failed, and the batch as a whole did not."""
    sim.batch(end="partial", answered=0.25, message="We are sorry")
    batch_id = await ended(batcher, clock)
    assert await batcher.state(batch_id) == batcher.words["completed"]
    results = await batcher.by_key(batch_id)
    assert [results[key].outcome for key in KEYS] == ["succeeded"] * 2 + ["errored"] * 6
    assert results["r7"].message == "We are sorry"


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_a_batch_can_end_early(end: str, batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """Without anybody's doing, and with half of its rows answered; with none at all by Gemini, unless told to."""
    sim.batch(end=end)
    batch_id = await ended(batcher, clock)
    assert await batcher.state(batch_id) == batcher.words[end]
    outcomes = sorted(result.outcome for result in await batcher.results(batch_id))
    assert outcomes == (sorted(["succeeded", end] * 4) if batcher.tells_what_is_left else [])
    sim.batch(end=end, answered=0.75)
    results = await batcher.by_key(await ended(batcher, clock))
    assert [results[key].outcome for key in KEYS] == ["succeeded"] * 6 + [end] * 2


async def test_a_batch_that_is_planned_to_expire_has_no_more_time(
    batcher: Batcher, sim: Simulator, clock: Time
) -> None:
    """What it says about its time agrees with what happens to it."""
    sim.batch(end="expired", takes_s=1000)
    batch_id = await batcher.submit("Hello?")
    assert sim.batches[0].expires_at == clock.now + 1000
    clock.now += 999
    assert await batcher.state(batch_id) != batcher.words["expired"]
    clock.now += 1
    assert await batcher.state(batch_id) == batcher.words["expired"]


@pytest.mark.parametrize("end", ["failed", "queue_full"])
async def test_a_batch_can_fail_after_it_was_accepted(end: str, batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """At its beginning, and as a whole; Anthropic has no word for that, so all its rows fail at the end."""
    sim.batch(end=end, takes_s=100)
    batch_id = await batcher.submit(*PROMPTS)
    assert await batcher.state(batch_id) == batcher.words["starting"]
    clock.now += 10
    if batcher.provider != "anthropic":
        assert await batcher.state(batch_id) == batcher.words["failed"]
        assert sim.batches[0].phase == "failed"
        assert await batcher.results(batch_id) == []
    clock.now += 90
    assert {result.outcome for result in await batcher.results(batch_id)} <= {"errored"}
    await batcher.submit("Hello?")
    assert sim.batches[1].ending == "completed"


async def test_results_can_be_in_order(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """As Gemini documents it."""
    sim.batch(shuffled=False)
    assert [result.key for result in await batcher.results(await ended(batcher, clock))] == KEYS


async def test_results_can_be_missing(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """Although the counts say that all is well."""
    sim.batch(missing=3)
    batch_id = await ended(batcher, clock)
    keys = [str(result.key) for result in await batcher.results(batch_id)]
    assert len(keys) == len(set(keys)) == 5
    assert set(keys) < set(KEYS)
    results = sim.batches[0].results
    assert results is not None
    assert results.counts == {"succeeded": 8}


async def test_results_can_come_twice(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """The same ones, somewhere else."""
    sim.batch(duplicates=2)
    results = await batcher.results(await ended(batcher, clock))
    assert len(results) == 10
    twice = [result for place, result in enumerate(results) if result in results[:place]]
    assert len(twice) == 2
    assert {result.key for result in results} == set(KEYS)


async def test_results_can_be_nobodys(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """They look like the others, and belong to no row."""
    sim.batch(unknown=2, missing=1)
    results = await batcher.results(await ended(batcher, clock))
    strangers = [result for result in results if result.key not in KEYS]
    assert [result.key for result in strangers] == ["nobodys-0", "nobodys-1"]
    assert {result.outcome for result in strangers} == {"succeeded"}
    assert len(results) == 9


@pytest.mark.filterwarnings("ignore:RESTING is not a valid:UserWarning")
async def test_a_state_can_be_a_word_that_nobody_knows(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """Until the batch ends. The SDKs let it through, unless they are strict."""
    batcher.sdk._strict_response_validation = False
    sim.batch(status="RESTING", takes_s=100)
    batch_id = await batcher.submit("Hello?")
    for _ in range(2):
        assert await batcher.state(batch_id) == sim.batches[0].state == "RESTING"
        clock.now += 50
    assert await batcher.state(batch_id) == batcher.words["completed"]


async def test_a_plan_is_for_some_batches_only(batcher: Batcher, sim: Simulator) -> None:
    """Of one provider, so many, and the oldest plan comes first."""
    sim.batch(end="failed", provider="anthropic" if batcher.provider != "anthropic" else "openai")
    sim.batch(end="expired", times=2, provider=batcher.provider)
    sim.batch(end="cancelled", times=None)
    for _ in range(4):
        await batcher.submit("Hello?")
    assert [batch.plan.end for batch in sim.batches] == ["expired", "expired", "cancelled", "cancelled"]


async def test_a_full_queue_takes_no_more(batcher: Batcher, sim: Simulator) -> None:
    """For so many attempts, in the provider's words; the next one is welcome."""
    sim.fail(Fault(kind="queue_full"), operation="batch.create", times=2)
    for _ in range(2):
        with pytest.raises(Failed) as failed:
            await batcher.submit("Hello?")
        assert failed.value.status == 429
        words = {"openai": "Enqueued token limit", "anthropic": "processing queue", "gemini": "current quota"}
        assert words[batcher.provider] in str(failed.value.body)
    assert sim.batches == []
    await batcher.submit("Hello?")
    assert len(sim.batches) == 1


@pytest.mark.parametrize("kind", ["drop_after", "malformed", "cut"])
async def test_a_batch_whose_answer_is_lost_was_accepted(
    kind: str, batcher: Batcher, sim: Simulator, clock: Time
) -> None:
    """The client cannot know, but it can find the batch in the list."""
    sim.fail(Fault(kind=kind), operation="batch.create", provider=batcher.provider)
    with pytest.raises((*DROPPED, json.JSONDecodeError)):
        await batcher.submit(*PROMPTS)
    (batch,) = sim.batches
    clock.now += 1
    assert await batcher.ids(10) == [batch.id]
    assert len(await batcher.results(batch.id)) == len(PROMPTS)


async def test_a_batch_that_was_dropped_is_none(batcher: Batcher, sim: Simulator) -> None:
    """The socket closes, and it is as if nothing had been sent: even the plan waits for another."""
    sim.batch(end="expired")
    sim.fail(Fault(kind="drop"), operation="batch.create")
    with pytest.raises(DROPPED):
        await batcher.submit(*PROMPTS)
    assert sim.batches == []
    await batcher.submit(*PROMPTS)
    assert [batch.plan.end for batch in sim.batches] == ["expired"]


async def test_a_download_can_break_off(batcher: Batcher, sim: Simulator, clock: Time) -> None:
    """Half-way; what comes after that is whole again."""
    batch_id = await ended(batcher, clock)
    sim.fail(Fault(kind="cut"), operation=batcher.results_from)
    with pytest.raises(DROPPED):
        await batcher.results(batch_id)
    assert len(await batcher.results(batch_id)) == len(PROMPTS)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"end": "happily"},
        {"answered": 2},
        {"missing": -1},
        {"takes_s": -1},
        {"colour": "red"},
        {"provider": "nobody"},
        {"times": 0},
        [],
        3,
    ],
)
async def test_a_plan_that_makes_no_sense_is_refused(nonsense: Any, http: httpx.AsyncClient) -> None:
    """With a word about what is wrong."""
    answer = await http.post("/_simulator/batches", json=nonsense)
    assert (answer.status_code, bool(answer.json()["error"])) == (400, True)


async def test_another_process_can_plan_and_look(batcher: Batcher, sim: Simulator, http: httpx.AsyncClient) -> None:
    """The arguments of `Simulator.batch` in one JSON object; and what came of them."""
    assert (await http.post("/_simulator/batches", json={"end": "expired", "takes_s": 0})).status_code == 201
    batch_id = await batcher.submit(*PROMPTS)
    (batch,) = (await http.get("/_simulator/batches")).json()["batches"]
    assert (batch["id"], batch["rows"], batch["state"]) == (batch_id, 8, sim.batches[0].words["expired"])
