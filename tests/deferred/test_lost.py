"""Tests of reconciliation: after a lost reply, the batch is looked for before it is submitted again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pollux_flows import APIError, Config, defer_many, inspect_deferred
from pollux_flows.config import ProviderName
from pollux_flows.deferred.advance import cancel
from pollux_flows.deferred.job import Job, OnLost
from pollux_flows.deferred.reconcile import SETTLED_S, reconcile
from pollux_flows.deferred.store import JobRequest, StateJobStore
from pollux_flows.deferred.submit import create_job, submit_created_job, submit_due_parts
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers.session import Session, open_session
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.leases import LeaseLostError
from pollux_flows.state.store import open_store
from tests.loopback import SDKS, MakeConfig

every_batch_system = pytest.mark.parametrize("provider", SDKS)
every_system_with_names = pytest.mark.parametrize("provider", ["gemini", "openai"])
PROMPTS = ["one", "two", "three"]


@asynccontextmanager
async def create_unsent_job(
    config: Config, on_lost: OnLost = "submit"
) -> AsyncIterator[tuple[StateJobStore, Session, Plan]]:
    """Create a job named "job" that is not submitted yet."""
    request = make_request(PROMPTS, target=config.target)
    plan, store = make_plan(request, []), StateJobStore(open_store())
    await create_job(store, "job", JobRequest.of(request, []), plan, config.key(), on_lost=on_lost)
    async with open_session(config) as session:
        yield store, session, plan


async def resume_submission(store: StateJobStore, session: Session, plan: Plan, later_s: float = 0.0) -> Job:
    """Reconcile the job and submit the rest of it, by a clock that is `later_s` ahead."""
    async with store.lock("job") as lock:
        await reconcile(lock, session, clock=lambda: time.time() + later_s)
        await submit_due_parts(lock, session, plan, clock=lambda: time.time() + later_s)
        return lock.job


@every_batch_system
async def test_a_batch_whose_reply_was_lost_is_found(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    """The batch is found by its name or, where batches have no names, by its first result."""
    sim.batch_s = 0
    sim.fail(Fault(kind="drop_after"), operation="batch.create")
    handle = await defer_many(PROMPTS, config=config(provider))
    assert (await inspect_deferred(handle, config=config(provider))).status == "completed"
    assert len(sim.batches) == 1


@every_batch_system
async def test_a_batch_that_is_not_found_is_not_submitted_again_at_once(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    """The provider may list it only some time after its reply was lost."""
    sim.fail(Fault(kind="drop"), operation="batch.create")
    with pytest.raises(APIError, match="may or may not have accepted the batch") as caught:
        await defer_many(PROMPTS, config=config(provider))
    assert caught.value.outcome_unknown
    assert sim.batches == []
    with pytest.raises(APIError, match="may or may not have accepted the batch"):
        await defer_many(PROMPTS, config=config(provider))
    assert sim.batches == []


@every_batch_system
async def test_a_batch_that_never_arrived_is_submitted_again_after_the_settling_time(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    async with create_unsent_job(config(provider)) as (store, session, plan):
        sim.fail(Fault(kind="drop"), operation="batch.create")
        assert (await resume_submission(store, session, plan)).state == "submitting"
        assert (await resume_submission(store, session, plan, SETTLED_S - 5)).state == "submitting"
        assert sim.batches == []
        job = await resume_submission(store, session, plan, SETTLED_S + 5)
    assert (job.state, job.parts[0].attempt, len(sim.batches)) == ("submitted", 2, 1)


@every_system_with_names
async def test_the_settling_time_begins_when_the_request_has_ended(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    """A request may take minutes, so the time at which it was sent does not count."""
    async with create_unsent_job(config(provider)) as (store, session, plan):
        sim.fail(Fault(kind="drop"), operation="batch.create")
        job = await resume_submission(store, session, plan)
        sent_long_ago = job.parts[0].model_copy(update={"sent_at": time.time() - 600})
        async with store.lock("job") as lock:
            await lock.save(lock.job.with_part(0, sent_long_ago))
        assert (await resume_submission(store, session, plan)).parts[0].state == "sending"
    assert sim.batches == []


@every_system_with_names
async def test_the_settling_time_begins_anew_if_the_submitting_process_has_died(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    """The request of the dead process may still arrive, so the first search decides nothing."""
    async with create_unsent_job(config(provider)) as (store, session, plan):
        sim.fail(Fault(kind="drop"), operation="batch.create")
        job = await resume_submission(store, session, plan)
        orphaned = job.parts[0].model_copy(update={"sent_at": time.time() - 600, "lost_at": None})
        async with store.lock("job") as lock:
            await lock.save(lock.job.with_part(0, orphaned))
        assert (await resume_submission(store, session, plan)).parts[0].state == "sending"
        assert (await resume_submission(store, session, plan, SETTLED_S + 5)).parts[0].state == "sent"
    assert len(sim.batches) == 1


async def test_on_lost_report_leaves_a_lost_batch_to_a_person(sim: Simulator, config: MakeConfig) -> None:
    async with create_unsent_job(config("openai"), on_lost="report") as (store, session, plan):
        sim.fail(Fault(kind="drop"), operation="batch.create")
        await resume_submission(store, session, plan)
        job = await resume_submission(store, session, plan, SETTLED_S + 5)
    assert (job.state, job.parts[0].state) == ("ambiguous", "lost")
    assert sim.batches == []


async def test_a_lost_part_is_reconciled_again_before_it_is_resubmitted(sim: Simulator, config: MakeConfig) -> None:
    """A running batch may be the lost part, so the part is not submitted a second time."""
    sim.batch_s = 3600
    async with create_unsent_job(config("anthropic"), on_lost="report") as (store, session, plan):
        sim.fail(Fault(kind="drop_after"), operation="batch.create")
        job = await resume_submission(store, session, plan)
        async with store.lock("job") as lock:
            lost = job.parts[0].model_copy(update={"state": "lost"})
            await lock.save(lock.job.with_part(0, lost))
            await reconcile(lock, session, include_lost=True)
            assert lock.job.parts[0].state == "sending"
    assert len(sim.batches) == 1


async def test_another_key_never_resubmits_a_lost_batch(sim: Simulator, config: MakeConfig) -> None:
    """The account of another key does not list the batch, which proves nothing."""
    async with create_unsent_job(config("openai")) as (store, session, plan):
        sim.fail(Fault(kind="drop_after"), operation="batch.create")
        sim.fail(Fault(status=500), operation="batch.list", times=30)
        assert (await resume_submission(store, session, plan)).state == "submitting"
        sim.faults.clear()
        async with open_session(config("openai", api_key="sk-another-account")) as other:
            job = await resume_submission(store, other, plan, SETTLED_S + 5)
        assert job.state == "ambiguous"
    assert len(sim.batches) == 1


async def test_foreign_batches_of_the_same_size_are_not_mistaken_for_the_lost_one(
    sim: Simulator, config: MakeConfig
) -> None:
    """A batch without readable results may be the lost one, so nothing is submitted meanwhile."""
    sim.batch_s = 0
    await defer_many(["a", "b", "c"], config=config("anthropic"))
    await defer_many(["d", "e", "f"], config=config("anthropic"))
    async with create_unsent_job(config("anthropic")) as (store, session, plan):
        sim.fail(Fault(kind="drop_after"), operation="batch.create")
        sim.fail(Fault(status=404), operation="batch.results")
        job = await resume_submission(store, session, plan, SETTLED_S + 5)
    assert (job.parts[0].batch_id, len(sim.batches)) == (sim.batches[2].id, 3)


async def test_a_job_that_is_cancelled_before_its_submission_ends(sim: Simulator, config: MakeConfig) -> None:
    """A later attempt to submit it sends nothing."""
    async with create_unsent_job(config("openai")) as (store, session, plan):
        async with store.lock("job") as lock:
            await cancel(lock, session)
            assert lock.job.is_ended
        job = await submit_created_job(store, "job", session, plan)
    assert (job.is_ended, job.parts[0].problem and job.parts[0].problem.kind) == (True, "cancelled")
    assert sim.batches == []


async def test_cancel_gives_up_a_batch_that_the_provider_no_longer_has(sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 3600
    async with create_unsent_job(config("openai")) as (store, session, plan):
        await resume_submission(store, session, plan)
        sim.fail(Fault(status=404, message="no such batch"), operation="batch.get", times=5)
        sim.fail(Fault(status=404, message="no such batch"), operation="batch.cancel", times=5)
        async with store.lock("job") as lock:
            await cancel(lock, session)
            problem = lock.job.parts[0].problem
    assert problem is not None
    assert (problem.kind, problem.outcome_unknown) == ("missing", True)


async def test_the_lease_is_renewed_before_each_attempt(
    sim: Simulator, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has lost its lease submits nothing."""

    async with create_unsent_job(config("anthropic")) as (store, session, plan), store.lock("job") as lock:
        await lock.renew()

        async def fail() -> None:
            raise LeaseLostError("job")

        monkeypatch.setattr(lock, "renew", fail)
        with pytest.raises(LeaseLostError):
            await submit_due_parts(lock, session, plan)
    assert sim.batches == []
