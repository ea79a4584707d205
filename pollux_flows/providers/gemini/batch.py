"""Batches at Gemini: the rows are one file, and the results another.

The SDK drops the counts of a batch and the reason of a failure, and fails on an empty page, so the JSON is requested
and read without it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

from pollux_flows.providers import lines
from pollux_flows.providers.base import Call, UpstreamError, as_object, as_text
from pollux_flows.providers.batches import (
    Batch,
    BatchLimits,
    BatchState,
    Result,
    Rows,
    RowStatus,
    paginate,
    parse_batches,
    parse_count,
    parse_time,
)
from pollux_flows.providers.errors import may_pass
from pollux_flows.providers.gemini import generate

if TYPE_CHECKING:
    from pollux_flows.providers.gemini.client import Connection

# Google publishes no limit of rows for this API; on Vertex the same service takes 200,000 per job.
LIMITS: Final = BatchLimits(rows=200_000, size_bytes=2_000_000_000)
TAKES_A_FILE: Final = True
KEEPS_NAMES: Final = True
# The response of a row has the form of that of a call.
read_answer: Final = generate.read_answer

_PAGE: Final = 100
_IN_A_LIST: Final = {"operations", "nextPageToken", "unreachable"}
_STATES: Final[dict[str, BatchState]] = {
    "QUEUED": "queued",
    "PENDING": "queued",
    "RUNNING": "running",
    "PAUSED": "running",
    "UPDATING": "running",
    "CANCELLING": "cancelling",
    "SUCCEEDED": "completed",
    "PARTIALLY_SUCCEEDED": "completed",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "EXPIRED": "expired",
}
# Failed rows carry the number of a google.rpc status; these are the equivalent HTTP statuses.
_CANCELLED, _TOO_LATE, _EXHAUSTED = 1, 4, 8
_STATUSES: Final = {
    3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 400, 13: 500, 14: 503, 15: 500,
    16: 401,
}  # fmt: skip
_LEFT: Final[dict[int, RowStatus]] = {_CANCELLED: "cancelled", _TOO_LATE: "expired"}
# The fields of a request that are not part of its generationConfig.
_BESIDE: Final = (
    "systemInstruction", "safetySettings", "tools", "toolConfig", "cachedContent", "labels", "serviceTier", "store",
)  # fmt: skip
# Settings of the SDK, which are not sent.
_OURS: Final = {"automatic_continuation", "automatic_function_calling", "should_return_http_response", "http_options"}
_SNAKE: Final = re.compile(r"_([a-z0-9])")
# The arguments of a function call, whose names are the caller's.
_THE_CALLERS: Final = {"args"}


def row(call: Call, key: str) -> bytes:
    return lines.line({"key": key, "request": request_json(call)})


def request_json(call: Call) -> dict[str, Any]:
    """Return the JSON that the SDK sends for a call."""
    asked = generate.request(call)
    config = asked["config"].model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_OURS)
    if isinstance(config.get("systemInstruction"), str):
        config["systemInstruction"] = {"parts": [{"text": config["systemInstruction"]}], "role": "user"}
    beside = {name: config.pop(name) for name in _BESIDE if name in config}
    contents = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in asked["contents"]]
    return {"contents": contents, **beside, "generationConfig": config}


async def create(client: Connection, model: str, tag: str, _rows: Rows, file_id: str | None) -> Batch:
    body = {"batch": {"displayName": tag, "inputConfig": {"fileName": file_id}}}
    path = f"models/{quote(model.removeprefix('models/'), safe='')}:batchGenerateContent"
    return _batch(await client.ask("POST", path, body=body))


async def get(client: Connection, batch_id: str) -> Batch:
    return _batch(await client.ask("GET", quote(batch_id)))


def pages(client: Connection) -> AsyncIterator[list[Batch]]:
    async def page(token: str | None) -> tuple[list[Batch], str | None]:
        asked: dict[str, Any] = {"pageSize": _PAGE, **({"pageToken": token} if token else {})}
        listed = await client.ask("GET", "batches", query=asked)
        # An account without batches gets an empty object. No other body may pass for that.
        operations = listed.get("operations", []) if isinstance(listed, dict) else None
        if not isinstance(operations, list) or (listed and not listed.keys() & _IN_A_LIST):
            raise UpstreamError.found_in(listed)
        return parse_batches(_batch, operations), as_text(listed.get("nextPageToken")) or None

    return paginate(page)


async def cancel(client: Connection, batch_id: str) -> None:
    await client.ask("POST", f"{quote(batch_id)}:cancel", body={})


async def download(client: Connection, batch: Batch, into: IO[bytes]) -> None:
    results = lines.Lines(into)
    for name in batch.results:
        await client.aio.files.download(file=name, destination=cast(Any, results))
        results.end()


def result(line: bytes) -> Result:
    row = lines.read(line)
    key = as_text(row.get("key"))
    if isinstance(response := row.get("response"), dict):
        return Result(key, "succeeded", response=_in_camel_case(response))
    if not (error := as_object(row.get("error")) or as_object(row.get("status"))):
        raise ValueError("a line of the results has neither a response nor an error")
    code = error["code"] if type(error.get("code")) is int else None
    status = _LEFT.get(code or 0, "failed")
    return Result(
        key,
        status,
        error=as_text(error.get("message")) or "no reason given",
        code=None if code is None else str(code),
        retryable=True if status != "failed" else may_pass(_STATUSES.get(code or 0, code)),
    )


def _in_camel_case(value: Any) -> Any:
    """Return the value with the field names of a realtime response, as a results file may have them in snake_case."""
    if isinstance(value, list):
        return [_in_camel_case(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        _SNAKE.sub(lambda found: found[1].upper(), name) if "_" in name else name: item
        if name in _THE_CALLERS
        else _in_camel_case(item)
        for name, item in value.items()
    }


def _batch(operation: Any) -> Batch:
    body = as_object(operation)
    metadata = as_object(body.get("metadata"))
    name, native = body.get("name"), as_text(metadata.get("state")) or "BATCH_STATE_UNSPECIFIED"
    if not isinstance(name, str) or not name.startswith("batches/"):
        raise UpstreamError.found_in(operation)
    state = _STATES.get(re.sub("^(BATCH|JOB)_STATE_", "", native), "running")
    stats, error = as_object(metadata.get("batchStats")), as_object(body.get("error"))
    total = parse_count(stats.get("requestCount"))
    succeeded, failed = (parse_count(stats.get(f"{which}RequestCount")) for which in ("successful", "failed"))
    if state in {"failed", "cancelled", "expired"}:
        failed = max(failed, total - succeeded)  # the remaining rows will not be answered
    file = as_text(as_object(metadata.get("output")).get("responsesFile"))
    return Batch(
        id=name,
        state=state,
        native=native,
        tag=as_text(metadata.get("displayName")),
        total=total or None,
        succeeded=succeeded,
        failed=failed,
        created_at=parse_time(metadata.get("createTime")),
        ended_at=parse_time(metadata.get("endTime")),
        problem=(as_text(error.get("message")) or f"code {error.get('code')}") if error else None,
        queue_full=state == "failed" and error.get("code") == _EXHAUSTED,
        results=(file,) if file else (),
    )
