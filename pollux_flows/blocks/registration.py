"""Registration: this package's block types on a Prefect server, which knows none of them until they are registered."""

from __future__ import annotations

import asyncio

from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import PrefectHTTPStatusError

from pollux_flows import blocks


async def aregister_block_types() -> None:
    """Register all block types, so that the UI offers them and the forms of the flows list the saved ones."""
    for name in blocks.__all__:
        await getattr(blocks, name).aregister_type_and_schema()


def register_block_types() -> None:
    """Register all block types. For scripts, and as a step of a `prefect.yaml`."""
    asyncio.run(aregister_block_types())


async def read_documents(client: PrefectClient, kind: type[Block]) -> list[BlockDocument]:
    """Return all saved blocks of a type: none where the type is not registered yet."""
    try:
        return await client.read_block_documents_by_type(kind.get_block_type_slug())
    except PrefectHTTPStatusError as error:
        if error.response.status_code == 404:  # noqa: PLR2004 (not found)
            return []
        raise
