"""Batches at OpenAI: the rows are one file, and the results two, one of them with errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import quote

from pollux_flows.providers import lines
from pollux_flows.providers.base import Call, UpstreamError, as_count, as_object, as_text
from pollux_flows.providers.batches import (
    ENDED,
    Batch,
    BatchLimits,
    BatchState,
    Result,
    Rows,
    RowStatus,
    paginate_list,
    parse_count,
)
from pollux_flows.providers.errors import may_pass
from pollux_flows.providers.openai import generate

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LIMITS: Final = BatchLimits(rows=50_000, size_bytes=200_000_000)
TAKES_A_FILE: Final = True
KEEPS_NAMES: Final = True
# The response of a row has the form of that of a call.
read_answer: Final = generate.read_answer

_ENDPOINT: Final = "/v1/responses"
_PAGE: Final = 100
_STATES: Final[dict[str, BatchState]] = {
    "validating": "queued",
    "in_progress": "running",
    "finalizing": "running",
    "cancelling": "cancelling",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "expired": "expired",
}
# The errors of a batch that failed only because too many tokens were queued.
_QUEUE_FULL: Final = {"token_limit_exceeded"}
_LEFT: Final[dict[str, RowStatus]] = {
    "batch_expired": "expired",
    "batch_cancelled": "cancelled",
    "batch_canceled": "cancelled",
}
# A row without a response carries a code instead of an HTTP status; these are the equivalent statuses.
_CODES: Final = {"rate_limit_exceeded": 429, "server_error": 500, "invalid_request": 400, "invalid_request_error": 400}
_OK: Final = 200


def row(call: Call, key: str) -> bytes:
    return lines.line({"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": generate.request(call)})


async def create(client: AsyncOpenAI, _model: str, tag: str, rows: Rows, file_id: str | None) -> Batch:
    body = {
        "input_file_id": file_id,
        "endpoint": _ENDPOINT,
        "completion_window": "24h",
        # OpenAI reports no row count until it has read the rows.
        "metadata": {"pollux_tag": tag, "pollux_rows": str(rows.count)},
    }
    return _batch(await client.post("/batches", body=body, cast_to=object))


async def get(client: AsyncOpenAI, batch_id: str) -> Batch:
    return _batch(await client.get(f"/batches/{quote(batch_id, safe='')}", cast_to=object))


def pages(client: AsyncOpenAI) -> AsyncIterator[list[Batch]]:
    return paginate_list(client, "/batches", _batch, after="after", limit=_PAGE)


async def cancel(client: AsyncOpenAI, batch_id: str) -> None:
    await client.post(f"/batches/{quote(batch_id, safe='')}/cancel", cast_to=object)


async def download(client: AsyncOpenAI, batch: Batch, into: IO[bytes]) -> None:
    results = lines.Lines(into)
    for file_id in batch.results:
        async with client.files.with_streaming_response.content(file_id) as response:
            async for block in response.iter_bytes():
                results.write(block)
        results.end()


def result(line: bytes) -> Result:
    row = lines.read(line)
    key, response, error = as_text(row.get("custom_id")), as_object(row.get("response")), row.get("error")
    if error:
        return _failed_result(key, None, error)
    if not response:
        raise ValueError("a line of the results has neither a response nor an error")
    status, body = response.get("status_code"), response.get("body")
    if status == _OK and isinstance(body, dict):
        return Result(key, "succeeded", response=body, code=as_text(body.get("status")))
    return _failed_result(key, status if type(status) is int else None, as_object(body).get("error") or body)


def _failed_result(key: str | None, http_status: int | None, error: Any) -> Result:
    fields = as_object(error)
    code = as_text(fields.get("code")) or as_text(fields.get("type"))
    status = _LEFT.get(str(code), "failed")
    is_temporary = may_pass(http_status or _CODES.get(str(code)), code)
    return Result(
        key,
        status,
        error=as_text(fields.get("message")) or (str(error) if error and not fields else None) or "no reason given",
        code=code or (None if http_status is None else str(http_status)),
        retryable=True if status != "failed" else is_temporary,
    )


def _batch(body: Any) -> Batch:
    if not isinstance(body, dict) or not isinstance(body.get("id"), str):
        raise UpstreamError.found_in(body)
    native = as_text(body.get("status")) or "unknown"
    state = _STATES.get(native, "running")
    metadata, counted = as_object(body.get("metadata")), as_object(body.get("request_counts"))
    total = as_count(counted.get("total")) or parse_count(metadata.get("pollux_rows")) or None
    succeeded, failed = as_count(counted.get("completed")), as_count(counted.get("failed"))
    if state in {"failed", "cancelled", "expired"} and total is not None:
        failed = max(failed, total - succeeded)  # the remaining rows will not be answered
    errors = as_object(body.get("errors")).get("data")
    problems = [as_object(each) for each in (errors if isinstance(errors, list) else [])]
    codes = {as_text(each.get("code")) for each in problems}
    ended = [_time(body.get(f"{word}_at")) for word in ("completed", "failed", "cancelled", "expired")]
    files = (as_text(body.get("output_file_id")), as_text(body.get("error_file_id")))
    return Batch(
        id=body["id"],
        state=state,
        native=native,
        tag=as_text(metadata.get("pollux_tag")),
        total=total,
        succeeded=succeeded,
        failed=failed,
        created_at=_time(body.get("created_at")),
        ended_at=next((each for each in ended if each is not None), None) if state in ENDED else None,
        expires_at=_time(body.get("expires_at")),
        problem="; ".join(dict.fromkeys(map(_describe_problem, problems))) or None,
        queue_full=state == "failed" and bool(codes) and codes <= _QUEUE_FULL,
        results=tuple(each for each in files if each),
    )


def _describe_problem(problem: dict[str, Any]) -> str:
    message = as_text(problem.get("message")) or as_text(problem.get("code")) or "no reason given"
    return f"line {problem['line']}: {message}" if type(problem.get("line")) is int else message


def _time(value: Any) -> float | None:
    return float(value) if type(value) in {int, float} else None
