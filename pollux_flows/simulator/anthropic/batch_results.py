"""The results of Anthropic's batches: one stream of lines, for all outcomes."""

from __future__ import annotations

from typing import Any

import orjson
from typing_extensions import override

from pollux_flows.simulator.anthropic import generate
from pollux_flows.simulator.batch.settling import Row, RowWriter
from pollux_flows.simulator.batch.stored import StoredBatch


class ResultLines(RowWriter):
    operation = generate.OPERATIONS[0]

    @override
    def read_row(self, batch: StoredBatch, line: bytes) -> Row:
        request = orjson.loads(line)
        return Row(request["custom_id"], request["params"])

    @override
    def success_result(self, batch: StoredBatch, key: Any, body: Any, request_id: str) -> dict[str, Any]:
        if "usage" in body:
            body["usage"]["service_tier"] = "batch"
        return {"custom_id": key, "result": {"type": "succeeded", "message": body}}

    @override
    def error_result(self, batch: StoredBatch, key: Any, status: int, body: Any, request_id: str) -> dict[str, Any]:
        return {"custom_id": key, "result": {"type": "errored", "error": body}}

    @override
    def unanswered_result(self, batch: StoredBatch, key: Any, why: str, request_id: str) -> dict[str, Any]:
        return {"custom_id": key, "result": {"type": "canceled" if why == "cancelled" else why}}
