"""The connection to Anthropic, one per run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pollux_flows.base_url import OWN_ADDRESSES
from pollux_flows.config import Config
from pollux_flows.providers import http

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[AsyncAnthropic]:
    from anthropic import AsyncAnthropic  # costs 0.6 s, needed only when a call is made

    async with http.sdk_client(config, OWN_ADDRESSES["anthropic"]) as transport:
        # Retries are ours, as the SDK's would wait for a Retry-After of any length while our slot is occupied.
        client = AsyncAnthropic(
            api_key=http.key(config),
            base_url=http.address(config, OWN_ADDRESSES["anthropic"]),
            max_retries=0,
            timeout=transport.timeout,
            http_client=transport,
        )
        client.auth_token = None  # the key is the only credential, whatever the environment holds
        if not config.may_use_environment:  # the SDK has read the environment nevertheless
            client._custom_headers = {}  # noqa: SLF001 (ANTHROPIC_CUSTOM_HEADERS: no argument switches it off)
        yield client
