"""OpenAI's batch endpoints below `/batches`."""

from __future__ import annotations

from typing import Any

from pollux_flows.simulator.batch.rows import Rows
from pollux_flows.simulator.batch.settling import accept_batch, make_batch_preparer, make_page_preparer
from pollux_flows.simulator.batch.stored import ENDINGS, FINISH_SHARE, START_SHARE, Phase, Results, StoredBatch
from pollux_flows.simulator.openai.attachments import find_file
from pollux_flows.simulator.openai.batch_input import read_input
from pollux_flows.simulator.openai.batch_results import ResultFiles
from pollux_flows.simulator.openai.paging import list_reply, page
from pollux_flows.simulator.openai.rules import refusal_for
from pollux_flows.simulator.shape import Mismatch, integer, nullable, one_of, record, text, values
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply

WINDOW_S = 24 * 3600
LIST_LIMIT = 100
METADATA_PAIRS, METADATA_KEY_CHARS, METADATA_VALUE_CHARS = 16, 64, 512
#: The only endpoint whose rows the simulator answers.
ENDPOINT = "/v1/responses"
_ENDPOINTS = (
    ENDPOINT, "/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/moderations",
    "/v1/images/generations", "/v1/images/edits", "/v1/videos",
)  # fmt: skip
_REQUEST = record(
    {"completion_window": one_of("24h"), "endpoint": one_of(*_ENDPOINTS), "input_file_id": text},
    {
        "metadata": nullable(values(text)),
        "output_expires_after": record({"anchor": one_of("created_at"), "seconds": integer(3600, 2_592_000)}),
    },
)
_WORDS = {
    "starting": "validating",
    "running": "in_progress",
    "finishing": "finalizing",
    "cancelling": "cancelling",
    "completed": "completed",
    "expired": "expired",
    "cancelled": "cancelled",
    "failed": "failed",
}
_QUEUE_FULL = (
    "Enqueued token limit reached for {model} in organization org-simulated. Limit: 2,000,000 enqueued tokens. Please "
    "try again once some in_progress batches have been completed."
)
_RESULTS = ResultFiles()


def _read(call: Call) -> None:
    """Check the request, and read its input file."""
    body = {} if call.body is None else call.body
    try:
        _REQUEST(body, ())
    except Mismatch as mismatch:
        raise refusal_for(mismatch) from None
    _check_metadata(body.get("metadata") or {})
    if body["endpoint"] != ENDPOINT:
        raise BadRequest(f"The simulator answers batches for {ENDPOINT} only.", param="endpoint")
    file = _input_file(call, body["input_file_id"])
    rows = Rows()
    call.spools.append(rows.spool)
    call.prepared = (rows, *read_input(file, rows, ENDPOINT))


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > METADATA_PAIRS:
        raise _too_long("metadata", "an object", f"at most {METADATA_PAIRS} properties", len(metadata))
    for name, value in metadata.items():
        if len(name) > METADATA_KEY_CHARS:
            raise _too_long("metadata", "a key", f"maximum length {METADATA_KEY_CHARS}", len(name))
        if len(value) > METADATA_VALUE_CHARS:
            raise _too_long(f"metadata.{name}", "a string", f"maximum length {METADATA_VALUE_CHARS}", len(value))


def _too_long(param: str, kind: str, limit: str, got: int) -> Refusal:
    return BadRequest(f"Invalid '{param}': too long. Expected {kind} with {limit}, but got {got} instead.", param=param)


def _input_file(call: Call, file_id: str) -> StoredFile:
    file = find_file(call, file_id, "input_file_id")
    if file.purpose != "batch":
        raise BadRequest(f"Invalid file purpose: expected 'batch', but got '{file.purpose}'.", param="input_file_id")
    return file


def _create(call: Call) -> Reply:
    rows, problems, model = call.prepared
    if call.fault is not None and call.fault.kind == "queue_full":
        raise Refusal(429, call.fault.message or _QUEUE_FULL.format(model=model), code="token_limit_exceeded")
    plan = call.simulator.take_plan("openai")
    if plan.end == "failed":
        problems = [_problem(plan.code or "invalid_request", plan.message or "The batch could not be validated.")]
    elif plan.end == "queue_full":
        problems = [_problem(plan.code or "token_limit_exceeded", plan.message or _QUEUE_FULL.format(model=model))]
    batch = accept_batch(
        call,
        "batch_",
        plan,
        rows,
        window_s=WINDOW_S,
        words=_WORDS,
        metadata=call.body.get("metadata"),
        provider_data={
            "model": model,
            "input_file_id": call.body["input_file_id"],
            "output_lasts_s": (call.body.get("output_expires_after") or {}).get("seconds"),
        },
        problems=problems,
    )
    return Reply(_as_json(batch, "starting"))


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "line": None, "message": message, "param": None}


def _as_json(batch: StoredBatch, phase: Phase) -> dict[str, Any]:
    ended = batch.results if phase in ENDINGS else None
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": ENDPOINT,
        "model": None if phase == "starting" else batch.provider_data["model"],
        "errors": {"object": "list", "data": batch.problems} if phase == "failed" else None,
        "input_file_id": batch.provider_data["input_file_id"],
        "completion_window": "24h",
        "status": batch.state_name(phase),
        "output_file_id": ended.output_file if ended else None,
        "error_file_id": ended.error_file if ended else None,
        "created_at": int(batch.created_at),
        **_times(batch, phase),
        "expires_at": int(batch.expires_at),
        "request_counts": _counts(batch, phase),
        "usage": _usage(ended),
        "metadata": batch.metadata,
    }


def _times(batch: StoredBatch, phase: Phase) -> dict[str, int | None]:
    """Return the time of each state; None for those not reached."""
    end = int(batch.ends_at)
    times: dict[str, int | None] = dict.fromkeys(
        ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at")
    )
    until = min(batch.clock(), batch.ends_at) if batch.cancel_asked_at is None else batch.cancel_asked_at
    if phase not in ("starting", "failed") and until >= batch.time_at(START_SHARE):
        times["in_progress_at"] = int(batch.time_at(START_SHARE))
    if phase in ("finishing", "completed"):
        times["finalizing_at"] = int(batch.time_at(FINISH_SHARE))
    if batch.cancel_asked_at is not None:
        times["cancelling_at"] = int(batch.cancel_asked_at)
    if f"{phase}_at" in times:
        times[f"{phase}_at"] = times[f"{phase}_at"] or end
    return times


def _counts(batch: StoredBatch, phase: Phase) -> dict[str, int]:
    if phase in ("starting", "failed"):
        return {"total": 0, "completed": 0, "failed": 0}
    if batch.results is None or phase not in ENDINGS:
        return {"total": batch.rows, "completed": int(batch.progress * batch.rows), "failed": 0}
    completed = batch.results.counts["succeeded"]
    return {"total": batch.rows, "completed": completed, "failed": batch.rows - completed}


def _usage(ended: Results | None) -> dict[str, Any]:
    used = ended.usage if ended else {}
    return {
        "input_tokens": used.get("input_tokens", 0),
        "input_tokens_details": {"cached_tokens": used.get("cached_tokens", 0)},
        "output_tokens": used.get("output_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": used.get("reasoning_tokens", 0)},
        "total_tokens": used.get("total_tokens", 0),
    }


def _find(call: Call) -> StoredBatch:
    batch = call.simulator.batch_store.find("openai", call.params["id"], call.account)
    if batch is None:
        raise Refusal(404, f"No batch found with id '{call.params['id']}'.", param="batch_id")
    return batch


def _page(call: Call) -> tuple[list[StoredBatch], bool]:
    """Return a page of batches, newest first, and whether there are more."""
    batches = call.simulator.batch_store.list_owned("openai", call.account)
    return page(call, batches, most=LIST_LIMIT, default=20, unknown="No batch found with id '{}'.")


def _list(call: Call) -> Reply:
    batches, more = call.prepared
    return list_reply([_as_json(batch, phase) for batch, phase in batches], more=more)


def _get(call: Call) -> Reply:
    batch, phase = call.prepared
    return Reply(_as_json(batch, phase))


def _cancel(call: Call) -> Reply:
    batch = _find(call)
    if batch.is_ended:
        raise Refusal(409, f"Cannot cancel a batch with status '{batch.state}'.")
    call.simulator.batch_store.cancel(batch)
    return Reply(_as_json(batch, "cancelling"))


OPERATIONS = (
    Operation("batch.create", "POST", "/batches", _create, prepare=_read),
    Operation("batch.list", "GET", "/batches", _list, prepare=make_page_preparer(_page, _RESULTS)),
    Operation("batch.get", "GET", "/batches/{id}", _get, prepare=make_batch_preparer(_find, _RESULTS)),
    Operation("batch.cancel", "POST", "/batches/{id}/cancel", _cancel),
)
