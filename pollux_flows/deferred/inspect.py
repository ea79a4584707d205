"""Inspect: how far a job is, by what its provider says. It deletes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial

from pollux_flows.deferred.job import Job, Part
from pollux_flows.deferred.reconcile import SETTLED_S
from pollux_flows.deferred.submit import waiting_s
from pollux_flows.errors import APIError
from pollux_flows.handles import DeferredSnapshot, DeferredStatus
from pollux_flows.pipeline.retry import insist
from pollux_flows.providers.batches import Batch
from pollux_flows.providers.session import Session


async def look(job: Job, session: Session) -> Job:
    """The job as its provider sees it now. One request for each part that is under way."""
    seen = {
        part.batch_id: await insist(partial(session.inspect_batch, part.batch_id), session.config)
        for part in job.parts
        if part.batch_id is not None and not part.is_ended
    }
    return with_seen(job, seen)


def under_way(job: Job) -> list[str]:
    """The provider's ids of those batches that are not known to have ended."""
    return [part.batch_id for part in job.parts if part.batch_id is not None and not part.is_ended]


def with_seen(job: Job, batches: Mapping[str, Batch], now: float | None = None) -> Job:
    """The job with what is now known of its batches; the same object if that changes nothing."""
    now = time.time() if now is None else now
    parts = [
        _seen(part, batch, now) if not part.is_ended and (batch := batches.get(part.batch_id or "")) else part
        for part in job.parts
    ]
    return job if parts == job.parts else job.with_parts(parts)


def with_missing(job: Job, missing: Mapping[str, APIError], key: str | None, now: float) -> Job:
    """Return the job with those of its batches as lost that the provider does not know any more.

    It counts only with the key that the job was handed in with: another account does not have its batches. And it does
    not count right after a batch was accepted, when it may not show everywhere yet.
    """
    if not missing or not job.was_handed_in_with(key):
        return job
    parts = [
        part.missing(_missing(job, part, error))
        if part.state == "sent"
        and not part.is_ended
        and now - (part.sent_at or 0.0) >= SETTLED_S
        and (error := missing.get(part.batch_id or ""))
        else part
        for part in job.parts
    ]
    return job if parts == job.parts else job.with_parts(parts)


def _missing(job: Job, part: Part, error: APIError) -> str:
    return f"{job.target.provider} no longer has the batch {part.batch_id}, which it had accepted: {error.message}"


def _seen(part: Part, batch: Batch, now: float) -> Part:
    seen = part.seen(batch)
    if batch.state == "failed" and batch.queue_full and seen.problem is not None:
        return seen.waits(now + waiting_s(part.attempt), seen.problem)
    return seen


def snapshot(job: Job, job_id: str | None = None) -> DeferredSnapshot:
    """Where it stands, in numbers."""
    status = status_of(job)
    succeeded, failed = _counts(job)
    return DeferredSnapshot(
        job_id=job_id or id_of(job),
        provider=job.target.provider,
        model=job.target.model,
        status=status,
        provider_status=" · ".join(dict.fromkeys(part.native or part.state for part in job.parts)) or job.state,
        request_count=job.count,
        succeeded=succeeded,
        failed=failed,
        pending=job.count - succeeded - failed,
        submitted_at=submitted_at(job),
        completed_at=max(_times(part.ended_at for part in job.parts), default=None) if job.is_ended else None,
        expires_at=min(_times(part.expires_at for part in job.parts), default=None),
    )


def status_of(job: Job) -> DeferredStatus:
    """One word for all parts together."""
    states = {"failed" if part.state == "refused" else part.batch_state or "queued" for part in job.parts}
    if not job.is_ended:
        return "cancelling" if "cancelling" in states else "queued" if states <= {"queued"} else "running"
    succeeded, failed = _counts(job)
    if succeeded and not failed:
        return "completed"
    if succeeded:
        return "partial"
    return "cancelled" if states == {"cancelled"} else "expired" if states == {"expired"} else "failed"


def id_of(job: Job) -> str:
    """The provider's id of it, or ours for several batches together."""
    ids = [part.batch_id for part in job.parts]
    return ids[0] if len(ids) == 1 and ids[0] else job.submission


def submitted_at(job: Job) -> float:
    """When the first of it was handed in."""
    return min(_times(part.sent_at for part in job.parts), default=job.created_at)


def _counts(job: Job) -> tuple[int, int]:
    """How many prompts have an answer, and how many will have none. Once a part is ended, it is one or the other."""
    succeeded = failed = 0
    for part in job.parts:
        answered = min(part.succeeded, part.count)  # whatever the provider counts
        succeeded += answered
        failed += part.count - answered if part.is_ended else min(part.failed, part.count - answered)
    return succeeded, failed


def _times(times: Iterable[float | None]) -> list[float]:
    return [time for time in times if time is not None]
