"""The results of OpenAI's batches: one file of rows that succeeded, and one of rows that failed."""

from __future__ import annotations

from typing import Any

import orjson
from typing_extensions import override

from pollux_flows.simulator.batch.settling import Row, RowWriter
from pollux_flows.simulator.batch.stored import Results, StoredBatch
from pollux_flows.simulator.openai import generate
from pollux_flows.simulator.spool import Spool
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.wire import Call

LIFETIME_S = 30 * 86_400
_UNANSWERED_ERRORS = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


class ResultFiles(RowWriter):
    operation = generate.OPERATIONS[0]
    separates_errors = True

    @override
    def read_row(self, batch: StoredBatch, line: bytes) -> Row:
        request = orjson.loads(line)
        return Row(request["custom_id"], request["body"])

    @override
    def success_result(self, batch: StoredBatch, key: Any, body: Any, request_id: str) -> dict[str, Any]:
        return self._line(key, request_id, {"status_code": 200, "request_id": request_id, "body": body})

    @override
    def error_result(self, batch: StoredBatch, key: Any, status: int, body: Any, request_id: str) -> dict[str, Any]:
        return self._line(key, request_id, {"status_code": status, "request_id": request_id, "body": body})

    @override
    def unanswered_result(self, batch: StoredBatch, key: Any, why: str, request_id: str) -> dict[str, Any]:
        code, message = _UNANSWERED_ERRORS[why]
        return {**self._line(key, request_id, None), "error": {"code": code, "message": message}}

    def _line(self, key: str, request_id: str, response: dict[str, Any] | None) -> dict[str, Any]:
        return {"id": f"batch_{request_id}", "custom_id": key, "response": response, "error": None}

    @override
    def count_usage(self, body: Any) -> dict[str, int]:
        used = body.get("usage")
        if not used:
            return {}
        return {
            "input_tokens": used["input_tokens"],
            "cached_tokens": used["input_tokens_details"]["cached_tokens"],
            "output_tokens": used["output_tokens"],
            "reasoning_tokens": used["output_tokens_details"]["reasoning_tokens"],
            "total_tokens": used["total_tokens"],
        }

    @override
    def store_results(self, batch: StoredBatch, results: Results, call: Call) -> None:
        results.output_file = self._file(batch, results.output, "output", call)
        results.error_file = self._file(batch, results.errors, "error", call)

    def _file(self, batch: StoredBatch, content: Spool, kind: str, call: Call) -> str | None:
        if not content.size:
            return None
        file = StoredFile.of(
            content,
            provider="openai",
            id=f"file-{call.simulator.next_number():08d}{content.sha256[:8]}",
            account=batch.account,
            filename=f"{batch.id}_{kind}.jsonl",
            mime_type="application/jsonl",
            created_at=batch.ends_at,
            purpose="batch_output",
            expires_at=batch.ends_at + (batch.provider_data["output_lasts_s"] or LIFETIME_S),
        )
        call.simulator.file_store.add(file)
        return file.id
