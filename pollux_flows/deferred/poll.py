"""Poll: look at very many batches of one account with few requests."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from pollux_flows.deferred.inspect import under_way
from pollux_flows.deferred.job import Job
from pollux_flows.errors import APIError
from pollux_flows.pipeline.retry import insist
from pollux_flows.providers.batches import Batch
from pollux_flows.providers.session import Session

MOST_REQUESTS: Final = 60
"""What one look at all jobs may cost. What is not seen this time has its chance the next time."""

_YOUNG_S: Final = 600.0
# So few are asked after one by one: a list would bring all else that the account has.
_FEW: Final = 3
# No answer, no key or no room: it would be the same with the next one.
_ABOUT_ALL: Final = {None, 401, 429}
_SKEW_S: Final = 600.0


@dataclass
class Seen:
    """What was found out, and what was not."""

    batches: dict[str, Batch]
    refused: dict[str, APIError]
    """What the provider said instead of telling how these are: that it does not have them any more, perhaps."""
    requests: int = 0


async def poll(session: Session, jobs: Iterable[Job], most: int = MOST_REQUESTS) -> Seen:
    """The batches of these jobs that were under way, as they are now."""
    since = {batch_id: job.created_at for job in jobs for batch_id in under_way(job)}
    seen = Seen({}, {})
    if len(since) > _FEW:
        await _listed(session, since, seen, -(-most // 2))
    # Whatever no list showed: in any order, so that each has its turn, but the young ones, which are not done, last.
    young = time.time() - _YOUNG_S
    unseen = [*(since.keys() - seen.batches.keys())]
    random.shuffle(unseen)
    for batch_id in sorted(unseen, key=lambda batch_id: since[batch_id] > young):
        if seen.requests >= most:
            break
        seen.requests += 1
        try:
            seen.batches[batch_id] = await insist(partial(session.inspect_batch, batch_id), session.config)
        except APIError as error:
            if error.status_code in _ABOUT_ALL:
                raise
            seen.refused[batch_id] = error  # which is nothing against the others
    return seen


async def _listed(session: Session, since: dict[str, float], seen: Seen, most: int) -> None:
    oldest = min(since.values()) - _SKEW_S

    async def pages() -> None:
        async for page in session.batch_pages():
            seen.requests += 1
            seen.batches.update({batch.id: batch for batch in page if batch.id in since})
            old = page and all(batch.created_at is not None and batch.created_at < oldest for batch in page)
            if old or seen.batches.keys() >= since.keys() or seen.requests >= most:
                return

    await insist(pages, session.config)
