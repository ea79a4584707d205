"""Files at Gemini."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from pollux_flows.providers.base import UpstreamError
from pollux_flows.providers.uploads import FileToSend
from pollux_flows.state.upload import Uploaded

if TYPE_CHECKING:
    from pollux_flows.providers.gemini.client import Connection

# The lifetime of a file at Google; it cannot be chosen.
STORED_S: Final = 48 * 3600
_NOT_READY: Final = {"PROCESSING", "FAILED"}
_POLL_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
# Gemini answers "forbidden" for a file that does not exist, or that belongs to another account.
GONE: Final = frozenset({403, 404})


async def upload(client: Connection, file: FileToSend) -> Uploaded:
    from google.genai import types

    asked_at = time.time()
    config = types.UploadFileConfig(mime_type=file.mime_type, display_name=file.name)
    stored = await client.aio.files.upload(file=file.body, config=config)
    return Uploaded(
        file_id=stored.name or "",
        uri=stored.uri,
        expires_at=stored.expiration_time.timestamp() if stored.expiration_time else asked_at + STORED_S,
        details={"state": stored.state.value} if stored.state and stored.state.value in _NOT_READY else {},
    )


async def ready(client: Connection, uploaded: Uploaded) -> Uploaded:
    """Wait until Gemini has processed the file (a video takes a while), and return it. Raises if that fails."""
    polls = 0
    while uploaded.details:
        file = await client.aio.files.get(name=uploaded.file_id)
        state = file.state.value if file.state else None
        if state == "FAILED":
            reason = (file.error and file.error.message) or "no reason given"
            raise UpstreamError(400, {"error": {"message": f"the file could not be processed: {reason}"}})
        if state not in _NOT_READY:
            return uploaded.model_copy(update={"details": {}})
        await asyncio.sleep(_POLL_S[min(polls, len(_POLL_S) - 1)])
        polls += 1
    return uploaded


async def check(client: Connection, file_id: str) -> None:
    await client.aio.files.get(name=file_id)


async def delete(client: Connection, file_id: str) -> None:
    await client.aio.files.delete(name=file_id)


async def names(client: Connection) -> AsyncIterator[tuple[str, str]]:
    """Iterate over the id and the name of every file."""
    async for file in await client.aio.files.list(config={"page_size": 100}):
        yield file.name or "", file.display_name or ""
