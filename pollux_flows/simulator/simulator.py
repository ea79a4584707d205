"""The simulator: the state of all simulated providers, and the methods that control it."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from pollux_flows.simulator.app import build_app
from pollux_flows.simulator.batch.plan import Plan
from pollux_flows.simulator.batch.stored import BatchStore, StoredBatch
from pollux_flows.simulator.directives import DirectiveCounts
from pollux_flows.simulator.faults import Fault, FaultRule
from pollux_flows.simulator.gemini.caches import CacheStore
from pollux_flows.simulator.gemini.sessions import MAX_SESSIONS, Session
from pollux_flows.simulator.log import Logged, RequestLog
from pollux_flows.simulator.openai.stored_responses import MAX_RESPONSES, StoredResponse
from pollux_flows.simulator.pending import PendingQueue
from pollux_flows.simulator.prefixes import PrefixCache
from pollux_flows.simulator.providers import PROVIDERS
from pollux_flows.simulator.recent import RecentItems
from pollux_flows.simulator.stored_files import FileStore, StoredFile


class Simulator:
    """An offline simulator of all providers.

    It holds state behind plain locks and nothing that belongs to an event loop, so one simulator may
    answer several loops and threads at once. `clock` returns the simulated time in epoch seconds;
    a test may replace it to let caches and files expire. `processing_s` is how long, by that clock,
    Gemini works on an uploaded file before it can be used, and `batch_s` how long a batch takes.
    """

    def __init__(
        self,
        latency_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.time,
        processing_s: float = 0.0,
        batch_s: float = 0.2,
        keep_requests: int | None = None,
    ) -> None:
        self.latency_s = latency_s
        self.clock = clock
        self.processing_s = processing_s
        self.batch_s = batch_s
        self._moment = threading.local()
        self.faults: PendingQueue[FaultRule] = PendingQueue()
        self.directive_counts = DirectiveCounts()
        self.log = RequestLog(keep_requests)
        self.prefixes = PrefixCache()
        self.file_store = FileStore(self.now)
        self.batch_store = BatchStore(self.now)
        #: Plans, each with the provider that it applies to; None: to any.
        self.batch_plans: PendingQueue[tuple[Plan, str | None]] = PendingQueue()
        self.gemini_caches = CacheStore(self.now)
        #: The fewest tokens of a Gemini cache. Zero by default, because examples are short.
        self.gemini_cache_minimum = 0
        #: The delay after its creation before a cache is listed.
        self.gemini_cache_listed_after_s = 0.0
        self.gemini_uploads: RecentItems[Session] = RecentItems(MAX_SESSIONS, lambda session: session.spool.close())
        self.openai_responses: RecentItems[StoredResponse] = RecentItems(MAX_RESPONSES)
        self._folder: Path | None = None
        self._numbers = self._new_numbers()

    def share(self, folder: Path) -> None:
        """Share files, batches and caches with all processes that use this folder."""
        if folder != self._folder:
            self._folder = folder
            self.file_store.share(folder)
            self.batch_store.share(folder)
            self.gemini_caches.share(folder)
            self._numbers = self._new_numbers()

    @cached_property
    def app(self) -> ASGIApp:
        """The ASGI application, for uvicorn or for an in-process `ASGITransport(app=...)`."""
        return build_app(self)

    @property
    def requests(self) -> list[Logged]:
        """Return all requests, in order of arrival."""
        return self.log.entries()

    @property
    def files(self) -> list[StoredFile]:
        """Return all uploaded files and outputs of batches, including deleted and expired ones."""
        return self.file_store.all()

    @property
    def batches(self) -> list[StoredBatch]:
        """Return all accepted batches in order of arrival, including deleted ones."""
        return self.batch_store.all()

    @staticmethod
    def base_url(provider: str, origin: str) -> str:
        """Return the base URL of `provider` at `origin`, for its SDK or `Config(base_url=...)`."""
        return origin.rstrip("/") + PROVIDERS[provider].prefix

    def fail(
        self,
        fault: Fault,
        *,
        times: int | None = 1,
        provider: str | None = None,
        operation: str | None = "generate",
        contains: str | None = None,
    ) -> None:
        """Apply `fault` to the next `times` matching requests (None: to all from now on).

        `operation=None` matches every operation; `contains` is searched in every string of the body. The
        rows of batches are requests too, of the operation "batch.row".
        """
        _check_provider(provider)
        self.faults.add(FaultRule(fault, provider, operation, contains), times)

    def batch(self, *, times: int | None = 1, provider: str | None = None, **plan: Any) -> None:
        """Apply a `Plan` with these fields to the next `times` accepted batches (None: to all from now on)."""
        _check_provider(provider)
        self.batch_plans.add((Plan(**plan), provider), times)

    def take_plan(self, provider: str) -> Plan:
        """Return the plan for a batch that is being accepted, and count it as used once."""
        found = self.batch_plans.take(lambda entry: entry[1] in (None, provider))
        return found[0] if found else Plan()

    def now(self) -> float:
        """Return the simulated time; while the rows of a batch are answered, the time at which the batch ended."""
        moment: float | None = getattr(self._moment, "at", None)
        return self.clock() if moment is None else moment

    @contextmanager
    def at_time(self, moment: float) -> Iterator[None]:
        """Set the simulated time of this thread to `moment`.

        The results of a batch are computed when they are first requested, which may be a week after its end.
        """
        self._moment.at = moment
        try:
            yield
        finally:
            self._moment.at = None

    def reset(self) -> None:
        """Clear all state: faults, plans, log, files, caches, batches, ids.

        The clock, the latency, `processing_s` and `batch_s` stay.
        """
        self.faults.clear()
        self.batch_plans.clear()
        self.directive_counts.clear()
        self.log.clear()
        self.prefixes.clear()
        self.file_store.clear()
        self.batch_store.clear()
        self.gemini_caches.clear()
        self.gemini_uploads.clear()
        self.openai_responses.clear()
        self._numbers = self._new_numbers()

    def next_number(self) -> int:
        """Return the next number for an id: unique and, unless processes share state, the same in every run."""
        return next(self._numbers)

    def _new_numbers(self) -> Iterator[int]:
        # Processes that share state start at different numbers, so that they do not assign the same id.
        return itertools.count(1 if self._folder is None else random.randrange(10**7, 10**8))  # noqa: S311 (no secret)


def _check_provider(provider: str | None) -> None:
    if provider is not None and provider not in PROVIDERS:
        raise ValueError(f"unknown provider {provider!r}; one of: {', '.join(PROVIDERS)}")


@lru_cache(maxsize=1)
def _create_once() -> Simulator:
    # It lives as long as its process, which may be a worker's, so its log is bounded.
    return Simulator(keep_requests=1_000)


_CREATION = threading.Lock()


def in_process(folder: Path | None = None) -> Simulator:
    """Return the simulator of this process, which answers for `Config(use_mock=True)`.

    With `folder`, its files, batches and caches are shared by all processes that use the same folder.
    """
    with _CREATION:
        simulator = _create_once()
        if folder is not None:
            simulator.share(folder)
        return simulator
