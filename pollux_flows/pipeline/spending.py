"""Spending: what the answers of a run have cost, and whether another may be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pollux_flows.config import Target
from pollux_flows.errors import BudgetError, ConfigurationError
from pollux_flows.pipeline.savings import UsedCache, cache_cost
from pollux_flows.pricing import cost_of, dollars
from pollux_flows.result import Answer, Billing, Outcome

# If even this has no price, none of the model's answers has.
_PLAIN: Final = Answer(
    text="", finish_reason="stop", usage={"input_tokens": 1, "output_tokens": 1}, billing=Billing(cost_usd=0.0)
)


class Spending:
    """Counts what this process has seen of one run."""

    def __init__(self, most_usd: float | None, target: Target, spent_usd: float = 0.0) -> None:
        self._most_usd = most_usd
        self._spent_usd = spent_usd
        self._cache_costs: dict[str, float] = {}
        self._unknown: str | None = None
        self._target = target
        if most_usd is not None and (unknown := cost_of(target, _PLAIN).unknown):
            raise ConfigurationError(
                f"max_cost_usd cannot be enforced: {unknown}",
                hint="Leave max_cost_usd out, or use a model with a price.",
            )

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Add the cost of answers that this run has paid for, in this attempt or an earlier one."""
        for outcome in outcomes:
            if outcome.answer is not None and outcome.reused != "always":
                self._spent_usd += (outcome.cost_usd or 0.0) + outcome.paid_before_usd
                self._unknown = self._unknown or outcome.cost_unknown

    def add_cost(self, usd: float) -> None:
        """Add the cost of answers that are of no use."""
        self._spent_usd += usd

    def add_caches(self, caches: Iterable[UsedCache]) -> None:
        """Add the cost of the run's caches: the contents and the storage of those that it created."""
        if self._most_usd is None:
            return
        for cache in caches:
            cost = cache_cost(self._target, cache)
            self._cache_costs[cache.name] = cost.usd or 0.0
            self._unknown = self._unknown or cost.unknown

    def check(self) -> None:
        """Refuse a new call once the run has cost its limit, or once the cost is unknown."""
        if self._most_usd is None:
            return
        if self._unknown is not None:
            raise BudgetError(
                f"Not asked: max_cost_usd cannot be enforced any more. {self._unknown}",
                hint="Leave max_cost_usd out and run again.",
            )
        spent = self._spent_usd + sum(self._cache_costs.values())
        if spent >= self._most_usd:
            raise BudgetError(
                f"Not asked: the run has cost {dollars(spent)} so far, and max_cost_usd is {dollars(self._most_usd)}.",
                hint="Raise max_cost_usd and run again.",
            )
