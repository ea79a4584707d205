"""File threads: files are read on daemon threads that can be abandoned.

A read that hangs, on an unresponsive server or a lost mount, cannot be interrupted. A thread of an executor would then
block the shutdown of its event loop and of the process; these threads are abandoned and end with the process.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from pollux_flows.address import redact_location
from pollux_flows.daemon_thread import start_daemon
from pollux_flows.errors import SourceError

T = TypeVar("T")

# A read fails after so long without data.
STALL_S: Final = 60.0
# Enough to saturate a disk or a bucket.
THREADS: Final = 16
_turns: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]] = WeakKeyDictionary()
_THREAD: Final = "pollux-reading"


class AbandonedWork(Exception):  # noqa: N818 (not an error: it ends abandoned work)
    """Raised in a thread whose work was abandoned, to end it."""


class Pulse:
    """The heartbeat of work on files: a beat for each file, and for each piece of one."""

    def __init__(self, name: str = "", limit_s: float = math.inf) -> None:
        self._name, self._limit_s, self._over = name, limit_s, False
        self._began = self._last = time.monotonic()

    def beat(self, name: str) -> None:
        """Record progress on this file; raise if the work was abandoned."""
        if self._over:
            raise AbandonedWork
        self._last = time.monotonic()
        if name != self._name:
            self._name, self._began = name, self._last

    def stop(self) -> None:
        """Make the work end at its next beat."""
        self._over = True

    def patience(self) -> float:
        """Return the time left until the next beat is due. Raises an error that names the file if it is overdue.

        The total time for one file is limited as well, even if bytes keep arriving slowly.
        """
        now = time.monotonic()
        if (left := STALL_S - (now - self._last)) <= 0:
            raise _stalled_error(self._name)
        if (left_in_all := self._limit_s - (now - self._began)) <= 0:
            raise _too_slow(self._name, self._limit_s)
        return min(left, left_in_all)


async def run_on_thread(work: Callable[[Pulse], T], name: str = "", *, limit_s: float = math.inf) -> T:
    """Run `work` on a thread and return its result; abandon the thread if it stalls or the caller is cancelled.

    `name` is the first file to be read, and `limit_s` bounds the time for one file.
    """
    async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(THREADS)):
        pulse = Pulse(name, limit_s)
        working = asyncio.wrap_future(start_daemon(lambda: work(pulse), _THREAD))
        try:
            while not working.done():
                await asyncio.wait({working}, timeout=pulse.patience())
            return working.result()
        finally:
            pulse.stop()
            working.cancel()


def run_and_wait(work: Callable[[Pulse], T], name: str) -> T:
    """Run `work` on another thread and block until its result; abandon that thread if it stalls."""
    pulse = Pulse(name)
    working = start_daemon(lambda: work(pulse), _THREAD)
    try:
        while not wait([working], timeout=pulse.patience()).done:
            pass
    finally:
        pulse.stop()
    return working.result()


def is_reading() -> bool:
    """Return whether the current thread is one of those that read files."""
    return threading.current_thread().name == _THREAD


def _stalled_error(name: str) -> SourceError:
    return SourceError(
        f"{redact_location(name)!r} has sent no data for {STALL_S:g} seconds.",
        hint="Check whether this machine can still reach its storage, and run again.",
    )


def _too_slow(name: str, limit_s: float) -> SourceError:
    return SourceError(
        f"{redact_location(name)!r} was not read to its end within {limit_s:g} seconds.",
        hint="Raise Config.timeout_s, or copy the file to where it is read faster.",
    )
