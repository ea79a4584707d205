"""Request bodies that contain the rows of a batch: received piece by piece, and parsed row by row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import orjson

from pollux_flows.simulator.batch.rows import Rows
from pollux_flows.simulator.long_json import BadJsonError, LongJson
from pollux_flows.simulator.spool import CONTENT_LIMIT_BYTES, Spool
from pollux_flows.simulator.wire import BadRequest, Refusal


async def spool_and_read(incoming: AsyncIterator[bytes], limit_bytes: int, read: Callable[[Spool], Any]) -> Any:
    """Spool the body and return the result of `read` on it; refuse one that is longer than the limit."""
    with closing(Spool()) as body:
        async for piece in incoming:
            body.write(piece)
            if body.size > limit_bytes:
                raise Refusal(413)
        return await asyncio.to_thread(read, body)


def read_rows(document: LongJson, check: Callable[[int, Any], Any]) -> Rows:
    """Read the rows of the document, each as returned by `check`."""
    rows = Rows()
    try:
        for place, item in enumerate(document.items()):
            rows.add(orjson.dumps(check(place, item)))
    except (BadJsonError, TypeError):
        rows.spool.close()
        raise _invalid_json() from None
    except Refusal:
        rows.spool.close()
        raise
    return rows


def body_for_log(body: Spool, document: LongJson) -> Any:
    """Return the body for the log: a short one in full, a long one with its first row only."""
    if body.size > CONTENT_LIMIT_BYTES:
        return document.rest
    try:
        return orjson.loads(b"".join(body.chunks()))
    except orjson.JSONDecodeError:
        # orjson is stricter than the parser of the rows: it refuses lone surrogates.
        raise _invalid_json() from None


def _invalid_json() -> Refusal:
    return BadRequest("We could not parse the JSON body of your request.")
