"""Advance: do for a job all that can be done now, short of collecting it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial

from pollux_flows.deferred.book import Hold
from pollux_flows.deferred.inspect import look, with_missing, with_seen
from pollux_flows.deferred.job import Job, Part
from pollux_flows.deferred.poll import NOT_FOUND, Seen
from pollux_flows.deferred.submit import hand_in, settle
from pollux_flows.errors import APIError, ConfigurationError
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.retry import insist
from pollux_flows.providers.session import Session
from pollux_flows.state.leases import Clock


async def advance(
    hold: Hold,
    session: Session,
    plan: Callable[[], Awaitable[Plan]],
    *,
    seen: Seen | None = None,
    known: Collection[str] = (),
    clock: Clock = time.time,
) -> None:
    """Find out what is not known of it, hand in what is due, and stop what is cancelled.

    What it asks is needed only where something is handed in. `seen` is what a look at its batches has just brought.
    """
    await settle(hold, session, known=known, clock=clock)
    if seen is None:
        job = await look(hold.job, session)
    else:
        job = with_seen(hold.job, seen.batches, clock())
        job = with_missing(job, seen.missing, session.config.key(), clock())
    if job.is_ended:
        hold.job = job  # which whoever keeps its answers writes down with them
    elif job is not hold.job:
        await hold.save(job)
    if hold.job.cancelled:
        await _stop(hold, session)
    elif hold.job.is_due(clock()):
        await hand_in(hold, session, await plan(), known=known, clock=clock)


async def cancel(hold: Hold, session: Session) -> None:
    """Want no more of the job: what was not handed in is not, and what was, the provider is asked to stop.

    What the provider does not have any more is given up: the job ends without it.
    """
    if hold.job.manifest is not None:
        return
    await hold.save(hold.job.model_copy(update={"cancelled": True}))
    await settle(hold, session)
    await _stop(hold, session)


async def _stop(hold: Hold, session: Session) -> None:
    job = hold.job
    parts = job.parts or [Part(first=0, count=job.count)]
    unsent = [part.state == "waiting" or (part.state == "lost" and not part.is_missing) for part in parts]
    parts = [part.cancelled() if is_unsent else part for part, is_unsent in zip(parts, unsent, strict=True)]
    parts = [await _stopped(job, part, session) if part.state in {"sent", "lost"} else part for part in parts]
    if parts != job.parts:
        await hold.save(job.with_parts(parts))


async def _stopped(job: Job, part: Part, session: Session) -> Part:
    """One batch after it was asked to stop, or as it is where that comes too late."""
    inspect = partial(session.inspect_batch, part.batch_id or "")
    try:
        if not part.is_ended and part.batch_state != "cancelling":
            with suppress(APIError):  # whether it could be stopped, a look at it tells
                await insist(partial(session.cancel_batch, part.batch_id or ""), session.config)
        batch = await insist(inspect, session.config)
    except APIError as error:
        if error.status_code == NOT_FOUND:
            if not job.was_handed_in_with(session.config.key()):
                raise ConfigurationError(
                    f"{job.name} was handed in with another key, and with this one its batch is not to be found.",
                    hint="Give the provider that key back, or remove the job's block to give up its answers.",
                ) from None
            return part.gone(f"The provider does not have the batch {part.batch_id} any more.")
        raise
    return part if part.is_ended else part.seen(batch)
