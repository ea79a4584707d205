"""Parses the requests of a new Gemini batch, inline or in a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from pollux_flows.simulator.batch.row_input import body_for_log, read_rows, spool_and_read
from pollux_flows.simulator.batch.rows import Rows
from pollux_flows.simulator.gemini import fields, rules
from pollux_flows.simulator.gemini.files import find_active
from pollux_flows.simulator.gemini.uploads import is_job_input
from pollux_flows.simulator.long_json import LongJson
from pollux_flows.simulator.shape import Mismatch
from pollux_flows.simulator.spool import Spool
from pollux_flows.simulator.wire import BadRequest, Call

#: The limit of a request with inline rows; a file may be much longer.
LIMIT_BYTES = 20 * 1024 * 1024
_ROWS_AT = ("batch", "inputConfig", "requests", "requests")


@dataclass
class Input:
    """The settings and rows of a new batch."""

    rows: Rows = field(default_factory=Rows)
    #: The `batch` of the request, with field names in camelCase and its first row only.
    batch: dict[str, Any] = field(default_factory=dict)
    #: Whether each row has a key for its result.
    has_keys: bool = True
    #: The reason why the entire batch fails, if it does.
    problem: str | None = None


async def receive(call: Call, incoming: AsyncIterator[bytes]) -> Any:
    return await spool_and_read(incoming, LIMIT_BYTES, partial(_read, call))


def _read(call: Call, body: Spool) -> Any:
    document = LongJson(body.chunks(), _ROWS_AT, fields.to_camel_case)
    call.prepared = batch_input = Input()

    def check(place: int, row: Any) -> Any:
        message = fields.normal(row)
        if isinstance(row, dict) and "metadata" in row:
            # The names in it are the caller's own.
            message["metadata"] = row["metadata"]
        try:
            fields.BATCH_ROW(message, (*_ROWS_AT, place))
        except Mismatch as mismatch:
            raise BadRequest(fields.describe(mismatch)) from None
        batch_input.has_keys &= bool(message.get("metadata"))
        return message

    batch_input.rows = read_rows(document, check)
    call.spools.append(batch_input.rows.spool)
    batch_input.batch = rules.read_message(document.rest, fields.CREATE_BATCH)["batch"]
    return body_for_log(body, document)


def read_file(call: Call) -> None:
    """Copy the lines of the request's input file, if it has one."""
    batch_input: Input = call.prepared
    source = batch_input.batch["inputConfig"]
    if ("fileName" in source) == ("requests" in source):
        raise BadRequest("* BatchGenerateContentRequest.batch.input_config: exactly one source must be set\n")
    if "fileName" in source:
        _copy(call, source["fileName"], batch_input)
    if not batch_input.rows:
        raise BadRequest("* BatchGenerateContentRequest.batch.input_config: no requests\n")


def _copy(call: Call, name: str, batch_input: Input) -> None:
    file = find_active(call, name)
    if not is_job_input(file.mime_type) or file.spool is None:
        raise BadRequest(f"Unsupported MIME type for the input of a batch: {file.mime_type}. Expected JSONL.")
    for number, line in enumerate(file.spool.lines(), start=1):
        batch_input.rows.add(line)
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            batch_input.has_keys &= "key" in row
        else:
            batch_input.problem = (
                batch_input.problem or f"Failed to parse the input file: line {number} is not a JSON object."
            )
