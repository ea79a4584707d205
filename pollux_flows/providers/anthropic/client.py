"""One Anthropic client a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pollux_flows.config import Config
from pollux_flows.providers import http

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

URL = "https://api.anthropic.com"


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[AsyncAnthropic]:
    from anthropic import AsyncAnthropic  # costs 0.6 s, needed only when a call is made

    async with http.sdk_client(config, URL) as transport:
        # Retries are ours: the SDK's would obey a Retry-After of any length, inside our slot.
        yield AsyncAnthropic(
            api_key=http.key(config),
            base_url=http.address(config, URL),
            max_retries=0,
            timeout=transport.timeout,
            http_client=transport,
        )
