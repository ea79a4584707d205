"""Journal: answers are loaded by their own run, and reused by other runs."""

from __future__ import annotations

import asyncio

import pytest

from pollux_flows.result import Answer, Outcome
from pollux_flows.state.journal import CallLeasedError, Journal
from pollux_flows.state.store import Store
from tests.state.places import DAY, Clock


def make_outcome(text: str, index: int = 0) -> Outcome:
    return Outcome(index=index, identity="a", answer=Answer(text=text, finish_reason="stop"), attempts=1, cost_usd=0.25)


async def get_texts(found: dict[str, Outcome]) -> dict[str, str]:
    return {call: outcome.answer.text for call, outcome in found.items() if outcome.answer}


@pytest.fixture
def journal(store: Store, clock: Clock) -> Journal:
    return Journal(store, "one", clock)


async def test_a_saved_answer_is_loaded_again(journal: Journal, store: Store, clock: Clock) -> None:
    """The loaded answer has neither its index nor its save error."""
    await journal.save_answer("a", make_outcome("yes", index=7).model_copy(update={"save_error": "for a while"}))
    again = await Journal(store, "one", clock).load_own(["a", "b"])
    assert again == {"a": make_outcome("yes").model_copy(update={"reused": "run"})}


async def test_another_run_reuses_the_latest_answer(journal: Journal, store: Store, clock: Clock) -> None:
    await journal.save_answer("a", make_outcome("first"))
    other = Journal(store, "other", clock)
    assert await other.load_own(["a"]) == {}
    assert await other.load_reusable(["a", "b"], None) == {
        "a": make_outcome("first").model_copy(update={"reused": "always"})
    }
    await other.save_answer("a", make_outcome("second"))
    assert await get_texts(await journal.load_reusable(["a"], None)) == {"a": "second"}
    assert await get_texts(await journal.load_own(["a"])) == {"a": "first"}


async def test_an_answer_that_is_too_old_is_not_reused(journal: Journal, clock: Clock) -> None:
    await journal.save_answer("a", make_outcome("yes"))
    clock.now += DAY
    assert await journal.load_reusable(["a"], DAY - 1) == {}
    assert await get_texts(await journal.load_reusable(["a"], DAY)) == {"a": "yes"}


async def test_a_pointer_to_a_pruned_answer_is_ignored(journal: Journal, store: Store) -> None:
    await journal.save_answer("a", make_outcome("yes"))
    await store.delete(*[key async for key, _ in store.scan("run/")])
    assert await journal.load_reusable(["a"], None) == {}


async def test_one_run_leases_a_call_and_another_waits(journal: Journal, store: Store) -> None:
    other = Journal(store, "other")
    async with journal.lease_call("a") as take:
        await take()
        await take()  # a second call changes nothing
        async with other.lease_call("a") as take_too:
            with pytest.raises(CallLeasedError):
                await take_too()
        waiting = asyncio.create_task(other.wait_for_release("a"))
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)
    async with other.lease_call("a") as take_now:
        await take_now()
