"""Advance: do for a job all that can be done now, short of collecting it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial

from pollux_flows.deferred.book import Hold
from pollux_flows.deferred.inspect import look, with_seen
from pollux_flows.deferred.submit import hand_in, settle
from pollux_flows.errors import APIError
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.retry import insist
from pollux_flows.providers.batches import Batch
from pollux_flows.providers.session import Session
from pollux_flows.state.claims import Clock


async def advance(
    hold: Hold,
    session: Session,
    plan: Callable[[], Awaitable[Plan]],
    *,
    batches: Mapping[str, Batch] | None = None,
    known: Collection[str] = (),
    clock: Clock = time.time,
) -> None:
    """Find out what is not known of it, hand in what is due, and stop what is cancelled.

    What it asks is needed only where something is handed in. `batches` are those that somebody has just looked at.
    """
    await settle(hold, session, known=known, clock=clock)
    seen = await look(hold.job, session) if batches is None else with_seen(hold.job, batches, clock())
    if seen is not hold.job:
        await hold.save(seen)
    if hold.job.cancelled:
        await _stop(hold, session)
    elif hold.job.is_due(clock()):
        await hand_in(hold, session, await plan(), known=known, clock=clock)


async def cancel(hold: Hold, session: Session) -> None:
    """Want no more of the job: what was not handed in is not, and what was, the provider is asked to stop."""
    if not hold.job.is_ended:
        await hold.save(hold.job.model_copy(update={"cancelled": True}))
        await settle(hold, session)
        await _stop(hold, session)


async def _stop(hold: Hold, session: Session) -> None:
    parts = [part.cancelled() if part.state in {"waiting", "lost"} else part for part in hold.job.parts]
    if parts != hold.job.parts:
        await hold.save(hold.job.with_parts(parts))
    for part in hold.job.parts:
        if part.batch_id is not None and not part.is_ended and part.batch_state != "cancelling":
            try:
                await insist(partial(session.cancel_batch, part.batch_id), session.config)
            except APIError:
                if not (await session.inspect_batch(part.batch_id)).is_ended:  # too late is early enough
                    raise
    seen = await look(hold.job, session)
    if seen is not hold.job:
        await hold.save(seen)
