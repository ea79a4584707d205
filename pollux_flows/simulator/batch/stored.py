"""The batches that were given to the providers of one world."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import orjson

from pollux_flows.simulator.batch.plan import ANSWERED, Plan
from pollux_flows.simulator.batch.rows import Rows, SavedRows
from pollux_flows.simulator.spool import Spool
from pollux_flows.simulator.storage import Record, Storage

Phase = Literal["starting", "running", "finishing", "cancelling", "completed", "expired", "cancelled", "failed"]

ENDINGS = frozenset({"completed", "expired", "cancelled", "failed"})
#: Of the time that a batch takes, its beginning and its end; what is found to be no good, is so at the beginning.
STARTED = 0.1
RAN = 0.9
#: And how long it takes to stop.
_STOPPING = 0.1
#: A world in a worker lives as long as the worker: the oldest batches go first.
KEEP = 10_000
#: What is saved of a batch, beside its plan, its requests and their results.
_SAVED: Final = (
    "provider", "id", "account", "created_at", "takes_s", "window_s", "words", "name", "metadata", "given", "problems",
    "cancel_asked_at", "deleted_at",
)  # fmt: skip


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

    def as_record(self) -> Record:
        """What is saved of them, beside the lines."""
        return {
            "output_bytes": self.output.size,
            "error_bytes": self.errors.size,
            "counts": dict(self.counts),
            "usage": dict(self.usage),
            "output_file": self.output_file,
            "error_file": self.error_file,
        }


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
        #: Where other processes find them.
        self._storage: Storage | None = None

    def share(self, storage: Storage) -> None:
        """From now on, have them in common with other processes."""
        with self._lock:
            self._storage = storage

    def add(self, batch: StoredBatch) -> None:
        with self._lock:
            self._load()
            if self._storage is not None:
                self._storage.add((batch.provider, batch.id), _record(batch), {"rows": batch.input.spool})
            self._remember(batch)

    def find(self, provider: str, batch_id: str, account: str) -> StoredBatch | None:
        """The batch of that account, unless it was deleted."""
        with self._lock:
            self._load()
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
                self._set(batch, cancel_asked_at=self._clock())

    def delete(self, batch: StoredBatch) -> None:
        with self._lock:
            self._set(batch, deleted_at=self._clock())
            batch.release()

    def settle(self, batch: StoredBatch, results: Results) -> None:
        """Its rows came to this, unless another process was faster."""
        with self._lock:
            batch.results = results
            if self._storage is not None:
                in_files = results.output_file or results.error_file
                contents = {} if in_files else {"output": results.output}
                saved = self._storage.set((batch.provider, batch.id), contents, results=results.as_record())
                if saved is not None and saved["results"] != results.as_record():
                    batch.results = _results(saved, self._storage)

    def all(self) -> list[StoredBatch]:
        """In order of arrival; those that were deleted too."""
        with self._lock:
            self._load()
            return list(self._batches.values())

    def clear(self) -> None:
        with self._lock:
            for batch in self._batches.values():
                batch.release()
            self._batches.clear()
            if self._storage is not None:
                self._storage.clear()

    def _remember(self, batch: StoredBatch) -> None:
        batch.clock = self._clock
        self._batches[batch.provider, batch.id] = batch
        if len(self._batches) > KEEP:
            self._batches.pop(next(iter(self._batches))).release()

    def _set(self, batch: StoredBatch, **fields: float) -> None:
        if self._storage is not None:
            fields = self._storage.set((batch.provider, batch.id), None, **fields) or fields
        batch.cancel_asked_at = fields.get("cancel_asked_at", batch.cancel_asked_at)
        batch.deleted_at = fields.get("deleted_at", batch.deleted_at)

    def _load(self) -> None:
        """Take in what other processes have done."""
        if self._storage is None:
            return
        for record in self._storage.changed():
            batch = self._batches.get((record["provider"], record["id"]))
            if batch is None:
                batch = _batch(record, self._storage)
                self._remember(batch)
            batch.cancel_asked_at, batch.deleted_at = record["cancel_asked_at"], record["deleted_at"]
            if batch.results is None and record["results"] is not None:
                batch.results = _results(record, self._storage)


def _record(batch: StoredBatch) -> Record:
    record = {name: getattr(batch, name) for name in _SAVED}
    return {**record, "plan": asdict(batch.plan), "rows": batch.rows, "bytes": batch.input.spool.size, "results": None}


def _batch(record: Record, storage: Storage) -> StoredBatch:
    key = record["provider"], record["id"]
    rows = SavedRows(storage.content(key, "rows", record["bytes"]), record["rows"])
    return StoredBatch(**{name: record[name] for name in _SAVED}, plan=Plan(**record["plan"]), input=rows)


def _results(record: Record, storage: Storage) -> Results:
    key, saved = (record["provider"], record["id"]), record["results"]
    return Results(
        output=storage.content(key, "output", saved["output_bytes"]),
        errors=storage.content(key, "errors", saved["error_bytes"]),
        counts=Counter(saved["counts"]),
        usage=Counter(saved["usage"]),
        output_file=saved["output_file"],
        error_file=saved["error_file"],
    )
