"""Answer rows: the prompts of a run, each with its answer, as lines of JSON or rows of CSV.

They are the rows of a run's output and of the command `pollux-flows answers`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, Field

from pollux_flows.result import Outcome, ResultEnvelope, as_json

_TOKENS: Final = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "reasoning_tokens",
    "cached_tokens",
    "cache_write_tokens",
)
CSV_COLUMNS: Final = (
    "number",
    "source",
    "source_name",
    "prompt",
    "status",
    "answer",
    "structured",
    "reasoning",
    "error",
    "hint",
    "finish_reason",
    *_TOKENS,
    "cost_usd",
    "reused",
)
"""The fields of a row, with a column for each count of tokens."""

# A spreadsheet runs such a cell as a formula; some also accept the wide forms of these characters.
_FORMULA: Final = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")  # noqa: RUF001 (those wide forms)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class AnswerRow(BaseModel):
    """A prompt of a run and its answer."""

    number: int = Field(description="The prompt's number, from 1.")
    source: int | None = Field(default=None, description="The number of the source it is about, in a broadcast.")
    source_name: str | None = Field(default=None, description="The name of that source.")
    prompt: str | None
    status: str = Field(
        description="answered; invalid_output: answered, but not in the requested shape; no answer: not asked, or "
        "under way when the run ended; or the kind of the failure."
    )
    answer: str | None = None
    structured: Any = Field(default=None, description="The answer as data, where a shape was requested.")
    reasoning: str | None = None
    error: str | None = None
    hint: str | None = Field(default=None, description="The way out of the error.")
    finish_reason: str | None = None
    usage: dict[str, int] = Field(default_factory=dict)
    cost_usd: float | None = None
    reused: bool = Field(default=False, description="True if an earlier run had asked, and paid for, it.")

    @classmethod
    def of(
        cls,
        number: int,
        prompt: str | None,
        outcome: Outcome | None,
        *,
        source: int | None = None,
        source_name: str | None = None,
        structured: Any = None,
        misfit: str | None = None,
    ) -> AnswerRow:
        """Return the row of a prompt; `misfit` says why its answer does not have the requested shape."""
        its = {"number": number, "prompt": prompt, "source": source, "source_name": source_name}
        if outcome is None:
            return cls(**its, status="no answer")
        answer, problem = outcome.answer, outcome.problem
        return cls(
            **its,
            status=problem.kind if problem else "invalid_output" if misfit else "answered",
            answer=None if answer is None or (problem and not answer.text) else answer.text,
            structured=as_json(structured),
            reasoning=answer and answer.reasoning,
            error=problem.message if problem else misfit,
            hint=problem and problem.hint,
            finish_reason=answer and answer.finish_reason,
            usage=_in_order(answer.usage) if answer else {},
            cost_usd=outcome.cost_usd,
            reused=outcome.reused == "always",
        )


def describe_misfit(problem: str) -> str:
    """Return the error of an answer that is not in the requested shape."""
    return f"The answer does not fit response_schema: {problem}"


def _item(values: Sequence[Any] | None, index: int) -> Any:
    return values[index] if values else None


def envelope_rows(envelope: ResultEnvelope, prompts: Sequence[str | None] | None = None) -> Iterator[AnswerRow]:
    """Iterate over the rows of an envelope, one per prompt."""
    calls, raw = (envelope.diagnostics.get(name, []) for name in ("calls", "raw_responses"))
    for index, text in enumerate(envelope.answers):
        call, answer = _item(calls, index) or {}, _item(raw, index) or {}
        failure, misfit = _item(envelope.errors, index), call.get("misfit")
        yield AnswerRow(
            number=index + 1,
            prompt=_item(prompts, index),
            status=failure.kind if failure else "invalid_output" if misfit else "answered",
            answer=None if failure and not text else text,
            structured=as_json(_item(envelope.structured, index)),
            reasoning=_item(envelope.reasoning, index),
            error=failure.message if failure else misfit and describe_misfit(misfit),
            hint=failure and failure.hint,
            finish_reason=answer.get("finish_reason"),
            usage=_in_order(answer.get("usage", {})),
            cost_usd=call.get("cost_usd"),
            reused=call.get("reused") == "always",
        )


def flat(row: AnswerRow) -> dict[str, Any]:
    """Return a row as a dict with the keys of CSV_COLUMNS."""
    fields = row.model_dump(mode="json")
    return {name: fields.get(name, row.usage.get(name)) for name in CSV_COLUMNS}


def json_lines(rows: Iterable[AnswerRow]) -> str:
    """Return rows as lines of JSON."""
    return "".join(f"{row.model_dump_json()}\n" for row in rows)


def csv_header() -> str:
    """Return the first line of a CSV file with rows."""
    return csv_text([CSV_COLUMNS])


def csv_lines(rows: Iterable[AnswerRow]) -> str:
    """Return rows as CSV.

    A text that a spreadsheet would run as a formula is escaped with a ' in front, and so is a text that looks escaped.
    To read the texts, remove one ' from each cell that begins with one or more ' and then a character of a formula.
    """
    return csv_text(_cells(row.model_dump(mode="json")) for row in rows)


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """Return lines of CSV."""
    text = io.StringIO(newline="")
    # RFC 4180's line ending. With a mere line feed, Python 3.11 does not quote a carriage return.
    csv.writer(text, lineterminator="\r\n").writerows(lines)
    return text.getvalue()


def _cells(row: Mapping[str, Any]) -> Iterable[Any]:
    structured = row["structured"]
    row = {
        **row,
        **row["usage"],
        "structured": None if structured is None else json.dumps(structured, ensure_ascii=False),
        "reused": json.dumps(row["reused"]),
    }
    return (inert(value) if isinstance(value := row.get(name), str) else value for name in CSV_COLUMNS)


def _in_order(usage: Mapping[str, int]) -> dict[str, int]:
    return {name: usage[name] for name in (*_TOKENS, *usage) if name in usage}


def inert(text: str) -> str:
    """Return a text as a CSV cell, with a ' in front if a spreadsheet might run it as a formula."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text
