"""Parses the body of a new Anthropic batch; the `params` of its rows are checked only when they are answered."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from pollux_flows.simulator.anthropic.rules import check_version, describe
from pollux_flows.simulator.batch.row_input import body_for_log, read_rows, spool_and_read
from pollux_flows.simulator.long_json import LongJson
from pollux_flows.simulator.shape import Mismatch, anything, items, mapping, record, text
from pollux_flows.simulator.spool import Spool
from pollux_flows.simulator.wire import BadRequest, Call

LIMIT_BYTES = 256 * 1024 * 1024
LIMIT_ROWS = 100_000
ID_CHARS = 64
_ID = re.compile(r"[a-zA-Z0-9_-]+")
_ROW = record({"custom_id": text, "params": mapping})
_REQUEST = record({"requests": items(anything)})


async def receive(call: Call, incoming: AsyncIterator[bytes]) -> Any:
    check_version(call)
    return await spool_and_read(incoming, LIMIT_BYTES, partial(_read, call))


def _read(call: Call, body: Spool) -> Any:
    document = LongJson(body.chunks(), ("requests",))
    ids: set[str] = set()

    def check(place: int, row: Any) -> Any:
        if place == LIMIT_ROWS:
            raise BadRequest(f"requests: List should have at most {LIMIT_ROWS} items after validation")
        _check_shape(_ROW, row, ("requests", place))
        _check_id(row["custom_id"], place, ids)
        return row

    call.prepared = rows = read_rows(document, check)
    call.spools.append(rows.spool)
    _check_shape(_REQUEST, document.rest, ())
    if not rows:
        raise BadRequest("requests: List should have at least 1 item after validation, not 0")
    return body_for_log(body, document)


def _check_shape(shape: Any, value: Any, path: tuple[str | int, ...]) -> None:
    try:
        shape(value, path)
    except Mismatch as mismatch:
        raise BadRequest(describe(mismatch)) from None


def _check_id(custom_id: str, place: int, ids: set[str]) -> None:
    at = f"requests.{place}.custom_id"
    if not custom_id:
        raise BadRequest(f"{at}: String should have at least 1 character")
    if len(custom_id) > ID_CHARS:
        raise BadRequest(f"{at}: String should have at most {ID_CHARS} characters")
    if not _ID.fullmatch(custom_id):
        raise BadRequest(f"{at}: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
    if custom_id in ids:
        raise BadRequest(f"{at}: custom_id '{custom_id}' is not unique within this batch")
    ids.add(custom_id)
