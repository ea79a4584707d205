"""Test of answer columns: they have the types of the response schema, and take every answer that fits it."""

from __future__ import annotations

import json
from datetime import date
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, RootModel

from pollux_flows import Options
from pollux_flows.answer_rows import AnswerRow
from pollux_flows.mapping.columns import AnswerColumns
from pollux_flows.pipeline.structured import read_answers
from pollux_flows.result import Answer, Outcome
from pollux_flows.tables.table import scan_table
from pollux_flows.tables.writer import TableWriter, resolve_table_output


class Review(BaseModel):
    stars: int
    score: float = 0.0
    is_new: bool = Field(default=False, alias="is new")
    day: date | None = None
    parts: list[int] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Pet(RootModel[Cat | Dog]):
    pass


LOOSE = {"type": "object", "properties": {"stars": {"type": "integer"}, "score": {"type": "number"}}}


@pytest.mark.parametrize(
    ("schema", "text", "cells"),
    [
        (Review, {"stars": 4, "day": "2026-01-02"}, {"stars": 4, "day": "2026-01-02", "parts": "[]", "is new": False}),
        (Review, {"stars": "5", "score": "4.5", "is new": "yes"}, {"stars": 5, "score": 4.5, "is new": True}),
        (Review, {"stars": 10**30, "score": 2**53 + 1}, {"stars": None, "score": 2.0**53}),
        (LOOSE, {"stars": 5.0, "score": 2**70}, {"stars": 5, "score": 2.0**70}),
        (LOOSE, {"stars": 1e30, "score": 10**400}, {"stars": None, "score": None}),
        ({"properties": {"a": {"type": "integer"}}}, [1], {"a": None}),
        (Pet, {"kind": "cat", "lives": 9}, {"value": '{"kind": "cat", "lives": 9}'}),
        (RootModel[dict[str, int]], {"a": 1}, {"value": '{"a": 1}'}),
        (RootModel[list[int]], [1, 2], {"value": "[1, 2]"}),
        (RootModel[int], 7, {"value": 7}),
    ],
)
def test_each_answer_that_fits_the_schema_fits_its_columns(
    schema: Any, text: Any, cells: dict[str, Any], tmp_path: Any
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    options = Options(response_schema=schema)
    columns, answer = AnswerColumns("answer", options), Answer(text=json.dumps(text), finish_reason="stop", usage={})
    (reading,) = read_answers(options, [answer]) or []
    assert reading.problem is None
    row = AnswerRow.of(1, None, Outcome(index=0, identity="a", answer=answer, attempts=1), structured=reading.typed)
    (tmp_path / "in.csv").write_text("q\nx\n")
    table = scan_table(str(tmp_path / "in.csv"), rows_per_chunk=1)
    output = str(tmp_path / "out.parquet")
    with TableWriter(resolve_table_output(output), table, columns.added) as writer:
        writer.write([{"q": "x", **columns.cells(row, is_reused=False)}])
        writer.complete()
    (written,) = pq.read_table(output).to_pylist()
    assert {name: written[f"answer.{name}"] for name in cells} == cells
    assert json.loads(written["answer"]) == text
