"""Accepts batches, and computes the results of a batch when it is first requested after its end.

Each row is answered like a realtime request, at the time at which the batch ended. Faults apply to it as well
(`sim.fail(..., operation="batch.row")`, or `[[simulate: ...]]` in its prompt), but as there is no connection,
the effect of some differs: a row that is dropped has no result, one that hangs
expires, and the result of one that is malformed is cut in the middle.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from pollux_flows.simulator.answering import fault_for, reply_to, understand
from pollux_flows.simulator.batch.plan import Plan
from pollux_flows.simulator.batch.rows import Rows
from pollux_flows.simulator.batch.stored import ENDINGS, Phase, Results, StoredBatch
from pollux_flows.simulator.prefixes import Arrival
from pollux_flows.simulator.wire import Call, Operation, Refused

OPERATION = "batch.row"
Prepare = Callable[[Call], None]
_DROPPED = {"drop": "errored", "drop_after": "succeeded"}


@dataclass(slots=True)
class Row:
    """One request out of a batch."""

    #: The key of its result.
    key: Any
    #: A generate request.
    body: Any
    params: Mapping[str, str] = field(default_factory=dict)


class RowWriter(ABC):
    """Reads the rows of a provider's batches, and writes their results."""

    #: The operation that answers a row.
    operation: Operation
    #: Whether failed rows have a results file of their own.
    separates_errors = False

    @abstractmethod
    def read(self, batch: StoredBatch, line: bytes) -> Row: ...

    @abstractmethod
    def succeeded(self, batch: StoredBatch, key: Any, body: Any, request_id: str) -> dict[str, Any]: ...

    @abstractmethod
    def errored(self, batch: StoredBatch, key: Any, status: int, body: Any, request_id: str) -> dict[str, Any]:
        """Return the result of a row that got an error response."""

    @abstractmethod
    def left(self, batch: StoredBatch, key: Any, why: str, request_id: str) -> dict[str, Any]:
        """Return the result of a row that "expired" or was "cancelled"."""

    def make_foreign_key(self, key: Any, number: int) -> Any:  # noqa: ARG002 (the form of some keys depends on it)
        """Return a key like that one, which was not submitted."""
        return f"nobodys-{number}"

    def gives_results(self, batch: StoredBatch) -> bool:
        """Return whether a batch that ends like this one has any results."""
        return batch.ending != "failed"

    def usage(self, body: Any) -> Mapping[str, int]:  # noqa: ARG002 (most providers do not report it)
        """Return the tokens of an answer, for a provider that reports their sum."""
        return {}

    def store(self, batch: StoredBatch, results: Results, call: Call) -> None:  # noqa: B027 (not all do)
        """Store the results where the client finds them, unless they stay with the batch."""


def accepted(call: Call, prefix: str, plan: Plan, rows: Rows, **fields: Any) -> StoredBatch:
    """Store a new batch, whose id has this prefix; `fields` are further fields of the batch."""
    world = call.world
    batch = StoredBatch(
        provider=call.provider.name,
        id=f"{prefix}{world.number():08d}{rows.spool.sha256[:8]}",
        account=call.account,
        created_at=world.now(),
        takes_s=world.batch_s if plan.takes_s is None else plan.takes_s,
        plan=plan,
        input=rows,
        **fields,
    )
    world.batch_store.add(batch)
    call.stored = batch.id
    return batch


def look_at(batch: StoredBatch, call: Call, writer: RowWriter) -> Phase:
    """Return the batch's current phase; if it has ended, compute its results first."""
    phase = batch.phase
    if phase in ENDINGS:
        with batch.settling:
            if batch.results is None:
                _settle(batch, call, writer)
    return phase


def looks_at_one(find: Callable[[Call], StoredBatch], writer: RowWriter) -> Prepare:
    """Return a `prepare` that finds the requested batch, with its current phase."""

    def prepare(call: Call) -> None:
        batch = find(call)
        call.prepared = batch, look_at(batch, call, writer)

    return prepare


def looks_at_page(page: Callable[[Call], tuple[list[StoredBatch], object]], writer: RowWriter) -> Prepare:
    """Return a `prepare` that finds the batches of a page, each with its current phase, and the next page."""

    def prepare(call: Call) -> None:
        batches, following = page(call)
        call.prepared = [(batch, look_at(batch, call, writer)) for batch in batches], following

    return prepare


def _settle(batch: StoredBatch, call: Call, writer: RowWriter) -> None:
    results = Results()
    if writer.gives_results(batch):
        with call.world.at(batch.ends_at):
            _Settling(batch, call, writer, results).run()
            writer.store(batch, results, call)
    call.world.batch_store.settle(batch, results)
    batch.input.spool.keep_little()


@dataclass(slots=True)
class _Result:
    outcome: str
    #: None for a row without a result.
    line: bytes | None


@dataclass
class _Settling:
    batch: StoredBatch
    call: Call
    writer: RowWriter
    results: Results
    #: The number of rows that are answered, always the first ones.
    answered: int = 0
    #: Rows read the prompt cache as it was when the batch was submitted, not the writes of other rows.
    arrival: Arrival | None = None

    def run(self) -> None:
        plan = self.batch.plan
        self.answered = self.batch.answered
        self.arrival = self.call.world.prefixes.arrive(self.batch.created_at)
        order = self._order()
        again: list[_Result] = []
        for number, place in enumerate(order):
            result = self._result(place)
            self.results.counts[result.outcome] += 1
            if number < plan.missing:
                continue
            self._write(result)
            if len(again) < plan.duplicates:
                again.append(result)
        for result in again:
            self._write(result)
        for number in range(plan.unknown if order else 0):
            self._write(self._result(order[number % len(order)], foreign=number))

    def _order(self) -> Sequence[int]:
        """Return the order of the results: never that of the rows, unless the rows have no keys."""
        places = range(self.batch.rows)
        if not (self.batch.plan.shuffled and self.batch.given.get("has_keys", True)):
            return places
        # Seeded by its id: the same in every run, and different for each batch.
        order = random.Random(self.batch.id).sample(places, len(places))  # noqa: S311
        return [*order[1:], order[0]] if order == list(places) else order

    def _result(self, place: int, foreign: int | None = None) -> _Result:
        batch, writer = self.batch, self.writer
        row = writer.read(batch, batch.input[place])
        if foreign is not None:
            row.key = writer.make_foreign_key(row.key, foreign)
        request_id = self.call.provider.request_id.format(self.call.world.number())
        if place >= self.answered:
            if batch.ending != "completed":
                return self._left(row, batch.ending, request_id)
            return self._errored(row, Refused(500, batch.plan.message, kind=batch.plan.code), request_id)
        try:
            return self._answered(row, request_id)
        except Refused as refused:
            return self._errored(row, refused, request_id)

    def _answered(self, row: Row, request_id: str) -> _Result:
        call = Call(
            world=self.call.world,
            provider=self.call.provider,
            headers=self.batch.given.get("headers", {}),
            params=row.params,
            query={},
            body=row.body,
            account=self.batch.account,
            origin=self.call.origin,
            arrival=self.arrival,
            is_batch_row=True,
        )
        understand(call, self.writer.operation)
        fault = fault_for(call, OPERATION)
        kind = fault.kind if fault else ""
        if kind in _DROPPED:
            return _Result(_DROPPED[kind], None)
        if kind == "hang":
            return self._left(row, "expired", request_id)
        body = reply_to(call, self.writer.operation, fault, request_id).body
        self.results.usage.update(self.writer.usage(body))
        result = self._finished("succeeded", self.writer.succeeded(self.batch, row.key, body, request_id))
        if kind == "malformed" and result.line is not None:
            result.line = result.line[: len(result.line) // 2]
        return result

    def _errored(self, row: Row, refused: Refused, request_id: str) -> _Result:
        error = self.call.provider.error(refused, request_id)
        return self._finished("errored", self.writer.errored(self.batch, row.key, refused.status, error, request_id))

    def _left(self, row: Row, why: str, request_id: str) -> _Result:
        return self._finished(why, self.writer.left(self.batch, row.key, why, request_id))

    def _finished(self, outcome: str, row: dict[str, Any]) -> _Result:
        return _Result(outcome, orjson.dumps(row))

    def _write(self, result: _Result) -> None:
        if result.line is None:
            return
        fails = self.writer.separates_errors and result.outcome != "succeeded"
        (self.results.errors if fails else self.results.output).write(result.line + b"\n")
