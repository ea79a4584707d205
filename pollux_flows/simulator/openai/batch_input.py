"""Validates the input of OpenAI's batches, after they are accepted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from pollux_flows.simulator.batch.rows import Rows
from pollux_flows.simulator.openai.rules import is_known_model
from pollux_flows.simulator.stored_files import StoredFile

LIMIT_ROWS = 50_000
#: The most problems that are listed.
_PROBLEMS_LIMIT = 100
_FIELDS = ("custom_id", "method", "url", "body")


def read_input(file: StoredFile, rows: Rows, endpoint: str) -> tuple[list[dict[str, Any]], str | None]:
    """Copy the lines of the file to `rows`; return their problems, and the model that they request."""
    spool = file.spool
    check = _Check(endpoint)
    for number, line in enumerate(spool.lines() if spool else (), start=1):
        rows.add(line)
        if len(check.problems) < _PROBLEMS_LIMIT:
            check.line(number, line)
    if len(rows) > LIMIT_ROWS:
        check.problems.clear()
        message = f"The batch input file contains too many requests: {len(rows)}. The limit is {LIMIT_ROWS}."
        check.add("too_many_requests", message, None)
    return check.problems, check.model


class _Check:
    def __init__(self, endpoint: str) -> None:
        self.problems: list[dict[str, Any]] = []
        self.model: str | None = None
        self._endpoint = endpoint
        self._ids: set[str] = set()

    def add(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        self.problems.append({"code": code, "line": line, "message": message, "param": param})

    def line(self, number: int, line: bytes) -> None:
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError:
            request = None
        if not isinstance(request, dict):
            self.add("invalid_json_line", "This line is not parseable as valid JSON.", number)
            return
        for code, message, param in self._problems(request):
            self.add(code, message, number, param)
            return

    def _problems(self, request: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        for name in _FIELDS:
            expected = dict if name == "body" else str
            if not request.get(name):
                yield "missing_required_parameter", f"Missing required parameter: '{name}'.", name
            elif not isinstance(request[name], expected):
                yield "invalid_type", f"Invalid type for '{name}'.", name
        if request["custom_id"] in self._ids:
            yield (
                "duplicate_custom_id",
                "The custom_id for this request is a duplicate of another request.",
                "custom_id",
            )
        self._ids.add(request["custom_id"])
        if request["method"] != "POST":
            yield "invalid_method", f"Invalid method: '{request['method']}'. Only POST is supported.", "method"
        if request["url"] != self._endpoint:
            yield "invalid_url", "The URL provided for this request does not match the batch endpoint.", "url"
        yield from self._model_problems(request["body"].get("model"))

    def _model_problems(self, model: Any) -> Iterator[tuple[str, str, str]]:
        if not isinstance(model, str):
            yield "missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model"
        elif not is_known_model(model):
            yield "model_not_found", f"The provided model '{model}' is not supported by the Batch API.", "body.model"
        elif model != (self.model or model):
            yield (
                "mismatched_model",
                f"The provided model '{model}' does not match the model used in this batch '{self.model}'.",
                "body.model",
            )
        else:
            self.model = model
