"""Slots: the assignment of answers of a run to its executions, and the release of slots."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.result import Answer, Outcome
from pollux_flows.state.identity import call_identity
from pollux_flows.state.journal import Journal
from pollux_flows.state.leases import LeaseLostError
from pollux_flows.state.slots import Chain, RunScope, Slots, has_lapsed
from pollux_flows.state.store import Store
from tests.state.places import Clock, list_keys

FIRST: Chain = (("flow", "1"),)
SECOND: Chain = (("flow", "2"),)


@dataclass(frozen=True)
class Question:
    index: int = 0
    prompt: str | None = "why?"
    occurrence: int = 0
    request: str = "request"
    source: int | None = None

    @property
    def identity(self) -> str:
        return call_identity(self.request, self.prompt, self.occurrence)


def make_outcome(text: str) -> Outcome:
    return Outcome(index=0, identity="a", answer=Answer(text=text, finish_reason="stop"), attempts=1, cost_usd=0.25)


class Run:
    """A run in a store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.journal = Journal(store, "run", clock)

    def open_slots(self, chain: Chain, sub_flow: str = "", place: str = "") -> Slots:
        """Return the slots of an execution of this run."""
        return Slots(self.store, RunScope("run", chain, sub_flow=sub_flow, place=place), self.clock)

    async def answer(self, slots: Slots, text: str, *calls: Question, reuse: bool = True) -> str:
        """Save an answer with this text, as an execution does, unless the slot has one, and return its text."""
        (slot,) = (await slots.acquire(calls or [Question()], reuse=reuse)).values()
        if slot.outcome is not None and slot.outcome.answer is not None:
            return slot.outcome.answer.text
        await self.journal.save_answer(slot.identity, make_outcome(text))
        return text


@pytest.fixture
def run(store: Store, clock: Clock) -> Run:
    return Run(store, clock)


async def test_a_retry_reuses_the_answers_of_the_attempt_before(run: Run) -> None:
    """Each answer is reused once, also among identical questions."""
    for chain, texts in ((FIRST, ["one", "two"]), (SECOND, ["three", "four"])):
        found = [await run.answer(run.open_slots((*chain, (f"sub {text}", "1"))), text) for text in texts]
        assert sorted(found) == ["one", "two"]


async def test_siblings_with_equal_questions_get_an_answer_each(run: Run) -> None:
    """A slot lapses only when the run of its taker starts again."""
    assert await run.answer(run.open_slots((*FIRST, ("a", "1"))), "one") == "one"
    assert await run.answer(run.open_slots((*FIRST, ("b", "1"))), "two") == "two"


async def test_a_retried_task_reuses_only_its_own_answers(run: Run) -> None:
    await run.answer(run.open_slots((*FIRST, ("task", "1"))), "one")
    await run.answer(run.open_slots((*FIRST, ("sibling", "1"))), "two")
    assert await run.answer(run.open_slots((*FIRST, ("task", "2"))), "three") == "one"


async def test_a_call_does_not_wait_for_a_sibling_with_an_equal_question(run: Run) -> None:
    asking, other = run.open_slots((*FIRST, ("a", "1"))), run.open_slots((*FIRST, ("b", "1")))
    (slot,) = (await asking.acquire([Question()])).values()
    (second,) = (await other.acquire([Question()])).values()
    assert slot.identity != second.identity


async def test_a_retry_waits_for_an_earlier_attempt_that_is_still_asking(run: Run) -> None:
    """A second call would be paid for twice."""
    earlier, retry = run.open_slots(FIRST), run.open_slots(SECOND)
    (slot,) = (await earlier.acquire([Question()])).values()
    assert await retry.acquire([Question()]) == {}
    waiting = asyncio.create_task(retry.wait_for_slot(Question()))
    await run.journal.save_answer(slot.identity, make_outcome("one"))
    outcome = (await asyncio.wait_for(waiting, 10)).outcome
    assert outcome is not None
    assert outcome.answer is not None
    assert outcome.answer.text == "one"


async def test_a_slot_is_released_when_its_taker_ends_without_an_answer(run: Run) -> None:
    """A sibling may take the slot."""
    ended = run.open_slots((*FIRST, ("a", "1")))
    (slot,) = (await ended.acquire([Question()])).values()
    await ended.close()
    taken = await run.open_slots((*FIRST, ("b", "1"))).acquire([Question()])
    assert taken[0].identity == slot.identity


async def test_a_taker_that_lost_its_lease_gets_an_error_before_its_next_request(run: Run) -> None:
    """The taker can then acquire slots again, as a new taker."""
    paused, successor = run.open_slots(FIRST), run.open_slots(SECOND)
    lost, other = (await paused.acquire([Question(), Question(1, "how?")])).values()
    await paused.check_lease(lost)
    run.clock.now += 60
    (slot,) = (await successor.acquire([Question()])).values()
    for each in (lost, other):
        with pytest.raises(LeaseLostError):
            await paused.check_lease(each)
    assert (await paused.wait_for_slot(Question(1, "how?"), other)).identity == other.identity
    for each in (lost, other):  # slots that it acquired before
        with pytest.raises(LeaseLostError):
            await paused.check_lease(each)
    waiting = asyncio.create_task(paused.wait_for_slot(Question(), lost))
    await run.journal.save_answer(slot.identity, make_outcome("one"))
    assert (await asyncio.wait_for(waiting, 10)).outcome is not None


async def test_a_lease_that_ran_out_without_a_successor_is_renewed(run: Run) -> None:
    slots = run.open_slots(FIRST)
    (slot,) = (await slots.acquire([Question()])).values()
    run.clock.now += 60
    await slots.check_lease(slot)
    assert await run.open_slots(SECOND).acquire([Question()]) == {}


async def test_answers_of_a_completed_sub_flow_are_not_taken_by_others(run: Run) -> None:
    """Prefect reuses the result of the completed sub-flow; its failed sibling gets another answer."""
    done, failed = run.open_slots((*FIRST, ("a", "1"))), run.open_slots((*FIRST, ("b", "1")))
    await run.answer(done, "one")
    await failed.acquire([Question()])
    await done.close(complete=True)
    await failed.close()
    assert await run.answer(run.open_slots((*SECOND, ("c", "1"))), "two") == "two"
    # A second call of the completed sub-flow finds its own answer.
    assert await run.answer(run.open_slots((*SECOND, ("d", "1"))), "three") == "one"


async def test_a_completed_sub_flow_shares_no_answer_with_calls_of_equal_parameters(run: Run) -> None:
    """Prefect reuses the result of the sub-flow; a second call with equal parameters is another question."""
    done = run.open_slots((*FIRST, ("a", "1")), "equal", "place 0")
    await run.answer(done, "one")
    await done.close(complete=True)
    assert await run.answer(run.open_slots((*SECOND, ("b", "1")), "equal", "place 1"), "two") == "two"
    # Prefect calls the sub-flow again if its result was not stored.
    assert await run.answer(run.open_slots((*SECOND, ("c", "1")), "equal", "place 0"), "three") == "one"


async def test_without_reuse_each_call_gets_an_empty_slot(run: Run) -> None:
    """The cost of earlier answers is counted."""
    await run.answer(run.open_slots(FIRST), "one")
    slots = run.open_slots(SECOND)
    (slot,) = (await slots.acquire([Question()], reuse=False)).values()
    assert (slot.outcome, slot.spent_usd) == (None, 0.25)
    await run.journal.save_answer(slot.identity, make_outcome("two"))
    assert sorted(await run.journal.load_own([call_identity("request", "why?", n) for n in range(3)])) == sorted(
        call_identity("request", "why?", n) for n in range(2)
    )


async def test_answers_of_an_earlier_version_are_found(run: Run) -> None:
    """An earlier version wrote no slots, and its ordinal was the index in the plan."""
    calls = [Question(index, "same", index) for index in range(3)]
    for call in calls[:2]:
        await run.journal.save_answer(call.identity, make_outcome(f"{call.index}"))
    taken = await run.open_slots(FIRST).acquire(calls)
    assert [slot.outcome is not None for slot in taken.values()] == [True, True, False]
    assert [slot.identity for slot in taken.values()] == [call.identity for call in calls]


async def test_concurrent_executions_get_each_slot_once(run: Run) -> None:
    calls = [Question(index, f"q{index % 5}") for index in range(10)]
    each = [run.open_slots((*FIRST, (f"sub {number}", "1"))) for number in range(8)]
    taken = await asyncio.gather(*(slots.acquire(calls[number % 3 :]) for number, slots in enumerate(each)))
    identities = [slot.identity for slots in taken for slot in slots.values()]
    assert len(identities) == len(set(identities)) == sum(10 - number % 3 for number in range(8))


@pytest.mark.parametrize(
    ("take", "asker", "lapsed"),
    [
        ((), FIRST, True),
        (FIRST, (), True),
        (FIRST, FIRST, False),
        (FIRST, SECOND, True),
        ((*FIRST, ("a", "1")), (*FIRST, ("b", "1")), False),
        ((*FIRST, ("a", "1")), (*FIRST, ("a", "2")), True),
        ((*FIRST, ("a", "1"), ("x", "1")), (*FIRST, ("a", "2"), ("y", "1")), True),
        (FIRST, (*FIRST, ("a", "1")), False),
    ],
)
def test_a_slot_lapses_when_a_shared_ancestor_starts_again(take: Chain, asker: Chain, *, lapsed: bool) -> None:
    assert has_lapsed(take, asker) is lapsed


@pytest.mark.parametrize("record", [{"takers": "x"}, {"takers": [1]}, {}])
async def test_a_damaged_slot_is_an_error(run: Run, record: dict[str, object]) -> None:
    """A damaged slot does not count as an empty one."""
    await run.answer(run.open_slots(FIRST), "one")
    (key,) = [name for name in await list_keys(run.store) if name.startswith("slot/")]
    await run.store.put(key, record)
    with pytest.raises(ConfigurationError, match=rf"record {key} in .* is damaged"):
        await run.open_slots(SECOND).acquire([Question()])
