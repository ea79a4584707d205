"""Anthropic's batch endpoints below `/v1/messages/batches`."""

from __future__ import annotations

from typing import Any

from pollux_flows.simulator.anthropic.batch_input import receive
from pollux_flows.simulator.anthropic.batch_results import ResultLines
from pollux_flows.simulator.anthropic.rules import check_version, page_limit
from pollux_flows.simulator.batch.settling import accept_batch, make_batch_preparer, make_page_preparer
from pollux_flows.simulator.batch.stored import ENDINGS, Phase, Results, StoredBatch
from pollux_flows.simulator.timestamps import format_timestamp
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply

WINDOW_S = 24 * 3600
#: The lifetime of the results after the batch's creation.
LIFETIME_S = 29 * 86_400
_PATH = "/v1/messages/batches"
_WORDS = {
    "starting": "in_progress",
    "running": "in_progress",
    "finishing": "in_progress",
    "cancelling": "canceling",
    "completed": "ended",
    "expired": "ended",
    "cancelled": "ended",
}
#: The headers of the batch's request that its rows need.
_HEADERS = ("anthropic-version", "anthropic-beta")
_RESULTS = ResultLines()


def _create(call: Call) -> Reply:
    rows = call.prepared
    if call.fault is not None and call.fault.kind == "queue_full":
        raise Refusal(
            429,
            call.fault.message
            or "This request would exceed your organization's limit of batch requests in the processing queue. Please "
            "try again when some batches have ended.",
        )
    batch = accept_batch(
        call,
        "msgbatch_",
        call.simulator.take_plan("anthropic"),
        rows,
        window_s=WINDOW_S,
        words=_WORDS,
        provider_data={"headers": {name: call.headers[name] for name in _HEADERS if name in call.headers}},
    )
    return Reply(_as_json(call, batch, "starting"))


def _as_json(call: Call, batch: StoredBatch, phase: Phase) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": batch.state_name(phase),
        "request_counts": _counts(batch, batch.results if phase in ENDINGS else None),
        "created_at": format_timestamp(batch.created_at),
        "expires_at": format_timestamp(batch.expires_at),
        "ended_at": None,
        "cancel_initiated_at": None if batch.cancel_asked_at is None else format_timestamp(batch.cancel_asked_at),
        "archived_at": None,
        "results_url": None,
    }
    if phase in ENDINGS:
        body["ended_at"] = format_timestamp(batch.ends_at)
        if _is_archived(batch):
            body["archived_at"] = format_timestamp(batch.created_at + LIFETIME_S)
        else:
            body["results_url"] = batch.plan.results_url or f"{call.origin}/anthropic{_PATH}/{batch.id}/results"
    return body


def _counts(batch: StoredBatch, results: Results | None) -> dict[str, int]:
    """Return the counts of rows; all are processing until the batch has ended."""
    counts = {"processing": 0 if results else batch.rows, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    for outcome, count in (results.counts if results else {}).items():
        counts["canceled" if outcome == "cancelled" else outcome] = count
    return counts


def _is_archived(batch: StoredBatch) -> bool:
    return batch.clock() >= batch.created_at + LIFETIME_S


def _find(call: Call) -> StoredBatch:
    check_version(call)
    batch = call.simulator.batch_store.find("anthropic", call.params["id"], call.account)
    if batch is None:
        raise Refusal(404, f"No batch found with ID: {call.params['id']}")
    return batch


def _page(call: Call) -> tuple[list[StoredBatch], bool]:
    """Return a page of batches, newest first, after `after_id` or before `before_id`, and whether there are more."""
    check_version(call)
    batches = call.simulator.batch_store.list_owned("anthropic", call.account)
    limit = page_limit(call)
    after, before = call.query.get("after_id"), call.query.get("before_id")
    if after and before:
        raise BadRequest("before_id: Cannot be combined with `after_id`")
    if before:
        newer = batches[: _place(batches, before, "before_id")]
        return newer[-limit:], len(newer) > limit
    if after:
        batches = batches[_place(batches, after, "after_id") + 1 :]
    return batches[:limit], len(batches) > limit


def _place(batches: list[StoredBatch], cursor: str, name: str) -> int:
    for place, batch in enumerate(batches):
        if batch.id == cursor:
            return place
    raise BadRequest(f"{name}: Invalid cursor")


def _list(call: Call) -> Reply:
    page, more = call.prepared
    return Reply(
        {
            "data": [_as_json(call, batch, phase) for batch, phase in page],
            "has_more": more,
            "first_id": page[0][0].id if page else None,
            "last_id": page[-1][0].id if page else None,
        }
    )


def _get(call: Call) -> Reply:
    batch, phase = call.prepared
    return Reply(_as_json(call, batch, phase))


def _cancel(call: Call) -> Reply:
    batch = _find(call)
    if batch.is_ended:
        raise BadRequest(f"Batch {batch.id} cannot be canceled because it has already ended.")
    call.simulator.batch_store.cancel(batch)
    return Reply(_as_json(call, batch, "cancelling"))


def _results(call: Call) -> Reply:
    batch, phase = call.prepared
    if phase not in ENDINGS:
        raise Refusal(404, f"Batch {batch.id} has no available results; it has not ended yet.")
    if _is_archived(batch):
        raise Refusal(404, f"The results of batch {batch.id} are no longer available.")
    return Reply(batch.results.output, headers={"content-type": "application/x-jsonl"})


def _delete(call: Call) -> Reply:
    batch = _find(call)
    if not batch.is_ended:
        raise BadRequest(f"Batch {batch.id} cannot be deleted while it is processing. Cancel it first.")
    call.simulator.batch_store.delete(batch)
    return Reply({"id": batch.id, "type": "message_batch_deleted"})


_LOOK = make_batch_preparer(_find, _RESULTS)

OPERATIONS = (
    Operation("batch.create", "POST", _PATH, _create, receive=receive),
    Operation("batch.list", "GET", _PATH, _list, prepare=make_page_preparer(_page, _RESULTS)),
    Operation("batch.get", "GET", _PATH + "/{id}", _get, prepare=_LOOK),
    Operation("batch.cancel", "POST", _PATH + "/{id}/cancel", _cancel),
    Operation("batch.results", "GET", _PATH + "/{id}/results", _results, prepare=_LOOK),
    Operation("batch.delete", "DELETE", _PATH + "/{id}", _delete),
)
