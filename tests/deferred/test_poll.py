"""Tests of polling: many batches are inspected with few requests, also among many foreign batches."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from pollux_flows import defer
from pollux_flows.config import ProviderName
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.poll import MOST_REQUESTS, PollResult, pending_batches, poll
from pollux_flows.providers.session import open_session
from pollux_flows.simulator import Simulator
from tests.loopback import SDKS, MakeConfig

every_batch_system = pytest.mark.parametrize("provider", SDKS)


async def make_jobs(provider: ProviderName, count: int, sim: Simulator, config: MakeConfig) -> list[Job]:
    """Return jobs with one pending batch each: the first is submitted, the others are copies of it."""
    handle = await defer("Why?", config=config(provider))
    assert handle.provider_state is not None
    job, batch = Job.model_validate(handle.provider_state["job"]), sim.batches[-1]
    jobs = [job]
    for number in range(1, count):
        copy = replace(batch, id=f"{batch.id}{number:05}")
        sim.batch_store.add(copy)
        part = job.parts[0].model_copy(update={"batch_id": copy.id})
        jobs.append(job.model_copy(update={"name": f"{job.name}-{number}", "parts": [part]}))
    return jobs


def add_foreign_batches(count: int, sim: Simulator) -> None:
    """Add batches to the account that belong to none of our jobs."""
    for _ in range(count):
        sim.batch_store.add(replace(sim.batches[-1], id=f"{sim.batches[-1].id[:20]}{uuid4().hex}"))


async def poll_with(
    provider: ProviderName, jobs: list[Job], config: MakeConfig, most: int = MOST_REQUESTS
) -> PollResult:
    async with open_session(config(provider)) as session:
        return await poll(session, jobs, most)


@every_batch_system
async def test_a_list_shows_a_thousand_batches(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 3600
    jobs = await make_jobs(provider, 1000, sim, config)
    before = len(sim.requests)
    seen = await poll_with(provider, jobs, config)
    assert seen.batches.keys() == {batch_id for job in jobs for batch_id in pending_batches(job)}
    assert len(sim.requests) - before == seen.requests <= 10


@every_batch_system
async def test_foreign_batches_do_not_exceed_the_limit_of_requests(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    """Young batches are found in the list, and old ones, behind 5,000 foreign ones, are inspected one by one."""
    sim.batch_s = 3600
    old = await make_jobs(provider, 20, sim, config)
    add_foreign_batches(5000, sim)
    young = await make_jobs(provider, 20, sim, config)
    before = len(sim.requests)
    seen = await poll_with(provider, [*old, *young], config)
    assert len(seen.batches) == 40
    assert len(sim.requests) - before == seen.requests <= MOST_REQUESTS


async def test_every_batch_is_inspected_sooner_or_later(sim: Simulator, config: MakeConfig) -> None:
    """This holds although lists do not show the batches, and although half of them no longer exist."""
    sim.batch_s = 3600
    jobs = await make_jobs("openai", 60, sim, config)
    for batch in sim.batches[:30]:
        sim.batch_store.delete(batch)
    add_foreign_batches(1000, sim)
    found: set[str] = set()
    for _ in range(200):
        seen = await poll_with("openai", jobs, config, most=9)
        assert seen.requests <= 9
        found |= seen.batches.keys()
        if len(found) == 30:
            return
    pytest.fail(f"only {len(found)} of 30 were ever inspected")


async def test_young_batches_are_inspected_less_often(sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 3600
    jobs = await make_jobs("openai", 40, sim, config)
    add_foreign_batches(1000, sim)
    # The list of batches is read back to the creation of the oldest job.
    old = [job.model_copy(update={"created_at": job.created_at - 7200}) for job in jobs[:20]]
    young = [job.model_copy(update={"created_at": job.created_at - 60}) for job in jobs[20:]]
    ids = {batch_id for job in old for batch_id in pending_batches(job)}
    seen = [each for _ in range(20) for each in (await poll_with("openai", [*old, *young], config, most=9)).batches]
    assert sum(each in ids for each in seen) > 0.8 * len(seen)
