"""Shared batches: a row that a job of another run asks is not submitted a second time.

The run waits for that job, and saves its answers itself, as the other run may end before it does so. Two runs that
start within the same seconds do not see each other's jobs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from prefect import get_run_logger

from pollux_flows.deferred.job import Job
from pollux_flows.errors import PolluxError
from pollux_flows.flows.batch_answers import load_identities, save_answers
from pollux_flows.flows.chunks import MapRun
from pollux_flows.flows.waiting import wait_until_complete
from pollux_flows.jobs.names import job_name
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.mapping.questions import Question
from pollux_flows.pages import count_of
from pollux_flows.result import Outcome
from pollux_flows.scope import Lineage, find_start, lineage

# The run of a job that was collected longer ago has saved its answers, or will not.
_RECENT_S: Final = 86_400.0


@dataclass(frozen=True)
class SharedBatch:
    """A job of another run, and those of its calls that ask questions of this table: their identities by index."""

    job: Job
    calls: dict[int, str]

    async def wait(self) -> dict[str, Outcome]:
        """Wait until the job is complete, save its answers to these calls, and return the outcomes of the others."""
        try:
            return await self.save(await wait_until_complete(self.job.name))
        except PolluxError as error:
            get_run_logger().warning(
                "The answers of %s, which another run has submitted, are missing: %s", self.job.name, error
            )
            return {}

    async def save(self, job: Job) -> dict[str, Outcome]:
        """Save the answers of the complete job to these calls, and return the outcomes of those without an answer."""
        outcomes = await save_answers(job, self.calls, f"job {job.name}")
        return {identity: outcome for identity, outcome in outcomes.items() if outcome is not None}


async def take_shared_questions(missing: dict[str, Question], run: MapRun) -> list[SharedBatch]:
    """Remove from `missing` what jobs of other runs ask or have answered, and return those to wait for.

    A resumed run waits for no job that was submitted after it began: while the table grows, there is always another.
    """
    here = await lineage()
    if here is None or not missing:
        return []
    under_way: list[SharedBatch] = []
    own, others = await _list_jobs(run, here)
    submitted = {identity for job in own for identity in (await load_identities(job)).values()}
    for job in others:
        try:
            wanted = missing.keys() - submitted
            calls = {index: each for index, each in (await load_identities(job)).items() if each in wanted}
            shared = SharedBatch(job, calls)
            unanswered = await shared.save(job) if job.is_complete and calls else {}
        except PolluxError as error:
            get_run_logger().warning("The questions of %s cannot be compared with this table: %s", job.name, error)
            continue
        if calls and not job.is_complete and (not run.scope.is_repeated or job.created_at < find_start(here.outermost)):
            under_way.append(shared)
            number = count_of(len(set(calls.values())), "question")
            get_run_logger().info("This run waits for %s, which asks %s of its table.", job.name, number)
        for identity in set(calls.values()) - unanswered.keys():
            del missing[identity]
    return under_way


async def _list_jobs(run: MapRun, here: Lineage) -> tuple[list[Job], list[Job]]:
    """Return the jobs of this run, and those of other runs that may answer its table."""
    jobs, _ = await (await BlockJobStore.open()).list_jobs()
    own, others = [], []
    for job in jobs:
        if _is_of_run(job, str(here.outermost.id)):
            own.append(job)
        elif _may_answer(job, run):
            others.append(job)
    return own, others


def _is_of_run(job: Job, run: str) -> bool:
    """Return whether a job was submitted by this outermost flow run, or by a part of it."""
    return job.name == job_name(run) or (bool(job.taken_by) and job.taken_by[0][0] == run)


def _may_answer(job: Job, run: MapRun) -> bool:
    """Return whether a job of another run may have answers to a table, or get some, that are not saved yet."""
    return (
        job.target == run.spec.target
        and job.parent is None
        and job.created_at >= (run.terms.since or 0.0)
        and job.state != "ambiguous"
        and not job.cancelled
        and (job.manifest is None or time.time() - job.manifest.collected_at < _RECENT_S)
    )
