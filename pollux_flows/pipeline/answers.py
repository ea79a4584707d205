"""Answers: what a run has already, what it may still ask for, and new answers on their way into the journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final
from uuid import uuid4

from pollux_flows.config import Target
from pollux_flows.errors import PolluxError
from pollux_flows.pipeline.plan import PlannedCall
from pollux_flows.pipeline.saved_answers import Saved, look_for
from pollux_flows.pipeline.spending import Spending
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome
from pollux_flows.state.adoption import adopt_answers
from pollux_flows.state.fallback_files import write_fallback_file
from pollux_flows.state.index import RunFacts
from pollux_flows.state.journal import CallLeasedError, Journal
from pollux_flows.state.leases import LeaseLostError, run_to_completion
from pollux_flows.state.slots import RunScope, Slot, Slots
from pollux_flows.state.store import open_store

MayAsk = Callable[[], Awaitable[None]]
"""Returns when a call may be made, or raises why it may not."""

# A store that is being restarted, or a disk that is being cleared, gets so much time to take a paid answer. One
# that is locked takes longer than that to say so.
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class Answers:
    """The answers of one run, on its terms."""

    def __init__(
        self,
        target: Target,
        terms: Terms,
        scope: RunScope | None = None,
        facts: RunFacts | None = None,
        *,
        concurrency: int = 1,
    ) -> None:
        store = open_store()
        self._terms = terms
        self._facts = facts or RunFacts()
        self._scope = scope or (None if terms.run_key is None else RunScope(terms.run_key))
        self._journal = Journal(store, self._scope.run if self._scope else uuid4().hex)
        # With "always", calls are claimed for all runs at once; and a run without a name has no other attempt.
        self._slots = Slots(store, self._scope) if self._scope and terms.reuse != "always" else None
        self._taken: dict[int, Slot] = {}
        self._asked: set[str] = set()
        self._answered: set[str] = set()
        self._beginning: asyncio.Task[None] | None = None
        self.spending = Spending(
            terms.max_cost_usd,
            target,
            store=store,
            scope=self._scope,
            shared=terms.budget,
            spent_usd=terms.spent_usd,
            concurrency=concurrency,
        )
        self._paid: dict[str, float] = {}  # for each call, in earlier attempts
        self._has_begun = False
        # Cleared while an answer cannot be saved: no new call is made. `_broken` is why it could not be.
        self._well = asyncio.Event()
        self._well.set()
        self._broken: PolluxError | None = None

    async def load_reusable(self, calls: Sequence[PlannedCall]) -> dict[int, Outcome]:
        """The outcomes of those calls that need not be made, by the calls' numbers."""
        if not self._has_begun:
            await self._journal.save_fallback_files()
            if self._scope is not None:
                await self._journal.write_facts(self._facts, self._scope.flow_run)
            self._has_begun = True
        if self._slots is not None:
            return await self._take(self._slots, calls)
        self._asked |= {call.identity for call in calls}
        # Also what the run paid for in an earlier attempt and cannot use.
        own = await self._own(calls)
        earlier = {name: outcome for name, outcome in own.items() if name not in self._paid}
        for each in earlier.values():
            self.spending.count_found(each)
        self._paid |= {name: each.paid_usd for name, each in earlier.items()}
        if self._scope is not None:
            await self._journal.write_index(calls, self._scope.flow_run)
        return await self._found(calls, own)

    async def begin(self) -> None:
        """Note that the run asks something, or raise why its answers could not be saved."""
        if self._beginning is None:
            self._beginning = asyncio.create_task(self._journal.begin(complete=None if self._slots else False))
        await asyncio.shield(self._beginning)

    async def look_for_saved(self, outcomes: Iterable[Outcome]) -> Saved | None:
        """Look whether the answers among these are still in the store; None if none of them was saved."""
        saved = [outcome for outcome in outcomes if outcome.problem is None and outcome.save_error is None]
        return await look_for(self._journal, saved) if saved else None

    async def close(self) -> None:
        """Release the leases on calls that were not answered, and what is reserved of the budget."""
        await run_to_completion(self.spending.close())
        if self._slots is not None:
            asked = {slot.identity for slot in self._taken.values()}
            await self._slots.close(complete=asked <= self._answered)
        elif self._beginning is not None and self._asked <= self._answered:
            with suppress(PolluxError):  # its answers then count as those of an incomplete run for a day
                await self._journal.end()

    @asynccontextmanager
    async def claim_call(self, planned: PlannedCall) -> AsyncIterator[MayAsk]:
        """Yield the check whether the call may be made, to be called with the slot in hand: answers may come meanwhile.

        Raises CallLeasedError, at once or then, where another execution is asking it: `wait` has more.
        """
        if self._slots is not None:
            if planned.index not in self._taken:
                raise CallLeasedError
            yield partial(self._may_ask_in_slot, self._slots, self._taken[planned.index])
            return
        if self._terms.reuse != "always":
            yield self.check_may_ask
            return
        async with self._journal.lease_call(planned.identity) as take:

            async def may_ask() -> None:
                await self.check_may_ask()
                await take()
                if await self._found([planned]):
                    raise CallLeasedError

            yield may_ask

    async def wait_for_other(self, planned: PlannedCall) -> Outcome | None:
        """The outcome of a call that another execution is asking, once that has ended; None if it brought no answer."""
        if self._slots is None:
            await self._journal.wait_for_release(planned.identity)
            return (await self._found([planned])).get(planned.index)
        self._taken[planned.index] = slot = await self._slots.wait_for_slot(planned, self._taken.get(planned.index))
        return self._reusable(planned, slot)

    def identity(self, planned: PlannedCall) -> str:
        """The name under which the run has the answer to this call."""
        slot = self._taken.get(planned.index)
        return planned.identity if slot is None else slot.identity

    async def save_outcome(self, outcome: Outcome) -> Outcome:
        """Save the outcome of a call; where that is not possible, return it with the reason."""
        if paid_before := self._paid.get(outcome.identity):
            outcome = outcome.model_copy(update={"paid_before_usd": paid_before})
        return await self._save(outcome)

    async def save_late(self, outcome: Outcome) -> Outcome:
        """Save an answer that could not be saved when it came, if that is possible now."""
        if outcome.save_error is None or outcome.spilled is not None:
            return outcome
        return await self._save(outcome.model_copy(update={"save_error": None}))

    async def _take(self, slots: Slots, calls: Sequence[PlannedCall]) -> dict[int, Outcome]:
        new = [call for call in calls if call.index not in self._taken]
        if self._scope is not None and self._scope.is_repeated:
            await adopt_answers(self._journal.store, self._scope.run, new)
        self._taken |= await slots.acquire(new, reuse=self._terms.reuse != "never")
        found = {call.index: self._reusable(call, slot) for call in new if (slot := self._taken.get(call.index))}
        return {index: outcome for index, outcome in found.items() if outcome is not None}

    def _reusable(self, planned: PlannedCall, slot: Slot) -> Outcome | None:
        """The answer in this slot as the outcome of the call, unless it has none, or none that is of use."""
        outcome = slot.outcome
        for each in slot.passed_over:
            self.spending.count_found(each)
        if outcome is None:
            return None
        self.spending.count_found(outcome)
        if outcome.problem is None:
            self._answered.add(slot.identity)
            paid_before = outcome.paid_before_usd + slot.spent_usd
            counted_in = outcome.counted_in if outcome.counted_in == self.spending.ledger else None
            return outcome.model_copy(
                update={"index": planned.index, "paid_before_usd": paid_before, "counted_in": counted_in}
            )
        # The slot of an answer that a provider blocked, or left empty, is asked again: that is what a retry is for.
        self._paid[slot.identity] = outcome.paid_usd
        return None

    async def _may_ask_in_slot(self, slots: Slots, slot: Slot) -> None:
        await self.check_may_ask()
        try:
            await slots.check_lease(slot)
        except LeaseLostError:
            raise CallLeasedError from None

    async def _found(self, calls: Sequence[PlannedCall], own: dict[str, Outcome] | None = None) -> dict[int, Outcome]:
        terms, names = self._terms, [call.identity for call in calls]
        if terms.reuse != "always":
            return {}
        found = await self._own(calls) if own is None else own
        missing = [name for name in names if name not in found]
        found = await self._journal.load_reusable(missing, terms.max_age, terms.since or 0.0) | found
        good = {name: outcome for name, outcome in found.items() if outcome.problem is None}
        self._answered |= good.keys()
        return {call.index: good[call.identity].at(call.index) for call in calls if call.identity in good}

    async def _own(self, calls: Sequence[PlannedCall]) -> dict[str, Outcome]:
        if self._scope is None:
            return {}
        return await self._journal.load_own([call.identity for call in calls])

    async def check_may_ask(self) -> None:
        """Return when this run may make another call, or raise why it may not."""
        await self._well.wait()
        if self._broken is not None:
            raise self._broken
        self.spending.check()

    async def _save(self, outcome: Outcome) -> Outcome:
        save = self._journal.save_answer if outcome.problem is None else self._journal.save_error
        give_up = time.monotonic() + sum(_PAUSES)
        for pause in (*_PAUSES, None):
            try:
                await save(outcome.identity, outcome)
            except PolluxError as error:
                failure = error
            else:
                self._well.set()
                if outcome.problem is None:
                    self._answered.add(outcome.identity)
                return outcome
            if pause is None or self._broken is not None or time.monotonic() > give_up:
                break
            self._well.clear()
            try:
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                self._well.set()  # others find out for themselves
                raise
        self._broken = failure
        self._well.set()  # those who waited are refused
        spilled = await asyncio.to_thread(write_fallback_file, self._journal.make_records(outcome.identity, outcome))
        return outcome.model_copy(update={"save_error": failure.message, "spilled": spilled and str(spilled)})
