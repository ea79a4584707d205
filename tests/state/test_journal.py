"""The journal: answers are found again by their own run, and by any run that asks for anybody's."""

from __future__ import annotations

import asyncio

import pytest

from pollux_flows.result import Answer, Outcome
from pollux_flows.state.journal import Journal, TakenError
from pollux_flows.state.store import Store
from tests.state.places import DAY, Clock


def answered(text: str, index: int = 0) -> Outcome:
    return Outcome(index=index, identity="a", answer=Answer(text=text, finish_reason="stop"), attempts=1, cost_usd=0.25)


async def texts(found: dict[str, Outcome]) -> dict[str, str]:
    return {call: outcome.answer.text for call, outcome in found.items() if outcome.answer}


@pytest.fixture
def journal(store: Store, clock: Clock) -> Journal:
    return Journal(store, "one", clock)


async def test_what_was_kept_is_there(journal: Journal, store: Store, clock: Clock) -> None:
    """Whole, in whatever process asks next; where it stood in the run, and how it was come by, is not part of it."""
    await journal.keep("a", answered("yes", index=7).model_copy(update={"unkept": "for a while"}))
    again = await Journal(store, "one", clock).own(["a", "b"])
    assert again == {"a": answered("yes").model_copy(update={"reused": "run"})}


async def test_another_run_has_its_own_answers(journal: Journal, store: Store, clock: Clock) -> None:
    """And can be given anybody's, of which the latest counts."""
    await journal.keep("a", answered("first"))
    other = Journal(store, "other", clock)
    assert await other.own(["a"]) == {}
    assert await other.anybodys(["a", "b"], None) == {"a": answered("first").model_copy(update={"reused": "always"})}
    await other.keep("a", answered("second"))
    assert await texts(await journal.anybodys(["a"], None)) == {"a": "second"}
    assert await texts(await journal.own(["a"])) == {"a": "first"}


async def test_an_answer_can_be_too_old(journal: Journal, clock: Clock) -> None:
    """By the time it was given."""
    await journal.keep("a", answered("yes"))
    clock.now += DAY
    assert await journal.anybodys(["a"], DAY - 1) == {}
    assert await texts(await journal.anybodys(["a"], DAY)) == {"a": "yes"}


async def test_a_pointer_to_a_pruned_run_leads_nowhere(journal: Journal, store: Store) -> None:
    """Its answers are gone, and are asked for again."""
    await journal.keep("a", answered("yes"))
    await store.delete(*[key async for key, _ in store.scan("run/")])
    assert await journal.anybodys(["a"], None) == {}


async def test_one_call_is_claimed_by_one_run(journal: Journal, store: Store) -> None:
    """The other is told, and can wait until it is free."""
    other = Journal(store, "other")
    async with journal.asking("a") as take:
        await take()
        await take()  # it has it already
        async with other.asking("a") as take_too:
            with pytest.raises(TakenError):
                await take_too()
        freed = asyncio.create_task(other.free("a"))
        await asyncio.sleep(0)
        assert not freed.done()
    await asyncio.wait_for(freed, 5)
    async with other.asking("a") as take_now:
        await take_now()
