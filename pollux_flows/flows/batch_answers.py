"""Answers of batches: saved in the journal under the identities of a table's calls, where every run can reuse them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import islice
from typing import Final

from pollux_flows.deferred.answers import read_pieces
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.results import Item
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.result import Outcome
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import open_store

_SAVES_AT_ONCE: Final = 500


async def load_identities(job: Job) -> dict[int, str]:
    """Return the identities of the calls of a job, by their index."""
    request = await (await BlockJobStore.open()).load_request(job.name)
    plan = await asyncio.to_thread(request.plan, job)
    return {call.index: call.identity for call in plan.calls}


async def save_answers(job: Job, identities: Mapping[int, str], run: str) -> dict[str, Outcome | None]:
    """Save the answers of a complete job to these calls, by their index, as answers of this run.

    Return the calls, each with its outcome if it was not answered. Doing it again changes nothing.
    """
    asked: dict[str, Outcome | None] = dict.fromkeys(identities.values())
    storage = (await BlockJobStore.open()).storage
    journal = Journal(open_store(), run)
    await journal.begin()
    async for items in read_pieces(storage, job):
        wanted = [item for item in items if item.outcome.index in identities]
        outcomes = [_with_cost(item, identities[item.outcome.index]) for item in wanted]
        asked |= {outcome.identity: outcome for outcome in outcomes if outcome.problem is not None}
        saved = await journal.load_own([outcome.identity for outcome in outcomes])
        answered = {identity for identity, outcome in saved.items() if outcome.problem is None}
        new = iter([outcome for outcome in outcomes if outcome.answer and outcome.identity not in answered])
        while some := list(islice(new, _SAVES_AT_ONCE)):
            await asyncio.gather(*(_save(journal, outcome) for outcome in some))
    return asked


def _with_cost(item: Item, identity: str) -> Outcome:
    """Return the outcome of a call of the table, with everything that was paid for it in the job."""
    paid_before = sum(outcome.cost_usd or 0.0 for outcome in item.earlier)
    return item.outcome.model_copy(update={"identity": identity, "paid_before_usd": paid_before, "reused": "run"})


async def _save(journal: Journal, outcome: Outcome) -> None:
    if outcome.problem is None:
        await journal.save_answer(outcome.identity, outcome)
    else:
        await journal.save_error(outcome.identity, outcome)
