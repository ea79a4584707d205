"""One simulated world: everything that the providers in it remember."""

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
from pollux_flows.simulator.batch.plan import Plan, PlanQueue
from pollux_flows.simulator.batch.stored import BatchStore, StoredBatch
from pollux_flows.simulator.directives import DirectiveCounts
from pollux_flows.simulator.faults import Fault, FaultQueue
from pollux_flows.simulator.gemini.caches import CacheStore
from pollux_flows.simulator.gemini.sessions import UploadSessions
from pollux_flows.simulator.log import Logged, RequestLog
from pollux_flows.simulator.openai.memory import ResponseMemory
from pollux_flows.simulator.prefixes import PrefixCache
from pollux_flows.simulator.providers import PROVIDERS
from pollux_flows.simulator.storage import Storage
from pollux_flows.simulator.stored_files import FileStore, StoredFile


class Simulator:
    """An offline world in which all providers answer.

    It holds state behind plain locks and nothing that belongs to an event loop, so one simulator may
    answer several loops and threads at once. `clock` gives the time of that world in epoch seconds;
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
        self.faults = FaultQueue()
        self.directive_counts = DirectiveCounts()
        self.log = RequestLog(keep_requests)
        self.prefixes = PrefixCache()
        self.file_store = FileStore(self.now)
        self.batch_store = BatchStore(self.now)
        self.batch_plans = PlanQueue()
        self.gemini_caches = CacheStore()
        #: Gemini caches nothing that has fewer tokens. Not so here by itself: examples are short.
        self.gemini_cache_minimum = 0
        #: How long after its creation a cache is listed first.
        self.gemini_cache_listed_after_s = 0.0
        self.gemini_uploads = UploadSessions()
        self.openai_responses = ResponseMemory()
        self._folder: Path | None = None
        self._numbers = self._new_numbers()

    def share(self, folder: Path) -> None:
        """Have files, batches and caches in common with all processes that share this folder."""
        if folder != self._folder:
            self._folder = folder
            self.file_store.share(Storage(folder, "file", self.now))
            self.batch_store.share(Storage(folder, "batch", self.now))
            self.gemini_caches.share(Storage(folder, "cache", self.now))
            self._numbers = self._new_numbers()

    @cached_property
    def app(self) -> ASGIApp:
        """The ASGI application: for uvicorn, or for `ASGITransport(app=...)` in process."""
        return build_app(self)

    @property
    def requests(self) -> list[Logged]:
        """What was asked, in order of arrival."""
        return self.log.entries()

    @property
    def files(self) -> list[StoredFile]:
        """Every file that was uploaded, or that a batch gave out, also those that were deleted or have expired."""
        return self.file_store.all()

    @property
    def batches(self) -> list[StoredBatch]:
        """Every batch that was accepted, in order of arrival, also those that were deleted."""
        return self.batch_store.all()

    @staticmethod
    def base_url(provider: str, origin: str) -> str:
        """What to give an SDK, or `Config(base_url=...)`, to reach `provider` at `origin`."""
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
        """Let the next `times` matching requests meet `fault` (None: all from now on).

        `operation=None` matches every operation; `contains` is looked for in every string of the body. The
        rows of batches are requests too, of the operation "batch.row".
        """
        if provider is not None and provider not in PROVIDERS:
            raise ValueError(f"unknown provider {provider!r}; one of: {', '.join(PROVIDERS)}")
        self.faults.add(fault, times=times, provider=provider, operation=operation, contains=contains)

    def batch(self, *, times: int | None = 1, provider: str | None = None, **plan: Any) -> None:
        """Let the next `times` batches that are accepted (None: all from now on) go as the fields of `Plan` say."""
        if provider is not None and provider not in PROVIDERS:
            raise ValueError(f"unknown provider {provider!r}; one of: {', '.join(PROVIDERS)}")
        self.batch_plans.add(Plan(**plan), times=times, provider=provider)

    def now(self) -> float:
        """The time of this world; while the rows of a batch are answered, the time at which the batch ended."""
        moment: float | None = getattr(self._moment, "at", None)
        return self.clock() if moment is None else moment

    @contextmanager
    def at(self, moment: float) -> Iterator[None]:
        """For this thread, let it be `moment`.

        What a batch did is worked out when somebody asks for it, which may be a week after its end.
        """
        self._moment.at = moment
        try:
            yield
        finally:
            self._moment.at = None

    def reset(self) -> None:
        """Forget everything: faults, plans, log, files, caches, batches, ids.

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

    def number(self) -> int:
        """The next number of this world: ids are unique and, unless processes share it, the same in every run."""
        return next(self._numbers)

    def _new_numbers(self) -> Iterator[int]:
        # Of processes that share a world, each begins elsewhere: no two give the same id to different things.
        return itertools.count(1 if self._folder is None else random.randrange(10**7, 10**8))  # noqa: S311 (no secret)


@lru_cache(maxsize=1)
def _only_one() -> Simulator:
    # It lives as long as its process, which may be a worker's, so its log has an end.
    return Simulator(keep_requests=1_000)


_CREATION = threading.Lock()


def in_process(folder: Path | None = None) -> Simulator:
    """The simulator of this process, from which `Config(use_mock=True)` is answered.

    With `folder`, what it is given is found by all processes that name the same one.
    """
    with _CREATION:
        world = _only_one()
        if folder is not None:
            world.share(folder)
        return world
