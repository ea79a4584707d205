"""Budget: an amount that is never exceeded, because each call reserves its worst case before it is made.

The cost of a call replaces its reservation. If not enough is left for another call, it waits until the running calls
have settled, and is refused if none is running.

A run with several processes or attempts has a ledger in the store: one record with the amount spent, and a tranche for
each process that has reserved something. A process reserves for many calls ahead, so that few of them access the
store; near the limit its tranche shrinks. The amount spent and all tranches together never exceed the limit.

The tranche of a process that died stays reserved: its running calls may have been billed, and no other process knows
which costs it had settled since its last write. So a killed process may cost the budget its tranche, but the cost is
never counted too low. The lease in a tranche tells waiting processes whether its owner is alive.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from pollux_flows.errors import BudgetError, PolluxError
from pollux_flows.pricing import dollars
from pollux_flows.state import leases
from pollux_flows.state.identity import digest
from pollux_flows.state.leases import LEASE_S, Clock
from pollux_flows.state.process import this_process
from pollux_flows.state.retention import retention_s
from pollux_flows.state.slots import RunScope
from pollux_flows.state.store import Json, Store, damaged_record_error

RUN_PREFIX: Final = "budget/"
# Longer than a day, as a run may end on a later day than the one on which it began.
_DAY_STORED_S: Final = 7 * 86_400.0
# A tranche is large enough for this many calls beyond the running ones, at their average cost.
_CALLS_AHEAD: Final = 50
# Amounts are sums of floating-point numbers; no token costs as little as this.
_NOTHING: Final = 1e-13


@dataclass(frozen=True)
class Tranche:
    """The reservation of this process in a ledger, with the totals of the others."""

    ahead_usd: float
    """The amount that may be spent beyond the running calls."""
    spent_usd: float
    reserved_elsewhere_usd: float
    others_work: bool
    """True if another process is alive and so may release a part of its tranche."""


class BudgetLedger:
    """The record of one budget in a store, for one process."""

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        ttl_s: float | None = None,
        clock: Clock = time.time,
        lease_s: float = LEASE_S,
    ) -> None:
        self.key, self.lease_s = key, lease_s
        self._store, self._ttl_s, self._clock = store, ttl_s, clock
        self._token = uuid4().hex
        self._found: Json | None = None

    async def exchange(
        self, limit_usd: float, *, spent_usd: float, held_usd: float, least_usd: float = 0.0, most_usd: float = 0.0
    ) -> Tranche:
        """Report the amount spent; reserve the amount held and, if there is room, `least_usd` to `most_usd` more."""
        while True:
            spent, others = self._read(self._found)
            spent += spent_usd
            elsewhere = sum(tranche["usd"] for tranche in others.values())
            left = limit_usd - spent - elsewhere - held_usd
            ahead = _share(left, least_usd, most_usd)
            tranches = others | self._make_tranche(held_usd + ahead)
            record = {"at": self._clock(), "spent": spent, "tranches": tranches}
            if await self._store.swap(self.key, self._found, record, self._ttl_s):
                self._found = record
                return Tranche(ahead, spent, elsewhere, any(map(self._is_at_work, others.values())))
            self._found = await self._store.get(self.key)

    def _make_tranche(self, usd: float) -> dict[str, Json]:
        if usd <= _NOTHING:
            return {}
        until = self._clock() + self.lease_s
        lease = {"owner": self.key, "token": self._token, "until": until, "process": this_process()}
        return {self._token: {"usd": usd, "lease": lease}}

    def _is_at_work(self, tranche: Json) -> bool:
        return leases.get_owner(tranche, self._clock()) is not None

    def _read(self, record: Json | None) -> tuple[float, dict[str, Json]]:
        """Return the amount spent, and the tranches of other processes."""
        try:
            spent, tranches = read_ledger(record or {"spent": 0.0, "tranches": {}})
            for tranche in tranches.values():
                self._is_at_work(tranche)
        except (KeyError, TypeError, ValueError):
            raise damaged_record_error(self.key, self._store.where) from None
        return spent, {token: tranche for token, tranche in tranches.items() if token != self._token}


def open_run_ledger(store: Store, scope: RunScope) -> BudgetLedger:
    """Return the ledger of a run. A sub-flow run has its own."""
    name = digest("run", scope.place or scope.flow_run or scope.run)
    return BudgetLedger(store, f"{RUN_PREFIX}{name}", ttl_s=retention_s())


def open_shared_ledger(store: Store, budget: str, provider: str | None, day: str | None) -> BudgetLedger:
    """Return the ledger of a budget that runs share by its name: for one day, or for all days."""
    key = f"shared-budget/{digest('budget', budget)}/{provider or 'all'}/{day or 'total'}"
    return BudgetLedger(store, key, ttl_s=None if day is None else _DAY_STORED_S)


def read_ledger(record: Json) -> tuple[float, dict[str, Json]]:
    """Return the amount spent in this record, and its tranches, or raise KeyError, TypeError or ValueError."""
    tranches = {str(token): {**tranche, "usd": float(tranche["usd"])} for token, tranche in record["tranches"].items()}
    return float(record["spent"]), tranches


def _share(left: float, least: float, most: float) -> float:
    """Return how much of the rest to reserve: half of it, to leave some for others, but at least `least`."""
    if left < least - _NOTHING:
        return 0.0
    return max(least, min(most, left / 2))


class Budget:
    """A limit on what the calls of this process may cost, together with those of all that share its ledger.

    A budget belongs to one event loop, and must be closed at the end.
    """

    def __init__(
        self,
        limit_usd: float,
        ledger: BudgetLedger | None = None,
        *,
        name: str = "max_cost_usd",
        spender: str = "the run has",
        hint: str = "Raise max_cost_usd and run again.",
        elsewhere_usd: float = 0.0,
        concurrency: int = 1,
    ) -> None:
        self.limit_usd = limit_usd
        self.name = name
        """The limit's name, for errors."""
        self.elsewhere_usd = elsewhere_usd
        """The costs that count against the limit but are in no ledger."""
        self._spender, self._hint = spender, hint
        self._ledger, self._concurrency = ledger, concurrency
        self._spent = 0.0  # since the ledger was written
        self._reserved = 0.0
        self._open = 0
        self._tranche = 0.0
        self._found: Tranche | None = None
        self._count, self._settled = 0, 0.0
        self._refused_usd = math.inf
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None
        self._was_used = False

    async def reserve(self, usd: float) -> None:
        """Reserve the worst case of a call once there is room for it, or raise a BudgetError.

        Waiting calls queue, and only the first of them accesses the store.
        """
        async with self._turn:
            if not self._fits(usd):
                await self._wait_for_room(usd)
            self._reserved += usd
            self._open += 1
            self._was_used = True

    def settle(self, reserved_usd: float, usd: float) -> None:
        """End a reservation, and count the cost of the call instead."""
        self._open -= 1
        self._reserved = self._reserved - reserved_usd if self._open else 0.0
        self._count += usd > 0
        self.spend(usd)

    def spend(self, usd: float) -> None:
        """Count a cost that was not reserved."""
        self._spent += usd
        self._settled += usd
        self._changed.set()

    def check(self, usd: float) -> None:
        """Raise a BudgetError if a call with the same or a lower worst case was refused before."""
        if usd >= self._refused_usd:
            raise self._refuse(usd)  # a new error, as the traceback of an error grows each time it is raised

    async def close(self) -> None:
        """Report the amount spent, and release the rest. A call that was not settled counts in full."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._ledger is None or (self._found is None and not self._spent):
            return
        self._spent += self._reserved
        self._reserved, self._open = 0.0, 0
        with suppress(PolluxError):  # the tranche then stays reserved
            async with self._turn:
                await self._exchange()

    @property
    def _room(self) -> float:
        if self._ledger is None:
            return self.limit_usd - self.elsewhere_usd - self._spent - self._reserved
        return self._tranche - self._spent - self._reserved

    def _fits(self, usd: float) -> bool:
        return usd <= self._room + _NOTHING

    async def _wait_for_room(self, usd: float) -> None:
        pauses = leases.backoff_pauses()
        while True:
            self.check(usd)
            self._changed.clear()
            await self._ask_ledger(usd)
            if self._fits(usd):
                return
            others_work = self._found is not None and self._found.others_work
            # A call that settled while the ledger was read has left room.
            if not self._open and not others_work and not self._changed.is_set():
                self._refused_usd = usd
                raise self._refuse(usd)
            with suppress(TimeoutError):
                async with asyncio.timeout(next(pauses) if self._ledger else None):
                    await self._changed.wait()

    def _refuse(self, usd: float) -> BudgetError:
        found = self._found or Tranche(0.0, 0.0, 0.0, others_work=False)
        spent, lost = self._spent + self.elsewhere_usd + found.spent_usd, found.reserved_elsewhere_usd
        more = f" (and up to {dollars(lost)} for calls of a killed process)" if lost > _NOTHING else ""
        return BudgetError(
            f"Not asked: {self._spender} cost {dollars(spent)} so far{more}, this call may cost up to {dollars(usd)},"
            f" and {self.name} is {dollars(self.limit_usd)}.",
            hint=self._hint,
        )

    async def _ask_ledger(self, usd: float) -> None:
        if self._ledger is None:
            return
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew_repeatedly(self._ledger.lease_s / 8))
        await self._exchange(usd, usd + self._ahead(usd))

    def _ahead(self, usd: float) -> float:
        """Estimate the cost of the next calls: from the average so far, or from the worst case."""
        if not self._count:
            return usd * min(self._concurrency, _CALLS_AHEAD)
        return self._settled / self._count * _CALLS_AHEAD

    async def _exchange(self, least_usd: float = 0.0, most_usd: float = 0.0) -> None:
        """Write the ledger, and read the new tranche. Reservations wait meanwhile; settlements do not."""
        if self._ledger is not None:  # run to completion, or the amount spent would be reported twice
            await leases.run_to_completion(self._write_ledger(self._ledger, least_usd, most_usd))

    async def _write_ledger(self, ledger: BudgetLedger, least_usd: float, most_usd: float) -> None:
        spent, reserved = self._spent, self._reserved
        # If the write fails, it may still have been done. So nothing is reserved until another write has succeeded.
        self._tranche = 0.0
        self._found = await ledger.exchange(
            self.limit_usd - self.elsewhere_usd,
            spent_usd=spent,
            held_usd=reserved,
            least_usd=least_usd,
            most_usd=most_usd,
        )
        self._spent -= spent
        self._tranche = reserved + self._found.ahead_usd

    async def _renew_repeatedly(self, every_s: float) -> None:
        """Renew the lease on the tranche, and release the unused part, for which other processes may wait."""
        while True:
            await asyncio.sleep(every_s)
            async with self._turn:
                if max(self._tranche, self._reserved) <= _NOTHING:
                    continue
                ahead = min(max(self._room, 0.0), self._ahead(0.0)) if self._was_used else 0.0
                self._was_used = False
                with suppress(PolluxError):  # the next call raises it
                    await self._exchange(0.0, ahead)


class Reservation:
    """The worst case of one attempt at a call, reserved in all its budgets until it is settled."""

    def __init__(self, budgets: Sequence[Budget] = (), usd: float = 0.0) -> None:
        self._budgets, self._usd = budgets, usd
        self._is_sent = False

    def mark_sent(self) -> None:
        """Record that the call may be billed from now on."""
        self._is_sent = True

    def settle(self, usd: float | None) -> None:
        """Replace the reservation by the cost; an unknown cost (None) counts in full. Later calls do nothing."""
        budgets, self._budgets = self._budgets, ()
        for budget in budgets:
            budget.settle(self._usd, self._usd if usd is None else usd)

    def end(self) -> None:
        """End the reservation unless it is settled: a call that was sent counts in full, any other not at all."""
        self.settle(None if self._is_sent else 0.0)


async def reserve(budgets: Sequence[Budget], usd: float) -> Reservation:
    """Reserve the worst case of a call in each of the budgets once there is room, or raise a BudgetError."""
    reserved: list[Budget] = []
    try:
        for budget in budgets:
            await budget.reserve(usd)
            reserved.append(budget)
    except BaseException:
        Reservation(reserved, usd).end()
        raise
    return Reservation(reserved, usd)
