"""Submitting: the way of deferred work to its provider, which three flows take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import count

from prefect import get_run_logger, task

from pollux_flows import tasks
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import KEY_VARIABLES, Config, from_environment
from pollux_flows.deferred import submit as submission
from pollux_flows.deferred.answers import find_unanswered
from pollux_flows.deferred.budget import check_child_budget, check_job_budget
from pollux_flows.deferred.job import Job, OnLost, fingerprint
from pollux_flows.deferred.reconcile import reconcile
from pollux_flows.deferred.store import BusyError, JobLock, JobRequest
from pollux_flows.errors import ConfigurationError, InternalError, PolluxError
from pollux_flows.estimation.estimating import estimate_plan
from pollux_flows.flows.answering import pass_opaque
from pollux_flows.flows.approval import require_approval
from pollux_flows.flows.prompts import read_prompts
from pollux_flows.flows.restrictions import with_restrictions
from pollux_flows.frames import Column
from pollux_flows.jobs import pages
from pollux_flows.jobs.events import emit_submission_events, was_emitted
from pollux_flows.jobs.store import BlockJobStore, JobConfigs
from pollux_flows.jobs.waiters import job_name
from pollux_flows.options import Options
from pollux_flows.output import resolve_output
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers.session import open_session
from pollux_flows.scope import Lineage, lineage
from pollux_flows.source import Source
from pollux_flows.state.identity import digest
from pollux_flows.state.leases import backoff_pauses
from pollux_flows.state.slots import Chain, has_lapsed
from pollux_flows.tasks import UNSTORED


@with_restrictions
async def submit_job(
    prompts: Sequence[str | None] | Column,
    provider: PolluxProvider,
    sources: Sequence[Source],
    options: Options | None,
    *,
    sources_by_prompt: Sequence[Sequence[int]] | None = None,
    prompts_from: str | None = None,
    output: str | None = None,
    resubmit: int = 0,
    on_lost: OnLost = "submit",
    max_cost_usd: float | None = None,
    needs_approval: bool = False,
) -> Job:
    """Submit the job of this run, once however often the run is tried."""
    prompts = await read_prompts(prompts, prompts_from)
    store = await BlockJobStore.open()
    if (here := await lineage()) is None:
        raise InternalError("Deferred work is submitted by a flow, and no flow run is at hand.")
    asking = _Asking(
        prompts=prompts,
        sources=sources,
        options=options,
        sources_by_prompt=sources_by_prompt,
        output=output,
        resubmit=resubmit,
        on_lost=on_lost,
        max_cost_usd=max_cost_usd,
        needs_approval=needs_approval,
        taken_by=here.sub_flow_chain,
    )
    # A retry of this run, or its resumption a week later, finds the job that was submitted.
    async for name in _names(here):
        job = await store.find(name)
        if job is None:
            config = await provider.config()
            plan = await _create_job(store, name, provider.name, config, asking)
            if plan is not None:
                return await _submit_rest(store, name, config, plan)
        elif await _take_over(store, job, here):
            await _warn_if_changed(job, asking)
            if job.is_submitted or job.manifest is not None:
                return job
            config = await (JobConfigs().load(job) if job.provider_block else provider.config())
            return await _submit_rest(store, name, config)
    raise AssertionError


async def _names(here: Lineage) -> AsyncIterator[str]:
    """The names that the job of this flow run may have.

    The run itself has one job. Sub-flows that ask the same have one each, which differ by an ordinal.
    """
    if here.is_outermost:
        yield job_name(str(here.outermost.id))
        return
    for ordinal in count():
        yield f"deferred-{digest('deferred', [str(here.outermost.id), here.asked, ordinal])[:12]}"


async def _take_over(store: BlockJobStore, job: Job, here: Lineage) -> bool:
    """Take over a job that an earlier attempt submitted. False if another sub-flow of this attempt has it."""
    if here.is_outermost or job.taken_by == here.chain:
        return True
    for pause in backoff_pauses():
        if not has_lapsed(job.taken_by, here.chain):
            return False
        try:
            async with store.lock(job.name) as lock:
                job = lock.job
                if has_lapsed(job.taken_by, here.chain):
                    await lock.save(job.model_copy(update={"taken_by": here.chain}))
                    return True
        except BusyError:
            await asyncio.sleep(pause)
            job = await store.get(job.name)
    raise AssertionError


async def _warn_if_changed(job: Job, asking: _Asking) -> None:
    """Warn of a source that changed since the job was submitted: it makes no second batch."""
    if not any(source.source_type == "file" for source in asking.sources):
        return
    try:
        request = make_request(list(asking.prompts), target=job.target, sources=asking.sources, options=asking.options)
        plan = await asyncio.to_thread(make_plan, request, await read_sources(request))
    except PolluxError as error:
        get_run_logger().warning("The sources of %s cannot be read any more: %s", job.name, error)
        return
    if job.rows is None and fingerprint(plan) != job.fingerprint:
        get_run_logger().warning(
            "A source has changed since %s was submitted. Its answers are about the earlier content; for answers about "
            "the present one, start a new run.",
            job.name,
        )


async def submit_again(name: str, *, within_budget: bool = False) -> str:
    """Submit the unanswered prompts of a collected job, or the batches that the provider lacks of an ambiguous one.

    With `within_budget`, raise a BudgetError if that may cost more than the job has left of its budget.
    """
    store = await BlockJobStore.open()
    try:
        async with store.lock(name) as lock:
            job = lock.job
            if job.state == "ambiguous":
                async with open_session(await JobConfigs().load(job)) as session:
                    await reconcile(lock, session, include_lost=True)  # by now a list may show it, or what may be it
                parts = [part.reset() if part.state == "lost" else part for part in lock.job.parts]
                await lock.save(lock.job.with_parts(parts))
            elif job.manifest is None:
                raise ConfigurationError(f"{name} is not collected yet.", hint="Collect it first, or wait for it.")
            elif job.child is None:
                if not (indexes := await find_unanswered(store.storage, job)):
                    raise ConfigurationError(f"All prompts of {name} have their answer.", hint="Nothing is left to do.")
                config, left_usd = await JobConfigs().load(job), None
                if within_budget and job.max_cost_usd is not None:
                    async with open_session(config) as session:
                        left_usd = await check_child_budget(store, job, indexes, session)
                child = await submission.create_child(job, store, indexes, config.key(), max_cost_usd=left_usd)
                await lock.save(job.with_child(child))
            name = lock.job.child or name
    except BusyError:
        raise ConfigurationError(f"Another run is working on {name} just now.", hint="Try again in a moment.") from None
    return (await _submit_rest(store, name, await JobConfigs().load(await store.get(name)))).name


@dataclass(frozen=True)
class _Asking:
    prompts: Sequence[str | None]
    sources: Sequence[Source]
    options: Options | None
    sources_by_prompt: Sequence[Sequence[int]] | None
    output: str | None
    resubmit: int
    on_lost: OnLost
    max_cost_usd: float | None
    needs_approval: bool
    taken_by: Chain
    """Where in a flow run the job is waited for, when that is a sub-flow."""


async def _create_job(
    store: BlockJobStore, name: str, saved: str | None, config: Config, asking: _Asking
) -> Plan | None:
    """Check all that can be refused, and save the job. Nothing is sent yet.

    None if another sub-flow that asks the same was faster: the name is taken.
    """
    if asking.resubmit < 0:
        raise ConfigurationError(
            f"resubmit is {asking.resubmit}.", hint="Pass 0, or how often what failed is tried again."
        )
    output = None if asking.output is None else resolve_output(asking.output)
    asked = await tasks.request(
        pass_opaque(asking.prompts),
        config.target,
        pass_opaque(asking.sources),
        asking.options,
        sources_by_prompt=pass_opaque(asking.sources_by_prompt),
    )
    submission.check_request(asked)
    plan = await tasks.plan(pass_opaque(asked))
    async with open_session(config) as session:
        await submission.check_plan(session, plan)
        if asking.max_cost_usd is not None:
            check_job_budget(plan, session, asking.max_cost_usd)
    if asking.needs_approval:
        await require_approval(lambda: estimate_plan(plan, config))
    if saved is None:
        _warn_of_a_lost_key(config)
    job = await submission.create_job(
        store,
        name,
        JobRequest.of(asked, plan.contents),
        plan,
        config.key(),
        provider_block=saved,
        output=output,
        resubmit=asking.resubmit,
        on_lost=asking.on_lost,
        taken_by=asking.taken_by,
        max_cost_usd=asking.max_cost_usd,
    )
    return plan if job.taken_by == asking.taken_by else None


async def _submit_rest(store: BlockJobStore, name: str, config: Config, plan: Plan | None = None) -> Job:
    """Submit all parts of the job that are not submitted yet, and return it."""

    async def submit_parts() -> Job:
        async with open_session(config) as session:
            return await submission.submit_created_job(store, name, session, plan, _publish_submission)

    # What it needs, a key among it, stays in this process: a task's arguments would not.
    job = await task(name="submit", task_run_name=f"submit {name}", **UNSTORED)(submit_parts)()
    get_run_logger().info("The job %s is %s.", job.name, job.state)
    return job


async def _publish_submission(lock: JobLock) -> None:
    if not was_emitted(lock.job, "submitted"):
        await pages.publish_submission(lock.job)
    await emit_submission_events(lock)


def _warn_of_a_lost_key(config: Config) -> None:
    """Warn that a key which only this process knows will be missing when the answers are collected."""
    if config.use_mock:
        return
    variable = KEY_VARIABLES[config.provider]
    if from_environment(variable) is None:
        get_run_logger().warning(
            "The provider was never saved, so the run that collects this job will look for %s in its environment. "
            "Save it: PolluxProvider(…).save('a-name').",
            variable,
        )
