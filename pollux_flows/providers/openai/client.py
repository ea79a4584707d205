"""The OpenAI client, one a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pollux_flows.config import OWN_ADDRESSES, Config
from pollux_flows.providers import http

if TYPE_CHECKING:
    from openai import AsyncOpenAI

URL = OWN_ADDRESSES["openai"]


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[AsyncOpenAI]:
    from openai import AsyncOpenAI  # costs 0.3 s, needed only when a call is made

    async with http.sdk_client(config, URL) as transport:
        # Retries are ours: the SDK's would send, and pay for, requests that nothing counts.
        client = AsyncOpenAI(
            api_key=http.key(config),
            base_url=http.address(config, URL),
            max_retries=0,
            timeout=transport.timeout,
            http_client=transport,
        )
        client.admin_api_key = None  # no call of ours is an administrator's
        if not config.may_use_environment:  # the SDK has read the environment all the same
            client.organization = client.project = None
            client._custom_headers = {}  # noqa: SLF001 (OPENAI_CUSTOM_HEADERS: no argument switches it off)
        yield client
