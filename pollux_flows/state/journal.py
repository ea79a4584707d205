"""Journal: every answer, written down before it counts as given.

An answer is kept in the run that asked for it, where a retry of that run finds it; and the call remembers which run
last answered it, so that any later run can be given the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from pollux_flows.result import Outcome
from pollux_flows.state import claims
from pollux_flows.state.bounds import keep_within_bounds, kept_s
from pollux_flows.state.claims import LEASE_S, Claim, Clock
from pollux_flows.state.identity import digest
from pollux_flows.state.index import Call, write_index
from pollux_flows.state.kept import answer_in, kept, pointer_in, pointer_to
from pollux_flows.state.spill import take_up
from pollux_flows.state.store import Json, Store

# The record of a longer text is made on a thread: it would hold up the event loop.
_LARGE: Final = 1 << 20


class TakenError(Exception):
    """Somebody else is asking this, or has an answer by now: look again once the call is free."""


class Journal:
    """The answers of one run, among all that a store knows of."""

    def __init__(self, store: Store, run: str, clock: Clock = time.time, *, lease_s: float = LEASE_S) -> None:
        self.store = store
        self.run = run
        self.clock = clock
        self.lease_s = lease_s
        self._kept_s = kept_s()
        self._name = digest("run", run)

    async def take_up_spilled(self) -> None:
        """Save the answers that an earlier attempt on this machine could only write to a file."""
        await take_up(self.store)

    async def begin(self, *, complete: bool | None = None) -> None:
        """Note that the run asks something. A store that cannot be written to says so here, before anything is paid.

        `complete` is False where the run will say by `end` that all is answered; None where its slots say so.
        """
        await self._note(complete)
        await keep_within_bounds(self.store, self.clock)

    async def end(self) -> None:
        """Note that all that the run asked is answered, so that it need not be retried."""
        await self._note(complete=True)

    async def _note(self, complete: bool | None) -> None:
        record = {"run": self.run, "at": self.clock()}
        if complete is not None:
            record["complete"] = complete
        await self.store.put(f"run/{self._name}", record, self._kept_s)

    async def own(self, calls: Sequence[str]) -> dict[str, Outcome]:
        """The answers of this run to these calls."""
        records = await self.store.get_many(self._place(call) for call in calls)
        places = {call: place for call in calls if (place := self._place(call)) in records}
        return {call: answer_in(place, records[place], self.store.where, "run") for call, place in places.items()}

    async def anybodys(self, calls: Sequence[str], max_age_s: float | None) -> dict[str, Outcome]:
        """Any run's latest answers to these calls, where that is not too old."""
        names, where = {pointer_to(call): call for call in calls}, self.store.where
        found = await self.store.get_many(names)
        pointers = {names[name]: pointer_in(name, record, where) for name, record in found.items()}
        since = None if max_age_s is None else self.clock() - max_age_s
        places = {call: pointer.place for call, pointer in pointers.items() if since is None or pointer.at >= since}
        records = await self.store.get_many(places.values())
        there = {call: place for call, place in places.items() if place in records}
        return {call: answer_in(place, records[place], where, "always") for call, place in there.items()}

    async def has(self, outcomes: Sequence[Outcome]) -> bool:
        """Return whether the store has these answers, for this run and for any other that may reuse them."""
        names = {pointer_to(outcome.identity) for outcome in outcomes}
        names |= {self._place(outcome.identity) for outcome in outcomes if outcome.reused != "always"}
        return names == (await self.store.get_many(names)).keys()

    async def index(self, calls: Sequence[Call], flow_run: str | None) -> None:
        """Note what is asked, so that the answers of the run can be listed."""
        found_as = [(call, call.identity) for call in calls]
        await write_index(self.store, self._name, flow_run, found_as, at=self.clock())

    async def keep(self, call: str, outcome: Outcome) -> None:
        """Write an answer down; when this returns, it will survive."""
        now, place = self.clock(), self._place(call)
        pointer = {"at": now, "place": place}
        if outcome.problem is None:
            is_large = outcome.answer is not None and len(outcome.answer.text) > _LARGE
            records = await asyncio.to_thread(self.records, call, outcome) if is_large else self.records(call, outcome)
            await self.store.put_many(records, self._kept_s)
            return
        # What is no answer does not take the place of one; but that it was paid for is not forgotten.
        earlier = (await self.own([call])).get(call)
        if earlier is not None and earlier.problem is None:
            paid = earlier.paid_before_usd + (outcome.cost_usd or 0.0)
            outcome = earlier.model_copy(update={"paid_before_usd": paid})
        await self.store.put(place, kept(place, outcome, now), self._kept_s)
        await self.store.add(pointer_to(call), pointer, self._kept_s)

    def records(self, call: str, outcome: Outcome) -> dict[str, Json]:
        """The records of an answer: the answer itself, and the pointer by which other runs find it."""
        now, place = self.clock(), self._place(call)
        return {place: kept(place, outcome, now), pointer_to(call): {"at": now, "place": place}}

    @asynccontextmanager
    async def asking(self, call: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """What this yields claims the call when it is first awaited, or raises TakenError."""
        async with AsyncExitStack() as stack:
            claim: Claim | None = None

            async def take() -> None:
                nonlocal claim
                if claim is None:
                    claim = await self._claimed(_asked(call))
                    if claim is None:
                        raise TakenError
                    await stack.enter_async_context(claims.held(claim))

            yield take

    async def free(self, call: str) -> None:
        """Wait until nobody is asking this any more."""
        await claims.freed(self.store, _asked(call), clock=self.clock)

    async def _claimed(self, key: str) -> Claim | None:
        return await claims.claim(self.store, key, self.run, self.lease_s, clock=self.clock)

    def _place(self, call: str) -> str:
        return f"run/{self._name}/{call}"


def _asked(call: str) -> str:
    return f"asking/{call}"
