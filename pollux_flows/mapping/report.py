"""Report: the outcome of the rows of a table, in numbers that add up."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from pydantic import Field

from pollux_flows.answer_rows import AnswerRow
from pollux_flows.document import Record
from pollux_flows.mapping.answer import ChunkAnswers
from pollux_flows.pricing import Cost, total, unknown_total
from pollux_flows.result import CallFailure

ANSWERED: Final = "answered"
_DIGEST_BYTES: Final = 16
_KINDS: Final = ("asked", "reused", "duplicates", "not_asked", "unusable")


class MapReport(Record):
    """The outcome of a mapped table.

    The counts of `statuses` add up to `rows`, and so do `asked`, `reused`, `duplicates`, `not_asked` and `unusable`.
    """

    table: str
    output: str
    run: str | None = Field(default=None, description="The run that wrote the output, whose retries may replace it.")
    rows: int
    asked: int = Field(
        default=0, description="Rows that this run asked about, in any attempt, with or without success."
    )
    reused: int = Field(default=0, description="Rows whose answer an earlier run had paid for.")
    duplicates: int = Field(default=0, description="Rows that ask what an earlier row of the table asks.")
    not_asked: int = Field(
        default=0, description="Rows that were not asked: the budget was spent, or all calls failed."
    )
    unusable: int = Field(default=0, description="Rows that could not be asked: an empty cell, an unreadable source.")
    statuses: dict[str, int] = Field(default_factory=dict, description="How many rows have which status.")
    cost_usd: float | None = Field(default=None, description="What this run paid, in all attempts; None if unknown.")
    cost_unknown: str | None = None
    unknown_attempts: int = Field(
        default=0, description="Requests whose answers did not arrive. The provider may have billed them all the same."
    )
    usage: dict[str, int] = Field(default_factory=dict, description="The tokens of the answers that it paid for.")
    duration_s: float = 0.0
    finished_at: float = 0.0

    @property
    def answered(self) -> int:
        """The number of rows with a usable answer."""
        return self.statuses.get(ANSWERED, 0)

    @property
    def unanswered(self) -> int:
        """The number of rows without a usable answer."""
        return self.rows - self.answered


class RowTally:
    """Counts the rows of a table and their costs. A digest of each call is stored, so that duplicates count once."""

    def __init__(self) -> None:
        self.rows = 0
        self.first_failure: CallFailure | None = None
        self._seen: set[bytes] = set()
        self._kinds: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._usage: Counter[str] = Counter()
        self._paid: list[float] = []  # by chunk
        self._costs_seen = 0
        self._unknown_attempts = 0
        self._unknown_costs: Counter[str] = Counter()  # by reason
        self._began = time.monotonic()

    def add(self, chunk: ChunkAnswers) -> Iterator[tuple[AnswerRow, bool]]:
        """Count the rows of a chunk, and yield the answer of each and whether it is reused."""
        costs: list[Cost] = []
        counted: set[int] = set()
        for place in chunk.places:
            answer = chunk.answers[place]
            kind: str = answer.origin
            if answer.identity is not None:
                name = hashlib.blake2b(answer.identity.encode(), digest_size=_DIGEST_BYTES).digest()
                is_new = name not in self._seen
                self._seen.add(name)
                kind = kind if is_new or kind == "not_asked" else "duplicates"
                # A call with a blocked or empty answer may be repeated for an equal row of a later chunk.
                if answer.paid_here and (is_new or (answer.paid_now and place not in counted)):
                    costs.append(Cost(answer.row.cost_usd, answer.cost_unknown))
                    self._usage.update(answer.row.usage)
                if is_new and answer.paid_before_usd:
                    costs.append(Cost(answer.paid_before_usd))
            self._unknown_attempts += 0 if place in counted else answer.unknown_attempts
            counted.add(place)
            self.rows += 1
            self._kinds[kind] += 1
            self._statuses[answer.row.status] += 1
            if self.first_failure is None:
                self.first_failure = answer.failure
            yield answer.row, kind in {"reused", "duplicates"}
        self._paid.append(math.fsum(cost.usd or 0.0 for cost in costs))
        self._costs_seen += len(costs)
        self._unknown_costs.update(str(cost.unknown) for cost in costs if cost.usd is None)

    def report(self, table: str, output: str, run: str | None = None) -> MapReport:
        """Return the numbers so far."""
        cost = total(map(Cost, self._paid))
        if unknown := self._unknown_costs:
            cost = unknown_total(unknown.total(), self._costs_seen, next(iter(unknown)))
        return MapReport(
            table=table,
            output=output,
            run=run,
            rows=self.rows,
            **{kind: self._kinds[kind] for kind in _KINDS},
            statuses=dict(self._statuses.most_common()),
            cost_usd=cost.usd,
            cost_unknown=cost.unknown,
            unknown_attempts=self._unknown_attempts,
            usage=dict(self._usage),
            duration_s=round(time.monotonic() - self._began, 3),
            finished_at=time.time(),
        )
