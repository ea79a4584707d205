"""The connection to OpenRouter, one a run."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from pollux_flows.config import OWN_ADDRESSES, Config
from pollux_flows.providers import http

if TYPE_CHECKING:
    import httpx2

URL = OWN_ADDRESSES["openrouter"]


def connect(config: Config) -> AbstractAsyncContextManager[httpx2.AsyncClient]:
    return http.own_client(config, URL)
