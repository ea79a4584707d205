"""Submitting: create the deferred job of a flow run and submit it to its provider."""

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
    """Submit the job of this run, once however often the run is retried."""
    prompts = await read_prompts(prompts, prompts_from)
    store = await BlockJobStore.open()
    if (here := await lineage()) is None:
        raise InternalError("submit_job was called outside a flow run.")
    job_input = _JobInput(
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
            plan = await _create_job(store, name, provider.name, config, job_input)
            if plan is not None:
                return await _submit_rest(store, name, config, plan)
        elif await _take_over(store, job, here):
            await _warn_if_changed(job, job_input)
            if job.is_submitted or job.manifest is not None:
                return job
            config = await (JobConfigs().load(job) if job.provider_block else provider.config())
            return await _submit_rest(store, name, config)
    raise AssertionError


async def _names(here: Lineage) -> AsyncIterator[str]:
    """Yield the names that the job of this flow run may have.

    The outermost run has one job. Sub-flows with equal parameters have one each, whose names differ by an ordinal.
    """
    if here.is_outermost:
        yield job_name(str(here.outermost.id))
        return
    for ordinal in count():
        yield f"deferred-{digest('deferred', [str(here.outermost.id), here.parameters_digest, ordinal])[:12]}"


async def _take_over(store: BlockJobStore, job: Job, here: Lineage) -> bool:
    """Take over a job that an earlier attempt submitted. Return False if another sub-flow of this attempt has it."""
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


async def _warn_if_changed(job: Job, job_input: _JobInput) -> None:
    """Warn of a source that changed since the job was submitted, as no second batch is submitted for it."""
    if not any(source.source_type == "file" for source in job_input.sources):
        return
    try:
        request = make_request(
            list(job_input.prompts), target=job.target, sources=job_input.sources, options=job_input.options
        )
        plan = await asyncio.to_thread(make_plan, request, await read_sources(request))
    except PolluxError as error:
        get_run_logger().warning("The sources of %s cannot be read any more: %s", job.name, error)
        return
    if job.rows is None and fingerprint(plan) != job.fingerprint:
        get_run_logger().warning(
            "A source has changed since %s was submitted. Its answers are about the earlier content; for answers about "
            "the current content, start a new run.",
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
                    # By now a list of the provider may show the batch, or a candidate.
                    await reconcile(lock, session, include_lost=True)
                parts = [part.reset() if part.state == "lost" else part for part in lock.job.parts]
                await lock.save(lock.job.with_parts(parts))
            elif job.manifest is None:
                raise ConfigurationError(f"{name} is not collected yet.", hint="Collect it first, or wait for it.")
            elif job.child is None:
                if not (indexes := await find_unanswered(store.storage, job)):
                    raise ConfigurationError(f"All prompts of {name} have answers.", hint="Nothing is left to submit.")
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
class _JobInput:
    """The arguments of `submit_job`, and the sub-flow that submits."""

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
    """The chain of the sub-flow that waits for the job; empty for an outermost flow run."""


async def _create_job(
    store: BlockJobStore, name: str, provider_block: str | None, config: Config, job_input: _JobInput
) -> Plan | None:
    """Check the request, and save the job. Nothing is sent to the provider yet.

    Return None if another sub-flow with equal parameters was faster and has taken the name.
    """
    if job_input.resubmit < 0:
        raise ConfigurationError(
            f"resubmit is {job_input.resubmit}.", hint="Pass 0, or how often failed prompts are submitted again."
        )
    output = None if job_input.output is None else resolve_output(job_input.output)
    request = await tasks.request(
        pass_opaque(job_input.prompts),
        config.target,
        pass_opaque(job_input.sources),
        job_input.options,
        sources_by_prompt=pass_opaque(job_input.sources_by_prompt),
    )
    submission.check_request(request)
    plan = await tasks.plan(pass_opaque(request))
    async with open_session(config) as session:
        await submission.check_plan(session, plan)
        if job_input.max_cost_usd is not None:
            check_job_budget(plan, session, job_input.max_cost_usd)
    if job_input.needs_approval:
        await require_approval(lambda: estimate_plan(plan, config))
    if provider_block is None:
        _warn_of_unsaved_key(config)
    job = await submission.create_job(
        store,
        name,
        JobRequest.of(request, plan.contents),
        plan,
        config.key(),
        provider_block=provider_block,
        output=output,
        resubmit=job_input.resubmit,
        on_lost=job_input.on_lost,
        taken_by=job_input.taken_by,
        max_cost_usd=job_input.max_cost_usd,
    )
    return plan if job.taken_by == job_input.taken_by else None


async def _submit_rest(store: BlockJobStore, name: str, config: Config, plan: Plan | None = None) -> Job:
    """Submit all parts of the job that are not submitted yet, and return it."""

    async def submit_parts() -> Job:
        async with open_session(config) as session:
            return await submission.submit_created_job(store, name, session, plan, _publish_submission)

    # A closure, as the session holds a key, and the arguments of a task may be stored.
    job = await task(name="submit", task_run_name=f"submit {name}", **UNSTORED)(submit_parts)()
    get_run_logger().info("The job %s is %s.", job.name, job.state)
    return job


async def _publish_submission(lock: JobLock) -> None:
    if not was_emitted(lock.job, "submitted"):
        await pages.publish_submission(lock.job)
    await emit_submission_events(lock)


def _warn_of_unsaved_key(config: Config) -> None:
    """Warn if only this process knows the key, which will be missing when the answers are collected."""
    if config.use_mock:
        return
    variable = KEY_VARIABLES[config.provider]
    if from_environment(variable) is None:
        get_run_logger().warning(
            "The provider was never saved, so the run that collects this job will look for %s in its environment. "
            "Save it: PolluxProvider(…).save('a-name').",
            variable,
        )
