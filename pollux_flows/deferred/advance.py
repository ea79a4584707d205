"""Advance a job: take every step that is possible now, up to the end of its batches, or cancel it."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from http import HTTPStatus

from pollux_flows.deferred.job import Job, Part
from pollux_flows.deferred.poll import PollResult, poll_job
from pollux_flows.deferred.reconcile import reconcile
from pollux_flows.deferred.store import JobLock, JobStore
from pollux_flows.deferred.submit import load_plan, submit_due_parts
from pollux_flows.errors import APIError, ConfigurationError
from pollux_flows.pipeline.retry import retry_call
from pollux_flows.providers.session import Session
from pollux_flows.state.leases import Clock


async def advance(
    lock: JobLock,
    session: Session,
    store: JobStore,
    *,
    polled: PollResult | None = None,
    known: Collection[str] = (),
    clock: Clock = time.time,
) -> None:
    """Reconcile and inspect the parts of a job, submit those that are due, and stop a cancelled job.

    The request is loaded from the store only where something is submitted. `polled` describes its batches as of now,
    where they were just inspected together with those of other jobs.
    """
    await reconcile(lock, session, known=known, clock=clock)
    if polled is None:
        polled = await poll_job(lock.job, session)
    job = polled.apply(lock.job, session.config.key(), clock())
    if job.is_ended:
        lock.job = job  # saved together with its answers
    elif job is not lock.job:
        await lock.save(job)
    if lock.job.cancelled:
        await _stop(lock, session)
    elif lock.job.is_due(clock()):
        await submit_due_parts(lock, session, await load_plan(store, lock.job), known=known, clock=clock)


async def cancel(lock: JobLock, session: Session) -> None:
    """Cancel a job: submit no more of it, and ask the provider to stop its batches.

    A batch that the provider no longer has is treated as lost: the job ends without it.
    """
    if lock.job.manifest is not None:
        return
    await lock.save(lock.job.model_copy(update={"cancelled": True}))
    await reconcile(lock, session)
    await _stop(lock, session)


async def _stop(lock: JobLock, session: Session) -> None:
    job = lock.job
    parts = []
    for part in job.parts or [Part(first=0, count=job.count)]:
        if part.state == "waiting" or (part.state == "lost" and not part.is_missing):
            parts.append(part.cancel())
        elif part.state in {"sent", "lost"}:
            parts.append(await _stop_batch(job, part, session))
        else:
            parts.append(part)
    if parts != job.parts:
        await lock.save(job.with_parts(parts))


async def _stop_batch(job: Job, part: Part, session: Session) -> Part:
    """Ask the provider to stop a batch, and return its part; unchanged if it had already ended."""
    batch_id = part.batch_id or ""
    try:
        if not part.is_ended and part.batch_state != "cancelling":
            with suppress(APIError):  # the inspection shows whether it could be stopped
                await retry_call(partial(session.cancel_batch, batch_id), session.config)
        batch = await retry_call(partial(session.inspect_batch, batch_id), session.config)
    except APIError as error:
        if error.status_code != HTTPStatus.NOT_FOUND:
            raise
        if not job.was_submitted_with(session.config.key()):
            raise ConfigurationError(
                f"{job.name} was submitted with another key, and with this one its batch is not found.",
                hint="Restore that key in the provider, or remove the job's block to give up its answers.",
            ) from None
        return part.give_up(f"The provider no longer has the batch {part.batch_id}.")
    return part if part.is_ended else part.with_batch(batch)
