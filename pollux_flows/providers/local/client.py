"""The connection to a local server, one a run."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from pollux_flows.config import Config
from pollux_flows.providers import http

if TYPE_CHECKING:
    import httpx2

URL = "http://127.0.0.1"  # never used: a Config without base_url is refused


def connect(config: Config) -> AbstractAsyncContextManager[httpx2.AsyncClient]:
    return http.own_client(config, URL)
