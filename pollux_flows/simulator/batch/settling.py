"""Accepts batches, and computes the results of a batch when it is first requested after its end.

Each row is answered like a realtime request, at the time at which the batch ended. Faults apply to it as well
(`sim.fail(..., operation="batch.row")`, or `[[simulate: ...]]` in its prompt), but as there is no connection,
the effect of some differs: a dropped row has no result, a hanging row expires, and the result of a malformed row is cut
in the middle.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from pollux_flows.simulator.answering import make_reply, read_request, take_fault
from pollux_flows.simulator.batch.plan import Plan
from pollux_flows.simulator.batch.rows import Rows
from pollux_flows.simulator.batch.stored import ENDINGS, Phase, Results, StoredBatch
from pollux_flows.simulator.prefixes import Arrival
from pollux_flows.simulator.wire import Call, Operation, Refusal

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
    def read_row(self, batch: StoredBatch, line: bytes) -> Row: ...

    @abstractmethod
    def success_result(self, batch: StoredBatch, key: Any, body: Any, request_id: str) -> dict[str, Any]: ...

    @abstractmethod
    def error_result(self, batch: StoredBatch, key: Any, status: int, body: Any, request_id: str) -> dict[str, Any]:
        """Return the result of a row that got an error response."""

    @abstractmethod
    def unanswered_result(self, batch: StoredBatch, key: Any, why: str, request_id: str) -> dict[str, Any]:
        """Return the result of a row that "expired" or was "cancelled"."""

    def make_foreign_key(self, key: Any, number: int) -> Any:  # noqa: ARG002 (the form of some keys depends on it)
        """Return a key in the same format that was not submitted."""
        return f"unknown-{number}"

    def has_results(self, batch: StoredBatch) -> bool:
        """Return whether the batch has results, which depends on how it ended."""
        return batch.ending != "failed"

    def count_usage(self, body: Any) -> Mapping[str, int]:  # noqa: ARG002 (most providers do not report it)
        """Return the tokens of an answer, for a provider that reports the usage of a batch."""
        return {}

    def store_results(self, batch: StoredBatch, results: Results, call: Call) -> None:  # noqa: B027 (not all do)
        """Store the results in files, for a provider that does."""


def accept_batch(call: Call, prefix: str, plan: Plan, rows: Rows, **fields: Any) -> StoredBatch:
    """Store a new batch, whose id has this prefix; `fields` are further fields of the batch."""
    simulator = call.simulator
    batch = StoredBatch(
        provider=call.provider.name,
        id=f"{prefix}{simulator.next_number():08d}{rows.spool.sha256[:8]}",
        account=call.account,
        created_at=simulator.now(),
        takes_s=simulator.batch_s if plan.takes_s is None else plan.takes_s,
        plan=plan,
        input=rows,
        **fields,
    )
    simulator.batch_store.add(batch)
    call.stored = batch.id
    return batch


def settle_if_ended(batch: StoredBatch, call: Call, writer: RowWriter) -> Phase:
    """Compute the results of a batch that has ended, and return its current phase."""
    phase = batch.phase
    if phase in ENDINGS:
        with batch.settling:
            if batch.results is None:
                _settle(batch, call, writer)
    return phase


def make_batch_preparer(find: Callable[[Call], StoredBatch], writer: RowWriter) -> Prepare:
    """Return a `prepare` that finds the requested batch, with its current phase."""

    def prepare(call: Call) -> None:
        batch = find(call)
        call.prepared = batch, settle_if_ended(batch, call, writer)

    return prepare


def make_page_preparer(page: Callable[[Call], tuple[list[StoredBatch], object]], writer: RowWriter) -> Prepare:
    """Return a `prepare` that finds the batches of a page, each with its current phase, and the next page."""

    def prepare(call: Call) -> None:
        batches, following = page(call)
        call.prepared = [(batch, settle_if_ended(batch, call, writer)) for batch in batches], following

    return prepare


def _settle(batch: StoredBatch, call: Call, writer: RowWriter) -> None:
    results = Results()
    if writer.has_results(batch):
        with call.simulator.at_time(batch.ends_at):
            _Settlement(batch, call, writer, results).run()
            writer.store_results(batch, results, call)
    call.simulator.batch_store.settle(batch, results)
    batch.input.spool.keep_little()


@dataclass(slots=True)
class _Result:
    outcome: str
    #: None for a row without a result.
    line: bytes | None


@dataclass
class _Settlement:
    """The computation of one batch's results."""

    batch: StoredBatch
    call: Call
    writer: RowWriter
    results: Results
    #: The number of rows that are answered, always the first ones.
    answered: int = field(init=False)
    #: Rows read the prompt cache as it was when the batch was submitted, not the writes of other rows.
    arrival: Arrival = field(init=False)

    def __post_init__(self) -> None:
        self.answered = self.batch.answered
        self.arrival = self.call.simulator.prefixes.arrive(self.batch.created_at)

    def run(self) -> None:
        plan, order = self.batch.plan, self._order()
        duplicates: list[_Result] = []
        for number, place in enumerate(order):
            result = self._settle_row(place)
            self.results.counts[result.outcome] += 1
            if number < plan.missing:
                continue
            self._write(result)
            if len(duplicates) < plan.duplicates:
                duplicates.append(result)
        for result in duplicates:
            self._write(result)
        for number in range(plan.unknown if order else 0):
            self._write(self._settle_row(order[number % len(order)], foreign=number))

    def _order(self) -> Sequence[int]:
        """Return the order of the results: never that of the rows, unless the rows have no keys."""
        places = range(self.batch.rows)
        if not (self.batch.plan.shuffled and self.batch.provider_data.get("has_keys", True)):
            return places
        # Seeded by its id: the same in every run, and different for each batch.
        order = random.Random(self.batch.id).sample(places, len(places))  # noqa: S311
        return [*order[1:], order[0]] if order == list(places) else order

    def _settle_row(self, place: int, foreign: int | None = None) -> _Result:
        batch, writer = self.batch, self.writer
        row = writer.read_row(batch, batch.input[place])
        if foreign is not None:
            row.key = writer.make_foreign_key(row.key, foreign)
        request_id = self.call.provider.request_id.format(self.call.simulator.next_number())
        if place >= self.answered:
            if batch.ending != "completed":
                return self._leave_unanswered(row, batch.ending, request_id)
            return self._fail(row, Refusal(500, batch.plan.message, kind=batch.plan.code), request_id)
        try:
            return self._answer(row, request_id)
        except Refusal as refusal:
            return self._fail(row, refusal, request_id)

    def _answer(self, row: Row, request_id: str) -> _Result:
        call = Call(
            simulator=self.call.simulator,
            provider=self.call.provider,
            headers=self.batch.provider_data.get("headers", {}),
            params=row.params,
            query={},
            body=row.body,
            account=self.batch.account,
            origin=self.call.origin,
            arrival=self.arrival,
            is_batch_row=True,
        )
        read_request(call, self.writer.operation)
        fault = take_fault(call, OPERATION)
        kind = fault.kind if fault else ""
        if kind in _DROPPED:
            return _Result(_DROPPED[kind], None)
        if kind == "hang":
            return self._leave_unanswered(row, "expired", request_id)
        body = make_reply(call, self.writer.operation, fault, request_id).body
        self.results.usage.update(self.writer.count_usage(body))
        result = _Result("succeeded", orjson.dumps(self.writer.success_result(self.batch, row.key, body, request_id)))
        if kind == "malformed" and result.line is not None:
            result.line = result.line[: len(result.line) // 2]
        return result

    def _fail(self, row: Row, refusal: Refusal, request_id: str) -> _Result:
        error = self.call.provider.error(refusal, request_id)
        result = self.writer.error_result(self.batch, row.key, refusal.status, error, request_id)
        return _Result("errored", orjson.dumps(result))

    def _leave_unanswered(self, row: Row, why: str, request_id: str) -> _Result:
        return _Result(why, orjson.dumps(self.writer.unanswered_result(self.batch, row.key, why, request_id)))

    def _write(self, result: _Result) -> None:
        if result.line is None:
            return
        fails = self.writer.separates_errors and result.outcome != "succeeded"
        (self.results.errors if fails else self.results.output).write(result.line + b"\n")
