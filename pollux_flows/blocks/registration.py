"""Registration of this package's block types on a Prefect server, and access to saved blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from pollux_flows import blocks
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import Config
from pollux_flows.errors import PolluxError


async def aregister_block_types() -> None:
    """Register all block types, so that the UI offers them, and lists saved blocks in the forms of the flows."""
    for name in blocks.__all__:
        await getattr(blocks, name).aregister_type_and_schema()


def register_block_types() -> None:
    """Register all block types. For scripts, and as a step of a `prefect.yaml`."""
    asyncio.run(aregister_block_types())


async def read_documents(client: PrefectClient, kind: type[Block]) -> list[BlockDocument]:
    """Return all saved blocks of a type; none if the type is not registered yet."""
    try:
        return await client.read_block_documents_by_type(kind.get_block_type_slug())
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 404:  # noqa: PLR2004 (not found)
            raise
    await check_api(client)
    return []


async def check_api(client: PrefectClient) -> None:
    """Raise an HTTPStatusError if there is no Prefect API at the configured address."""
    await client.api_version()


async def read_document(client: PrefectClient, kind: type[Block], name: str) -> BlockDocument | None:
    """Return the saved block of this type and name; None if there is none."""
    try:
        return await client.read_block_document_by_name(name, kind.get_block_type_slug())
    except ObjectNotFound:
        return None


def has_current_form(document: BlockDocument, kind: type[Block]) -> bool:
    """Return whether a block was saved under the current schema of its type, from which the UI makes its form."""
    schema = document.block_schema
    return schema is not None and schema.checksum == kind._calculate_schema_checksum()  # noqa: SLF001


async def load_saved_configs() -> AsyncIterator[tuple[str, Config | PolluxError]]:
    """Yield the name of each saved provider with its Config, or with the error why this process cannot use it."""
    async with get_client() as client:
        documents = await read_documents(client, PolluxProvider)
    for name in sorted(document.name for document in documents if document.name):
        try:
            yield name, await (await PolluxProvider.named(name)).config()
        except PolluxError as error:
            yield name, error


async def create_document(client: PrefectClient, block: Block, name: str) -> BlockDocument:
    """Save a new block under this name. Raises ObjectAlreadyExists if the name is taken."""
    kind = type(block)
    await kind.register_type_and_schema(client=client)
    type_id, schema_id = kind._block_type_id, kind._block_schema_id  # noqa: SLF001
    document = BlockDocumentCreate(name=name, data=data_of(block), block_type_id=type_id, block_schema_id=schema_id)
    return await client.create_block_document(document)


def data_of(block: Block) -> dict[str, Any]:
    """Return the fields of a block, as its document stores them."""
    return {name: getattr(block, name) for name in type(block).model_fields}
