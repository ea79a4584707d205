"""A reply that was lost: whether the provider has the batch is found out, never guessed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pollux_flows import APIError, Config, defer_many, inspect_deferred
from pollux_flows.config import ProviderName
from pollux_flows.deferred.advance import cancel
from pollux_flows.deferred.book import Asked, StoreBook
from pollux_flows.deferred.job import Job, OnLost
from pollux_flows.deferred.reconcile import SETTLED_S
from pollux_flows.deferred.submit import claim, hand_in, hand_in_first, settle
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers.session import Session, open_session
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.leases import LeaseLostError
from pollux_flows.state.store import open_store
from tests.loopback import SDKS, MakeConfig

every_batch_system = pytest.mark.parametrize("provider", SDKS)
named = pytest.mark.parametrize("provider", ["gemini", "openai"])
PROMPTS = ["one", "two", "three"]


@asynccontextmanager
async def claimed(config: Config, on_lost: OnLost = "submit") -> AsyncIterator[tuple[StoreBook, Session, Plan]]:
    """A job called "job" that nobody has handed in."""
    request = make_request(PROMPTS, target=config.target)
    plan, book = make_plan(request, []), StoreBook(open_store())
    await claim(book, "job", Asked.by(request, []), plan, config.key(), on_lost=on_lost)
    async with open_session(config) as session:
        yield book, session, plan


async def tried(book: StoreBook, session: Session, plan: Plan, later_s: float = 0.0) -> Job:
    """The job after somebody has tried to hand in what is left, so much later."""
    async with book.alone("job") as hold:
        await settle(hold, session, clock=lambda: time.time() + later_s)
        await hand_in(hold, session, plan, clock=lambda: time.time() + later_s)
        return hold.job


@every_batch_system
async def test_the_provider_has_it(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    """Found at once where batches carry a name; elsewhere by their first result."""
    sim.batch_s = 0
    sim.fail(Fault(kind="drop_after"), operation="batch.create")
    handle = await defer_many(PROMPTS, config=config(provider))
    assert (await inspect_deferred(handle, config=config(provider))).status == "completed"
    assert len(sim.batches) == 1


@every_batch_system
async def test_the_provider_has_nothing(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    """It is believed only some time after the reply was lost, and then handed in again."""
    sim.fail(Fault(kind="drop"), operation="batch.create")
    with pytest.raises(APIError, match="may have taken the batch") as caught:
        await defer_many(PROMPTS, config=config(provider))
    assert caught.value.outcome_unknown
    assert sim.batches == []
    with pytest.raises(APIError, match="may have taken the batch"):
        await defer_many(PROMPTS, config=config(provider))
    assert sim.batches == []


@every_batch_system
async def test_it_is_handed_in_again_when_it_is_settled(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    async with claimed(config(provider)) as (book, session, plan):
        sim.fail(Fault(kind="drop"), operation="batch.create")
        assert (await tried(book, session, plan)).state == "submitting"
        assert (await tried(book, session, plan, SETTLED_S - 5)).state == "submitting"
        assert sim.batches == []
        job = await tried(book, session, plan, SETTLED_S + 5)
    assert (job.state, job.parts[0].attempt, len(sim.batches)) == ("submitted", 2, 1)


@named
async def test_a_reply_that_took_very_long_is_no_sign(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    """The time that counts begins when nobody waits any more."""
    async with claimed(config(provider)) as (book, session, plan):
        sim.fail(Fault(kind="drop"), operation="batch.create")
        job = await tried(book, session, plan)
        asked_long_ago = job.parts[0].model_copy(update={"sent_at": time.time() - 600})
        async with book.alone("job") as hold:
            await hold.save(hold.job.with_part(0, asked_long_ago))
        assert (await tried(book, session, plan)).parts[0].state == "sending"
    assert sim.batches == []


@named
async def test_whoever_handed_it_in_is_gone(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    """What was on its way may still arrive: the first look is not the last."""
    async with claimed(config(provider)) as (book, session, plan):
        sim.fail(Fault(kind="drop"), operation="batch.create")
        job = await tried(book, session, plan)
        orphaned = job.parts[0].model_copy(update={"sent_at": time.time() - 600, "lost_at": None})
        async with book.alone("job") as hold:
            await hold.save(hold.job.with_part(0, orphaned))
        assert (await tried(book, session, plan)).parts[0].state == "sending"
        assert (await tried(book, session, plan, SETTLED_S + 5)).parts[0].state == "sent"
    assert len(sim.batches) == 1


async def test_left_to_a_person(sim: Simulator, config: MakeConfig) -> None:
    async with claimed(config("openai"), on_lost="report") as (book, session, plan):
        sim.fail(Fault(kind="drop"), operation="batch.create")
        await tried(book, session, plan)
        job = await tried(book, session, plan, SETTLED_S + 5)
    assert (job.state, job.parts[0].state) == ("ambiguous", "lost")
    assert sim.batches == []


async def test_what_was_given_up_too_early_is_looked_for_again(sim: Simulator, config: MakeConfig) -> None:
    """It may be a batch that is still under way: nobody hands it in a second time."""
    sim.batch_s = 3600
    async with claimed(config("anthropic"), on_lost="report") as (book, session, plan):
        sim.fail(Fault(kind="drop_after"), operation="batch.create")
        job = await tried(book, session, plan)
        async with book.alone("job") as hold:
            lost = job.parts[0].model_copy(update={"state": "lost"})
            await hold.save(hold.job.with_part(0, lost))
            await settle(hold, session, lost=True)
            assert hold.job.parts[0].state == "sending"
    assert len(sim.batches) == 1


async def test_another_key_looks_through_another_account(sim: Simulator, config: MakeConfig) -> None:
    """There nothing is found, and nothing is handed in."""
    async with claimed(config("openai")) as (book, session, plan):
        sim.fail(Fault(kind="drop_after"), operation="batch.create")
        sim.fail(Fault(status=500), operation="batch.list", times=30)
        assert (await tried(book, session, plan)).state == "submitting"
        sim.faults.clear()
        async with open_session(config("openai", api_key="sk-another-account")) as other:
            job = await tried(book, other, plan, SETTLED_S + 5)
        assert job.state == "ambiguous"
    assert len(sim.batches) == 1


async def test_others_of_the_same_size_are_told_apart(sim: Simulator, config: MakeConfig) -> None:
    """One whose results cannot be had just now may be ours, so nothing is handed in meanwhile."""
    sim.batch_s = 0
    await defer_many(["a", "b", "c"], config=config("anthropic"))
    await defer_many(["d", "e", "f"], config=config("anthropic"))
    async with claimed(config("anthropic")) as (book, session, plan):
        sim.fail(Fault(kind="drop_after"), operation="batch.create")
        sim.fail(Fault(status=404), operation="batch.results")
        job = await tried(book, session, plan, SETTLED_S + 5)
    assert (job.parts[0].batch_id, len(sim.batches)) == (sim.batches[2].id, 3)


async def test_cancelled_before_it_was_split(sim: Simulator, config: MakeConfig) -> None:
    """It ends, and nothing of it is handed in by whoever comes back to it."""
    async with claimed(config("openai")) as (book, session, plan):
        async with book.alone("job") as hold:
            await cancel(hold, session)
            assert hold.job.is_ended
        job = await hand_in_first(book, "job", session, plan)
    assert (job.is_ended, job.parts[0].problem and job.parts[0].problem.kind) == (True, "cancelled")
    assert sim.batches == []


async def test_cancel_gives_up_what_the_provider_does_not_have_any_more(sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 3600
    async with claimed(config("openai")) as (book, session, plan):
        await tried(book, session, plan)
        sim.fail(Fault(status=404, message="no such batch"), operation="batch.get", times=5)
        sim.fail(Fault(status=404, message="no such batch"), operation="batch.cancel", times=5)
        async with book.alone("job") as hold:
            await cancel(hold, session)
            problem = hold.job.parts[0].problem
    assert problem is not None
    assert (problem.kind, problem.outcome_unknown) == ("missing", True)


async def test_the_lease_is_looked_at_before_each_try(
    sim: Simulator, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was taken for dead, and wakes up, hands nothing in."""

    async with claimed(config("anthropic")) as (book, session, plan), book.alone("job") as hold:
        await hold.renew()

        async def lost() -> None:
            raise LeaseLostError("job")

        monkeypatch.setattr(hold, "renew", lost)
        with pytest.raises(LeaseLostError):
            await hand_in(hold, session, plan)
    assert sim.batches == []
