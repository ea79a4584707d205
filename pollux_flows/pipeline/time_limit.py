"""Time limit: run work that may never return on a thread of its own, and abandon it when its time is up.

A caller's validator may loop, sleep or wait for a server. The thread of an executor would then block its event loop and
the end of the process; a daemon thread does not.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Once one item was late, the others get only so long, as a thousand may be late as well.
_SHORT_S: Final = 1.0


class TimeUp(BaseException):
    """Raised in a thread whose time is up, to end its work."""


def each_in_time(work: Callable[[T], R], items: Sequence[T], *, limit_s: float, late: R) -> list[R]:
    """Return the results of `work` for each item, in order; `late` for each that takes longer than `limit_s`.

    An exception of `work` is raised to the caller.
    """
    done: list[R] = []
    while len(done) < len(items):
        batch = _Batch(work, items[len(done) :])
        batch.run(limit_s)
        done += batch.results
        if batch.error is not None:
            raise batch.error
        if len(done) < len(items):
            done.append(late)
            limit_s = min(limit_s, _SHORT_S)
    return done


class _Batch(Generic[T, R]):
    """Processes items on one thread, one after the other, until one of them is late."""

    def __init__(self, work: Callable[[T], R], items: Sequence[T]) -> None:
        self._work, self._items = work, items
        self._results: list[R] = []
        self._began = time.monotonic()
        # Locked by the thread while it adds a result, and by a caller that abandons it, so that none is added later.
        self._lock = threading.Lock()
        self._is_abandoned = False
        self.results: list[R] = []
        self.error: BaseException | None = None

    def run(self, limit_s: float) -> None:
        thread = threading.Thread(target=copy_context().run, args=(self._run,), name="pollux-aside", daemon=True)
        thread.start()
        while thread.is_alive():
            left = limit_s - (time.monotonic() - self._began)
            if left > 0:
                thread.join(left)
                continue
            with self._lock:
                if time.monotonic() - self._began < limit_s:  # the next item has begun meanwhile
                    continue
                self._is_abandoned = True
            _interrupt(thread)
            break
        self.results = [*self._results]

    def _run(self) -> None:
        try:
            for item in self._items:
                result = self._work(item)
                with self._lock:
                    if self._is_abandoned:
                        return
                    self._results.append(result)
                    self._began = time.monotonic()
        except TimeUp:
            pass
        except BaseException as error:  # noqa: BLE001 (raised where the results are waited for)
            self.error = error


def _interrupt(thread: threading.Thread) -> None:
    """End a loop in Python code, which would otherwise use its share of the processor forever."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeUp))
