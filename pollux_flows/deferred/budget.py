"""Budgets of batches: a job is submitted only if its highest possible cost, at batch prices, fits into the budget.

The budget is saved with the job. Prompts that are submitted again must fit into the rest of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache

from pollux_flows.deferred.job import Job, to_ranges
from pollux_flows.deferred.store import JobStore
from pollux_flows.deferred.submit import make_call
from pollux_flows.deferred.warm import goes_first
from pollux_flows.errors import BudgetError
from pollux_flows.pipeline.attach import Attachments, text_size
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.worst_case import WorstCase, find_worst_case
from pollux_flows.pricing import dollars, dollars_up
from pollux_flows.providers.session import Session


def price_job(plan: Plan, session: Session) -> float:
    """Return the most that the calls of a plan may cost as a batch. Raises if that is not known."""
    attachments, caches = Attachments(plan, session), goes_first(plan)

    @cache
    def find(sources: tuple[int, ...]) -> WorstCase:
        first = plan.calls[0].model_copy(update={"prompt": ""})
        call = make_call(plan, first, attachments.make_placeholders(sources), caches=caches)
        sizes = [text_size(plan, index) for index in sources]
        return find_worst_case(plan.target, call, session.provider.generate.request(call), sizes, batch=True)

    return sum(find(tuple(plan.sources_of(planned))).usd(planned.prompt) for planned in plan.calls)


def check_job_budget(plan: Plan, session: Session, limit_usd: float) -> None:
    """Raise a BudgetError for a job that may cost more than the limit."""
    if (most := price_job(plan, session)) > limit_usd:
        raise BudgetError(
            f"Not submitted: {_describe(plan, most)}, and max_cost_usd is {dollars(limit_usd)}.",
            hint=f"Set Options(max_tokens=…) lower, or raise max_cost_usd to {dollars_up(most)} or more.",
        )


async def check_child_budget(store: JobStore, job: Job, indexes: Sequence[int], session: Session) -> float | None:
    """Return the rest of a collected job's budget, None if it has none. Raises if these prompts may cost more."""
    if (limit_usd := job.max_cost_usd) is None or job.manifest is None:
        return None
    hint = f"resubmit({job.name!r}) submits them regardless of their cost."
    if (spent := job.manifest.cost_usd) is None or job.manifest.missing:
        why = job.manifest.cost_unknown or "The provider may have billed prompts for which it returned no result."
        raise BudgetError(f"Not submitted again: max_cost_usd can no longer be enforced. {why}", hint=hint)
    left = max(0.0, limit_usd - spent)
    request = await store.load_request(job.name)
    plan = await asyncio.to_thread(request.plan_rows, to_ranges(indexes))
    if (most := price_job(plan, session)) > left:
        rest = f"{dollars(left)} of max_cost_usd ({dollars(limit_usd)}) is left"
        raise BudgetError(f"Not submitted again: {_describe(plan, most)}, and {rest}.", hint=hint)
    return left


def _describe(plan: Plan, most_usd: float) -> str:
    prompts = "1 prompt" if len(plan.calls) == 1 else f"{len(plan.calls):,} prompts"
    return f"{prompts} may cost up to {dollars(most_usd)} as a batch"
