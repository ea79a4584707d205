"""Frames: prompts from a column, and answers as rows of a table, in pandas, polars and Arrow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from pollux_flows import Config, ConfigurationError, Options, ResultEnvelope, defer_many, run_many
from pollux_flows.answer_rows import CSV_COLUMNS
from pollux_flows.frames import column_to_list
from pollux_flows.result import CallFailure

QUESTIONS: Final = ["What is it?", "And why?", "Since when?"]
CONFIG: Final = Config(provider="openai", model="gpt-4.1-mini", use_mock=True)
COLUMNS: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "pandas": lambda values: pd.DataFrame({"question": values}, index=range(len(values), 0, -1))["question"],
    "pandas strings": lambda values: pd.Series(values, dtype="string"),
    "pandas categories": lambda values: pd.Series(values, dtype="category"),
    "polars": lambda values: pl.DataFrame({"question": values})["question"],
    "arrow": lambda values: pa.array(values, type=pa.string()),
    "arrow chunks": lambda values: pa.table({"question": values})["question"],
    "numpy": lambda values: np.array(values, dtype=object),
}


class City(BaseModel):
    name: str
    people: int


# --- Columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", COLUMNS)
async def test_a_column_may_be_passed_as_prompts(kind: str) -> None:
    column = COLUMNS[kind](QUESTIONS)
    expected = await run_many(QUESTIONS, config=CONFIG)
    assert (await run_many(column, config=CONFIG)).answers == expected.answers
    assert expected.to_rows(column) == expected.to_rows(QUESTIONS)


async def test_a_column_may_be_deferred() -> None:
    handle = await defer_many(pl.Series(QUESTIONS), config=CONFIG)
    assert handle.request_count == len(QUESTIONS)


@pytest.mark.parametrize("kind", COLUMNS)
def test_nulls_in_a_column_are_refused_by_row_number(kind: str) -> None:
    column = COLUMNS[kind](["What is it?", None, "And why?", None])
    with pytest.raises(ConfigurationError, match=r"prompts has no value in 2 of its 4 rows; the first is row 2\."):
        column_to_list(column, "prompts")


def test_nan_and_nat_count_as_nulls() -> None:
    for column in (pd.Series(["a", float("nan")]), pd.Series([pd.Timestamp(0), pd.NaT])):
        with pytest.raises(ConfigurationError, match=r"the first is row 2"):
            column_to_list(column, "prompts")


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"question": QUESTIONS}),
        pl.DataFrame({"question": QUESTIONS}),
        pl.LazyFrame({"question": QUESTIONS}),
        pa.table({"question": QUESTIONS}),
        pa.record_batch({"question": QUESTIONS}),
    ],
)
async def test_a_table_instead_of_a_column_is_refused(table: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is a table \(\w+\), not a column\. Pass one column, such as df\["):
        await run_many(table, config=CONFIG)


@pytest.mark.parametrize("column", [pd.Series([1, 2]), np.array([["a"], ["b"]]), pa.array([["a"], ["b"]])])
async def test_a_column_of_other_values_than_text_is_refused(column: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"prompts\[0\] is a (int|list)"):
        await run_many(column, config=CONFIG)


def test_values_that_are_not_columns_are_returned_unchanged() -> None:
    for value in (None, "a", ["a", None], ("a",), {"a": 1}, b"a", 3, np.str_("a"), np.array("a"), pl.Series):
        assert column_to_list(value, "prompts") is value


# --- Rows ---------------------------------------------------------------------------------------------------


async def make_envelope() -> ResultEnvelope:
    """Return an envelope of three prompts: a valid answer, one that does not fit the schema, and a failure."""
    envelope = await run_many(["Oslo?", "Bergen?", "Pisa?"], config=CONFIG, options=Options(response_schema=City))
    assert envelope.structured
    calls = [*envelope.diagnostics["calls"]]
    calls[1] = {**calls[1], "misfit": "people is missing"}
    raw = [*envelope.diagnostics["raw_responses"][:2], {}]
    failure = CallFailure(index=2, kind="rate_limit", message="Too many.", hint="Wait.")
    changes = {
        "answers": [*envelope.answers[:2], ""],
        "structured": [envelope.structured[0], None, None],
        "errors": [None, None, failure],
        "diagnostics": {**envelope.diagnostics, "calls": calls, "raw_responses": raw},
    }
    return envelope.model_copy(update=changes)


async def test_rows_have_the_status_and_outcome_of_each_prompt() -> None:
    envelope = await make_envelope()
    first, second, third = envelope.to_rows()
    assert list(first) == [name for name in CSV_COLUMNS if name not in {"source", "source_name", "prompt"}]
    assert [row["status"] for row in (first, second, third)] == ["answered", "invalid_output", "rate_limit"]
    assert (first["number"], first["answer"], first["finish_reason"]) == (1, envelope.answers[0], "stop")
    assert first["input_tokens"] + first["output_tokens"] == first["total_tokens"] > 0
    assert (first["cost_usd"] > 0, first["reused"]) == (True, False)
    assert envelope.structured
    assert first["structured"] == envelope.structured[0].model_dump()
    assert (second["error"], second["structured"]) == (
        "The answer does not fit response_schema: people is missing",
        None,
    )
    assert (third["answer"], third["error"], third["hint"]) == (None, "Too many.", "Wait.")
    assert third["input_tokens"] is third["finish_reason"] is None
    assert ResultEnvelope.model_validate_json(envelope.model_dump_json()).to_rows() == [first, second, third]


async def test_rows_have_the_prompts_that_are_passed() -> None:
    envelope = await make_envelope()
    assert [row["prompt"] for row in envelope.to_rows(["Oslo?", "Bergen?", "Pisa?"])] == ["Oslo?", "Bergen?", "Pisa?"]
    with pytest.raises(ConfigurationError, match="has 3 answers, and prompts has 1 items"):
        envelope.to_rows("Oslo?")


async def test_rows_of_reused_answers_are_marked() -> None:
    for reused in (False, True):
        envelope = await run_many(["Is it new?"], config=CONFIG, reuse="always")
        assert [row["reused"] for row in envelope.to_rows()] == [reused]


def test_an_envelope_without_diagnostics_has_rows() -> None:
    envelope = ResultEnvelope(status="ok", answers=["Yes."], confidence=0.9)
    assert [{name: value for name, value in row.items() if value is not None} for row in envelope.to_rows()] == [
        {"number": 1, "status": "answered", "answer": "Yes.", "reused": False}
    ]


async def test_rows_become_a_table_in_each_library(tmp_path: Path) -> None:
    rows = (await make_envelope()).to_rows()
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "answers.parquet")
    assert pq.read_table(tmp_path / "answers.parquet").to_pylist() == rows
    for frame in (pd.DataFrame(rows), pl.DataFrame(rows)):
        assert list(frame.columns) == list(rows[0])
        assert frame["answer"].to_list()[:2] == [row["answer"] for row in rows[:2]]
        assert frame["structured"].to_list()[0] == rows[0]["structured"]
    # The first failure is in a late row.
    late = [*[rows[0] | {"structured": None}] * 200, *rows]
    assert pl.DataFrame(late, infer_schema_length=None)["error"].to_list()[-1] == "Too many."
