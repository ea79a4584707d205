"""The connection to the Prefect server: that of the current flow run, or a new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from email.utils import parsedate_to_datetime

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.context import AsyncClientContext
from prefect.settings import PREFECT_API_URL

from pollux_flows.address import redact_address


@asynccontextmanager
async def open_client() -> AsyncIterator[PrefectClient]:
    """Open a client of the Prefect server."""
    context = AsyncClientContext.get()
    if context is not None and context.client.loop is asyncio.get_running_loop():
        yield context.client
        return
    async with get_client() as client:
        yield client


@contextmanager
def suppress_status(code: int) -> Iterator[None]:
    """Suppress the error of a request that the Prefect server answers with this status."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code != code:
            raise


def describe_silence(error: Exception) -> str:
    """Return a message, with advice, that the Prefect server does not answer."""
    url = redact_address(PREFECT_API_URL.value() or "")
    where = "PREFECT_API_URL" if "/api" in url.partition("://")[2] else "PREFECT_API_URL: it ends in /api"
    return f"The Prefect server at {url} does not answer ({error}). Start it, or correct {where}."


def describe_refusal(error: httpx.HTTPStatusError) -> str:
    """Return a message, with advice, that the Prefect server refused a request."""
    status = error.response.status_code
    if status in {401, 403}:
        advice = "Set PREFECT_API_KEY (Prefect Cloud) or PREFECT_API_AUTH_STRING (your own server)."
    elif status == 404:  # noqa: PLR2004 (not found)
        advice = "Check that PREFECT_API_URL is the address of a Prefect server; it ends in /api."
    else:
        advice = "See the log of the server."
    url = redact_address(PREFECT_API_URL.value() or "")
    return f"The Prefect server at {url} answered {status} {error.response.reason_phrase}. {advice}"


async def read_server_time() -> float | None:
    """Return the time of the Prefect server's clock, to the second; None if the server does not send it."""
    async with open_client() as client:
        response = await client.request("GET", "/health")
    with suppress(TypeError, ValueError):
        return parsedate_to_datetime(response.headers.get("date", "")).timestamp()
    return None
