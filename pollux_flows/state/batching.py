"""Batching: executes the operations of a store on one thread, for callers on any thread and event loop.

So no event loop waits for a disk or a network. Operations that arrive while the thread is busy form its next batch, in
their order, and share a commit or a round trip. A forked process starts its own thread.
"""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

W = TypeVar("W")

# Both are held during a fork: otherwise the child would inherit a lock that none of its threads releases. `unforkable`
# is for calls into a library that has such locks. It is acquired second, because garbage collection in a thread that
# holds `_queues` may need it.
_queues: Final = threading.Lock()
unforkable: Final = threading.RLock()


def _before_fork() -> None:
    _queues.acquire()
    unforkable.acquire()


def _after_fork() -> None:
    unforkable.release()
    _queues.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


@dataclass(frozen=True)
class _Operation(Generic[W]):
    work: W
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]


class Batcher(Generic[W]):
    """Executes work in batches of about `limit`, as measured by `size_of`, on one thread.

    `execute` returns an outcome for each piece of work, which may be an exception. If it raises an exception itself,
    all waiting callers get it. `after_batch` is called once the outcomes are delivered, and `after_fork` before the
    first work in a child process.
    """

    def __init__(
        self,
        execute: Callable[[list[W]], Sequence[Any]],
        *,
        limit: int,
        size_of: Callable[[W], int] = lambda _: 1,
        after_batch: Callable[[], None] = lambda: None,
        after_fork: Callable[[], None] = lambda: None,
    ) -> None:
        self._execute, self._limit, self._size_of = execute, limit, size_of
        self._after_batch, self._after_fork = after_batch, after_fork
        self._is_busy = False
        self._start()

    async def run(self, work: W) -> Any:
        """Return the outcome of the work. It is executed even if the caller is cancelled."""
        loop = asyncio.get_running_loop()
        operation = _Operation(work, loop, loop.create_future())
        with _queues:
            if self._process != os.getpid():
                self._start()
                self._after_fork()
            self._queue.append(operation)
            if not self._is_busy:
                self._executor.submit(self._run_batches)
                self._is_busy = True
        return await operation.done

    def close(self, last: Callable[[], None]) -> None:
        """Wait for all work, call `last` on the thread and end the thread. The next work starts a new one."""
        self._executor.submit(last)
        self._executor.shutdown(wait=True)
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pollux-state")
        self._queue: deque[_Operation[W]] = deque()
        self._is_busy = False

    def _run_batches(self) -> None:
        while batch := self._next_batch():
            try:
                outcomes = self._execute([operation.work for operation in batch])
            except Exception as error:  # noqa: BLE001 (which the callers get; the thread goes on)
                with _queues:  # callers that arrived meanwhile need not wait for the same error
                    batch += self._queue
                    self._queue.clear()
                outcomes = [copy.copy(error) for _ in batch]  # so that each has its own traceback
            _resolve(batch, outcomes)
            self._after_batch()

    def _next_batch(self) -> list[_Operation[W]]:
        batch: list[_Operation[W]] = []
        size = 0
        with _queues:
            while self._queue and size < self._limit:
                batch.append(self._queue.popleft())
                size += self._size_of(batch[-1].work)
            self._is_busy = len(batch) > 0
        return batch


def _resolve(batch: Sequence[_Operation[Any]], outcomes: Sequence[Any]) -> None:
    """Wake the callers, with one wake-up for each event loop, as each takes the GIL for milliseconds."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = defaultdict(list)
    for operation, outcome in zip(batch, outcomes, strict=True):
        by_loop[operation.loop].append((operation.done, outcome))
    for loop, resolved in by_loop.items():
        with suppress(RuntimeError):  # the loop was closed meanwhile, and its coroutines with it
            loop.call_soon_threadsafe(_resolve_on_loop, resolved)


def _resolve_on_loop(resolved: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for done, outcome in resolved:
        if done.done():  # cancelled
            continue
        if isinstance(outcome, Exception):
            done.set_exception(outcome)
        else:
            done.set_result(outcome)
