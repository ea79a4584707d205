"""Reconciliation: find out whether the provider has a batch whose reply was lost.

A part in the state "sending" may have reached the provider. Before it is submitted again, its batch is looked for in
the account. A provider that stores our names lists the batch with its tag. At other providers, any batch of the same
time and size may be the one, until it has ended and the key of its first result decides.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Final, Literal

from pollux_flows.deferred.job import Part, parse_row_key
from pollux_flows.deferred.store import JobLock
from pollux_flows.errors import APIError
from pollux_flows.pipeline.retry import retry_call
from pollux_flows.providers.batches import SKEW_S, Batch, are_before
from pollux_flows.providers.session import Session
from pollux_flows.state.leases import Clock

SETTLED_S: Final = 30.0
"""How long after the end of a request a batch that no list shows counts as not created.

A request may have reached the provider although the process that sent it died. If a provider takes longer than this to
list a new batch, the batch is submitted twice.
"""

# The results of an ended batch never change, and fetching them for their first line is expensive.
_REMEMBERED: Final = 1000
_keys: Final[dict[str, str]] = {}
_DAY_S: Final = 86_400.0


async def reconcile(
    lock: JobLock,
    session: Session,
    *,
    known: Collection[str] = (),
    include_lost: bool = False,
    clock: Clock = time.time,
) -> None:
    """Find the batches of parts that may have been submitted; with `include_lost`, also of parts treated as lost.

    `known` are the batches of this account that belong to other jobs. A batch that was accepted and is missing is
    submitted again only by a person: the provider may have answered it, and billed it.
    """
    for number, part in enumerate(lock.job.parts):
        retries_lost = lock.job.on_lost == "submit" and lock.job.was_submitted_with(session.config.key())
        if part.is_missing:
            if include_lost:
                await _inspect_missing(lock, session, number)
        elif part.state == "sending" or (part.state == "lost" and (include_lost or retries_lost)):
            await reconcile_part(lock, session, number, known, clock())


async def reconcile_part(lock: JobLock, session: Session, number: int, known: Collection[str], now: float) -> None:
    """Look for the batch of one part, and save the state that follows from the result."""
    job, part = lock.job, lock.job.parts[number]
    own = [each.batch_id for each in job.parts if each.batch_id is not None]
    found = await find_batch(session, part, job.tag(number), now, known={*known, *own})
    if found == "unknown":
        if part.state != "lost":
            return
        changed = part.model_copy(update={"state": "sending"})  # treated as lost too early: it is looked for again
    elif found is not None:
        changed = part.with_batch(found)
    elif part.lost_at is None:
        # The submitting process is gone, and its request may still be on its way to the provider.
        changed = part.model_copy(update={"lost_at": now})
    elif now - part.lost_at < SETTLED_S:
        return
    elif job.on_lost == "submit" and job.was_submitted_with(session.config.key()):
        changed = part.reset()
    else:  # another key looks into another account
        changed = part.model_copy(update={"state": "lost"})
    if changed != part:
        await lock.save(job.with_part(number, changed))


async def _inspect_missing(lock: JobLock, session: Session, number: int) -> None:
    part = lock.job.parts[number]
    try:
        batch = await retry_call(partial(session.inspect_batch, part.batch_id or ""), session.config)
    except APIError as error:
        if error.status_code != HTTPStatus.NOT_FOUND:
            raise
    else:
        await lock.save(lock.job.with_part(number, part.with_batch(batch)))


async def find_batch(
    session: Session, part: Part, tag: str, now: float, *, known: Collection[str] = ()
) -> Batch | Literal["unknown"] | None:
    """Return the batch with this tag, None if the provider has none, or "unknown" while that cannot be decided.

    `known` are batches that are known to be others.
    """
    # A search that fails begins again on the first page, as an overlooked batch would be paid for twice.
    return await retry_call(partial(_search, session, part, tag, now, known), session.config)


async def _search(
    session: Session, part: Part, tag: str, now: float, known: Collection[str]
) -> Batch | Literal["unknown"] | None:
    since = (part.sent_at or 0.0) - SKEW_S
    until = None if part.lost_at is None else part.lost_at + SKEW_S
    # A batch without readable results may be ours only for as long as a batch can be in progress.
    is_recent = part.lost_at is None or now - part.lost_at < _DAY_S
    is_unknown = False
    async for page in session.batch_pages():
        for batch in page:
            if session.batches.KEEPS_NAMES:
                if batch.tag == tag:
                    return batch
            elif batch.id not in known and _may_match(batch, part, since, until):
                key = await _first_key(session, batch) if batch.is_ended else None
                if parse_row_key(key, tag) is not None:
                    return batch
                is_unknown = is_unknown or not batch.is_ended or (key is None and is_recent)
        if are_before(page, since):
            break  # the newest come first
    return "unknown" if is_unknown else None


def _may_match(batch: Batch, part: Part, since: float, until: float | None) -> bool:
    created_at = batch.created_at or since
    return since <= created_at <= (until or created_at) and batch.total in {part.count, None}


async def _first_key(session: Session, batch: Batch) -> str | None:
    """Return the row key of the batch's first readable result; None if there is none."""
    if batch.id in _keys:
        return _keys[batch.id]
    with tempfile.TemporaryFile() as file:
        try:
            await session.download_batch(batch, file)
        except APIError as error:
            if error.retryable:
                raise
            return None
        file.seek(0)
        for line in file:
            with suppress(ValueError):  # an unreadable line says nothing about the others
                if (key := session.batches.result(line).key) is not None:
                    while len(_keys) >= _REMEMBERED:
                        del _keys[next(iter(_keys))]
                    _keys[batch.id] = key
                return key
    return None
