"""Survey: what a store holds, for a person to look at."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator

from pydantic import Field

from pollux_flows.document import Record
from pollux_flows.state.answer_record import read_cost
from pollux_flows.state.bounds import max_size_bytes, retention_s
from pollux_flows.state.kinds import Kind, kind_of, run_of
from pollux_flows.state.store import Row, Store


class RunSeen(Record):
    """A run, and what it was answered."""

    name: str
    began_at: float = Field(description="The last time, as a Unix time.")
    answers: int = 0
    cost_usd: float = Field(default=0.0, description="Of the answers whose cost is known.")
    cost_unknown: int = Field(default=0, description="How many of the answers have no known cost.")


class Survey(Record):
    """What is in a store, and where that is."""

    where: str
    size_bytes: int
    kept_days: float = Field(description="How long an answer is kept.")
    max_size_bytes: int | None = Field(description="None: only age bounds it.")
    records: dict[Kind, int] = Field(default_factory=dict, description="How many there are of each kind.")
    bytes: dict[Kind, int] = Field(default_factory=dict, description="How much they hold, of each kind.")
    oldest_at: float | None = Field(default=None, description="When the oldest answer was given, as a Unix time.")
    newest_at: float | None = None
    unreadable: int = 0
    expired: int = Field(default=0, description="Their time is up, and they go soon.")
    runs: list[RunSeen] = Field(default_factory=list, description="The last ones, the latest first.")


async def survey(store: Store, *, last: int = 10) -> Survey:
    """Look at everything; of the runs, tell of the last ones."""
    tally = _Tally()
    async for row in store.list_rows():
        tally.add(row)
    size = await store.size()
    return Survey(
        where=store.where,
        size_bytes=sum(tally.bytes.values()) if size is None else size,
        kept_days=retention_s() / 86_400,
        max_size_bytes=None if size is None else max_size_bytes(),
        records=dict(tally.records),
        bytes=dict(tally.bytes),
        oldest_at=tally.oldest,
        newest_at=tally.newest,
        unreadable=tally.unreadable,
        expired=tally.expired,
        runs=heapq.nlargest(last, tally.runs(), key=lambda run: run.began_at),
    )


class _Tally:
    def __init__(self) -> None:
        self.records = Counter[Kind]()
        self.bytes = Counter[Kind]()
        self.unreadable = self.expired = 0
        self.oldest: float | None = None
        self.newest: float | None = None
        self._began: dict[str, tuple[str, float]] = {}
        self._answers = Counter[str]()
        self._cost = defaultdict[str, float](float)
        self._unknown = Counter[str]()

    def add(self, row: Row) -> None:
        if row.expired:
            self.expired += 1
            return
        kind, run = kind_of(row.key), run_of(row.key) or ""
        self.records[kind] += 1
        self.bytes[kind] += row.size
        record = row.record or {}
        self.unreadable += row.record is None
        if kind == "answer":
            self._answers[run] += 1
            self._add_cost(run, read_cost(record))
        at = record.get("at")
        if not isinstance(at, float):
            return
        if kind == "answer":
            self.oldest = min(at, self.oldest or at)
            self.newest = max(at, self.newest or at)
        elif kind == "run":
            self._began[run] = str(record.get("run")), at

    def runs(self) -> Iterator[RunSeen]:
        for run, (name, began_at) in self._began.items():
            yield RunSeen(
                name=name,
                began_at=began_at,
                answers=self._answers[run],
                cost_usd=self._cost[run],
                cost_unknown=self._unknown[run],
            )

    def _add_cost(self, run: str, cost: float | None) -> None:
        if cost is None:
            self._unknown[run] += 1
        else:
            self._cost[run] += cost
