"""Answers: reuse the saved answers of a run, decide which calls may be made, and save new answers in the journal."""

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
from pollux_flows.pipeline.saved_answers import Saved, check_saved
from pollux_flows.pipeline.spending import Spending
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome
from pollux_flows.state.adoption import adopt_answers
from pollux_flows.state.fallback_files import write_fallback_file
from pollux_flows.state.index import RunFacts
from pollux_flows.state.journal import CallLeasedError, Journal
from pollux_flows.state.leases import LeaseLostError, run_to_completion
from pollux_flows.state.slots import AnswerSlot, RunScope, Slots
from pollux_flows.state.store import open_store

MayAsk = Callable[[], Awaitable[None]]
"""Returns once a call may be made. Raises if it must not be made."""

# Saving a paid answer is retried for so long, in case the store is being restarted or the disk cleared. A store that
# is locked takes longer than that to report it.
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class Answers:
    """The saved and new answers of one run, on its terms."""

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
        # With "always", calls are leased across all runs instead; and a run without a name has no other attempt.
        self._slots = Slots(store, self._scope) if self._scope and terms.reuse != "always" else None
        self._taken: dict[int, AnswerSlot] = {}
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
        # Cleared while an answer cannot be saved, so that no new call is made. `_save_error` is the reason.
        self._can_save = asyncio.Event()
        self._can_save.set()
        self._save_error: PolluxError | None = None

    async def load_reusable(self, calls: Sequence[PlannedCall]) -> dict[int, Outcome]:
        """Return the outcomes of calls with a saved answer, by index."""
        if not self._has_begun:
            await self._journal.save_fallback_files()
            if self._scope is not None:
                await self._journal.write_facts(self._facts, self._scope.flow_run)
            self._has_begun = True
        if self._slots is not None:
            return await self._acquire_slots(self._slots, calls)
        self._asked |= {call.identity for call in calls}
        # This includes answers of an earlier attempt that were paid for and cannot be used.
        own = await self._load_own(calls)
        earlier = {name: outcome for name, outcome in own.items() if name not in self._paid}
        for each in earlier.values():
            self.spending.count_saved(each)
        self._paid |= {name: each.paid_usd for name, each in earlier.items()}
        if self._scope is not None:
            await self._journal.write_index(calls, self._scope.flow_run)
        return await self._load_usable(calls, own)

    async def begin(self) -> None:
        """Record that the run makes calls. Raises if its answers could not be saved."""
        if self._beginning is None:
            self._beginning = asyncio.create_task(self._journal.begin(complete=None if self._slots else False))
        await asyncio.shield(self._beginning)

    async def check_saved(self, outcomes: Iterable[Outcome]) -> Saved | None:
        """Check whether the saved answers among these are still in the store; None if none of them was saved."""
        saved = [outcome for outcome in outcomes if outcome.problem is None and outcome.save_error is None]
        return await check_saved(self._journal, saved) if saved else None

    async def close(self) -> None:
        """Release the leases on unanswered calls, and the rest of the reserved budget."""
        await run_to_completion(self.spending.close())
        if self._slots is not None:
            asked = {slot.identity for slot in self._taken.values()}
            await self._slots.close(complete=asked <= self._answered)
        elif self._beginning is not None and self._asked <= self._answered:
            with suppress(PolluxError):  # its answers then count as those of an incomplete run for a day
                await self._journal.end()

    @asynccontextmanager
    async def claim_call(self, planned: PlannedCall) -> AsyncIterator[MayAsk]:
        """Claim a call, and yield the check whether it may be made, to be called while the caller has a slot.

        Raises CallLeasedError, at once or in that check, if another execution makes the call or has just made it.
        """
        if self._slots is not None:
            if planned.index not in self._taken:
                raise CallLeasedError
            yield partial(self._may_ask_in_slot, self._slots, self._taken[planned.index])
            return
        if self._terms.reuse != "always":
            yield self.check_may_ask
            return
        async with self._journal.lease_call(planned.identity) as acquire:

            async def check_may_ask() -> None:
                await self.check_may_ask()
                await acquire()
                if await self._load_usable([planned]):
                    raise CallLeasedError

            yield check_may_ask

    async def wait_for_other(self, planned: PlannedCall) -> Outcome | None:
        """Wait for a call that another execution makes, and return its outcome; None if it got no answer."""
        if self._slots is None:
            await self._journal.wait_for_release(planned.identity)
            return (await self._load_usable([planned])).get(planned.index)
        self._taken[planned.index] = slot = await self._slots.wait_for_slot(planned, self._taken.get(planned.index))
        return self._reusable(planned, slot)

    def identity(self, planned: PlannedCall) -> str:
        """Return the identity under which the run saves the answer to this call."""
        slot = self._taken.get(planned.index)
        return planned.identity if slot is None else slot.identity

    async def save_outcome(self, outcome: Outcome) -> Outcome:
        """Save the outcome of a call, and return it; if it cannot be saved, with the reason."""
        if paid_before := self._paid.get(outcome.identity):
            outcome = outcome.model_copy(update={"paid_before_usd": paid_before})
        return await self._save(outcome)

    async def save_late(self, outcome: Outcome) -> Outcome:
        """Try again to save an answer that could not be saved when it arrived."""
        if outcome.save_error is None or outcome.spilled is not None:
            return outcome
        return await self._save(outcome.model_copy(update={"save_error": None}))

    async def _acquire_slots(self, slots: Slots, calls: Sequence[PlannedCall]) -> dict[int, Outcome]:
        new = [call for call in calls if call.index not in self._taken]
        if self._scope is not None and self._scope.is_repeated:
            await adopt_answers(self._journal.store, self._scope.run, new)
        self._taken |= await slots.acquire(new, reuse=self._terms.reuse != "never")
        found = {call.index: self._reusable(call, slot) for call in new if (slot := self._taken.get(call.index))}
        return {index: outcome for index, outcome in found.items() if outcome is not None}

    def _reusable(self, planned: PlannedCall, slot: AnswerSlot) -> Outcome | None:
        """Return the usable answer in this slot as the outcome of the call; None if it has none."""
        outcome = slot.outcome
        for each in slot.unused_answers:
            self.spending.count_saved(each)
        if outcome is None:
            return None
        self.spending.count_saved(outcome)
        if outcome.problem is None:
            self._answered.add(slot.identity)
            paid_before = outcome.paid_before_usd + slot.spent_usd
            counted_in = outcome.counted_in if outcome.counted_in == self.spending.ledger else None
            return outcome.model_copy(
                update={"index": planned.index, "paid_before_usd": paid_before, "counted_in": counted_in}
            )
        # A blocked or empty answer is asked for again, as a retry is meant to do.
        self._paid[slot.identity] = outcome.paid_usd
        return None

    async def _may_ask_in_slot(self, slots: Slots, slot: AnswerSlot) -> None:
        await self.check_may_ask()
        try:
            await slots.check_lease(slot)
        except LeaseLostError:
            raise CallLeasedError from None

    async def _load_usable(
        self, calls: Sequence[PlannedCall], own: dict[str, Outcome] | None = None
    ) -> dict[int, Outcome]:
        terms, names = self._terms, [call.identity for call in calls]
        if terms.reuse != "always":
            return {}
        found = await self._load_own(calls) if own is None else own
        missing = [name for name in names if name not in found]
        found = await self._journal.load_reusable(missing, terms.max_age, terms.since or 0.0) | found
        good = {name: outcome for name, outcome in found.items() if outcome.problem is None}
        self._answered |= good.keys()
        return {call.index: good[call.identity].at(call.index) for call in calls if call.identity in good}

    async def _load_own(self, calls: Sequence[PlannedCall]) -> dict[str, Outcome]:
        if self._scope is None:
            return {}
        return await self._journal.load_own([call.identity for call in calls])

    async def check_may_ask(self) -> None:
        """Return once this run may make another call. Raises if it must not make any."""
        await self._can_save.wait()
        if self._save_error is not None:
            raise self._save_error
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
                self._can_save.set()
                if outcome.problem is None:
                    self._answered.add(outcome.identity)
                return outcome
            if pause is None or self._save_error is not None or time.monotonic() > give_up:
                break
            self._can_save.clear()
            try:
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                self._can_save.set()  # other calls find out for themselves
                raise
        self._save_error = failure
        self._can_save.set()  # waiting calls are refused
        spilled = await asyncio.to_thread(write_fallback_file, self._journal.make_records(outcome.identity, outcome))
        return outcome.model_copy(update={"save_error": failure.message, "spilled": spilled and str(spilled)})
