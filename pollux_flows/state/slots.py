"""Slots: which answers of a run belong to which of its questions, and which execution takes them.

A question is found by its run and by what it asks. Identical questions of one run differ by an ordinal alone: it does
not matter which of them takes which answer. One record a question lists its takers by ordinal.

A taker is one execution. It holds a lease, and carries its chain: the flow runs and tasks that it is part of, outermost
first, each with a mark of its present attempt. A slot is

- asking, while it has no answer and its taker is alive;
- answered, once the journal has its answer: it belongs to its taker until the take lapses, which it does when an
  ancestor that taker and asker share has started again;
- free otherwise: its taker died, or ended without an answer.

So a retry takes the answers of the attempt before, siblings that ask the same at once are answered one by one, and an
asker waits for an answer that an earlier attempt is still being given.
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
from pollux_flows.state import claims, index
from pollux_flows.state.bounds import kept_s
from pollux_flows.state.claims import LEASE_S, Claim, Clock, LeaseLostError
from pollux_flows.state.identity import call_identity, digest
from pollux_flows.state.kept import answer_in
from pollux_flows.state.store import Json, Store, damaged

Chain = tuple[tuple[str, str], ...]

# How long before its end a lease counts as over for its owner: a request takes a moment to leave.
_MARGIN_S: Final = 1.0


@dataclass(frozen=True)
class RunScope:
    """The run that calls belong to, and where in it they are made."""

    run: str
    chain: Chain = ()
    """Empty for a run that its caller named: each execution of it is an attempt of its own."""
    flow_run: str | None = None
    """The Prefect flow run that asks."""
    is_repeated: bool = False
    """Whether the run has been started before, maybe by an earlier version of this package."""
    sub_flow: str = ""
    """Equal for sub-flows that one flow run called with equal parameters; empty where Prefect finds no result again."""
    place: str = ""
    """The task run that stands for the sub-flow in the flow run that called it. It outlives attempts."""


class Call(index.Call, Protocol):
    """As much of a planned call as a slot depends on."""

    @property
    def request(self) -> str: ...
    @property
    def occurrence(self) -> int: ...


@dataclass(frozen=True)
class Slot:
    """A place for one answer, taken by this execution."""

    identity: str
    taker: str
    outcome: Outcome | None = None
    """The answer that an earlier attempt paid for."""
    spent_usd: float = 0.0
    """What earlier attempts paid for answers to this question that are of no use."""


@dataclass(frozen=True)
class _Taker:
    chain: Chain
    is_alive: bool
    has_lease: bool
    is_complete: bool
    """Whether all that it asked is answered, so that its flow run need not come back."""
    sub_flow: str
    place: str


@dataclass
class _Question:
    """The slots of one question as they are stored, and the calls that want some of them."""

    name: str
    calls: list[Call] = field(default_factory=list)
    record: Json | None = None
    answers: dict[int, Outcome] = field(default_factory=dict)

    @property
    def takers(self) -> list[str | None]:
        """By ordinal. An answer that no taker is listed for was written by an earlier version, or is shared."""
        listed = list((self.record or {}).get("takers", []))
        return listed + [None] * (1 + max(self.answers, default=-1) - len(listed))

    def identity(self, ordinal: int) -> str:
        return self.name if ordinal == 0 else call_identity(self.calls[0].request, self.calls[0].prompt, ordinal)


class Slots:
    """The slots of one run, for one execution of calls."""

    def __init__(self, store: Store, scope: RunScope, clock: Clock = time.time, *, lease_s: float = LEASE_S) -> None:
        self._store, self._scope, self._clock, self._lease_s = store, scope, clock, lease_s
        self._run = digest("run", scope.run)
        self._claim: Claim | None = None
        self._complete = False
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def take(self, calls: Sequence[Call], *, anew: bool = False) -> dict[int, Slot]:
        """A slot for each of these calls, by the call's index. A call without one has to wait for another execution.

        With `anew`, no earlier answer is used: each call gets a slot that has none.
        """
        token = (await self._open()).token
        pending: dict[str, _Question] = {}
        for call in calls:
            name = call.identity if call.occurrence == 0 else call_identity(call.request, call.prompt, 0)
            pending.setdefault(name, _Question(name)).calls.append(call)
        taken: dict[int, Slot] = {}
        while pending:
            takers = await self._load(pending.values())
            choices = {name: self._choose(question, takers, token, anew=anew) for name, question in pending.items()}
            dead = {each for choice in choices.values() for each in choice.dead}
            # One that came alive again makes this look outdated.
            if not all([await self._revoke(each) for each in dead]):
                continue
            changes = {
                self._slot_key(name): (pending[name].record, {"at": self._clock(), "takers": choice.takers})
                for name, choice in choices.items()
                if choice.takers != (pending[name].record or {}).get("takers", [])
            }
            swapped = await self._store.swap_many(changes, kept_s()) if changes else set()
            outrun = changes.keys() - swapped  # another execution was faster
            for name, choice in choices.items():
                if self._slot_key(name) in outrun:
                    continue
                taken |= choice.slots
                del pending[name]
        found_as = [(call, taken[call.index].identity) for call in calls if call.index in taken]
        await index.write_index(self._store, self._run, self._scope.flow_run, found_as, at=self._clock())
        return taken

    async def wait(self, call: Call, lost: Slot | None = None) -> Slot:
        """The slot of a call that has to wait, once another execution has answered it or has stopped.

        `lost` is the slot that it had until the lease ran out.
        """
        if lost is not None:
            await self._begin_again(lost.taker)
        for pause in claims.pauses():
            if (slot := (await self.take([call])).get(call.index)) is not None:
                return slot
            await asyncio.sleep(pause)
        raise AssertionError

    async def check(self, slot: Slot) -> None:
        """Raise LeaseLostError where the slot may have been taken over. It asks the store only where it must."""
        claim = await self._open()
        if claim.token != slot.taker:
            raise LeaseLostError(slot.taker)
        if self._clock() >= claim.until - min(_MARGIN_S, self._lease_s / 4):
            await claim.renew()

    async def close(self, *, complete: bool = False) -> None:
        """End the lease. What was answered stays taken, what was not is free."""
        self._complete = complete
        await self._stack.aclose()

    async def _open(self) -> Claim:
        async with self._opening:
            if self._claim is None:
                token = uuid4().hex
                claim = Claim(self._store, self._taker_key(token), self._scope.run, self._lease_s, self._clock, token)
                scope = self._scope
                chain = [list(link) for link in scope.chain]
                record = {"at": self._clock(), "chain": chain, "sub_flow": scope.sub_flow, "place": scope.place}
                await claim.take(None, record)
                await self._stack.enter_async_context(claims.held(claim, self._ended, lasts=lambda _: kept_s()))
                self._claim = claim
        return self._claim

    async def _begin_again(self, taker: str) -> None:
        """Become another taker, after the lease was lost."""
        async with self._opening:
            if self._claim is not None and self._claim.token == taker:
                await self._stack.aclose()
                self._claim = None

    def _ended(self, record: Json) -> Json:
        return {**record, "complete": self._complete}

    async def _load(self, questions: Iterable[_Question]) -> dict[str, _Taker]:
        """Read the slots of these questions and their answers; the takers of those slots."""
        keys = {self._slot_key(question.name): question for question in questions}
        records = await self._store.get_many(keys)
        places: dict[str, tuple[_Question, int]] = {}
        tokens: set[str] = set()
        for key, question in keys.items():
            question.record, question.answers = _checked(key, records.get(key), self._store.where), {}
            listed = (question.record or {}).get("takers", [])
            tokens.update(token for token in listed if token is not None)
            for ordinal in range(len(listed) + len(question.calls)):
                places[f"run/{self._run}/{question.identity(ordinal)}"] = question, ordinal
        answers = await self._store.get_many(places)
        for place, record in answers.items():
            question, ordinal = places[place]
            question.answers[ordinal] = answer_in(place, record, self._store.where, "run")
        return await self._load_takers(tokens)

    async def _load_takers(self, tokens: Iterable[str]) -> dict[str, _Taker]:
        records = await self._store.get_many(map(self._taker_key, tokens))
        now, found = self._clock(), {}
        for key, record in records.items():
            try:
                chain = tuple((str(name), str(mark)) for name, mark in record["chain"])
                alive = claims.holder(record, now) is not None
            except (KeyError, TypeError, ValueError):
                raise damaged(key, self._store.where) from None
            complete = record.get("complete") is True
            sub_flow, place = str(record.get("sub_flow", "")), str(record.get("place", ""))
            found[key.rpartition("/")[2]] = _Taker(chain, alive, claims.has_lease(record), complete, sub_flow, place)
        return found

    def _choose(self, question: _Question, takers: dict[str, _Taker], token: str, *, anew: bool) -> _Choice:
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
                if lapsed and not (taker is not None and self._is_handed_out(taker)):
                    is_settled = taker is not None and taker.is_complete
                    (poor if outcome.problem else settled if is_settled else good).append(ordinal)
            elif taker is not None and taker.is_alive:
                busy += lapsed
            else:
                free.append(ordinal)
        count = len(question.calls)
        # An execution that has all its answers may not come back: Prefect has its result. So what it has comes last.
        ordinals = free[:count] if anew else [*good, *poor, *free, *settled][:count]
        # Answers that are of no use count as spent. The others stay, for identical questions elsewhere in the run.
        spent = [ordinal for ordinal in ([*good, *settled, *poor] if anew else poor) if ordinal not in ordinals]
        waiting = 0 if anew else min(busy, count - len(ordinals))
        ordinals += range(len(listed), len(listed) + count - len(ordinals) - waiting)
        for ordinal in sorted({*ordinals, *spent}):
            if ordinal < len(listed):
                name = listed[ordinal]
                if name and ordinal not in question.answers and name in takers and takers[name].has_lease:
                    dead.add(name)
                listed[ordinal] = token
            else:
                listed.append(token)
        costs = sum(_cost(question.answers[ordinal]) for ordinal in spent)
        slots: dict[int, Slot] = {}
        for call, ordinal in zip(question.calls, ordinals, strict=False):
            outcome = question.answers.get(ordinal)
            slots[call.index] = Slot(question.identity(ordinal), token, outcome, costs if not slots else 0.0)
        return _Choice(listed, slots, dead)

    def _is_handed_out(self, taker: _Taker) -> bool:
        """Return whether Prefect itself hands out the result of a sub-flow when its parent calls it again.

        The asker is then called beside it with equal parameters, and wants an answer of its own.
        """
        return (
            taker.is_complete
            and taker.sub_flow != ""
            and taker.sub_flow == self._scope.sub_flow
            and taker.place != self._scope.place
        )

    async def _revoke(self, token: str) -> bool:
        """End the lease of a taker that died or was paused, so that it cannot go on. False if it is alive after all."""
        claim = await claims.claim(
            self._store, self._taker_key(token), self._scope.run, self._lease_s, clock=self._clock
        )
        if claim is None:
            return False
        try:
            await claim.settle(dict, lasts=lambda _: kept_s())
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
    slots: dict[int, Slot]
    dead: set[str]
    """Takers whose slots are taken over, and whose lease is still on record."""


def has_lapsed(take: Chain, asker: Chain) -> bool:
    """Return whether an ancestor that both share has started again since the take."""
    if not take or not asker:
        return True
    for (theirs, then), (ours, now) in zip(take, asker, strict=False):
        if theirs != ours:
            return False
        if then != now:
            return True
    return False


def _cost(outcome: Outcome) -> float:
    return (outcome.cost_usd or 0.0) + outcome.paid_before_usd


def _checked(key: str, record: Json | None, where: str) -> Json | None:
    takers = [] if record is None else record.get("takers")
    if not isinstance(takers, list) or not all(each is None or isinstance(each, str) for each in takers):
        raise damaged(key, where)
    return record
