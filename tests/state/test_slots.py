"""Slots: which execution has which answer of a run, and when slots become free."""

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
AGAIN: Chain = (("flow", "2"),)


@dataclass(frozen=True)
class Asked:
    index: int = 0
    prompt: str | None = "why?"
    occurrence: int = 0
    request: str = "request"
    source: int | None = None

    @property
    def identity(self) -> str:
        return call_identity(self.request, self.prompt, self.occurrence)


def answered(text: str) -> Outcome:
    return Outcome(index=0, identity="a", answer=Answer(text=text, finish_reason="stop"), attempts=1, cost_usd=0.25)


class Run:
    """A run in a store, with its executions."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.journal = Journal(store, "run", clock)

    def at(self, chain: Chain, sub_flow: str = "", place: str = "") -> Slots:
        return Slots(self.store, RunScope("run", chain, sub_flow=sub_flow, place=place), self.clock)

    async def answer(self, slots: Slots, text: str, *calls: Asked, reuse: bool = True) -> str:
        """Ask as an execution does, unless the slot has an answer, and return its text."""
        (slot,) = (await slots.acquire(calls or [Asked()], reuse=reuse)).values()
        if slot.outcome is not None and slot.outcome.answer is not None:
            return slot.outcome.answer.text
        await self.journal.save_answer(slot.identity, answered(text))
        return text


@pytest.fixture
def run(store: Store, clock: Clock) -> Run:
    return Run(store, clock)


async def test_a_retry_reuses_the_answers_of_the_attempt_before(run: Run) -> None:
    """Each once, also those of identical questions."""
    for chain, brought in ((FIRST, ["one", "two"]), (AGAIN, ["three", "four"])):
        found = [await run.answer(run.at((*chain, (f"sub {text}", "1"))), text) for text in brought]
        assert sorted(found) == ["one", "two"]


async def test_siblings_get_an_answer_each(run: Run) -> None:
    """Until the run of a taker starts again."""
    assert await run.answer(run.at((*FIRST, ("a", "1"))), "one") == "one"
    assert await run.answer(run.at((*FIRST, ("b", "1"))), "two") == "two"


async def test_a_retried_task_reuses_its_own_answers_alone(run: Run) -> None:
    await run.answer(run.at((*FIRST, ("task", "1"))), "one")
    await run.answer(run.at((*FIRST, ("sibling", "1"))), "two")
    assert await run.answer(run.at((*FIRST, ("task", "2"))), "three") == "one"


async def test_a_sibling_with_an_equal_question_is_not_waited_for(run: Run) -> None:
    asking, other = run.at((*FIRST, ("a", "1"))), run.at((*FIRST, ("b", "1")))
    (slot,) = (await asking.acquire([Asked()])).values()
    (second,) = (await other.acquire([Asked()])).values()
    assert slot.identity != second.identity


async def test_an_earlier_attempt_that_still_asks_is_waited_for(run: Run) -> None:
    """Asking, too, would pay twice."""
    earlier, retry = run.at(FIRST), run.at(AGAIN)
    (slot,) = (await earlier.acquire([Asked()])).values()
    assert await retry.acquire([Asked()]) == {}
    waiting = asyncio.create_task(retry.wait_for_slot(Asked()))
    await run.journal.save_answer(slot.identity, answered("one"))
    outcome = (await asyncio.wait_for(waiting, 10)).outcome
    assert outcome is not None
    assert outcome.answer is not None
    assert outcome.answer.text == "one"


async def test_a_slot_comes_free_when_its_taker_ends_without_an_answer(run: Run) -> None:
    """Also for a sibling."""
    ended = run.at((*FIRST, ("a", "1")))
    (slot,) = (await ended.acquire([Asked()])).values()
    await ended.close()
    taken = await run.at((*FIRST, ("b", "1"))).acquire([Asked()])
    assert taken[0].identity == slot.identity


async def test_a_taker_that_lost_its_lease_learns_so_before_its_next_request(run: Run) -> None:
    """It becomes another taker."""
    paused, successor = run.at(FIRST), run.at(AGAIN)
    lost, other = (await paused.acquire([Asked(), Asked(1, "how?")])).values()
    await paused.check_lease(lost)
    run.clock.now += 60
    (slot,) = (await successor.acquire([Asked()])).values()
    for each in (lost, other):
        with pytest.raises(LeaseLostError):
            await paused.check_lease(each)
    assert (await paused.wait_for_slot(Asked(1, "how?"), other)).identity == other.identity
    for each in (lost, other):  # those of the taker that it was
        with pytest.raises(LeaseLostError):
            await paused.check_lease(each)
    waiting = asyncio.create_task(paused.wait_for_slot(Asked(), lost))
    await run.journal.save_answer(slot.identity, answered("one"))
    assert (await asyncio.wait_for(waiting, 10)).outcome is not None


async def test_a_lease_that_ran_out_without_a_successor_goes_on(run: Run) -> None:
    slots = run.at(FIRST)
    (slot,) = (await slots.acquire([Asked()])).values()
    run.clock.now += 60
    await slots.check_lease(slot)
    assert await run.at(AGAIN).acquire([Asked()]) == {}


async def test_answers_of_a_completed_sub_flow_are_left_to_it(run: Run) -> None:
    """Prefect has its result; its failed sibling asks for an answer of its own."""
    done, failed = run.at((*FIRST, ("a", "1"))), run.at((*FIRST, ("b", "1")))
    await run.answer(done, "one")
    await failed.acquire([Asked()])
    await done.close(complete=True)
    await failed.close()
    assert await run.answer(run.at((*AGAIN, ("c", "1"))), "two") == "two"
    # Had it been called again, it would have found its own.
    assert await run.answer(run.at((*AGAIN, ("d", "1"))), "three") == "one"


async def test_a_completed_sub_flow_shares_no_answer_with_its_equals(run: Run) -> None:
    """Prefect reuses its result; a second call with equal parameters is another question."""
    done = run.at((*FIRST, ("a", "1")), "equal", "place 0")
    await run.answer(done, "one")
    await done.close(complete=True)
    assert await run.answer(run.at((*AGAIN, ("b", "1")), "equal", "place 1"), "two") == "two"
    # Prefect calls it again where its result was not stored.
    assert await run.answer(run.at((*AGAIN, ("c", "1")), "equal", "place 0"), "three") == "one"


async def test_without_reuse_each_call_gets_an_empty_slot(run: Run) -> None:
    """And the cost of earlier answers is counted."""
    await run.answer(run.at(FIRST), "one")
    slots = run.at(AGAIN)
    (slot,) = (await slots.acquire([Asked()], reuse=False)).values()
    assert (slot.outcome, slot.spent_usd) == (None, 0.25)
    await run.journal.save_answer(slot.identity, answered("two"))
    assert sorted(await run.journal.load_own([call_identity("request", "why?", n) for n in range(3)])) == sorted(
        call_identity("request", "why?", n) for n in range(2)
    )


async def test_answers_of_an_earlier_version_are_found(run: Run) -> None:
    """It wrote no slots, and the ordinal was the place in the plan."""
    calls = [Asked(index, "same", index) for index in range(3)]
    for call in calls[:2]:
        await run.journal.save_answer(call.identity, answered(f"{call.index}"))
    taken = await run.at(FIRST).acquire(calls)
    assert [slot.outcome is not None for slot in taken.values()] == [True, True, False]
    assert [slot.identity for slot in taken.values()] == [call.identity for call in calls]


async def test_concurrent_executions_get_each_slot_once(run: Run) -> None:
    calls = [Asked(index, f"q{index % 5}") for index in range(10)]
    each = [run.at((*FIRST, (f"sub {number}", "1"))) for number in range(8)]
    taken = await asyncio.gather(*(slots.acquire(calls[number % 3 :]) for number, slots in enumerate(each)))
    identities = [slot.identity for slots in taken for slot in slots.values()]
    assert len(identities) == len(set(identities)) == sum(10 - number % 3 for number in range(8))


@pytest.mark.parametrize(
    ("take", "asker", "lapsed"),
    [
        ((), FIRST, True),
        (FIRST, (), True),
        (FIRST, FIRST, False),
        (FIRST, AGAIN, True),
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
    """It is not taken for an empty one."""
    await run.answer(run.at(FIRST), "one")
    (key,) = [name for name in await list_keys(run.store) if name.startswith("slot/")]
    await run.store.put(key, record)
    with pytest.raises(ConfigurationError, match=rf"record {key} in .* is damaged"):
        await run.at(AGAIN).acquire([Asked()])
