"""The execution of all calls of a plan."""

from __future__ import annotations

from pollux_flows.config import Config
from pollux_flows.pipeline.caches import CacheRegistry
from pollux_flows.pipeline.execute import OnOutcome, open_execution
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome


async def execute_plan(
    plan: Plan,
    config: Config,
    terms: Terms | None = None,
    *,
    on_outcome: OnOutcome | None = None,
    caches: CacheRegistry | None = None,
) -> list[Outcome]:
    """Make all calls of the plan, and return their outcomes in its order."""
    async with open_execution(plan, config, terms, caches=caches) as execution:
        return await execution.answer_calls(plan.calls, on_outcome)
