"""Tests of `prompts_from`: prompts are read from a file, an address or pasted lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pandas as pd
import polars as pl
import pytest

from pollux_flows import ConfigurationError, SourceError
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import broadcast, fan_out, submit
from pollux_flows.flows.prompts import read_prompts
from pollux_flows.source import Source


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.txt", "one\n\n  two, or more \r\n", ""),
        ("a.jsonl", '"one"\n{"prompt": "two, or more"}\n\n', ""),
        ("a.jsonl", '{"q": "one"}\n{"q": "two, or more"}', "#q"),
        ("a.csv", '\ufeffid,prompt\n1,one\n2,"two, or more"\n', ""),
        ("a.csv", 'question\none\n"two, or more"\n', ""),
        ("a.csv", 'question,\none,\n"two, or more",,\n', "#question"),
        ("a.CSV", 'id,question\n1,one\n2,"two, or more"\n3,\n', "#question"),
    ],
)
async def test_prompts_are_read_from_a_file(tmp_path: Path, name: str, content: str, column: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert await read_prompts([], f"{tmp_path / name}{column}") == ["one", "two, or more"]


async def test_pasted_lines_are_prompts() -> None:
    assert await read_prompts([], "What is it?\n\nAnd why, in questions.csv?\n") == [
        "What is it?",
        "And why, in questions.csv?",
    ]
    assert await read_prompts([], "Only one?") == ["Only one?"]


async def test_prompts_of_a_list_are_never_split() -> None:
    assert await read_prompts(["one\ntwo"], None) == ["one\ntwo"]
    assert await read_prompts(["one\ntwo"], "  ") == ["one\ntwo"]


def test_a_column_is_a_list_of_prompts(provider: PolluxProvider) -> None:
    """A column and a list of the same prompts get the same answers."""
    column = pl.DataFrame({"question": ["What is it?", "And why?"]})["question"]
    listed = fan_out(column.to_list(), provider)
    assert fan_out(column, provider).answers == listed.answers
    (envelope,) = broadcast(column.to_pandas(), [Source.from_text("A pump.")], provider)
    assert len(envelope.answers) == 2
    with pytest.raises(ConfigurationError, match="prompts is a table"):
        fan_out(column.to_frame(), provider)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="prompts has no value in 1 of its 2 rows; the first is row 2"):
        submit(pd.Series(["What is it?", None]), provider)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "id,question\n1,one\n", r"has no column 'prompt'; it has id, question"),
        ("a.csv", "id;prompt\n1;one\n", "has semicolons between its columns.*with commas"),
        ("a.csv", "id\tprompt\n1\tone\n", "has tabs between its columns"),
        ("a.csv", "prompt\none\ntwo, or more\n", "line 3 of .*a.csv' has more cells.*in quotes"),
        ("a.csv", "", r"has no column 'prompt'; it has none"),
        ("a.jsonl", '{"prompt": 3}', r"Line 1 of .* has no text in 'prompt'"),
        ("a.jsonl", '"one"\n{', r"Line 2 of .* is not JSON"),
        ("a.txt", " \n", r"has no prompts"),
    ],
)
async def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(SourceError, match=problem):
        await read_prompts([], str(tmp_path / name))


async def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("ä".encode("latin-1"))
    with pytest.raises(SourceError, match="is not UTF-8, at byte 0"):
        await read_prompts([], str(tmp_path / "a.txt"))


async def test_prompts_and_prompts_from_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="exclude each other"):
        await read_prompts(["one"], "two")


def test_a_flow_sends_the_prompts_of_prompts_from(provider: PolluxProvider, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("one\ntwo\n")
    assert len(fan_out([], provider, prompts_from=str(tmp_path / "q.txt")).answers) == 2
    [envelope] = broadcast([], [Source.from_text("x")], provider, prompts_from="one\ntwo\nthree")
    assert len(envelope.answers) == 3


def test_prompts_may_be_missing_if_prompts_from_is_set(provider: PolluxProvider) -> None:
    """A run that is started through the API may have its other parameters only."""
    ask = cast(Any, fan_out)
    assert len(ask(provider=provider, prompts_from="one\ntwo").answers) == 2
    with pytest.raises(ConfigurationError, match="provider is missing"):
        ask(prompts_from="one\ntwo")
