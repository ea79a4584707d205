"""The batches that were given to the providers of one world."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from pollux_flows.simulator.batch.plan import ANSWERED, Plan
from pollux_flows.simulator.batch.rows import Rows
from pollux_flows.simulator.spool import Spool

Phase = Literal["starting", "running", "finishing", "cancelling", "completed", "expired", "cancelled", "failed"]

ENDINGS = frozenset({"completed", "expired", "cancelled", "failed"})
#: Of the time that a batch takes, its beginning and its end; what is found to be no good, is so at the beginning.
STARTED = 0.1
RAN = 0.9
#: And how long it takes to stop.
_STOPPING = 0.1
#: A world in a worker lives as long as the worker: the oldest batches go first.
KEEP = 10_000


@dataclass
class Results:
    """What the rows came to."""

    #: JSONL, one result a line.
    output: Spool = field(default_factory=Spool)
    #: For OpenAI, those that failed.
    errors: Spool = field(default_factory=Spool)
    #: How many succeeded, errored, expired, were cancelled.
    counts: Counter[str] = field(default_factory=Counter)
    #: Tokens, for OpenAI.
    usage: Counter[str] = field(default_factory=Counter)
    #: The ids of the files that they are in.
    output_file: str | None = None
    error_file: str | None = None


@dataclass(eq=False)
class StoredBatch:
    """One batch that was accepted. Everything about it follows from its plan and the clock, when somebody asks."""

    provider: str
    #: What the provider's SDK calls it by: `batch_…`, `msgbatch_…`, `batches/…`.
    id: str
    #: Whose it is: a hash of the API key that it came with.
    account: str = field(repr=False)
    created_at: float
    takes_s: float
    #: It expires when it takes longer than this.
    window_s: float
    plan: Plan
    input: Rows = field(repr=False)
    #: The provider's words for its phases.
    words: Mapping[str, str] = field(repr=False)
    #: Gemini's display name.
    name: str | None = None
    #: OpenAI's.
    metadata: dict[str, str] | None = None
    #: What else its provider must remember of it.
    given: dict[str, Any] = field(default_factory=dict, repr=False)
    #: What makes it no good as a whole, in the provider's words.
    problems: list[dict[str, Any]] = field(default_factory=list)
    #: When somebody asked to cancel it.
    cancel_asked_at: float | None = None
    deleted_at: float | None = None
    results: Results | None = field(default=None, repr=False)
    settling: threading.Lock = field(default_factory=threading.Lock, repr=False)
    clock: Callable[[], float] = field(default=lambda: 0.0, repr=False)

    @property
    def rows(self) -> int:
        """How many requests it brought."""
        return len(self.input)

    @property
    def state(self) -> str:
        """What it is now, in the provider's word."""
        return self.word(self.phase)

    @property
    def phase(self) -> Phase:
        """What it is now, by the clock of its world."""
        if self.is_ended:
            return self.ending
        if self.cancel_asked_at is not None:
            return "cancelling"
        return "starting" if self.progress < STARTED else "running" if self.progress < RAN else "finishing"

    @property
    def is_ended(self) -> bool:
        return self.clock() >= self.ends_at

    @property
    def ending(self) -> Literal["completed", "expired", "cancelled", "failed"]:
        """How it ends, as things are."""
        if self.problems:
            return "failed"
        if self.cancel_asked_at is not None or self.plan.end == "cancelled":
            return "cancelled"
        return "expired" if self.plan.end == "expired" or self.takes_s > self.window_s else "completed"

    @property
    def ends_at(self) -> float:
        if self.problems:
            return self.reaches(STARTED)
        end = self.created_at + min(self.takes_s, self.window_s)
        if self.cancel_asked_at is not None:
            end = min(end, self.cancel_asked_at + _STOPPING * self.takes_s)
        return end

    @property
    def expires_at(self) -> float:
        """When its time is up. A batch that is planned to expire has no more time than it takes."""
        return self.created_at + (min(self.takes_s, self.window_s) if self.plan.end == "expired" else self.window_s)

    @property
    def progress(self) -> float:
        """The share of its time that has passed."""
        return self._share(self.clock() - self.created_at)

    @property
    def answered(self) -> int:
        """So many of its rows, always the first ones, are answered when it has ended."""
        if self.plan.end in ("failed", "queue_full"):
            return 0
        if self.plan.end != "partial" and self.ending == "completed":
            return self.rows
        share = ANSWERED if self.plan.answered is None else self.plan.answered
        if self.plan.answered is None and self.cancel_asked_at is not None:
            share = self._share(self.cancel_asked_at - self.created_at)
        elif self.plan.answered is None and self.takes_s > self.window_s:
            share = self._share(self.window_s)
        return int(share * self.rows)

    def word(self, phase: Phase) -> str:
        """What the provider calls that phase, or the plan does."""
        return self.words[phase] if self.plan.status is None or phase in ENDINGS else self.plan.status

    def reaches(self, share: float) -> float:
        """When that share of its time has passed."""
        return self.created_at + share * self.takes_s

    def requests(self) -> Iterator[Any]:
        """What was submitted, row by row; of a long batch only until it has ended."""
        return (orjson.loads(line) for line in self.input)

    def release(self) -> None:
        self.input.spool.close()
        if self.results is not None:
            self.results.output.close()
            self.results.errors.close()

    def as_json(self) -> dict[str, Any]:
        """What can be told about it in another process."""
        names = ("provider", "id", "rows", "state", "name", "metadata", "created_at", "ends_at", "deleted_at")
        return {name: getattr(self, name) for name in names}

    def _share(self, passed_s: float) -> float:
        return min(1.0, passed_s / self.takes_s) if self.takes_s else 1.0


class BatchStore:
    """All batches of one world, whichever provider has them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: By provider and id, in order of arrival.
        self._batches: dict[tuple[str, str], StoredBatch] = {}

    def add(self, batch: StoredBatch) -> None:
        batch.clock = self._clock
        with self._lock:
            self._batches[batch.provider, batch.id] = batch
            if len(self._batches) > KEEP:
                self._batches.pop(next(iter(self._batches))).release()

    def find(self, provider: str, batch_id: str, account: str) -> StoredBatch | None:
        """The batch of that account, unless it was deleted."""
        with self._lock:
            batch = self._batches.get((provider, batch_id))
        return batch if batch is not None and batch.account == account and batch.deleted_at is None else None

    def owned(self, provider: str, account: str) -> list[StoredBatch]:
        """What that account has there, newest first."""
        return [
            batch
            for batch in reversed(self.all())
            if (batch.provider, batch.account) == (provider, account) and batch.deleted_at is None
        ]

    def cancel(self, batch: StoredBatch) -> None:
        """From now on it is being cancelled, unless it has ended."""
        with self._lock:
            if batch.cancel_asked_at is None and not batch.is_ended:
                batch.cancel_asked_at = self._clock()

    def delete(self, batch: StoredBatch) -> None:
        with self._lock:
            batch.deleted_at = self._clock()
            batch.release()

    def all(self) -> list[StoredBatch]:
        """In order of arrival; those that were deleted too."""
        with self._lock:
            return list(self._batches.values())

    def clear(self) -> None:
        with self._lock:
            for batch in self._batches.values():
                batch.release()
            self._batches.clear()
