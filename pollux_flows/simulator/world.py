"""One simulated world: everything that the providers in it remember."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from functools import cached_property, lru_cache

from starlette.types import ASGIApp

from pollux_flows.simulator.app import build_app
from pollux_flows.simulator.directives import DirectiveCounts
from pollux_flows.simulator.faults import Fault, FaultQueue
from pollux_flows.simulator.gemini.caches import CacheStore
from pollux_flows.simulator.gemini.sessions import UploadSessions
from pollux_flows.simulator.log import Logged, RequestLog
from pollux_flows.simulator.openai.memory import ResponseMemory
from pollux_flows.simulator.prefixes import PrefixCache
from pollux_flows.simulator.providers import PROVIDERS
from pollux_flows.simulator.stored_files import FileStore, StoredFile


class Simulator:
    """An offline world in which all providers answer.

    It holds state behind plain locks and nothing that belongs to an event loop, so one simulator may
    answer several loops and threads at once. `clock` gives the time of that world in epoch seconds;
    a test may replace it to let caches and files expire. `processing_s` is how long, by that clock,
    Gemini works on an uploaded file before it can be used.
    """

    def __init__(
        self,
        latency_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.time,
        processing_s: float = 0.0,
        keep_requests: int | None = None,
    ) -> None:
        self.latency_s = latency_s
        self.clock = clock
        self.processing_s = processing_s
        self.faults = FaultQueue()
        self.directive_counts = DirectiveCounts()
        self.log = RequestLog(keep_requests)
        self.prefixes = PrefixCache()
        # The clock may be replaced at any time.
        self.file_store = FileStore(lambda: self.clock())  # noqa: PLW0108
        self.gemini_caches = CacheStore()
        self.gemini_uploads = UploadSessions()
        self.openai_responses = ResponseMemory()
        self._numbers = itertools.count(1)

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
        """Every file that was uploaded, in order of arrival, also those that were deleted or have expired."""
        return self.file_store.all()

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

        `operation=None` matches every operation; `contains` is looked for in every string of the body.
        """
        if provider is not None and provider not in PROVIDERS:
            raise ValueError(f"unknown provider {provider!r}; one of: {', '.join(PROVIDERS)}")
        self.faults.add(fault, times=times, provider=provider, operation=operation, contains=contains)

    def reset(self) -> None:
        """Forget everything: faults, log, files, caches, ids. The clock, the latency and `processing_s` stay."""
        self.faults.clear()
        self.directive_counts.clear()
        self.log.clear()
        self.prefixes.clear()
        self.file_store.clear()
        self.gemini_caches.clear()
        self.gemini_uploads.clear()
        self.openai_responses.clear()
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """The next number of this world: ids are unique, and the same in every run."""
        return next(self._numbers)


@lru_cache(maxsize=1)
def _only_one() -> Simulator:
    # It lives as long as its process, which may be a worker's, so its log has an end.
    return Simulator(keep_requests=1_000)


_CREATION = threading.Lock()


def in_process() -> Simulator:
    """The simulator of this process, from which `Config(use_mock=True)` is answered."""
    with _CREATION:
        return _only_one()
