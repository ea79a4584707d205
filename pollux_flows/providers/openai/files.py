"""Files at OpenAI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from pollux_flows.providers.uploads import FileToSend, Purpose
from pollux_flows.state.upload import Uploaded

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# The lifetime of a file at the provider, which is longer than a batch may take.
STORED_S: Final = 48 * 3600
GONE: Final = frozenset({404})
_PURPOSES: Final[dict[Purpose, Literal["user_data", "batch"]]] = {"source": "user_data", "batch": "batch"}


async def upload(client: AsyncOpenAI, file: FileToSend) -> Uploaded:
    stored = await client.files.create(
        file=(file.name, cast(Any, file.body), file.mime_type),
        purpose=_PURPOSES[file.purpose],
        expires_after={"anchor": "created_at", "seconds": STORED_S},
    )
    return Uploaded(file_id=stored.id, expires_at=(stored.expires_at or stored.created_at + STORED_S))


async def ready(_client: AsyncOpenAI, uploaded: Uploaded) -> Uploaded:
    """Return the file, which is ready at once."""
    return uploaded


async def check(client: AsyncOpenAI, file_id: str) -> None:
    await client.files.retrieve(file_id)


async def delete(client: AsyncOpenAI, file_id: str) -> None:
    await client.files.delete(file_id)


async def names(client: AsyncOpenAI) -> AsyncIterator[tuple[str, str]]:
    """Iterate over the id and the name of every file with a purpose that we upload for."""
    # The API filters by one purpose or none; a page has ten thousand files.
    async for file in client.files.list():
        if file.purpose in _PURPOSES.values():
            yield file.id, file.filename
