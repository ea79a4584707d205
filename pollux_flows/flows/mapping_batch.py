"""Mapping in batches: submit the rows without an answer as one deferred job, and save its answers for the table.

The run is suspended while the provider works. When it is resumed it starts from its first line, finds its job by its
name, and saves its answers under the identities of the rows' calls. From then on they are reused like any others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from prefect import get_run_logger

from pollux_flows.artifacts import Progress
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.capabilities import check_deferred
from pollux_flows.config import Config
from pollux_flows.deferred.job import Job
from pollux_flows.flows.batch_answers import load_identities, save_answers
from pollux_flows.flows.chunks import MapRun
from pollux_flows.flows.shared_batches import take_shared_questions
from pollux_flows.flows.submitting import submit_job
from pollux_flows.flows.waiting import mark_failed, resubmit_if_failed, wait_until_complete
from pollux_flows.mapping.answer import ChunkAnswers, look_up_chunk
from pollux_flows.mapping.questions import Question, number_sources
from pollux_flows.pages import count_of
from pollux_flows.result import Outcome
from pollux_flows.tables.table import Chunk


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
        shared = await take_shared_questions(missing, run)
        asked = await self._run_job(missing)
        for other in shared:
            asked |= await other.wait()
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
        return await save_answers(self.job, await load_identities(self.job), self.run.scope.run)
