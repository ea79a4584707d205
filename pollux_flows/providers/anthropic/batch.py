"""Batches at Anthropic: the rows are sent in one request, and the results are one stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import quote

import httpx2

from pollux_flows.errors import APIError, InternalError
from pollux_flows.providers import lines
from pollux_flows.providers.anthropic import generate
from pollux_flows.providers.base import Call, UpstreamError, as_count, as_object, as_text
from pollux_flows.providers.batches import Batch, BatchLimits, BatchState, Result, Rows, paginate_list, parse_time
from pollux_flows.providers.errors import may_pass

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

# 256 MB is the limit of the entire body.
LIMITS: Final = BatchLimits(rows=100_000, size_bytes=256_000_000 - 1000)
TAKES_A_FILE: Final = False
KEEPS_NAMES: Final = False
# The response of a row has the form of that of a call.
read_answer: Final = generate.read_answer

_PATH: Final = "/v1/messages/batches"
_KEY: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_BEFORE, _AFTER = b'{"requests":[', b"]}"
_BLOCK: Final = 1 << 20
_PAGE: Final = 1000
_STATES: Final[dict[str, BatchState]] = {"in_progress": "running", "canceling": "cancelling", "ended": "completed"}


def row(call: Call, key: str) -> bytes:
    if not _KEY.fullmatch(key):
        raise InternalError(f"Anthropic accepts no row with the key {key!r}.")
    return lines.line({"custom_id": key, "params": generate.request(call)})


async def create(client: AsyncAnthropic, _model: str, _tag: str, rows: Rows, _file_id: str | None) -> Batch:
    # Without the SDK, which takes the rows only as objects, perhaps hundreds of megabytes.
    size = len(_BEFORE) + (await asyncio.to_thread(rows.path.stat)).st_size + len(_AFTER)
    options: Any = {"headers": {"content-length": str(size)}}
    return _batch(await client.post(_PATH, content=_body(rows.path), cast_to=object, options=options))


async def _body(path: Path) -> AsyncIterator[bytes]:
    """Stream the rows as a JSON list. Commas replace the line breaks, so its length is known from the file."""
    yield _BEFORE
    with await asyncio.to_thread(path.open, "rb") as file:
        block = await asyncio.to_thread(file.read, _BLOCK)
        while block:
            following = await asyncio.to_thread(file.read, _BLOCK)
            # The last row has no comma after it.
            ended = b"" if following or not block.endswith(b"\n") else b"\n"
            yield block.removesuffix(ended).replace(b"\n", b",") + ended
            block = following
    yield _AFTER


async def get(client: AsyncAnthropic, batch_id: str) -> Batch:
    return _batch(await client.get(f"{_PATH}/{quote(batch_id, safe='')}", cast_to=object))


def pages(client: AsyncAnthropic) -> AsyncIterator[list[Batch]]:
    return paginate_list(client, _PATH, _batch, after="after_id", limit=_PAGE)


async def cancel(client: AsyncAnthropic, batch_id: str) -> None:
    await client.post(f"{_PATH}/{quote(batch_id, safe='')}/cancel", cast_to=object)


async def download(client: AsyncAnthropic, batch: Batch, into: IO[bytes]) -> None:
    if not batch.results:
        raise APIError(
            f"anthropic has no results of the batch {batch.id}.",
            hint="It keeps them for 29 days." if batch.is_ended else "The batch has not ended.",
            retryable=False,
        )
    results = lines.Lines(into)
    for address in batch.results:
        options: Any = {"headers": {"accept": "application/binary"}}
        url = str(_check_origin(client.base_url, address))
        # Without the SDK's `results`, which would fetch the batch again, and send the key to any address in it.
        response = await client.get(url, cast_to=httpx2.Response, options=options, stream=True)
        async with aclosing(response):
            async for block in response.aiter_bytes():
                results.write(block)
        results.end()


def _check_origin(base: httpx2.URL, address: str) -> httpx2.URL:
    """Return the URL of the results. Raises an APIError if it is on another host, which must not get the key."""
    try:
        url = base.join(address)
    except (httpx2.InvalidURL, TypeError, ValueError):
        url = httpx2.URL()
    if _origin(url) != _origin(base):
        raise APIError(
            f"anthropic reports results at {url.host or 'no address'}, but the key is only for {base.host}.",
            hint="If this is correct, set base_url to the address of the results.",
            retryable=False,
        )
    return url


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def result(line: bytes) -> Result:
    row = lines.read(line)
    key, outcome = as_text(row.get("custom_id")), as_object(row.get("result"))
    kind = as_text(outcome.get("type"))
    match kind:
        case None:
            raise ValueError("a line of the results has no result")
        case "succeeded" if isinstance(outcome.get("message"), dict):
            message = outcome["message"]
            return Result(key, "succeeded", response=message, code=as_text(message.get("stop_reason")))
        case "canceled":
            return Result(key, "cancelled", error="The batch was cancelled first.", code=kind, retryable=True)
        case "expired":
            return Result(key, "expired", error="The batch expired first.", code=kind, retryable=True)
    error = as_object(outcome.get("error"))
    inner = as_object(error.get("error")) or error
    code = as_text(inner.get("type")) or kind
    return Result(
        key,
        "failed",
        error=as_text(inner.get("message")) or "no reason given",
        code=code,
        retryable=may_pass(generate.STATUSES.get(code)),
    )


def _batch(body: Any) -> Batch:
    if not isinstance(body, dict) or not isinstance(body.get("id"), str):
        raise UpstreamError.found_in(body)
    native = as_text(body.get("processing_status")) or "unknown"
    counted = as_object(body.get("request_counts"))
    processing, succeeded, errored, canceled, expired = (
        as_count(counted.get(kind)) for kind in ("processing", "succeeded", "errored", "canceled", "expired")
    )
    total = processing + succeeded + errored + canceled + expired
    state = _STATES.get(native, "running")
    if native == "ended" and total and total in {canceled, expired}:
        state = "cancelled" if canceled else "expired"
    results_url = as_text(body.get("results_url"))
    return Batch(
        id=body["id"],
        state=state,
        native=native,
        total=total or None,
        succeeded=succeeded,
        failed=errored + canceled + expired,
        created_at=parse_time(body.get("created_at")),
        ended_at=parse_time(body.get("ended_at")),
        expires_at=parse_time(body.get("expires_at")),
        results=(results_url,) if results_url else (),
    )
