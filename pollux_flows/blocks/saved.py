"""Saved providers: the configs of all PolluxProviders on a Prefect server."""

from __future__ import annotations

from collections.abc import AsyncIterator

from prefect.client.orchestration import get_client

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.blocks.registration import read_documents
from pollux_flows.config import Config
from pollux_flows.errors import PolluxError


async def load_saved_configs() -> AsyncIterator[tuple[str, Config | PolluxError]]:
    """Yield, by name, the config of each saved provider, or why this process cannot use it."""
    async with get_client() as client:
        documents = await read_documents(client, PolluxProvider)
    for name in sorted(document.name for document in documents if document.name):
        try:
            yield name, await (await PolluxProvider.named(name)).config()
        except PolluxError as error:
            yield name, error
