"""Spending: count the cost of a run's answers, and allow calls only within its budgets."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from pollux_flows.config import Target
from pollux_flows.errors import APIError, BudgetError, ConfigurationError
from pollux_flows.pipeline.cache_use import CacheUse
from pollux_flows.pipeline.savings import UsedCache, cache_cost
from pollux_flows.pipeline.terms import SharedBudget
from pollux_flows.pipeline.worst_case import WorstCase
from pollux_flows.pricing import cost_of, dollars
from pollux_flows.result import Answer, Billing, Outcome
from pollux_flows.state.budget import Budget, Reservation, open_run_ledger, open_shared_ledger, reserve
from pollux_flows.state.slots import RunScope
from pollux_flows.state.store import Store

# If this answer has no price, no answer of the model has one.
_PLAIN: Final = Answer(
    text="", finish_reason="stop", usage={"input_tokens": 1, "output_tokens": 1}, billing=Billing(cost_usd=0.0)
)


class Spending:
    """The budgets of one run, for one execution of its calls. Without a budget, nothing is counted."""

    def __init__(
        self,
        limit_usd: float | None,
        target: Target,
        *,
        store: Store,
        scope: RunScope | None = None,
        shared: SharedBudget | None = None,
        spent_usd: float = 0.0,
        concurrency: int = 1,
    ) -> None:
        self.ledger: str | None = None
        """The key of the run's budget ledger, which its answers are marked with; None for a run without a name."""
        self._run: Budget | None = None
        self._shared: dict[str | None, Budget] = {}  # by day; None: the total
        self._sharing, self._store, self._concurrency = shared, store, concurrency
        self._cache_costs: dict[str, float] = {}
        self._uncounted: dict[str, float] = {}
        self._unknown: str | None = None
        self._target = target
        self._name = "max_cost_usd" if limit_usd is not None or shared is None else f"The budget {shared.name!r}"
        if not self.is_limited and limit_usd is None:
            return
        if unknown := cost_of(target, _PLAIN).unknown:
            raise ConfigurationError(
                f"{self._name} cannot be enforced: {unknown}",
                hint="Leave it out, or use a model with a price.",
            )
        if limit_usd is not None:
            ledger = None if scope is None else open_run_ledger(store, scope)
            self.ledger = None if ledger is None else ledger.key
            self._run = Budget(limit_usd, ledger, elsewhere_usd=spent_usd, concurrency=concurrency)

    @property
    def is_limited(self) -> bool:
        """Return whether the run has a budget."""
        return self._run is not None or self._sharing is not None

    def _find_budgets(self) -> list[Budget]:
        """Return the budgets that a call must fit into, including today's share of a daily budget."""
        budgets = [] if self._run is None else [self._run]
        if (shared := self._sharing) is None:
            return budgets
        for day, limit_usd in ((_today(), shared.usd_per_day), (None, shared.usd_in_total)):
            if limit_usd is None:
                continue
            if day not in self._shared:  # yesterday's budget stays open for the calls that were made then
                self._shared[day] = self._open_shared(shared, day, limit_usd)
            budgets.append(self._shared[day])
        return budgets

    def _open_shared(self, shared: SharedBudget, day: str | None, limit_usd: float) -> Budget:
        provider = self._target.provider if shared.each_provider else None
        wait = "" if day is None else ", or run again after midnight (UTC)"
        return Budget(
            limit_usd,
            open_shared_ledger(self._store, shared.name, provider, day),
            name=f"the {'total' if day is None else 'daily'} budget {shared.name!r}",
            spender="the runs that share it have",
            hint=f"Raise the budget {shared.name!r}{wait}.",
            concurrency=self._concurrency,
        )

    def count_saved(self, outcome: Outcome) -> None:
        """Count an answer of an earlier attempt, unless the ledger has it, as it has if that attempt had a budget."""
        if not self.is_limited or outcome.answer is None:
            return
        self._unknown = self._unknown or outcome.cost_unknown
        is_counted = outcome.counted_in is not None and outcome.counted_in == self.ledger
        if self._run is not None and not is_counted and outcome.identity not in self._uncounted:
            self._uncounted[outcome.identity] = outcome.paid_usd
            self._run.elsewhere_usd += outcome.paid_usd

    def check_fits(self, worst_case: WorstCase, prompt: str | None) -> None:
        """Refuse a call whose worst case is above a limit, or above the known rest of it."""
        usd = worst_case.usd(prompt)
        for budget in self._find_budgets():
            if usd > budget.limit_usd:
                raise worst_case.budget_error(prompt, budget.limit_usd, budget.name)
            budget.check(usd)

    async def reserve(self, worst_case: WorstCase, prompt: str | None) -> Reservation:
        """Reserve the worst case of a call, once it fits into the budgets. Raises if the call must not be made."""
        self.check()
        self.check_fits(worst_case, prompt)
        return await reserve(self._find_budgets(), worst_case.usd(prompt))

    async def create_cache(self, use: CacheUse, worst_case: WorstCase, prompt: str | None) -> None:
        """Create the cache of a call if both fit into the budgets; otherwise the sources are sent with each call.

        During the creation, the worst cost of the cache counts as spent. It is not reserved, as calls that wait for
        budget occupy slots of the provider, and creating the cache needs one.
        """
        cache = UsedCache(name="", tokens=worst_case.input_tokens, created_at=0.0, ends_at=use.ttl_s)
        usd, budgets = cache_cost(self._target, cache).usd or 0.0, self._find_budgets()
        most = usd + worst_case.usd(prompt)
        try:
            reservation = await reserve(budgets, most)
        except BudgetError as error:
            message = f"it does not fit into the budget: with a call, it may cost up to {dollars(most)}."
            use.give_up(BudgetError(message, hint=error.hint))
            return
        reservation.settle(usd)
        await use.acquire()
        self.add_caches(use.used)
        if not (isinstance(use.refusal, APIError) and use.refusal.outcome_unknown):
            for budget in budgets:
                budget.spend(-usd)

    def settle(self, reservation: Reservation, outcome: Outcome) -> None:
        """Count the cost of an answer instead of its reservation, with the cost of earlier attempts of the call."""
        reservation.settle(outcome.cost_usd)
        self._unknown = self._unknown or outcome.cost_unknown
        # The answer is saved with that cost, and marked as counted.
        if self._run is not None and (paid_before := self._uncounted.pop(outcome.identity, 0.0)):
            self._run.elsewhere_usd -= paid_before
            self._run.spend(paid_before)

    def add_caches(self, caches: Iterable[UsedCache]) -> None:
        """Add the cost of the run's caches: the contents and the storage of those that it created."""
        budgets = self._find_budgets()
        for cache in caches if budgets else ():
            cost = cache_cost(self._target, cache)
            for budget in budgets:
                budget.spend((cost.usd or 0.0) - self._cache_costs.get(cache.name, 0.0))
            self._cache_costs[cache.name] = cost.usd or 0.0
            self._unknown = self._unknown or cost.unknown

    def check(self) -> None:
        """Refuse a new call once the cost of any call is unknown."""
        if self.is_limited and self._unknown is not None:
            raise BudgetError(
                f"Not asked: {self._name} can no longer be enforced. {self._unknown}",
                hint="Leave the budget out and run again.",
            )

    async def close(self) -> None:
        """Save the amount spent for the other processes of the run, and release the rest."""
        for budget in filter(None, [self._run, *self._shared.values()]):
            await budget.close()


def _today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"
