"""Polling: inspect very many batches of one account with few requests, and apply the result to their jobs."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final

from pollux_flows.deferred.job import Job, Part
from pollux_flows.deferred.reconcile import SETTLED_S
from pollux_flows.errors import APIError
from pollux_flows.pipeline.retry import retry_call
from pollux_flows.providers.batches import SKEW_S, Batch, are_before
from pollux_flows.providers.session import Session

MOST_REQUESTS: Final = 60
"""The most requests of one collector pass. Batches that it does not reach are inspected by another pass."""

# So few are inspected one by one: a list would include all other batches of the account.
_FEW: Final = 3
# The share of requests for lists, which begin with the newest of perhaps thousands of other batches.
_LIST_SHARE: Final = 2 / 3
# No valid key, or a rate limit: the next request would fail as well.
_STOPS_POLLING: Final = {401, 429}
# No batch takes much longer.
_A_DAY_S: Final = 86_400.0


@dataclass
class PollResult:
    """The batches as their provider describes them, and the errors of requests for others."""

    batches: dict[str, Batch] = field(default_factory=dict)
    refused: dict[str, APIError] = field(default_factory=dict)
    """The errors by batch id, such as that the provider no longer has the batch."""
    requests: int = 0

    @property
    def missing(self) -> dict[str, APIError]:
        """The errors about batches that the provider does not know, by batch id."""
        return {id_: error for id_, error in self.refused.items() if error.status_code == HTTPStatus.NOT_FOUND}

    def apply(self, job: Job, key: str | None, now: float) -> Job:
        """Return the job updated from this result; the same object if nothing has changed.

        A batch that the provider does not know is lost only if the job was submitted with this key: another account
        does not have its batches. A batch that was just accepted may not show everywhere yet.
        """
        missing = self.missing if job.was_submitted_with(key) else {}

        def apply_to(part: Part) -> Part:
            if part.is_ended:
                return part
            if batch := self.batches.get(part.batch_id or ""):
                changed = part.with_batch(batch)
                if batch.state == "failed" and batch.queue_full and changed.problem is not None:
                    return changed.postpone(now, changed.problem)
                return changed
            error = missing.get(part.batch_id or "")
            if error is None or part.state != "sent" or now - (part.sent_at or 0.0) < SETTLED_S:
                return part
            provider = job.target.provider
            return part.mark_lost(
                f"{provider} no longer has the batch {part.batch_id}, which it had accepted: {error.message}"
            )

        return job.with_parts([apply_to(part) for part in job.parts])

    def explain_refusal(self, job: Job, key: str | None) -> str | None:
        """Return why the job's batches could not be inspected; None if they were."""
        errors = [str(self.refused[part.batch_id]) for part in job.parts if part.batch_id in self.refused]
        if not errors:
            return None
        if self.missing and not job.was_submitted_with(key):
            return f"The job was submitted with another key, and this key does not find its batch: {errors[0]}"
        return errors[0]


def pending_batches(job: Job) -> list[str]:
    """Return the provider's ids of the batches that are not known to have ended."""
    return [part.batch_id for part in job.parts if part.batch_id is not None and not part.is_ended]


async def poll_job(job: Job, session: Session) -> PollResult:
    """Inspect the pending batches of one job, with one request for each. An error of the provider is raised."""
    batches = {
        batch_id: await retry_call(partial(session.inspect_batch, batch_id), session.config)
        for batch_id in pending_batches(job)
    }
    return PollResult(batches)


async def poll(session: Session, jobs: Iterable[Job], most: int = MOST_REQUESTS) -> PollResult:
    """Inspect the pending batches of these jobs with a limited number of requests."""
    since = {batch_id: job.created_at for job in jobs for batch_id in pending_batches(job)}
    result = PollResult()
    if len(since) > _FEW:
        await _poll_lists(session, since, result, max(1, int(most * _LIST_SHARE)))
    for batch_id in _shuffle_by_age(since.keys() - result.batches.keys(), since)[: most - result.requests]:
        result.requests += 1
        try:
            result.batches[batch_id] = await retry_call(partial(session.inspect_batch, batch_id), session.config)
        except APIError as error:
            if error.error_category == "network" or error.status_code in _STOPS_POLLING:
                raise
            result.refused[batch_id] = error  # other batches may still be found
    return result


def _shuffle_by_age(batch_ids: Iterable[str], since: Mapping[str, float]) -> list[str]:
    """Return the batches in a random order in which older ones, more likely to have ended, tend to come first.

    In a strict order by age the last ones might never be reached, behind those that take days or no longer exist.
    """
    now = time.time()

    def draw(batch_id: str) -> float:
        age_s = min(max(now - since[batch_id], 1.0), _A_DAY_S)
        return age_s * random.random()  # noqa: S311 (guards nothing)

    return sorted(batch_ids, key=draw, reverse=True)


async def _poll_lists(session: Session, since: dict[str, float], result: PollResult, most: int) -> None:
    oldest = min(since.values()) - SKEW_S

    async def read_pages() -> None:
        async for page in session.batch_pages():
            result.requests += 1
            result.batches.update({batch.id: batch for batch in page if batch.id in since})
            if are_before(page, oldest) or result.batches.keys() >= since.keys() or result.requests >= most:
                return

    await retry_call(read_pages, session.config)
