"""Budgets and their ledger: spent and reserved together are never above the limit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pollux_flows.errors import BudgetError, ConfigurationError
from pollux_flows.state.budget import Budget, BudgetLedger, Reservation, open_run_ledger, reserve
from pollux_flows.state.maintenance import remove_damaged, survey
from pollux_flows.state.process import this_process
from pollux_flows.state.slots import RunScope
from pollux_flows.state.store import Store
from tests.state.places import Clock, open_store_at, run_at_once

KEY = f"budget/{'a' * 64}"
LIMIT = 10.0


async def load_totals(store: Store) -> tuple[float, float]:
    """Return the spent and the reserved amount."""
    record = await store.get(KEY) or {"spent": 0.0, "tranches": {}}
    return record["spent"], sum(tranche["usd"] for tranche in record["tranches"].values())


@pytest.fixture
def make_budget(store: Store) -> Callable[..., Budget]:
    """A function that makes the budget of another process."""

    def make_budget(limit: float = LIMIT) -> Budget:
        return Budget(limit, BudgetLedger(store, KEY))

    return make_budget


# --- One process ----------------------------------------------------------------------------------------------


async def test_without_a_ledger_a_budget_is_in_memory() -> None:
    budget = Budget(LIMIT)
    first = await reserve([budget], 6.0)
    waiting = asyncio.create_task(reserve([budget], 6.0))
    await asyncio.sleep(0.01)
    assert not waiting.done()  # the first call may cost less than its worst case
    first.settle(1.0)
    (await waiting).settle(5.0)
    with pytest.raises(BudgetError, match=r"has cost \$6.00 so far, this call may cost up to \$6.00"):
        await reserve([budget], 6.0)
    (await reserve([budget], 4.0)).end()


async def test_a_reservation_is_settled_once() -> None:
    budget = Budget(LIMIT)
    reservation = await reserve([budget], 6.0)
    reservation.settle(1.0)
    reservation.settle(1.0)
    reservation.end()
    (await reserve([budget], 9.0)).end()


async def test_a_call_that_was_sent_counts_in_full() -> None:
    budget = Budget(LIMIT)
    for is_sent in (False, True):
        reservation = await reserve([budget], 6.0)
        if is_sent:
            reservation.mark_sent()
        reservation.end()
    with pytest.raises(BudgetError, match=r"has cost \$6.00"):
        await reserve([budget], 6.0)


async def test_a_call_needs_room_in_each_of_its_budgets() -> None:
    wide, narrow = Budget(LIMIT), Budget(1.0)
    with pytest.raises(BudgetError, match=r"has cost \$0.00 so far, this call may cost up to \$6.00"):
        await reserve([wide, narrow], 6.0)
    (await reserve([wide], LIMIT)).end()


async def test_each_refusal_raises_a_new_error() -> None:
    """Each refusal is a new error, because an error that is raised repeatedly collects tracebacks."""
    budget = Budget(LIMIT)
    errors = []
    for usd in (11.0, 11.0, 12.0):
        with pytest.raises(BudgetError, match=f"may cost up to \\${usd:.2f}") as caught:
            await reserve([budget], usd)
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == len(errors)


# --- The ledger -----------------------------------------------------------------------------------------------


async def test_a_process_reserves_for_many_calls_with_few_writes(
    store: Store, make_budget: Callable[..., Budget]
) -> None:
    budget, records = make_budget(1000.0), set[str]()
    for _ in range(500):
        (await reserve([budget], 1.0)).settle(0.1)
        records.add(str(await store.get(KEY)))
    assert len(records) < 500 / 25
    await budget.close()
    assert sum(await load_totals(store)) == pytest.approx(50.0)


async def test_an_unused_reservation_is_released_at_the_end(store: Store, make_budget: Callable[..., Budget]) -> None:
    budget = make_budget()
    (await reserve([budget], 1.0)).settle(0.5)
    assert await load_totals(store) != (0.5, 0.0)
    await budget.close()
    assert await load_totals(store) == (0.5, 0.0)


async def test_a_later_attempt_counts_the_spent_amount(make_budget: Callable[..., Budget]) -> None:
    first = make_budget()
    (await reserve([first], 6.0)).settle(6.0)
    await first.close()
    with pytest.raises(BudgetError, match=r"has cost \$6.00 so far, this call may cost up to \$5.00"):
        await reserve([make_budget()], 5.0)
    (await reserve([make_budget()], 4.0)).end()


async def test_a_process_waits_for_the_calls_of_another_under_way(make_budget: Callable[..., Budget]) -> None:
    one, other = make_budget(), make_budget()
    first = await reserve([one], 6.0)
    waiting = asyncio.create_task(reserve([other], 6.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    first.settle(1.0)
    await one.close()
    assert isinstance(await waiting, Reservation)
    await other.close()


async def test_an_idle_process_releases_what_it_reserved_ahead(store: Store) -> None:
    """Otherwise another process would wait for it, and it perhaps for an answer of that process."""
    idle, other = (Budget(LIMIT, BudgetLedger(store, KEY, lease_s=2.0), concurrency=9) for _ in range(2))
    (await reserve([idle], 1.0)).settle(0.5)
    assert (await load_totals(store))[1] > 4
    (await reserve([other], 9.0)).end()
    for budget in (idle, other):
        await budget.close()


async def test_the_reservation_of_a_killed_process_stays_counted(store: Store, clock: Clock) -> None:
    """The calls of the killed process may be billed. No other process waits for it."""
    machine, *_ = this_process()
    lease = {"owner": KEY, "token": "dead", "until": clock() + 60, "process": [machine, "1", "0"]}
    record = {"at": clock(), "spent": 1.0, "tranches": {"dead": {"usd": 4.0, "lease": lease}}}
    await store.put(KEY, record)
    budget = Budget(LIMIT, BudgetLedger(store, KEY, clock=clock))
    with pytest.raises(BudgetError, match=r"has cost \$1.00 so far \(and up to \$4.00 for .* a killed process\)"):
        await reserve([budget], 6.0)
    (await reserve([budget], 5.0)).settle(5.0)
    await budget.close()
    assert await load_totals(store) == (6.0, 4.0)


async def test_a_late_process_still_has_its_tranche(store: Store, clock: Clock) -> None:
    """No other process can reserve from a tranche whose lease has run out."""
    late = Budget(LIMIT, BudgetLedger(store, KEY, clock=clock))
    reservation = await reserve([late], 6.0)
    clock.now += 3600
    with pytest.raises(BudgetError):
        await reserve([Budget(LIMIT, BudgetLedger(store, KEY, clock=clock))], 6.0)
    reservation.settle(2.0)
    await late.close()
    assert await load_totals(store) == (2.0, 0.0)


async def test_a_damaged_ledger_is_an_error(store: Store, make_budget: Callable[..., Budget]) -> None:
    """A damaged ledger does not count as an empty one."""
    await store.put(KEY, {"spent": "much", "tranches": {}})
    with pytest.raises(ConfigurationError, match="damaged"):
        await reserve([make_budget()], 1.0)
    assert (await survey(store)).records == {"budget": 1}
    assert (await remove_damaged(store)).removed == [KEY]


def test_a_flow_run_within_another_has_a_budget_of_its_own(store: Store) -> None:
    """A retry of the outer flow run finds that budget by the place of the inner flow run."""
    outer = RunScope("run", flow_run="run")
    keys = [
        open_run_ledger(store, scope).key
        for scope in (
            outer,
            replace(outer, chain=(("run", "again"),)),
            replace(outer, flow_run="sub 1", place="task 1"),
            replace(outer, flow_run="sub 2", place="task 2"),
            replace(outer, flow_run="sub 3", place="task 1"),
        )
    ]
    assert keys[0] == keys[1]
    assert keys[2] == keys[4]
    assert len(set(keys)) == 3


# --- The limit ------------------------------------------------------------------------------------------------


def spend(address: str, limit: float, seed: int, _: float) -> float:
    """Spend as much as the budget allows, with ten calls at a time, and return the spent amount."""
    chance, spent = random.Random(seed), 0.0  # noqa: S311 (no secret)

    async def call(budget: Budget) -> None:
        nonlocal spent
        while True:
            try:
                reservation = await reserve([budget], 0.3)
            except BudgetError:
                return
            await asyncio.sleep(chance.random() / 100)
            usd = chance.choice([0.0, 0.1, 0.2, 0.3])
            spent += usd
            reservation.settle(usd)

    async def main() -> None:
        budget = Budget(limit, BudgetLedger(open_store_at(address), KEY), concurrency=10)
        await asyncio.gather(*(call(budget) for _ in range(10)))
        await budget.close()

    asyncio.run(main())
    return spent


def test_four_processes_spend_all_of_a_budget_and_no_more(address: str) -> None:
    limit = 8.0
    spent = sum(run_at_once(4, partial(spend, address, limit)))
    assert limit - 4 * 0.3 < spent <= limit + 1e-9


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["ask", "settle", "tick", "die"]), st.floats(0.05, 4.0)),
        max_size=30,
    )
)
async def test_the_limit_holds_for_every_order_of_reservations_and_deaths(
    store: Store, steps: list[tuple[int, str, float]]
) -> None:
    """There are three processes, each of which may die and be followed by another."""
    await store.delete(KEY)
    ledgers = [BudgetLedger(store, KEY) for _ in range(3)]
    held, unreported, ahead = [0.0] * 3, [0.0] * 3, [0.0] * 3
    spent = lost = 0.0
    for process, action, usd in steps:
        match action:
            case "ask":
                tranche = await ledgers[process].exchange(
                    LIMIT, spent_usd=unreported[process], held_usd=held[process], least_usd=usd, most_usd=3 * usd
                )
                unreported[process], ahead[process] = 0.0, tranche.ahead_usd
                if tranche.ahead_usd >= usd:
                    held[process] += usd
                    ahead[process] -= usd
            case "settle":
                cost = held[process] / 2
                spent += cost
                unreported[process] += cost
                ahead[process] += held[process] - cost
                held[process] = 0.0
            case "tick":
                tranche = await ledgers[process].exchange(
                    LIMIT, spent_usd=unreported[process], held_usd=held[process], most_usd=ahead[process]
                )
                unreported[process], ahead[process] = 0.0, tranche.ahead_usd
            case _:  # what was under way may be billed in full
                spent += held[process]
                lost += ahead[process]
                held[process] = unreported[process] = ahead[process] = 0.0
                ledgers[process] = BudgetLedger(store, KEY)
        assert spent + sum(held) <= LIMIT + 1e-9
        recorded, reserved = await load_totals(store)
        assert recorded + reserved <= LIMIT + 1e-9
        assert spent + sum(held) + sum(ahead) + lost == pytest.approx(recorded + reserved)
