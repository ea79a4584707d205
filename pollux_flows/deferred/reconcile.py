"""Reconcile: find out whether the provider has a batch whose reply nobody saw."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Final, Literal

from pollux_flows.deferred.job import Part, index_in
from pollux_flows.pipeline.retry import insist
from pollux_flows.providers.batches import Batch
from pollux_flows.providers.session import Session

SETTLED_S: Final = 30.0
"""So long after it was handed in, a batch that no list shows is none."""

# The clocks of this machine and of the provider may differ by so much.
_SKEW_S: Final = 600.0


async def find_batch(
    session: Session, part: Part, tag: str, *, known: Collection[str] = ()
) -> Batch | Literal["unknown"] | None:
    """The batch that carries the tag, None if the provider has none, or "unknown" while nobody can tell.

    Where a provider keeps no name of ours, the batches count that came at that time with that many rows. Which of them
    it is, its results show, once it has ended. `known` are batches that are known to be others.
    """
    # Looked for anew, from the first page, where that breaks off: what is overlooked is paid for again.
    return await insist(partial(_search, session, part, tag, known), session.config)


async def _search(session: Session, part: Part, tag: str, known: Collection[str]) -> Batch | Literal["unknown"] | None:
    since = (part.sent_at or 0.0) - _SKEW_S
    under_way = False
    async for page in session.batch_pages():
        for batch in page:
            if batch.tag is not None:
                if batch.tag == tag:
                    return batch
            elif batch.id not in known and _may_be(batch, part, since):
                if not batch.is_ended:
                    under_way = True
                elif await _has(session, batch, tag):
                    return batch
        if page and all(batch.created_at is not None and batch.created_at < since for batch in page):
            break  # the newest come first
    return "unknown" if under_way else None


def _may_be(batch: Batch, part: Part, since: float) -> bool:
    return (batch.created_at or since) >= since and batch.total in {part.count, None}


async def _has(session: Session, batch: Batch, tag: str) -> bool:
    """Whether its results are those of the rows that carry the tag."""
    with tempfile.TemporaryFile() as file:
        await session.download_batch(batch, file)
        file.seek(0)
        for line in file:
            with suppress(ValueError):  # a line that nobody can read says nothing about the others
                return index_in(session.batches.result(line).key, tag) is not None
    return False
