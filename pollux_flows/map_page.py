"""Map page: the page of a run over a table, with its failures, numbers and first answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pollux_flows.address import redact_address
from pollux_flows.answer_rows import AnswerRow
from pollux_flows.config import Target
from pollux_flows.mapping.report import ANSWERED, MapReport
from pollux_flows.pages import cell, count_of
from pollux_flows.pricing import dollars

_SHOWN: Final = 10


@dataclass
class Highlights:
    """The first rows of a table with an answer, and the first without one."""

    answered: list[AnswerRow] = field(default_factory=list)
    failed: list[AnswerRow] = field(default_factory=list)

    def add(self, number: int, row: AnswerRow) -> None:
        """Add the row with this number if it is one of the first of its kind."""
        rows = self.answered if row.status == ANSWERED else self.failed
        if len(rows) < _SHOWN:
            rows.append(row.model_copy(update={"number": number}))


def render_map(target: Target, prompt: str, report: MapReport, highlights: Highlights) -> str:
    """Return the page of a run."""
    counts = {
        "Answered before": report.reused,
        "Duplicates": report.duplicates,
        "Not asked": report.not_asked,
        "Unusable rows": report.unusable,
    }
    numbers = {
        "Model": f"{target.provider} · {target.model}",
        "Prompt": cell(prompt),
        "Rows": f"{report.rows:,}",
        "Asked": f"{report.asked:,}",
        **{name: f"{count:,}" for name, count in counts.items() if count},
        "Cost": "unknown" if report.cost_usd is None else dollars(report.cost_usd),
        **({"Maybe billed too": count_of(report.unknown_attempts, "lost request")} if report.unknown_attempts else {}),
        "Tokens": f"{report.usage.get('input_tokens', 0):,} in, {report.usage.get('output_tokens', 0):,} out",
        "Time": f"{report.duration_s:,.1f} s",
        "Output": cell(redact_address(report.output)),
    }
    lines = [*_failures(report, highlights.failed), "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in numbers.items()]
    if highlights.answered:
        lines += ["", "## The first answers", "", *_rows(highlights.answered)]
    return "\n".join(lines)


def map_line(report: MapReport) -> str:
    """Return the outcome of a run as one line, for the log."""
    price = "at an unknown price" if report.cost_usd is None else f"for {dollars(report.cost_usd)}"
    return (
        f"{report.answered:,} of {count_of(report.rows, 'row')} answered {price} in {report.duration_s:,.1f} s: "
        f"{report.asked:,} asked, {report.reused:,} answered before, {report.duplicates:,} duplicates, "
        f"{report.not_asked:,} not asked, {report.unusable:,} unusable."
    )


def _failures(report: MapReport, failed: Sequence[AnswerRow]) -> list[str]:
    if not failed:
        return []
    lines = [f"## {report.unanswered:,} of {count_of(report.rows, 'row')} without a usable answer", ""]
    lines += [f"- {count:,} times **{status}**" for status, count in report.statuses.items() if status != ANSWERED]
    lines += ["", "The first of them:", ""]
    for row in failed:
        problem = " ".join(filter(None, [row.error, row.hint]))
        lines.append(f"- row {row.number:,}: **{row.status}:** {cell(problem)}")
    advice = "Start the run again with the same table: it asks only rows without a usable answer."
    if report.unanswered == report.unusable:
        advice = "Correct these rows first, as they cannot be asked. Rows with an answer are not asked again."
    if report.statuses.get("invalid_output"):
        advice += ' An answer in the wrong shape counts as an answer: reuse="run" asks for it again.'
    return [*lines, "", advice, ""]


def _rows(rows: Sequence[AnswerRow]) -> list[str]:
    lines = ["| Row | Answer |", "| --- | --- |"]
    return [*lines, *(f"| {row.number:,} | {cell(row.answer or '')} |" for row in rows)]
