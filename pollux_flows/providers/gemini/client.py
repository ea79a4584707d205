"""One Gemini client a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pollux_flows.config import Config
from pollux_flows.providers import http

if TYPE_CHECKING:
    from google.genai import Client

URL = "https://generativelanguage.googleapis.com"


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[Client]:
    from google.genai import Client, types  # costs 0.3 s, needed only when a call is made

    async with http.sdk_client(config, URL) as transport:
        with http.idle_client() as idle:
            # The whole Client is handed out, not its `aio` half: once the Client is collected, that half is closed.
            yield Client(
                api_key=http.key(config),
                vertexai=False,  # else GOOGLE_GENAI_USE_VERTEXAI in the environment would change every path
                http_options=types.HttpOptions(
                    base_url=http.address(config, URL),
                    api_version="v1",
                    timeout=int(config.timeout_s * 1000),
                    httpx_async_client=transport,
                    httpx_client=idle,
                ),
            )
