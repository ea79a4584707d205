"""The results of Gemini's batches: in a file if the requests came in one, else inside the batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
from typing_extensions import override

from pollux_flows.simulator.batch.settling import Row, RowWriter
from pollux_flows.simulator.batch.stored import Results, StoredBatch
from pollux_flows.simulator.gemini import generate
from pollux_flows.simulator.stored_files import NameTaken, StoredFile
from pollux_flows.simulator.wire import Call

LIFETIME_S = 48 * 3600
#: The numbers of the canonical statuses.
CODES: Mapping[str, int] = {
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}
#: The error of unanswered rows, and of the batch, by the batch's end.
UNANSWERED_ERRORS: Mapping[str, tuple[str, str]] = {
    "expired": ("DEADLINE_EXCEEDED", "The batch expired before this was processed."),
    "cancelled": ("CANCELLED", "The batch was cancelled before this was processed."),
}
_UNKNOWN = 2


class InlineOrFileResults(RowWriter):
    operation = generate.OPERATIONS[0]

    @override
    def read_row(self, batch: StoredBatch, line: bytes) -> Row:
        row = orjson.loads(line)
        body = row.get("request")
        own_model = body.get("model") if isinstance(body, dict) else None
        model = own_model if isinstance(own_model, str) else batch.provider_data["model"]
        name = "key" if batch.provider_data["file"] else "metadata"
        # The key of a row is returned under the same name.
        key = {name: row[name]} if name in row else {}
        return Row(key, body, {"model": model.removeprefix("models/"), "version": batch.provider_data["version"]})

    @override
    def success_result(self, batch: StoredBatch, key: Any, body: Any, request_id: str) -> dict[str, Any]:
        return {**key, "response": body}

    @override
    def error_result(self, batch: StoredBatch, key: Any, status: int, body: Any, request_id: str) -> dict[str, Any]:
        error = body["error"]
        return {**key, "error": {"code": CODES.get(error["status"], _UNKNOWN), "message": error["message"]}}

    @override
    def unanswered_result(self, batch: StoredBatch, key: Any, why: str, request_id: str) -> dict[str, Any]:
        status, message = UNANSWERED_ERRORS[why]
        return {**key, "error": {"code": CODES[status], "message": message}}

    @override
    def make_foreign_key(self, key: Any, number: int) -> Any:
        foreign = super().make_foreign_key(key, number)
        return {name: dict.fromkeys(had, foreign) if isinstance(had, dict) else foreign for name, had in key.items()}

    @override
    def has_results(self, batch: StoredBatch) -> bool:
        return batch.ending == "completed" or (batch.ending != "failed" and batch.plan.answered is not None)

    @override
    def store_results(self, batch: StoredBatch, results: Results, call: Call) -> None:
        if not batch.provider_data["file"]:
            return
        file = StoredFile.of(
            results.output,
            provider="gemini",
            id=f"files/batch-{batch.id.removeprefix('batches/')}",
            account=batch.account,
            filename="",
            mime_type="application/jsonl",
            created_at=batch.ends_at,
            purpose="batch_output",
            expires_at=batch.ends_at + LIFETIME_S,
        )
        with suppress(NameTaken):  # another process that shares the storage was faster
            call.simulator.file_store.add(file)
        results.output_file = file.id
