"""Files at Anthropic."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, cast

from pollux_flows.providers.uploads import FileToSend
from pollux_flows.state.upload import Uploaded

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

# The lifetime of a file at the provider, which is longer than a batch may take.
STORED_S: Final = 48 * 3600
GONE: Final = frozenset({404})


async def upload(client: AsyncAnthropic, file: FileToSend) -> Uploaded:
    asked_at = time.time()
    content = (file.name, cast(Any, file.body), file.mime_type)
    stored = await client.files.upload(file=content, expires_in_seconds=STORED_S)
    return Uploaded(file_id=stored.id, expires_at=asked_at + STORED_S)


async def ready(_client: AsyncAnthropic, uploaded: Uploaded) -> Uploaded:
    """Return the file, which is ready at once."""
    return uploaded


async def check(client: AsyncAnthropic, file_id: str) -> None:
    await client.files.retrieve_metadata(file_id)


async def delete(client: AsyncAnthropic, file_id: str) -> None:
    await client.files.delete(file_id)


async def names(client: AsyncAnthropic) -> AsyncIterator[tuple[str, str]]:
    """Iterate over the id and the name of every file."""
    async for file in client.files.list(limit=1000):
        yield file.id, file.filename
