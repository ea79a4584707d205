"""The batches that were submitted to the simulated providers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import orjson
from typing_extensions import override

from pollux_flows.simulator.batch.plan import ANSWERED_SHARE, Plan
from pollux_flows.simulator.batch.rows import Rows, SavedRows
from pollux_flows.simulator.spool import Spool
from pollux_flows.simulator.storage import Record, Storage, Store

Phase = Literal["starting", "running", "finishing", "cancelling", "completed", "expired", "cancelled", "failed"]

ENDINGS = frozenset({"completed", "expired", "cancelled", "failed"})
#: The shares of a batch's duration at which it has started, and has run; an invalid one fails when it starts.
START_SHARE = 0.1
FINISH_SHARE = 0.9
#: The share of the duration that a cancellation takes.
_CANCEL_SHARE = 0.1
#: A simulator in a worker lives as long as the worker: beyond this many, the oldest batches are removed.
MAX_BATCHES = 10_000


@dataclass
class Results:
    """The results of the rows."""

    #: JSONL, one result a line.
    output: Spool = field(default_factory=Spool)
    #: For OpenAI, the results of failed rows.
    errors: Spool = field(default_factory=Spool)
    #: The number of rows that succeeded, errored, expired, were cancelled.
    counts: Counter[str] = field(default_factory=Counter)
    #: Tokens, for OpenAI.
    usage: Counter[str] = field(default_factory=Counter)
    #: The ids of the results files.
    output_file: str | None = None
    error_file: str | None = None

    def as_record(self) -> Record:
        """Return the fields to save, without the lines."""
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
    """One accepted batch. Its state at any time follows from its plan and the clock."""

    provider: str
    #: The id in the provider's format: `batch_…`, `msgbatch_…`, `batches/…`.
    id: str
    #: The account that owns it: a hash of the API key that submitted it.
    account: str = field(repr=False)
    created_at: float
    takes_s: float
    #: The duration after which it expires.
    window_s: float
    plan: Plan
    input: Rows = field(repr=False)
    #: The provider's names of the phases.
    words: Mapping[str, str] = field(repr=False)
    #: Gemini's display name.
    name: str | None = None
    #: OpenAI's metadata.
    metadata: dict[str, str] | None = None
    #: Data that only its provider needs.
    provider_data: dict[str, Any] = field(default_factory=dict, repr=False)
    #: The errors of the entire batch, in the provider's format.
    problems: list[dict[str, Any]] = field(default_factory=list)
    #: The time at which its cancellation was requested.
    cancel_asked_at: float | None = None
    deleted_at: float | None = None
    results: Results | None = field(default=None, repr=False)
    settling: threading.Lock = field(default_factory=threading.Lock, repr=False)
    clock: Callable[[], float] = field(default=lambda: 0.0, repr=False)

    @property
    def rows(self) -> int:
        """Return the number of requests in the batch."""
        return len(self.input)

    @property
    def state(self) -> str:
        """Return the current state of the batch, as the provider names it."""
        return self.state_name(self.phase)

    @property
    def phase(self) -> Phase:
        """Return the current phase of the batch, by the simulator's clock."""
        if self.is_ended:
            return self.ending
        if self.cancel_asked_at is not None:
            return "cancelling"
        return "starting" if self.progress < START_SHARE else "running" if self.progress < FINISH_SHARE else "finishing"

    @property
    def is_ended(self) -> bool:
        return self.clock() >= self.ends_at

    @property
    def ending(self) -> Literal["completed", "expired", "cancelled", "failed"]:
        """Return the phase in which the batch ends, unless it is cancelled later."""
        if self.problems:
            return "failed"
        if self.cancel_asked_at is not None or self.plan.end == "cancelled":
            return "cancelled"
        return "expired" if self.plan.end == "expired" or self.takes_s > self.window_s else "completed"

    @property
    def ends_at(self) -> float:
        if self.problems:
            return self.time_at(START_SHARE)
        end = self.created_at + min(self.takes_s, self.window_s)
        if self.cancel_asked_at is not None:
            end = min(end, self.cancel_asked_at + _CANCEL_SHARE * self.takes_s)
        return end

    @property
    def expires_at(self) -> float:
        """Return the time at which the batch expires; if its plan says so, that is at the end of its duration."""
        return self.created_at + (min(self.takes_s, self.window_s) if self.plan.end == "expired" else self.window_s)

    @property
    def progress(self) -> float:
        """Return the share of the batch's duration that has passed."""
        return self._share(self.clock() - self.created_at)

    @property
    def answered(self) -> int:
        """Return the number of rows, always the first ones, that are answered when the batch ends."""
        if self.plan.end in ("failed", "queue_full"):
            return 0
        if self.plan.end != "partial" and self.ending == "completed":
            return self.rows
        share = ANSWERED_SHARE if self.plan.answered is None else self.plan.answered
        if self.plan.answered is None and self.cancel_asked_at is not None:
            share = self._share(self.cancel_asked_at - self.created_at)
        elif self.plan.answered is None and self.takes_s > self.window_s:
            share = self._share(self.window_s)
        return int(share * self.rows)

    def state_name(self, phase: Phase) -> str:
        """Return the provider's name of a phase, or the name that the plan sets."""
        return self.words[phase] if self.plan.status is None or phase in ENDINGS else self.plan.status

    def time_at(self, share: float) -> float:
        """Return the time at which a share of the batch's duration has passed."""
        return self.created_at + share * self.takes_s

    def requests(self) -> Iterator[Any]:
        """Iterate over the submitted requests; those of a long batch are available only until it ends."""
        return (orjson.loads(line) for line in self.input)

    def release(self) -> None:
        self.input.spool.close()
        if self.results is not None:
            self.results.output.close()
            self.results.errors.close()

    def as_json(self) -> dict[str, Any]:
        """Return the public fields as JSON, for clients in another process."""
        names = ("provider", "id", "rows", "state", "name", "metadata", "created_at", "ends_at", "deleted_at")
        return {name: getattr(self, name) for name in names}

    def _share(self, passed_s: float) -> float:
        return min(1.0, passed_s / self.takes_s) if self.takes_s else 1.0


class BatchStore(Store[StoredBatch]):
    """The batches of all providers of one simulator."""

    kind = "batch"
    saved = (
        "provider", "id", "account", "created_at", "takes_s", "window_s", "words", "name", "metadata",
        "problems", "cancel_asked_at", "deleted_at",
    )  # fmt: skip

    def add(self, batch: StoredBatch) -> None:
        record = {
            "given": batch.provider_data,  # stored names never change
            "plan": asdict(batch.plan),
            "rows": batch.rows,
            "bytes": batch.input.spool.size,
            "results": None,
        }
        with self._lock:
            self._load()
            key = batch.provider, batch.id
            self._storage.add(key, {**self._record(batch), **record}, {"rows": batch.input.spool})
            self._remember(batch)

    def find(self, provider: str, batch_id: str, account: str) -> StoredBatch | None:
        """Return an account's batch, unless it was deleted."""
        return next((batch for batch in self.list_owned(provider, account) if batch.id == batch_id), None)

    def list_owned(self, provider: str, account: str) -> list[StoredBatch]:
        """Return the batches of an account, newest first, without deleted ones."""
        return [
            batch
            for batch in reversed(self.all())
            if (batch.provider, batch.account) == (provider, account) and batch.deleted_at is None
        ]

    def cancel(self, batch: StoredBatch) -> None:
        """Begin to cancel the batch, unless it has ended."""
        with self._lock:
            if batch.cancel_asked_at is None and not batch.is_ended:
                self._set(batch, cancel_asked_at=self._clock())

    def delete(self, batch: StoredBatch) -> None:
        with self._lock:
            self._set(batch, deleted_at=self._clock())
            batch.release()

    def settle(self, batch: StoredBatch, results: Results) -> None:
        """Save the results of a batch, unless another process was faster."""
        with self._lock:
            batch.results = results
            in_files = results.output_file or results.error_file
            contents = {} if in_files else {"output": results.output}
            saved = self._storage.set((batch.provider, batch.id), contents, results=results.as_record())
            if saved is not None and saved["results"] != results.as_record():
                batch.results = _results(saved, self._storage)

    def all(self) -> list[StoredBatch]:
        """Return all batches in order of arrival, with deleted ones."""
        with self._lock:
            self._load()
            return list(self._items.values())

    @override
    def _release(self, item: StoredBatch) -> None:
        item.release()

    @override
    def _apply(self, record: Record) -> None:
        key = record["provider"], record["id"]
        batch = self._items.get(key)
        if batch is None:
            rows = SavedRows(self._storage.content(key, "rows", record["bytes"]), record["rows"])
            batch = StoredBatch(
                **self._saved_fields(record), provider_data=record["given"], plan=Plan(**record["plan"]), input=rows
            )
            self._remember(batch)
        batch.cancel_asked_at, batch.deleted_at = record["cancel_asked_at"], record["deleted_at"]
        if batch.results is None and record["results"] is not None:
            batch.results = _results(record, self._storage)

    def _remember(self, batch: StoredBatch) -> None:
        batch.clock = self._clock
        self._items[batch.provider, batch.id] = batch
        if len(self._items) > MAX_BATCHES:
            self._items.pop(next(iter(self._items))).release()

    def _set(self, batch: StoredBatch, **fields: float) -> None:
        fields = self._storage.set((batch.provider, batch.id), None, **fields) or fields
        batch.cancel_asked_at = fields.get("cancel_asked_at", batch.cancel_asked_at)
        batch.deleted_at = fields.get("deleted_at", batch.deleted_at)


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
