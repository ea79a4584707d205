"""Uploads: files on their way to a provider, on a thread and an event loop of their own.

The SDKs read the files they are given with blocking calls, and google-genai sleeps in one between attempts: on the
event loop of the run, a large file would stop every other call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeVar, cast

from anyio.from_thread import BlockingPortal, start_blocking_portal

from pollux_flows.config import Config
from pollux_flows.providers.base import ClientModule
from pollux_flows.providers.content import HashingReader
from pollux_flows.state.upload import Uploaded

T = TypeVar("T")


@dataclass(frozen=True)
class FileToSend:
    """A file for a provider. Its name is one that can be found again if all else about the upload was lost."""

    name: str
    mime_type: str
    size_bytes: int
    body: HashingReader


class FilesModule(Protocol):
    """`files.py`: files that a provider keeps for a while."""

    async def upload(self, client: Any, file: FileToSend, /) -> Uploaded: ...

    async def exists(self, client: Any, file_id: str, /) -> bool: ...

    async def delete(self, client: Any, file_id: str, /) -> None: ...

    async def find(self, client: Any, marker: str, /) -> list[str]: ...


class UploadThread:
    """Started by the first upload of a run, and ended with the run."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._portal: BlockingPortal | None = None
        self._stack = ExitStack()

    async def run(self, operation: Callable[[Any], Awaitable[T]]) -> T:
        """`operation` with a client that belongs to the thread's own event loop."""
        if self._portal is None:
            self._portal = self._stack.enter_context(start_blocking_portal())
        return await asyncio.wrap_future(self._portal.start_task_soon(self._connected, operation))

    async def close(self) -> None:
        """End the thread; an upload that is still under way is cancelled."""
        if self._portal is not None:
            await asyncio.to_thread(self._stack.close)

    async def _connected(self, operation: Callable[[Any], Awaitable[T]]) -> T:
        module = cast(ClientModule, import_module(f"pollux_flows.providers.{self._config.provider}.client"))
        async with module.connect(self._config) as client:
            return await operation(client)
