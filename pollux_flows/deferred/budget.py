"""Budgets of batches: a job is submitted only if all of it may cost no more than is left, at batch prices.

What it may cost stays reserved in the ledger of its run until its answers are there, and is then replaced by what they
cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from pollux_flows.deferred.submit import make_call
from pollux_flows.deferred.warm import goes_first
from pollux_flows.errors import BudgetError
from pollux_flows.pipeline.attach import Attachments, text_size
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.worst_case import WorstCase, find_worst_case
from pollux_flows.pricing import dollars, dollars_up
from pollux_flows.providers.session import Session
from pollux_flows.result import Outcome
from pollux_flows.state.budget import open_run_ledger
from pollux_flows.state.slots import RunScope
from pollux_flows.state.store import Store


def price_job(plan: Plan, session: Session) -> float:
    """Return the most that the calls of a plan cost as a batch, or raise where that is not known."""
    attachments, caches = Attachments(plan, session), goes_first(plan)

    @cache
    def find(sources: tuple[int, ...]) -> WorstCase:
        first = plan.calls[0].model_copy(update={"prompt": ""})
        call = make_call(plan, first, attachments.pretended(sources), caches=caches)
        sizes = [text_size(plan, index) for index in sources]
        return find_worst_case(plan.target, call, session.provider.generate.request(call), sizes, batch=True)

    return sum(find(tuple(plan.sources_of(planned))).usd(planned.prompt) for planned in plan.calls)


def check_job_budget(plan: Plan, session: Session, limit_usd: float) -> None:
    """Refuse a job that may cost more than a limit."""
    if (most := price_job(plan, session)) > limit_usd:
        raise _refusal(plan, most, limit_usd, limit_usd)


async def reserve_job(
    store: Store, scope: RunScope, job: str, *, plan: Plan, session: Session, limit_usd: float
) -> None:
    """Reserve what a job may cost in the budget of its run, or raise if not so much is left.

    A job that is reserved, or settled, is not reserved again.
    """
    most = price_job(plan, session)
    left = await open_run_ledger(store, scope, job).reserve(limit_usd, most)
    if left < 0:
        raise _refusal(plan, most, left + most, limit_usd)


async def settle_job(store: Store, scope: RunScope, job: str, outcomes: Iterable[Outcome]) -> None:
    """Replace what is reserved for a job by what its answers cost, unless the cost of one is unknown."""
    costs = [outcome.cost_usd for outcome in outcomes if outcome.answer is not None]
    known = [cost for cost in costs if cost is not None]
    if len(known) == len(costs):
        await open_run_ledger(store, scope, job).settle(sum(known))


def _refusal(plan: Plan, most_usd: float, left_usd: float, limit_usd: float) -> BudgetError:
    left = f", of which {dollars(max(left_usd, 0.0))} is left" if left_usd < limit_usd else ""
    return BudgetError(
        f"Not submitted: {len(plan.calls):,} prompts may cost up to {dollars(most_usd)} as a batch, and max_cost_usd is"
        f" {dollars(limit_usd)}{left}.",
        hint=f"Set Options(max_tokens=…) lower, or raise max_cost_usd to {dollars_up(limit_usd - left_usd + most_usd)}"
        " or more.",
    )
