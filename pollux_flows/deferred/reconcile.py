"""Reconcile: find out whether the provider has a batch whose reply nobody saw."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Final, Literal

from pollux_flows.deferred.job import Part, index_in
from pollux_flows.errors import APIError
from pollux_flows.pipeline.retry import insist
from pollux_flows.providers.batches import SKEW_S, Batch, are_before
from pollux_flows.providers.session import Session

SETTLED_S: Final = 30.0
"""So long after anybody waits for the reply, a batch that no list shows is none.

The process that handed it in may have died, and the provider may have taken what it had in full by then. One that works
on it for longer than that before it lists it would have the batch twice.
"""

# What an ended batch holds does not change, and is much to fetch for its first line.
_REMEMBERED: Final = 1000
_keys: Final[dict[str, str]] = {}
_DAY_S: Final = 86_400.0


async def find_batch(
    session: Session, part: Part, tag: str, now: float, *, known: Collection[str] = ()
) -> Batch | Literal["unknown"] | None:
    """The batch that carries the tag, None if the provider has none, or "unknown" while nobody can tell.

    Where a provider keeps no name of ours, the batches count that came at that time with that many rows. Which of them
    it is, its results show, once it has ended. `known` are batches that are known to be others.
    """
    # Looked for anew, from the first page, where that breaks off: what is overlooked is paid for again.
    return await insist(partial(_search, session, part, tag, now, known), session.config)


async def _search(
    session: Session, part: Part, tag: str, now: float, known: Collection[str]
) -> Batch | Literal["unknown"] | None:
    since = (part.sent_at or 0.0) - SKEW_S
    until = None if part.lost_at is None else part.lost_at + SKEW_S
    # One whose results cannot be had may be ours for as long as it would be if somebody had just handed it in.
    recent = part.lost_at is None or now - part.lost_at < _DAY_S
    unknown = False
    async for page in session.batch_pages():
        for batch in page:
            if session.batches.KEEPS_NAMES:
                if batch.tag == tag:
                    return batch
            elif batch.id not in known and _may_be(batch, part, since, until):
                key = await _first_key(session, batch) if batch.is_ended else None
                if index_in(key, tag) is not None:
                    return batch
                unknown = unknown or not batch.is_ended or (key is None and recent)
        if are_before(page, since):
            break  # the newest come first
    return "unknown" if unknown else None


def _may_be(batch: Batch, part: Part, since: float, until: float | None) -> bool:
    created_at = batch.created_at or since
    return since <= created_at <= (until or created_at) and batch.total in {part.count, None}


async def _first_key(session: Session, batch: Batch) -> str | None:
    """Whose its first result is; None if nobody can tell."""
    if batch.id not in _keys:
        try:
            key = await _read_first_key(session, batch)
        except APIError as error:
            if error.retryable:
                raise
            key = None
        if key is None:
            return None
        while len(_keys) >= _REMEMBERED:
            del _keys[next(iter(_keys))]
        _keys[batch.id] = key
    return _keys[batch.id]


async def _read_first_key(session: Session, batch: Batch) -> str | None:
    with tempfile.TemporaryFile() as file:
        await session.download_batch(batch, file)
        file.seek(0)
        for line in file:
            with suppress(ValueError):  # a line that nobody can read says nothing about the others
                return session.batches.result(line).key
    return None
