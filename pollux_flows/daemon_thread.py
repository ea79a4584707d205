"""Daemon thread: runs a function that may never return, without blocking the event loop or the end of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def start_daemon(work: Callable[[], T], name: str) -> Future[T]:
    """Run `work` on a daemon thread of this name, with the context variables of the caller; return its future."""
    future = Future[T]()
    future.set_running_or_notify_cancel()  # so that it can no longer be cancelled
    context = copy_context()

    def run() -> None:
        try:
            result = context.run(work)
        except BaseException as error:  # noqa: BLE001 (raised where the result is awaited)
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
