"""Uploads: sends files to a provider, each on a thread and an event loop of its own.

The SDKs read the files to upload with blocking calls, and google-genai sleeps in one between attempts: on the
event loop of the run, a large file, or one whose storage is slow, would stop every other call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, Literal, Protocol, TypeVar

from pollux_flows.config import Config
from pollux_flows.providers.base import GenerateModule
from pollux_flows.state.upload import Uploaded

T = TypeVar("T")

Purpose = Literal["source", "batch"]
"""The purpose of a file: a source for calls, or the rows of a batch."""


@dataclass(frozen=True)
class FileToSend:
    """A file to upload. It can be found by its name if all other records of the upload were lost."""

    name: str
    mime_type: str
    size_bytes: int
    body: BufferedIOBase
    purpose: Purpose = "source"


class FilesModule(Protocol):
    """The interface of `files.py`: files that a provider stores for a while."""

    async def upload(self, client: Any, file: FileToSend, /) -> Uploaded: ...

    async def ready(self, client: Any, uploaded: Uploaded, /) -> Uploaded: ...

    @property
    def GONE(self) -> frozenset[int]:  # noqa: N802 (a constant of the module)
        """The statuses that answer requests about a file which the provider does not have."""
        ...

    async def check(self, client: Any, file_id: str, /) -> None:
        """Raise if the provider does not have the file."""
        ...

    async def delete(self, client: Any, file_id: str, /) -> None: ...

    def names(self, client: Any, /) -> AsyncIterator[tuple[str, str]]: ...


async def run_on_thread(module: GenerateModule, config: Config, operation: Callable[[Any], Awaitable[T]]) -> T:
    """Run `operation` with a client of its own, on a daemon thread with an event loop.

    If the caller is cancelled, so is the operation, but the caller does not wait for it: a thread that hangs in a read
    is abandoned.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # from here on it cannot be cancelled
    loop = asyncio.new_event_loop()

    async def work() -> T:
        async with module.connect(config) as client:
            return await operation(client)

    def serve() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                result = runner.run(work())
        except BaseException as error:  # noqa: BLE001 (raised in the caller)
            done.set_exception(error)
        else:
            done.set_result(result)

    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    # With the caller's context, which holds the limits of the run.
    threading.Thread(target=copy_context().run, args=(serve,), name="pollux-upload", daemon=True).start()
    try:
        return await asyncio.wrap_future(done)
    except asyncio.CancelledError:
        with suppress(RuntimeError):  # the loop is closed: the operation has just ended
            loop.call_soon_threadsafe(cancel)
        raise
