"""Mapping in batches: submit the rows without an answer as one deferred job, and save its answers for the table.

The run is suspended while the provider works. When it is resumed it starts from its first line, finds its job by its
name, and saves its answers under the identities of the rows' calls. From then on they are reused like any others.

A row that a job of another run asks is not submitted a second time: this run waits for that job, and saves its answers,
as the other run may end before it does so. Two runs that start within the same seconds do not see each other's jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from prefect import get_run_logger

from pollux_flows.artifacts import Progress
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.capabilities import check_deferred
from pollux_flows.config import Config
from pollux_flows.deferred.answers import read_pieces
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.results import Item
from pollux_flows.errors import PolluxError
from pollux_flows.flows.chunks import MapRun
from pollux_flows.flows.submitting import submit_job
from pollux_flows.flows.waiting import mark_failed, resubmit_if_failed, wait_until_complete
from pollux_flows.jobs.names import job_name
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.mapping.answer import ChunkAnswers, look_up_chunk
from pollux_flows.mapping.questions import Question, number_sources
from pollux_flows.pages import count_of
from pollux_flows.result import Outcome
from pollux_flows.scope import lineage
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import open_store
from pollux_flows.tables.table import Chunk

_SAVES_AT_ONCE: Final = 500
# The run of a job that was collected longer ago has saved its answers, or will not.
_RECENT_S: Final = 86_400.0


@dataclass
class BatchRunner:
    """Answers the chunks of a table with one deferred job."""

    provider: PolluxProvider
    config: Config
    run: MapRun
    progress: Progress

    def __post_init__(self) -> None:
        check_deferred(self.run.spec.target, self.run.spec.options)
        self.job: Job | None = None

    async def answer(self, chunks: Sequence[Chunk]) -> AsyncGenerator[tuple[Chunk, ChunkAnswers], None]:
        """Yield the chunks with their answers, in order, once the job is complete."""
        run, limit_s = self.run, self.config.timeout_s
        missing = await self._find_unanswered(chunks)
        under_way = await self._take_from_others(missing)
        asked = await self._run_job(missing)
        for other, shared in under_way:
            asked |= await self._wait_for_other(other, shared)
        for chunk in chunks:
            found = await look_up_chunk(chunk, run.spec, self.config, run.terms, run.scope)
            collect = partial(found.collect, run.spec, asked, is_repeated=run.scope.is_repeated, limit_s=limit_s)
            yield chunk, await asyncio.to_thread(collect)
            self.progress.advance(chunk.rows)

    async def mark_failed(self) -> None:
        """Record that the run failed, so that its retry submits the unanswered prompts again."""
        if self.job is not None:
            await mark_failed(self.job)

    async def _find_unanswered(self, chunks: Sequence[Chunk]) -> dict[str, Question]:
        """Return the questions without a saved answer, by the identity of their call, each once."""
        run = self.run
        missing: dict[str, Question] = {}
        for chunk in chunks:
            found = await look_up_chunk(chunk, run.spec, self.config, run.terms, run.scope)
            missing |= {call.identity: question for call, question in found.missing if call.identity not in missing}
        return missing

    async def _run_job(self, missing: Mapping[str, Question]) -> dict[str, Outcome | None]:
        """Submit a job for these questions, wait for it, and save its answers.

        Return the identities of its calls, each with its outcome if it has no answer.
        """
        if not missing:
            return {}
        get_run_logger().info("Submitting %s as a batch.", count_of(len(missing), "question"))
        spec = self.run.spec
        sources, sources_by_prompt = number_sources(missing.values(), spec)
        with spec.restrict():
            job = await submit_job(
                [question.prompt for question in missing.values()],
                self.provider,
                sources,
                spec.options,
                max_cost_usd=self.run.terms.max_cost_usd,
                sources_by_prompt=sources_by_prompt,
            )
        await resubmit_if_failed(job)
        self.job = await wait_until_complete(job.name)
        return await _save_answers(self.job, self.run.scope.run)

    async def _take_from_others(self, missing: dict[str, Question]) -> list[tuple[Job, set[str]]]:
        """Remove from `missing` what jobs of other runs ask or have answered, and return the jobs to wait for.

        A resumed run waits for none that was submitted after it began: while the table grows, there is always another.
        """
        under_way: list[tuple[Job, set[str]]] = []
        here = await lineage()
        if here is None or not missing:
            return under_way
        is_resumed, start = self.run.scope.is_repeated, here.outermost.start_time
        began = time.time() if start is None else start.timestamp()
        jobs, _ = await (await BlockJobStore.open()).list_jobs()
        own = [job for job in jobs if _is_of_run(job, str(here.outermost.id))]
        asked = {identity for job in own for identity in (await _load_identities(job)).values()}
        for job in jobs:
            if job in own or not self._may_answer(job):
                continue
            try:
                shared = (set((await _load_identities(job)).values()) & missing.keys()) - asked
                unanswered = await _save_answers_of_other(job, shared) if shared and job.is_complete else {}
            except PolluxError as error:
                get_run_logger().warning("The questions of %s cannot be compared with this table: %s", job.name, error)
                continue
            if shared and not job.is_complete and (not is_resumed or job.created_at < began):
                under_way.append((job, shared))
                number = count_of(len(shared), "question")
                get_run_logger().info("This run waits for %s, which asks %s of its table.", job.name, number)
            for identity in shared - unanswered.keys():
                del missing[identity]
        return under_way

    def _may_answer(self, job: Job) -> bool:
        """Return whether a job of another run may have answers to this table, or get some, that are not saved yet."""
        return (
            job.target == self.run.spec.target
            and job.parent is None
            and job.created_at >= (self.run.terms.since or 0.0)
            and job.state != "ambiguous"
            and not job.cancelled
            and (job.manifest is None or time.time() - job.manifest.collected_at < _RECENT_S)
        )

    async def _wait_for_other(self, job: Job, shared: set[str]) -> dict[str, Outcome]:
        """Wait for the job of another run, save its answers to these calls, and return the outcomes of the others."""
        try:
            return await _save_answers_of_other(await wait_until_complete(job.name), shared)
        except PolluxError as error:
            get_run_logger().warning(
                "The answers of %s, which another run has submitted, are missing: %s", job.name, error
            )
            return {}


def _is_of_run(job: Job, run: str) -> bool:
    """Return whether a job was submitted by this outermost flow run, or by a part of it."""
    return job.name == job_name(run) or (bool(job.taken_by) and job.taken_by[0][0] == run)


async def _load_identities(job: Job) -> dict[int, str]:
    """Return the identities of the calls of a job, by their index."""
    request = await (await BlockJobStore.open()).load_request(job.name)
    plan = await asyncio.to_thread(request.plan, job)
    return {call.index: call.identity for call in plan.calls}


async def _save_answers_of_other(job: Job, shared: Collection[str]) -> dict[str, Outcome]:
    """Save the answers of another run's job to these calls, and return the outcomes of those without an answer."""
    asked = await _save_answers(job, f"job {job.name}", shared)
    return {identity: outcome for identity, outcome in asked.items() if outcome is not None}


async def _save_answers(job: Job, run: str, wanted: Collection[str] | None = None) -> dict[str, Outcome | None]:
    """Save the answers of a complete job for the calls of the table, or for those that are wanted.

    Return these calls, each with its outcome if it was not answered. Doing it again changes nothing.
    """
    identities = await _load_identities(job)
    asked: dict[str, Outcome | None] = {each: None for each in identities.values() if wanted is None or each in wanted}
    storage = (await BlockJobStore.open()).storage
    journal = Journal(open_store(), run)
    await journal.begin()
    async for items in read_pieces(storage, job):
        outcomes = [_with_cost(item, identities[item.outcome.index]) for item in items]
        outcomes = [outcome for outcome in outcomes if outcome.identity in asked]
        asked |= {outcome.identity: outcome for outcome in outcomes if outcome.problem is not None}
        saved = await journal.load_own([outcome.identity for outcome in outcomes])
        answered = {identity for identity, outcome in saved.items() if outcome.problem is None}
        new = iter([outcome for outcome in outcomes if outcome.answer and outcome.identity not in answered])
        while some := list(islice(new, _SAVES_AT_ONCE)):
            await asyncio.gather(*(_save(journal, outcome) for outcome in some))
    return asked


def _with_cost(item: Item, identity: str) -> Outcome:
    """Return the outcome of a call of the table, with everything that was paid for it in the job."""
    paid_before = sum(outcome.cost_usd or 0.0 for outcome in item.earlier)
    return item.outcome.model_copy(update={"identity": identity, "paid_before_usd": paid_before, "reused": "run"})


async def _save(journal: Journal, outcome: Outcome) -> None:
    if outcome.problem is None:
        await journal.save_answer(outcome.identity, outcome)
    else:
        await journal.save_error(outcome.identity, outcome)
