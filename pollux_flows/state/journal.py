"""Journal: every answer, written down before it counts as given.

An answer is kept in the run that asked for it, where a retry of that run finds it; and the call remembers which run
last answered it, so that any later run can be given the same.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from pydantic import Field

from pollux_flows.document import Record
from pollux_flows.errors import PolluxError
from pollux_flows.result import Outcome
from pollux_flows.state import claims
from pollux_flows.state.claims import LEASE_S, Claim, Clock
from pollux_flows.state.identity import digest
from pollux_flows.state.store import Json, Store

# Answers older than this go by themselves; `pollux-flows state` shows and prunes the others.
KEPT_S: Final = 90 * 86_400.0
# What is true of one run only.
_NOT_KEPT: Final = {"index", "reused", "unkept"}


class Kept(Record):
    """An answer that was paid for, and when."""

    at: float = Field(description="When it was given, as a Unix time.")
    outcome: Json


class TakenError(Exception):
    """Somebody else is asking this, or has an answer by now: look again once the call is free."""


class Journal:
    """The answers of one run, among all that a store knows of."""

    def __init__(self, store: Store, run: str, clock: Clock = time.time, *, lease_s: float = LEASE_S) -> None:
        self.store = store
        self.run = run
        self.clock = clock
        self.lease_s = lease_s
        self._name = digest("run", run)

    async def begin(self) -> None:
        """Note that the run asks something. A store that cannot be written to says so here, before anything is paid."""
        await self.store.put(f"run/{self._name}", {"run": self.run, "at": self.clock()}, KEPT_S)

    async def own(self, calls: Sequence[str]) -> dict[str, Outcome]:
        """The answers of this run to these calls."""
        records = await self.store.get_many(self._place(call) for call in calls)
        return {call: _outcome(records[place], "run") for call in calls if (place := self._place(call)) in records}

    async def anybodys(self, calls: Sequence[str], max_age_s: float | None) -> dict[str, Outcome]:
        """Any run's latest answers to these calls, where that is not too old."""
        pointers = await self.store.get_many(_pointer(call) for call in calls)
        places = {
            call: str(pointer["place"])
            for call in calls
            if (pointer := pointers.get(_pointer(call)))
            and (max_age_s is None or pointer["at"] >= self.clock() - max_age_s)
        }
        records = await self.store.get_many(places.values())
        return {call: _outcome(records[place], "always") for call, place in places.items() if place in records}

    async def keep(self, call: str, outcome: Outcome) -> None:
        """Write an answer down; when this returns, it will survive."""
        now, place = self.clock(), self._place(call)
        kept = {"at": now, "outcome": outcome.model_dump(mode="json", exclude=_NOT_KEPT, exclude_defaults=True)}
        await self.store.put_many({place: kept, _pointer(call): {"at": now, "place": place}}, KEPT_S)

    @asynccontextmanager
    async def alone(self, calls: Sequence[str]) -> AsyncIterator[None]:
        """Nobody else makes these calls of this run meanwhile; who comes second waits for the first."""
        key = f"making/{digest('calls', [self.run, *calls])}"
        while (claim := await self._claimed(key)) is None:
            await claims.freed(self.store, key, clock=self.clock)
        async with _held(claim):
            yield

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
                    await stack.enter_async_context(_held(claim))

            yield take

    async def free(self, call: str) -> None:
        """Wait until nobody is asking this any more."""
        await claims.freed(self.store, _asked(call), clock=self.clock)

    async def _claimed(self, key: str) -> Claim | None:
        return await claims.claim(self.store, key, self.run, self.lease_s, clock=self.clock)

    def _place(self, call: str) -> str:
        return f"run/{self._name}/{call}"


@asynccontextmanager
async def _held(claim: Claim) -> AsyncIterator[None]:
    try:
        async with claim.kept():
            yield
    finally:
        with suppress(PolluxError):  # nothing can be written now: the lease runs out by itself
            await claims.unbroken(claim.release())


def _asked(call: str) -> str:
    return f"asking/{call}"


def _pointer(call: str) -> str:
    return f"answer/{call}"


def _outcome(record: Json, reused: str) -> Outcome:
    return Outcome.model_validate({**Kept.model_validate(record).outcome, "index": 0, "reused": reused})
