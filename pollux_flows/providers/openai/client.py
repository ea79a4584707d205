"""One OpenAI client a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pollux_flows.config import Config
from pollux_flows.providers import http

if TYPE_CHECKING:
    from openai import AsyncOpenAI

URL = "https://api.openai.com/v1"


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[AsyncOpenAI]:
    from openai import AsyncOpenAI  # costs 0.3 s, needed only when a call is made

    async with http.sdk_client(config, URL) as transport:
        # Retries are ours: the SDK's would ask, and pay, again where nobody counts.
        yield AsyncOpenAI(
            api_key=http.key(config),
            base_url=http.address(config, URL),
            max_retries=0,
            timeout=transport.timeout,
            http_client=transport,
        )
