"""Gemini's batch endpoints: `models/{model}:batchGenerateContent`, list, get, cancel and delete."""

from __future__ import annotations

from typing import Any

import orjson

from pollux_flows.simulator.batch.settling import accept_batch, make_batch_preparer, make_page_preparer
from pollux_flows.simulator.batch.stored import ENDINGS, START_SHARE, Phase, Results, StoredBatch
from pollux_flows.simulator.gemini import rules
from pollux_flows.simulator.gemini.batch_input import Input, read_file, receive
from pollux_flows.simulator.gemini.batch_results import CODES, UNANSWERED_ERRORS, InlineOrFileResults
from pollux_flows.simulator.timestamps import format_timestamp
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply

WINDOW_S = 48 * 3600
_PATH = "/{version:apiversion}/batches"
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"
_WORDS = {
    "starting": "BATCH_STATE_PENDING",
    "running": "BATCH_STATE_RUNNING",
    "finishing": "BATCH_STATE_RUNNING",
    "cancelling": "BATCH_STATE_RUNNING",
    "completed": "BATCH_STATE_SUCCEEDED",
    "expired": "BATCH_STATE_EXPIRED",
    "cancelled": "BATCH_STATE_CANCELLED",
    "failed": "BATCH_STATE_FAILED",
}
_QUEUE_FULL = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "head to: https://ai.google.dev/gemini-api/docs/rate-limits."
)
_RESULTS = InlineOrFileResults()


def _read(call: Call) -> None:
    rules.check_model(call.params["model"])
    read_file(call)


def _create(call: Call) -> Reply:
    batch_input: Input = call.prepared
    if call.fault is not None and call.fault.kind == "queue_full":
        raise Refusal(429, call.fault.message or _QUEUE_FULL)
    plan = call.simulator.take_plan("gemini")
    problem = batch_input.problem and _status("INVALID_ARGUMENT", batch_input.problem)
    if plan.end == "failed":
        problem = _status(plan.code or "INTERNAL", plan.message or "The batch could not be processed.")
    elif plan.end == "queue_full":
        problem = _status(plan.code or "RESOURCE_EXHAUSTED", plan.message or _QUEUE_FULL)
    batch = accept_batch(
        call,
        "batches/simulated",
        plan,
        batch_input.rows,
        window_s=WINDOW_S,
        words=_WORDS,
        name=batch_input.batch.get("displayName"),
        provider_data={
            "model": call.params["model"],
            "version": call.params["version"],
            "file": batch_input.batch["inputConfig"].get("fileName"),
            "has_keys": batch_input.has_keys,
        },
        problems=[problem] if problem else [],
    )
    return Reply(_as_json(batch, "starting"))


def _status(name: str, message: str) -> dict[str, Any]:
    return {"code": CODES.get(name, CODES["INTERNAL"]), "message": message}


def _as_json(batch: StoredBatch, phase: Phase, *, with_inlined: bool = True) -> dict[str, Any]:
    """Return the batch as an operation. Clients read only its metadata, so a repeated response is left out."""
    ended = phase in ENDINGS
    metadata: dict[str, Any] = {
        "@type": _TYPE,
        "model": f"models/{batch.provider_data['model']}",
        "name": batch.id,
        "state": batch.state_name(phase),
        "createTime": format_timestamp(batch.created_at),
        "updateTime": format_timestamp(_updated_at(batch, phase)),
        "batchStats": _stats(batch, batch.results if ended else None),
    }
    if batch.name is not None:
        metadata["displayName"] = batch.name
    if batch.provider_data["file"]:
        metadata["inputConfig"] = {"fileName": batch.provider_data["file"]}
    if ended:
        metadata["endTime"] = format_timestamp(batch.ends_at)
    if ended and (output := _output(batch, with_inlined=with_inlined)):
        metadata["output"] = output
    operation: dict[str, Any] = {"name": batch.id, "metadata": metadata}
    if ended:
        operation["done"] = True
    if phase in UNANSWERED_ERRORS:
        operation["error"] = _status(*UNANSWERED_ERRORS[phase])
    elif phase == "failed":
        operation["error"] = batch.problems[0]
    return operation


def _updated_at(batch: StoredBatch, phase: Phase) -> float:
    if phase in ENDINGS:
        return batch.ends_at
    return batch.created_at if phase == "starting" else batch.time_at(START_SHARE)


def _stats(batch: StoredBatch, results: Results | None) -> dict[str, str]:
    """Return the counts as strings, without those that are zero."""
    succeeded = results.counts["succeeded"] if results else 0
    failed = results.counts.total() - succeeded if results else 0
    counts = {
        "requestCount": batch.rows,
        "successfulRequestCount": succeeded,
        "failedRequestCount": failed,
        "pendingRequestCount": batch.rows - succeeded - failed,
    }
    return {name: str(count) for name, count in counts.items() if count}


def _output(batch: StoredBatch, *, with_inlined: bool) -> dict[str, Any]:
    results = batch.results
    if results is None or not _RESULTS.has_results(batch):
        return {}
    if results.output_file:
        return {"responsesFile": results.output_file}
    if not with_inlined:
        return {}
    # They are JSON already.
    return {"inlinedResponses": {"inlinedResponses": [orjson.Fragment(line) for line in results.output.lines()]}}


def _find(call: Call) -> StoredBatch:
    batch = call.simulator.batch_store.find("gemini", f"batches/{call.params['id']}", call.account)
    if batch is None:
        raise Refusal(404)
    return batch


def _page(call: Call) -> tuple[list[StoredBatch], dict[str, str]]:
    return rules.page(call, call.simulator.batch_store.list_owned("gemini", call.account), "ListOperationsRequest")


def _list(call: Call) -> Reply:
    batches, following = call.prepared
    operations = [_as_json(batch, phase, with_inlined=False) for batch, phase in batches]
    return Reply({"operations": operations, **following} if operations else following)


def _get(call: Call) -> Reply:
    batch, phase = call.prepared
    return Reply(_as_json(batch, phase))


def _cancel(call: Call) -> Reply:
    batch = _find(call)
    if batch.is_ended:
        raise BadRequest(
            f"Batch {batch.id} cannot be cancelled: it is in state {batch.state}.", kind="FAILED_PRECONDITION"
        )
    call.simulator.batch_store.cancel(batch)
    return Reply({})


def _delete(call: Call) -> Reply:
    call.simulator.batch_store.delete(_find(call))
    return Reply({})


OPERATIONS = (
    Operation(
        "batch.create",
        "POST",
        "/{version:apiversion}/models/{model}:batchGenerateContent",
        _create,
        receive=receive,
        prepare=_read,
    ),
    Operation("batch.list", "GET", _PATH, _list, prepare=make_page_preparer(_page, _RESULTS)),
    Operation("batch.get", "GET", _PATH + "/{id}", _get, prepare=make_batch_preparer(_find, _RESULTS)),
    Operation("batch.cancel", "POST", _PATH + "/{id}:cancel", _cancel),
    Operation("batch.delete", "DELETE", _PATH + "/{id}", _delete),
)
