"""Slots: assign the saved answers of a run to its calls, and let one execution at a time have each of them.

A question is identified by its run, its request and its prompt. Identical calls of one run differ only in an ordinal,
so each of them may have any of their answers. One record for each question lists its takers by ordinal.

A taker is one execution. It has a lease, and records its chain: the flow runs and tasks that it is part of, outermost
first, each with a mark of its current attempt. A slot is

- asking, while it has no answer and its taker is alive;
- answered, once the journal has its answer. It then belongs to its taker until the taker lapses, that is, until an
  ancestor that the taker shares with the execution that asks now has started again;
- free otherwise: its taker died, or ended without an answer.

So a retry reuses the answers of the attempt before, concurrent siblings with equal questions get different answers, and
an execution waits for an answer that an earlier attempt has requested and not received yet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import uuid4

from pollux_flows.result import Outcome
from pollux_flows.state import index, leases
from pollux_flows.state.answer_record import read_answer
from pollux_flows.state.identity import call_identity, digest
from pollux_flows.state.leases import LEASE_S, Clock, Lease, LeaseLostError
from pollux_flows.state.retention import retention_s
from pollux_flows.state.store import Json, Store, damaged_record_error

Chain = tuple[tuple[str, str], ...]

# For its owner, a lease ends this long before its end, as it takes a moment to send a request.
_MARGIN_S: Final = 1.0


@dataclass(frozen=True)
class RunScope:
    """The run that calls belong to, and the place in it where they are made."""

    run: str
    chain: Chain = ()
    """Empty for a run that its caller has named: each of its executions is an attempt of its own."""
    flow_run: str | None = None
    """The id of the Prefect flow run that makes the calls."""
    is_repeated: bool = False
    """True if the run has been started before, perhaps by an earlier version of this package."""
    sub_flow: str = ""
    """Equal for sub-flows with equal parameters; empty if Prefect does not reuse the result of the sub-flow."""
    place: str = ""
    """The task run that represents the sub-flow in the flow run that called it. It stays for all attempts."""


class SlotCall(index.IndexCall, Protocol):
    """The part of a planned call that a slot depends on."""

    @property
    def request(self) -> str: ...
    @property
    def occurrence(self) -> int: ...


@dataclass(frozen=True)
class AnswerSlot:
    """A place for one answer, acquired by this execution."""

    identity: str
    taker: str
    outcome: Outcome | None = None
    """The answer of an earlier attempt, if there is one."""
    unused_answers: tuple[Outcome, ...] = ()
    """Answers to this question that earlier attempts paid for, but that are not reused."""

    @property
    def spent_usd(self) -> float:
        """Return the cost of the answers that are not reused."""
        return sum(outcome.paid_usd for outcome in self.unused_answers)


@dataclass(frozen=True)
class _Taker:
    chain: Chain
    is_alive: bool
    has_lease: bool
    is_complete: bool
    """True if all its calls are answered, so that its flow run need not be retried."""
    sub_flow: str
    place: str


@dataclass
class _Question:
    """The stored slots of one question, and the calls that need some of them."""

    name: str
    calls: list[SlotCall] = field(default_factory=list)
    record: Json | None = None
    answers: dict[int, Outcome] = field(default_factory=dict)

    @property
    def takers(self) -> list[str | None]:
        """The takers by ordinal; None for an answer that an earlier version saved, or that is shared."""
        listed = list((self.record or {}).get("takers", []))
        return listed + [None] * (1 + max(self.answers, default=-1) - len(listed))

    def identity(self, ordinal: int) -> str:
        return self.name if ordinal == 0 else call_identity(self.calls[0].request, self.calls[0].prompt, ordinal)


class Slots:
    """The slots of one run, for one execution of calls."""

    def __init__(self, store: Store, scope: RunScope, clock: Clock = time.time, *, lease_s: float = LEASE_S) -> None:
        self._store, self._scope, self._clock, self._lease_s = store, scope, clock, lease_s
        self._run = digest("run", scope.run)
        self._lease: Lease | None = None
        self._complete = False
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def acquire(self, calls: Sequence[SlotCall], *, reuse: bool = True) -> dict[int, AnswerSlot]:
        """Return slots for these calls, by the index of the call. A call without a slot must wait for one.

        Such a call has to wait for another execution. Without `reuse`, each call gets a slot that has no answer.
        """
        token = (await self._acquire_lease()).token
        pending: dict[str, _Question] = {}
        for call in calls:
            name = call.identity if call.occurrence == 0 else call_identity(call.request, call.prompt, 0)
            pending.setdefault(name, _Question(name)).calls.append(call)
        taken: dict[int, AnswerSlot] = {}
        while pending:
            takers = await self._load(pending.values())
            choices = {name: self._choose(question, takers, token, reuse=reuse) for name, question in pending.items()}
            dead = {each for choice in choices.values() for each in choice.dead}
            # If a taker is alive again, the choices are outdated.
            if not all([await self._revoke(each) for each in dead]):
                continue
            changes = {
                self._slot_key(name): (pending[name].record, {"at": self._clock(), "takers": choice.takers})
                for name, choice in choices.items()
                if choice.takers != (pending[name].record or {}).get("takers", [])
            }
            swapped = await self._store.swap_many(changes, retention_s()) if changes else set()
            outdated = changes.keys() - swapped  # another execution was faster
            for name, choice in choices.items():
                if self._slot_key(name) in outdated:
                    continue
                taken |= choice.slots
                del pending[name]
        stored_calls = [(call, taken[call.index].identity) for call in calls if call.index in taken]
        await index.write_index(self._store, self._run, self._scope.flow_run, stored_calls, at=self._clock())
        return taken

    async def wait_for_slot(self, call: SlotCall, lost: AnswerSlot | None = None) -> AnswerSlot:
        """Wait until another execution has answered the call or has ended, and return a slot for it.

        `lost` is the slot that the call had until the lease expired.
        """
        if lost is not None:
            await self._drop_lease(lost.taker)
        async for _ in leases.retry_until():
            if (slot := (await self.acquire([call])).get(call.index)) is not None:
                return slot
        raise AssertionError

    async def check_lease(self, slot: AnswerSlot) -> None:
        """Renew the lease if it ends soon; raise LeaseLostError if another execution may have the slot."""
        lease = await self._acquire_lease()
        if lease.token != slot.taker:
            raise LeaseLostError(slot.taker)
        if self._clock() >= lease.until - min(_MARGIN_S, self._lease_s / 4):
            await lease.renew()

    async def close(self, *, complete: bool = False) -> None:
        """Release the lease. Slots with an answer stay taken, the others become free."""
        self._complete = complete
        await self._stack.aclose()

    async def _acquire_lease(self) -> Lease:
        async with self._opening:
            if self._lease is None:
                token = uuid4().hex
                lease = Lease(self._store, self._taker_key(token), self._scope.run, self._lease_s, self._clock, token)
                scope = self._scope
                chain = [list(link) for link in scope.chain]
                record = {"at": self._clock(), "chain": chain, "sub_flow": scope.sub_flow, "place": scope.place}
                await lease.acquire(None, record)
                await self._stack.enter_async_context(leases.use_lease(lease, self._mark_ended, ttl_of=_ttl_of_taker))
                self._lease = lease
        return self._lease

    async def _drop_lease(self, taker: str) -> None:
        """Forget a lost lease, so that this execution becomes a new taker."""
        async with self._opening:
            if self._lease is not None and self._lease.token == taker:
                await self._stack.aclose()
                self._lease = None

    def _mark_ended(self, record: Json) -> Json:
        return {**record, "complete": self._complete}

    async def _load(self, questions: Iterable[_Question]) -> dict[str, _Taker]:
        """Load the slots and answers of these questions into them, and return the takers of those slots."""
        keys = {self._slot_key(question.name): question for question in questions}
        records = await self._store.get_many(keys)
        places: dict[str, tuple[_Question, int]] = {}
        tokens: set[str] = set()
        for key, question in keys.items():
            question.record, question.answers = _check_record(key, records.get(key), self._store.where), {}
            listed = (question.record or {}).get("takers", [])
            tokens.update(token for token in listed if token is not None)
            for ordinal in range(len(listed) + len(question.calls)):
                places[f"run/{self._run}/{question.identity(ordinal)}"] = question, ordinal
        answers = await self._store.get_many(places)
        for place, record in answers.items():
            question, ordinal = places[place]
            question.answers[ordinal] = read_answer(place, record, self._store.where, "run")
        return await self._load_takers(tokens)

    async def _load_takers(self, tokens: Iterable[str]) -> dict[str, _Taker]:
        records = await self._store.get_many(map(self._taker_key, tokens))
        now, found = self._clock(), {}
        for key, record in records.items():
            try:
                chain = tuple((str(name), str(mark)) for name, mark in record["chain"])
                alive = leases.get_owner(record, now) is not None
            except (KeyError, TypeError, ValueError):
                raise damaged_record_error(key, self._store.where) from None
            complete = record.get("complete") is True
            sub_flow, place = str(record.get("sub_flow", "")), str(record.get("place", ""))
            found[key.rpartition("/")[2]] = _Taker(chain, alive, leases.has_lease(record), complete, sub_flow, place)
        return found

    def _choose(self, question: _Question, takers: dict[str, _Taker], token: str, *, reuse: bool) -> _Choice:
        good: list[int] = []
        settled: list[int] = []
        poor: list[int] = []
        free: list[int] = []
        busy, dead = 0, set[str]()
        listed = question.takers
        for ordinal, name in enumerate(listed):
            taker = takers.get(name) if name else None
            lapsed = taker is None or has_lapsed(taker.chain, self._scope.chain)
            if name == token:
                continue
            if (outcome := question.answers.get(ordinal)) is not None:
                if lapsed and not (taker is not None and self._is_reused_by_prefect(taker)):
                    is_settled = taker is not None and taker.is_complete
                    (poor if outcome.problem else settled if is_settled else good).append(ordinal)
            elif taker is not None and taker.is_alive:
                busy += lapsed
            else:
                free.append(ordinal)
        count = len(question.calls)
        # An execution with all its answers is rarely retried, as Prefect has its result. So its answers come last.
        ordinals = [*good, *poor, *free, *settled][:count] if reuse else free[:count]
        # Answers that are not reused count as spent. The others stay, for identical questions elsewhere in the run.
        spent = [ordinal for ordinal in (poor if reuse else [*good, *settled, *poor]) if ordinal not in ordinals]
        waiting = min(busy, count - len(ordinals)) if reuse else 0
        ordinals += range(len(listed), len(listed) + count - len(ordinals) - waiting)
        for ordinal in sorted({*ordinals, *spent}):
            if ordinal < len(listed):
                name = listed[ordinal]
                if name and ordinal not in question.answers and name in takers and takers[name].has_lease:
                    dead.add(name)
                listed[ordinal] = token
            else:
                listed.append(token)
        unused_answers = tuple(question.answers[ordinal] for ordinal in spent)
        slots: dict[int, AnswerSlot] = {}
        for call, ordinal in zip(question.calls, ordinals, strict=False):
            outcome = question.answers.get(ordinal)
            slots[call.index] = AnswerSlot(question.identity(ordinal), token, outcome, () if slots else unused_answers)
        return _Choice(listed, slots, dead)

    def _is_reused_by_prefect(self, taker: _Taker) -> bool:
        """Return whether Prefect returns the persisted result of the taker's sub-flow when its parent is retried.

        Then this execution is another call with equal parameters, which needs an answer of its own.
        """
        return (
            taker.is_complete
            and taker.sub_flow != ""
            and taker.sub_flow == self._scope.sub_flow
            and taker.place != self._scope.place
        )

    async def _revoke(self, token: str) -> bool:
        """End the lease of a taker that died or was paused, so that it cannot continue; return False if it is alive."""
        key, run = self._taker_key(token), self._scope.run
        lease = await leases.acquire_lease(self._store, key, run, self._lease_s, clock=self._clock)
        if lease is None:
            return False
        try:
            await lease.finish(dict, ttl_of=_ttl_of_taker)
        except LeaseLostError:
            return False
        return True

    def _slot_key(self, question: str) -> str:
        return f"slot/{self._run}/{question}"

    def _taker_key(self, token: str) -> str:
        return f"taker/{self._run}/{token}"


@dataclass(frozen=True)
class _Choice:
    takers: list[str | None]
    slots: dict[int, AnswerSlot]
    dead: set[str]
    """Takers that lose their slots, and whose lease is still in their record."""


def has_lapsed(take: Chain, asker: Chain) -> bool:
    """Return whether an ancestor that both chains share has started again since the slot was taken."""
    if not take or not asker:
        return True
    for (theirs, then), (ours, now) in zip(take, asker, strict=False):
        if theirs != ours:
            return False
        if then != now:
            return True
    return False


def _ttl_of_taker(_: Json) -> float:
    return retention_s()


def _check_record(key: str, record: Json | None, where: str) -> Json | None:
    takers = [] if record is None else record.get("takers")
    if not isinstance(takers, list) or not all(each is None or isinstance(each, str) for each in takers):
        raise damaged_record_error(key, where)
    return record
