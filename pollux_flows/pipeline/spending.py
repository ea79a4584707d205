"""Spending: what the answers of a run have cost, and whether another may be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from pollux_flows.config import Target
from pollux_flows.errors import BudgetError, ConfigurationError
from pollux_flows.pipeline.savings import UsedCache, cache_cost
from pollux_flows.pricing import cost_of, dollars
from pollux_flows.result import Answer, Billing, Outcome
from pollux_flows.state.budget import Budget, Reservation, open_run_ledger, reserve
from pollux_flows.state.slots import RunScope
from pollux_flows.state.store import Store

# If even this has no price, none of the model's answers has.
_PLAIN: Final = Answer(
    text="", finish_reason="stop", usage={"input_tokens": 1, "output_tokens": 1}, billing=Billing(cost_usd=0.0)
)


class Spending:
    """The budget of one run, for one execution of its calls. Without a limit, nothing is counted."""

    def __init__(
        self,
        limit_usd: float | None,
        target: Target,
        *,
        store: Store,
        scope: RunScope | None = None,
        spent_usd: float = 0.0,
        concurrency: int = 1,
    ) -> None:
        self.ledger: str | None = None
        """The ledger of the run's budget, with which its answers are marked; None for a run without a name."""
        self._budgets: list[Budget] = []
        self._cache_costs: dict[str, float] = {}
        self._uncounted: dict[str, float] = {}
        self._unknown: str | None = None
        self._target = target
        if limit_usd is None:
            return
        if unknown := cost_of(target, _PLAIN).unknown:
            raise ConfigurationError(
                f"max_cost_usd cannot be enforced: {unknown}",
                hint="Leave max_cost_usd out, or use a model with a price.",
            )
        ledger = None if scope is None else open_run_ledger(store, scope)
        self.ledger = None if ledger is None else ledger.key
        self._budgets = [Budget(limit_usd, self._refuse, ledger, elsewhere_usd=spent_usd, concurrency=concurrency)]

    @property
    def limit_usd(self) -> float | None:
        """The limit of the run, if it has one."""
        return self._budgets[0].limit_usd if self._budgets else None

    def count_found(self, outcome: Outcome) -> None:
        """Count an answer of an earlier attempt, unless the ledger has it: attempts without a budget have none."""
        if not self._budgets or outcome.answer is None:
            return
        self._unknown = self._unknown or outcome.cost_unknown
        if outcome.counted_in is None or outcome.counted_in != self.ledger:
            self._uncounted[outcome.identity] = outcome.paid_usd
            self._budgets[0].elsewhere_usd += outcome.paid_usd

    async def reserve(self, find_worst_case: Callable[[], float]) -> Reservation:
        """Reserve the worst case of a call, once there is room for it, or raise why it may not be made."""
        self.check()
        return await reserve(self._budgets, find_worst_case()) if self._budgets else Reservation()

    def settle(self, reservation: Reservation, outcome: Outcome) -> None:
        """Count the cost of an answer in place of its reservation, with what earlier attempts paid for the call."""
        reservation.settle(outcome.cost_usd)
        self._unknown = self._unknown or outcome.cost_unknown
        # It is saved with their cost, and marked as counted.
        if paid_before := self._uncounted.pop(outcome.identity, 0.0):
            self._budgets[0].elsewhere_usd -= paid_before
            self._budgets[0].spend(paid_before)

    def add_caches(self, caches: Iterable[UsedCache]) -> None:
        """Add the cost of the run's caches: the contents and the storage of those that it created."""
        for cache in caches:
            cost = cache_cost(self._target, cache)
            for budget in self._budgets:
                budget.spend((cost.usd or 0.0) - self._cache_costs.get(cache.name, 0.0))
            self._cache_costs[cache.name] = cost.usd or 0.0
            self._unknown = self._unknown or cost.unknown

    def check(self) -> None:
        """Refuse a new call once the limit is reached, or once the cost is unknown."""
        if self._budgets and self._unknown is not None:
            raise BudgetError(
                f"Not asked: max_cost_usd cannot be enforced any more. {self._unknown}",
                hint="Leave max_cost_usd out and run again.",
            )
        for budget in self._budgets:
            budget.check()

    async def close(self) -> None:
        """Report what was spent to the other processes of the run, and give back the rest."""
        for budget in self._budgets:
            await budget.close()

    def _refuse(self, spent_usd: float, lost_usd: float, usd: float) -> BudgetError:
        lost = f" (and up to {dollars(lost_usd)} for batches, and calls of a killed process)" if lost_usd else ""
        return BudgetError(
            f"Not asked: the run has cost {dollars(spent_usd)} so far{lost}, this call may cost up to {dollars(usd)}, "
            f"and max_cost_usd is {dollars(self._budgets[0].limit_usd)}.",
            hint="Raise max_cost_usd and run again.",
        )
