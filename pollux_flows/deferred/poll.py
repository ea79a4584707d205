"""Poll: look at very many batches of one account with few requests."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from pollux_flows.deferred.inspect import under_way
from pollux_flows.deferred.job import Job
from pollux_flows.errors import APIError
from pollux_flows.pipeline.retry import insist
from pollux_flows.providers.batches import SKEW_S, Batch, are_before
from pollux_flows.providers.session import Session

MOST_REQUESTS: Final = 60
"""What one look at all jobs may cost. Those that are not seen this time are seen another time."""

# So few are asked after one by one: a list would bring all else that the account has.
_FEW: Final = 3
# The account may have thousands that are not ours, and a list begins with the newest: so much of it, and no more.
_LISTED: Final = 2 / 3
# No key or no room: it would be the same with the next one.
_ABOUT_ALL: Final = {401, 429}
NOT_FOUND: Final = 404
# No batch takes much longer.
_A_DAY_S: Final = 86_400.0


@dataclass
class Seen:
    """What was found out, and what was not."""

    batches: dict[str, Batch]
    refused: dict[str, APIError]
    """What the provider said instead of telling how these are: that it does not have them any more, perhaps."""
    requests: int = 0

    @property
    def missing(self) -> dict[str, APIError]:
        """The batches that the provider does not know, each with the provider's words."""
        return {batch_id: error for batch_id, error in self.refused.items() if error.status_code == NOT_FOUND}


async def poll(session: Session, jobs: Iterable[Job], most: int = MOST_REQUESTS) -> Seen:
    """The batches of these jobs that were under way, as they are now."""
    since = {batch_id: job.created_at for job in jobs for batch_id in under_way(job)}
    seen = Seen({}, {})
    if len(since) > _FEW:
        await _listed(session, since, seen, max(1, int(most * _LISTED)))
    for batch_id in _by_lot(since.keys() - seen.batches.keys(), since)[: most - seen.requests]:
        seen.requests += 1
        try:
            seen.batches[batch_id] = await insist(partial(session.inspect_batch, batch_id), session.config)
        except APIError as error:
            if error.error_category == "network" or error.status_code in _ABOUT_ALL:
                raise
            seen.refused[batch_id] = error  # which is nothing against the others
    return seen


def _by_lot(batch_ids: Iterable[str], since: Mapping[str, float]) -> list[str]:
    """Those that are more likely to be done come more often: a young one can wait. But nobody waits for ever.

    For who is last in a line by age may never come, behind those that the provider takes days for, or has no more.
    """
    now = time.time()

    def lot(batch_id: str) -> float:
        age_s = min(max(now - since[batch_id], 1.0), _A_DAY_S)
        return age_s * random.random()  # noqa: S311 (guards nothing)

    return sorted(batch_ids, key=lot, reverse=True)


async def _listed(session: Session, since: dict[str, float], seen: Seen, most: int) -> None:
    oldest = min(since.values()) - SKEW_S

    async def pages() -> None:
        async for page in session.batch_pages():
            seen.requests += 1
            seen.batches.update({batch.id: batch for batch in page if batch.id in since})
            if are_before(page, oldest) or seen.batches.keys() >= since.keys() or seen.requests >= most:
                return

    await insist(pages, session.config)
