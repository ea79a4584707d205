"""Resubmit: hand in again what did not succeed, as a job of its own, whose answers complete those of the first."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pollux_flows.deferred.book import Book
from pollux_flows.deferred.job import Job, new_job, ranges


async def again(job: Job, book: Book, indexes: Sequence[int], key: str | None, *, resubmit: int = 0) -> Job:
    """The job that asks these prompts again, with that key. It may be there already: this was cut off, then."""
    asked, rows = await book.asked(job.name), ranges(indexes)
    asked.plan(job)  # that it is what the job asked
    child = new_job(
        next_child(job),
        asked.about(rows),
        time.time(),
        key,
        rows=rows,
        parent=job.name,
        resubmit=resubmit,
        on_lost=job.on_lost,
        provider_block=job.provider_block,
    )
    await book.ask(child.name, asked)
    return child if await book.add(child) else await book.find(child.name) or child


def next_child(job: Job) -> str:
    """What the next job is called that asks its failed prompts again."""
    return f"{job.name}-r{job.children + 1}"


def with_child(job: Job, child: Job) -> Job:
    """The job, which now waits for another to complete it."""
    return job.model_copy(
        update={"child": child.name, "children": job.children + 1, "retired_at": None, "failed_in": None}
    )
