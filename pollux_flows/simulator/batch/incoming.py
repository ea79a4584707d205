"""Request bodies with the rows of a batch: received piece by piece, and read row by row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import orjson

from pollux_flows.simulator.batch.rows import Rows
from pollux_flows.simulator.long_json import BadJsonError, LongJson
from pollux_flows.simulator.spool import KEEP_BYTES, Spool
from pollux_flows.simulator.wire import BadRequest, Refused


async def read_spooled(incoming: AsyncIterator[bytes], limit_bytes: int, read: Callable[[Spool], Any]) -> Any:
    """Spool the body and return the result of `read` on it; refuse one that is longer than the limit."""
    with closing(Spool()) as body:
        async for piece in incoming:
            body.write(piece)
            if body.size > limit_bytes:
                raise Refused(413)
        return await asyncio.to_thread(read, body)


def read_rows(document: LongJson, check: Callable[[int, Any], Any]) -> Rows:
    """Read the rows of the document, each as returned by `check`."""
    rows = Rows()
    try:
        for place, item in enumerate(document.items()):
            rows.add(orjson.dumps(check(place, item)))
    except (BadJsonError, TypeError):
        rows.spool.close()
        raise _no_json() from None
    except Refused:
        rows.spool.close()
        raise
    return rows


def for_the_log(body: Spool, document: LongJson) -> Any:
    """Return the body for the log: a short one in full, a long one with its first row only."""
    if body.size > KEEP_BYTES:
        return document.rest
    try:
        return orjson.loads(b"".join(body.chunks()))
    except orjson.JSONDecodeError:
        # orjson is stricter than the parser of the rows: it refuses lone surrogates.
        raise _no_json() from None


def _no_json() -> Refused:
    return BadRequest("We could not parse the JSON body of your request.")
