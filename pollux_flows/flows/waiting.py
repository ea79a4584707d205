"""Waiting for the answers of a deferred job. A run of a deployment is suspended meanwhile, so that nothing runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from prefect import get_run_logger
from prefect.flow_runs import asuspend_flow_run

from pollux_flows.address import redact_address
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.report import missing_problem
from pollux_flows.deferred.results import with_instances
from pollux_flows.deferred.store import BusyError
from pollux_flows.errors import BudgetError, ConfigurationError, PolluxError
from pollux_flows.flows.answering import OnPartial, publish_outcome
from pollux_flows.flows.submitting import submit_again
from pollux_flows.jobs.collector import run_pass
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.jobs.waiters import SUSPENDED_S, job_name, suspendable_run
from pollux_flows.options import Options
from pollux_flows.result import ResultEnvelope
from pollux_flows.scope import lineage

_FIRST_S: Final = 0.2
_LONGEST_S: Final = 60.0
# Errors while checking a job are assumed to be transient, of the network or the provider, for so long.
_TRANSIENT_S: Final = 120.0


async def wait_or_resubmit(job: Job, *, on_partial: OnPartial, options: Options | None) -> ResultEnvelope:
    """Return the answers of this run's job. If an earlier attempt failed for unanswered prompts, resubmit those."""
    if on_partial == "fail":
        await resubmit_if_failed(job)
    try:
        return await wait_for_answers(
            job.name, on_partial=on_partial, options=options, retry="a retry asks only the others"
        )
    except PolluxError as error:
        if error.envelope is not None:
            await mark_failed(job)
        raise


async def resubmit_if_failed(job: Job) -> None:
    """Submit the unanswered prompts of a job again if an earlier attempt of this run has failed because of them."""
    failed_before = job.failed_in not in {None, await _attempt()}
    if failed_before and not (job.manifest and job.manifest.has_all_answers):
        try:
            await submit_again(job.name, within_budget=True)
        except BudgetError as error:  # the run then ends with the answers that exist
            get_run_logger().warning("%s", error)
            return
        await _update_job(job.name, {"failed_in": None})  # once per attempt, however often it is resumed


async def mark_failed(job: Job) -> None:
    """Record that the current attempt failed for prompts without an answer, so that a retry submits them again."""
    await _update_job(job.name, {"failed_in": await _attempt()})


async def _attempt() -> str:
    here = await lineage()
    return here.attempt if here else ""


async def wait_for_answers(
    name: str, *, on_partial: OnPartial = "fail", options: Options | None = None, retry: str | None = None
) -> ResultEnvelope:
    """Wait for the job and return its answers; with `options`, as instances of the caller's model."""
    store, job = await BlockJobStore.open(), await wait_until_complete(name)
    envelope = await store.load_envelope(job)
    retry = retry or f"resubmit({name!r}) asks only the others"
    saved = None if job.manifest and job.manifest.has_all_answers else await store.find_saved(job)
    advice = saved and saved.advice("What was answered is", retry, "a new run")
    output = redact_address(job.manifest.output) if job.manifest and job.manifest.output else None
    run_input = await store.load_input(job)
    await publish_outcome(run_input, [envelope], on_partial, advice=advice, output=output)
    return await asyncio.to_thread(with_instances, envelope, options or job.options)


async def wait_until_complete(name: str) -> Job:
    """Wait for a job, and return it once it is complete.

    A run of a deployment is suspended until `collect` resumes it. Any other run polls with increasing intervals.
    """
    store, last_success = await BlockJobStore.open(), time.monotonic()
    if (await store.get(name)).state == "ambiguous":
        await run_pass([name])  # the provider may list the batch by now
    for pause in _pauses():
        job = await store.get(name)
        if job.is_complete:
            return job
        if job.state == "ambiguous":
            raise _lost_error(job)
        if (run_id := suspendable_run()) is not None and await _register_waiting_run(store, name, run_id):
            get_run_logger().info(
                "%s is not done: this run is suspended until collect resumes it.%s",
                name,
                " If you cancel it, the next collect cancels the batch." if name == job_name(run_id) else "",
            )
            # Once it is resumed, the run starts from its first line, and this returns at once.
            await asuspend_flow_run(timeout=SUSPENDED_S)
        else:
            problems = [row.problem for row in (await run_pass([name])).rows if row.problem]
            last_success = time.monotonic() if not problems else last_success
            if time.monotonic() - last_success > _TRANSIENT_S:
                raise _uncollectable_error(job, problems[0])
            if not (await store.get(name)).is_complete:
                await asyncio.sleep(pause)
    raise AssertionError


def _lost_error(job: Job) -> ConfigurationError:
    if (why := missing_problem(job)) is None:
        return _uncollectable_error(job, "The provider does not have its batch.")
    return ConfigurationError(
        f"The job {job.name} is lost. {why}",
        hint=f"resubmit({job.name!r}) submits it, and pays for it, again; cancel gives it up. If another key can see "
        "the batch, set that key in the PolluxProvider and wait for the job again.",
    )


def _uncollectable_error(job: Job, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"The job {job.name} cannot be collected: {problem}",
        hint="Once this is solved, wait for the job again. resubmit submits batches that the provider does not have; "
        "cancel gives them up.",
    )


async def _register_waiting_run(store: BlockJobStore, name: str, run_id: str) -> bool:
    """Save that this run waits for the job. Return False if another process has the job lock, or the job is done."""
    try:
        async with store.lock(name) as lock:
            if lock.job.is_complete:
                return False
            if run_id not in lock.job.waiting_runs:
                await lock.save(lock.job.model_copy(update={"waiting_runs": [*lock.job.waiting_runs, run_id]}))
            return True
    except BusyError:
        return False


async def _update_job(name: str, update: dict[str, str | None]) -> None:
    """Update fields of the job, once its lock is free."""
    store = await BlockJobStore.open()
    for pause in _pauses():
        try:
            async with store.lock(name) as lock:
                await lock.save(lock.job.model_copy(update=update))
                return
        except BusyError:
            await asyncio.sleep(pause)


def _pauses() -> Iterator[float]:
    pause = _FIRST_S
    while True:
        yield pause
        pause = min(pause * 1.5, _LONGEST_S)
