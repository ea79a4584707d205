"""Answers: what a run has already, what it may still ask for, and new answers on their way into the journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Final
from uuid import uuid4

from pollux_flows.config import Target
from pollux_flows.errors import PolluxError
from pollux_flows.pipeline.plan import PlannedCall
from pollux_flows.pipeline.spending import Spending
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome
from pollux_flows.state.journal import Journal, TakenError
from pollux_flows.state.store import open_store

MayAsk = Callable[[], Awaitable[None]]
"""Returns when a call may be made, or raises why it may not."""

# A store that is being restarted, or a disk that somebody makes room on, gets so much time to take a paid answer. One
# that is locked takes longer than that to say so.
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class Answers:
    """The answers of one run, on its terms."""

    def __init__(self, target: Target, terms: Terms) -> None:
        self._terms = terms
        self._journal = Journal(open_store(), terms.run_key or uuid4().hex)
        self._spending = Spending(terms.max_cost_usd, target)
        self._paid: dict[str, float] = {}  # for each call, in earlier attempts
        # While an answer cannot be written down, nothing new is asked for; and then, why it could not.
        self._well = asyncio.Event()
        self._well.set()
        self._broken: PolluxError | None = None

    async def given(self, calls: Sequence[PlannedCall]) -> dict[int, Outcome]:
        """The outcomes of those calls that need not be made, by the calls' numbers."""
        # Also what the run paid for in an earlier attempt and cannot use.
        own = await self._own(calls)
        earlier = {name: outcome for name, outcome in own.items() if name not in self._paid}
        self._spending.add(earlier.values())
        self._paid |= {name: (each.cost_usd or 0.0) + each.paid_before_usd for name, each in earlier.items()}
        return await self._found(calls, own)

    async def begin(self) -> None:
        """Note that the run asks something, or raise why its answers could not be kept."""
        await self._journal.begin()

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Nobody else makes calls of this run meanwhile. Of a run without a name nobody else can know."""
        return nullcontext() if self._terms.run_key is None else self._journal.alone()

    @asynccontextmanager
    async def asking(self, planned: PlannedCall) -> AsyncIterator[MayAsk]:
        """What says whether the call may be made: asked with the slot in hand, so that what came meanwhile counts.

        Where the call may be somebody else's as well, it is claimed until this ends, or TakenError is raised.
        """
        if self._terms.reuse != "always":
            yield self.may_ask
            return
        async with self._journal.asking(planned.identity) as take:

            async def may_ask() -> None:
                await self.may_ask()
                await take()
                if await self._found([planned]):
                    raise TakenError

            yield may_ask

    async def somebody_elses(self, planned: PlannedCall) -> Outcome | None:
        """The outcome of a call that was taken, once whoever took it is done; None if that brought no answer."""
        await self._journal.free(planned.identity)
        return (await self._found([planned])).get(planned.index)

    async def keep(self, outcome: Outcome) -> Outcome:
        """Written down; or with the reason why that was not possible, for the answer is worth having all the same."""
        self._spending.add([outcome])
        if paid_before := self._paid.get(outcome.identity):
            outcome = outcome.model_copy(update={"paid_before_usd": paid_before})
        return await self._written(outcome)

    async def keep_after_all(self, outcome: Outcome) -> Outcome:
        """What could not be written down when it came may be now."""
        if outcome.unkept is None:
            return outcome
        return await self._written(outcome.model_copy(update={"unkept": None}))

    async def _found(self, calls: Sequence[PlannedCall], own: dict[str, Outcome] | None = None) -> dict[int, Outcome]:
        terms, names = self._terms, [call.identity for call in calls]
        if own is None:
            own = await self._own(calls)
        found = {} if terms.reuse == "never" else own
        if terms.reuse == "always":
            found = await self._journal.anybodys([name for name in names if name not in found], terms.max_age) | found
        return {
            call.index: outcome.at(call.index)
            for call in calls
            # What a provider blocked, or left empty, is kept as well; but that is what a retry is for.
            if (outcome := found.get(call.identity)) and outcome.problem is None
        }

    async def _own(self, calls: Sequence[PlannedCall]) -> dict[str, Outcome]:
        if self._terms.run_key is None:
            return {}
        return await self._journal.own([call.identity for call in calls])

    async def may_ask(self) -> None:
        """Whether this run may ask for anything more, or raises why it may not."""
        await self._well.wait()
        if self._broken is not None:
            raise self._broken
        self._spending.check()

    async def _written(self, outcome: Outcome) -> Outcome:
        give_up = time.monotonic() + sum(_PAUSES)
        for pause in (*_PAUSES, None):
            try:
                await self._journal.keep(outcome.identity, outcome)
            except PolluxError as error:
                failure = error
            else:
                self._well.set()
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
        self._well.set()  # whoever waited is told
        return outcome.model_copy(update={"unkept": failure.message})
