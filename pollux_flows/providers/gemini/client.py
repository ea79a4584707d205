"""The Gemini client, one per run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pollux_flows.base_url import OWN_ADDRESSES
from pollux_flows.config import Config
from pollux_flows.providers import http
from pollux_flows.providers.base import UpstreamError
from pollux_flows.providers.chat import json_or_text

if TYPE_CHECKING:
    import httpx2
    from google.genai import Client
    from google.genai.client import AsyncClient

URL = OWN_ADDRESSES["gemini"]
_VERSION = "v1"
_OK = 200


@dataclass(frozen=True)
class Connection:
    """The SDK's client and, for JSON that the SDK does not expose, direct requests over the same connections."""

    # Holds the Client, not its `aio` half: once the Client is garbage-collected, that half is closed.
    sdk: Client
    _transport: httpx2.AsyncClient
    _base: str
    _key: str = field(repr=False)

    @property
    def aio(self) -> AsyncClient:
        return self.sdk.aio

    async def ask(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """Send a request and return the JSON of its response unchanged. Raises an UpstreamError for an error status."""
        response = await self._transport.request(
            method,
            f"{self._base.rstrip('/')}/{_VERSION}/{path}",
            params=query,
            json=body,
            headers={"x-goog-api-key": self._key},
        )
        if response.status_code != _OK:
            raise UpstreamError(response.status_code, json_or_text(response), headers=response.headers)
        return response.json()


@asynccontextmanager
async def connect(config: Config) -> AsyncIterator[Connection]:
    from google.genai import Client, types  # costs 0.3 s, needed only when a call is made
    from google.genai.client import DebugConfig

    base, key = http.address(config, URL), http.key(config)
    async with http.sdk_client(config, URL) as transport:
        with http.idle_client() as idle:
            sdk = Client(
                api_key=key,
                vertexai=False,  # otherwise GOOGLE_GENAI_USE_VERTEXAI in the environment would change every path
                # Otherwise GOOGLE_GENAI_CLIENT_MODE could record each call to a file, or replay it from one.
                debug_config=DebugConfig(client_mode=None),
                http_options=types.HttpOptions(
                    base_url=base,
                    api_version=_VERSION,
                    timeout=int(config.timeout_s * 1000),
                    httpx_async_client=transport,
                    httpx_client=idle,
                    async_client_args={"ssl": http.tls()},  # unused, but otherwise the SDK reads all certificates
                ),
            )
            yield Connection(sdk, transport, base, key)
