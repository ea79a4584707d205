"""Adoption: answers that version 0.1.0 saved for sub-flows are found when their parent is retried."""

from __future__ import annotations

from pollux_flows.state.adoption import adopt_answers
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import Store
from tests.state.places import Clock
from tests.state.test_slots import FIRST, Question, Run, make_outcome


async def save(store: Store, clock: Clock, run: str, call: Question, text: str) -> None:
    """Save an answer as version 0.1.0 did."""
    journal = Journal(store, run, clock)
    await journal.begin()
    await journal.save_answer(call.identity, make_outcome(text))


async def test_answers_of_all_sub_flows_are_adopted(store: Store, clock: Clock) -> None:
    """Each answer is adopted once, also among identical questions; answers of other runs are not adopted."""
    same = [Question(index, "same", index) for index in range(2)]
    await save(store, clock, "run/sub-0", same[0], "first")
    await save(store, clock, "run/sub-0", same[1], "second")
    await save(store, clock, "run/sub-1", same[0], "third")
    await save(store, clock, "run/sub-1", Question(prompt="other"), "fourth")
    await save(store, clock, "runner/sub-0", Question(prompt="foreign"), "not ours")
    calls = [Question(index, "same", index) for index in range(4)]
    calls += [Question(4, "other"), Question(5, "foreign")]
    for _ in range(2):  # the second time changes nothing
        await adopt_answers(store, "run", calls)
    taken = await Run(store, clock).open_slots(FIRST).acquire(calls)
    texts = [slot.outcome.answer.text if slot.outcome and slot.outcome.answer else None for slot in taken.values()]
    assert sorted(text for text in texts[:4] if text) == ["first", "second", "third"]
    assert texts[4:] == ["fourth", None]


async def test_an_adopted_answer_is_found_by_other_runs(store: Store, clock: Clock) -> None:
    """The adopted answer has its original age."""
    call = Question()
    await save(store, clock, "run/sub-0", call, "here")
    clock.now += 100
    await adopt_answers(store, "run", [call])
    found = await Journal(store, "another", clock).load_reusable([call.identity], None)
    assert [outcome.answer and outcome.answer.text for outcome in found.values()] == ["here"]
    assert await Journal(store, "another", clock).load_reusable([call.identity], 50) == {}


async def test_a_later_answer_of_another_run_stays_the_latest(store: Store, clock: Clock) -> None:
    """Copying an answer does not make it newer."""
    call = Question()
    await save(store, clock, "run/sub-0", call, "earlier")
    clock.now += 100
    await save(store, clock, "another", call, "later")
    await adopt_answers(store, "run", [call])
    found = await Journal(store, "a third", clock).load_reusable([call.identity], 50)
    assert [outcome.answer and outcome.answer.text for outcome in found.values()] == ["later"]
