"""Journal: saves the answers of a run before they count as received.

An answer is saved for the run that requested it, so that a retry of the run finds it. A pointer for its call leads to
the latest answer of any run, so that later runs can reuse it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from pollux_flows.result import Outcome
from pollux_flows.state import fallback_files, leases
from pollux_flows.state.answer_record import make_answer_record, pointer_key, read_answer, read_pointer
from pollux_flows.state.identity import digest
from pollux_flows.state.index import IndexCall, RunFacts, write_facts, write_index
from pollux_flows.state.leases import LEASE_S, Clock, Lease
from pollux_flows.state.maintenance import enforce_max_size
from pollux_flows.state.retention import retention_s
from pollux_flows.state.store import Json, Store

# The record of a longer text is made on a thread, so that it does not block the event loop.
_LARGE: Final = 1 << 20


class CallLeasedError(Exception):
    """Another execution has the lease on this call, or has just answered it. Look again once it is released."""


class Journal:
    """The journal of one run in a store."""

    def __init__(self, store: Store, run: str, clock: Clock = time.time, *, lease_s: float = LEASE_S) -> None:
        self.store = store
        self.run = run
        self.clock = clock
        self.lease_s = lease_s
        self._retention_s = retention_s()
        self._name = digest("run", run)

    async def save_fallback_files(self) -> None:
        """Copy answers to the store that earlier attempts on this machine could only write to files."""
        await fallback_files.save_fallback_files(self.store)

    async def begin(self, *, complete: bool | None = None) -> None:
        """Record that the run begins to send requests. An unwritable store so fails before anything is paid for.

        `complete` is False for a run that will call `end` when all calls are answered, and None if slots record that.
        """
        await self._write_header(complete)
        await enforce_max_size(self.store, self.clock)

    async def end(self) -> None:
        """Record that all calls of the run are answered, so that it will not be retried."""
        await self._write_header(complete=True)

    async def _write_header(self, complete: bool | None) -> None:
        record = {"run": self.run, "at": self.clock()}
        if complete is not None:
            record["complete"] = complete
        await self.store.put(f"run/{self._name}", record, self._retention_s)

    async def load_own(self, calls: Sequence[str]) -> dict[str, Outcome]:
        """Return the saved outcomes of these calls in this run."""
        keys = {self._answer_key(call): call for call in calls}
        records = await self.store.get_many(keys)
        return {keys[key]: read_answer(key, record, self.store.where, "run") for key, record in records.items()}

    async def load_reusable(
        self, calls: Sequence[str], max_age_s: float | None, since: float = 0.0
    ) -> dict[str, Outcome]:
        """Return the latest saved outcomes of these calls in any run, unless they are too old.

        Answers from before `since`, a time of the clock, do not count.
        """
        pointers, where = {pointer_key(call): call for call in calls}, self.store.where
        since = since if max_age_s is None else max(since, self.clock() - max_age_s)
        places: dict[str, str] = {}
        for key, record in (await self.store.get_many(pointers)).items():
            pointer = read_pointer(key, record, where)
            if pointer.at >= since:
                places[pointer.place] = pointers[key]
        records = await self.store.get_many(places)
        return {places[key]: read_answer(key, record, where, "always") for key, record in records.items()}

    async def has_answers(self, outcomes: Sequence[Outcome]) -> bool:
        """Return whether the store has these answers, both for this run and for reuse by others."""
        keys = {pointer_key(outcome.identity) for outcome in outcomes}
        keys |= {self._answer_key(outcome.identity) for outcome in outcomes if outcome.reused != "always"}
        return keys == (await self.store.get_many(keys)).keys()

    async def write_index(self, calls: Sequence[IndexCall], flow_run: str | None) -> None:
        """Record the calls that are made, so that the answers of the run can be listed."""
        stored_calls = [(call, call.identity) for call in calls]
        await write_index(self.store, self._name, flow_run, stored_calls, at=self.clock())

    async def write_facts(self, facts: RunFacts, flow_run: str | None) -> None:
        """Record the facts that a list of the answers needs."""
        await write_facts(self.store, self._name, flow_run, facts, at=self.clock())

    async def save_answer(self, call: str, outcome: Outcome) -> None:
        """Save an answer. Once this returns, the answer survives a crash of the machine."""
        is_large = outcome.answer is not None and len(outcome.answer.text) > _LARGE
        make = self.make_records
        records = await asyncio.to_thread(make, call, outcome) if is_large else make(call, outcome)
        await self.store.put_many(records, self._retention_s)

    async def save_error(self, call: str, outcome: Outcome) -> None:
        """Save a response without a usable answer. If there is an answer already, only the cost is added to it."""
        now, key = self.clock(), self._answer_key(call)
        earlier = (await self.load_own([call])).get(call)
        if earlier is not None and earlier.problem is None:
            paid = earlier.paid_before_usd + (outcome.cost_usd or 0.0)
            # If only one of the two was counted in a budget, both are counted again.
            counted_in = earlier.counted_in if earlier.counted_in == outcome.counted_in else None
            outcome = earlier.model_copy(update={"paid_before_usd": paid, "counted_in": counted_in})
        await self.store.put(key, make_answer_record(key, outcome, now), self._retention_s)
        await self.store.add(pointer_key(call), {"at": now, "place": key}, self._retention_s)

    def make_records(self, call: str, outcome: Outcome) -> dict[str, Json]:
        """Return the records of an answer: the answer itself, and the pointer by which other runs find it."""
        now, key = self.clock(), self._answer_key(call)
        return {key: make_answer_record(key, outcome, now), pointer_key(call): {"at": now, "place": key}}

    @asynccontextmanager
    async def lease_call(self, call: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Yield a function that acquires the lease on the call, or raises CallLeasedError; release it at the end."""
        async with AsyncExitStack() as stack:
            lease: Lease | None = None

            async def acquire() -> None:
                nonlocal lease
                if lease is None:
                    lease = await leases.acquire_lease(
                        self.store, _lease_key(call), self.run, self.lease_s, clock=self.clock
                    )
                    if lease is None:
                        raise CallLeasedError
                    await stack.enter_async_context(leases.use_lease(lease))

            yield acquire

    async def wait_for_release(self, call: str) -> None:
        """Wait until no execution has the lease on the call. For reuse="always", or outside a named run.

        Calls of a named run wait in `Slots.wait_for_slot`.
        """
        await leases.wait_for_release(self.store, _lease_key(call), clock=self.clock)

    def _answer_key(self, call: str) -> str:
        return f"run/{self._name}/{call}"


def _lease_key(call: str) -> str:
    return f"asking/{call}"
