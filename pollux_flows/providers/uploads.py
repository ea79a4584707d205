"""Uploads: send files to a provider, each on a thread and an event loop of its own.

The SDKs read the files to upload with blocking calls, and google-genai sleeps in one between attempts. On the event
loop of the run, a large file, or one with a slow storage, would block every other call.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, Final, Literal, Protocol, TypeVar

from pollux_flows.config import Config
from pollux_flows.providers.base import GenerateModule
from pollux_flows.state.upload import Uploaded

T = TypeVar("T")
# The time that a finished run waits for uploads that do not react to cancellation.
_PATIENCE_S: Final = 3.0
_log: Final = logging.getLogger("pollux_flows")

Purpose = Literal["source", "batch"]
"""The purpose of a file: a source for calls, or the rows of a batch."""


@dataclass(frozen=True)
class FileToSend:
    """A file to upload, which can be found by its name if the reply is lost."""

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


class UploadThreads:
    """The upload threads of a run, one for each concurrent upload, started when needed and ended with the run."""

    def __init__(self, config: Config, client: GenerateModule) -> None:
        self._config, self._client = config, client
        self._threads: list[_UploadThread] = []
        self._idle: list[_UploadThread] = []

    async def run(self, operation: Callable[[Any], Awaitable[T]]) -> T:
        """Run `operation` with the client of a thread, on its event loop. A cancelled caller does not wait for it."""
        if self._idle:
            thread = self._idle.pop()
        else:
            self._threads.append(thread := _UploadThread(self._config, self._client))
        # A thread that hangs is not reused: it is idle again only once the operation has actually ended.
        return await asyncio.wrap_future(thread.begin(operation, lambda: self._idle.append(thread)))

    async def close(self) -> None:
        """Cancel the uploads and end the threads. A thread that hangs in a read is abandoned."""
        if self._threads:
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        for thread in self._threads:
            thread.end()
        deadline = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if hanging := sum(thread.is_alive() for thread in self._threads):
            _log.warning("%d upload(s) hang, probably in reading a file, and are abandoned.", hanging)


class _UploadThread(threading.Thread):
    """A daemon thread with an event loop and a client, which runs one upload at a time."""

    def __init__(self, config: Config, client: GenerateModule) -> None:
        super().__init__(name="pollux-upload", daemon=True)
        self._config, self._module = config, client
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._open = AsyncExitStack()
        self._client: Any = None
        self.start()

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    def begin(self, operation: Callable[[Any], Awaitable[T]], then: Callable[[], None]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._do(operation, then), self._loop)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)

    async def _serve(self) -> None:
        async with self._open:
            await self._ended.wait()
            under_way = asyncio.all_tasks() - {asyncio.current_task()}
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _do(self, operation: Callable[[Any], Awaitable[T]], then: Callable[[], None]) -> T:
        try:
            if self._client is None:
                self._client = await self._open.enter_async_context(self._module.connect(self._config))
            return await operation(self._client)
        finally:
            then()
