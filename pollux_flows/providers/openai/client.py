"""The connection to OpenAI, one per run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pollux_flows.base_url import OWN_ADDRESSES
from pollux_flows.config import Config
from pollux_flows.providers import http

if TYPE_CHECKING:
    from openai import AsyncOpenAI


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[AsyncOpenAI]:
    from openai import AsyncOpenAI  # costs 0.3 s, needed only when a call is made

    async with http.sdk_client(config, OWN_ADDRESSES["openai"]) as transport:
        # Retries are ours, as the SDK's would send, and pay for, requests that are not counted.
        client = AsyncOpenAI(
            api_key=http.key(config),
            base_url=http.address(config, OWN_ADDRESSES["openai"]),
            max_retries=0,
            timeout=transport.timeout,
            http_client=transport,
        )
        client.admin_api_key = None  # our calls need no administrator's key
        if not config.may_use_environment:  # the SDK has read the environment nevertheless
            client.organization = client.project = None
            client._custom_headers = {}  # noqa: SLF001 (OPENAI_CUSTOM_HEADERS: no argument switches it off)
        yield client
