"""Answers in files: their rows in both formats, and files that appear only once they are complete."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import fsspec
import pytest

from pollux_flows import ConfigurationError
from pollux_flows.answer_rows import CSV_COLUMNS, AnswerRow, csv_header, csv_lines, json_lines
from pollux_flows.output import Manifest, check_writable, output_path, resolve_output, write_output
from pollux_flows.result import Answer, CallFailure, Outcome

ANSWER = 'He said "hi",\r\nand\rleft;\n\nmehr: äöü 漢字 🦜\ttab'


def row(number: int = 1, answer: str | None = ANSWER, **more: object) -> AnswerRow:
    return AnswerRow.model_validate({"number": number, "prompt": "Why?", "status": "answered", "answer": answer} | more)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def pieces(*each: Sequence[AnswerRow]) -> AsyncIterator[Sequence[AnswerRow]]:
    for rows in each:
        yield rows


async def write(path: Path | str, *rows: Sequence[AnswerRow], is_guarded: bool = False) -> None:
    manifest = Manifest(submitted=sum(map(len, rows)), output=str(path), collected_at=0.0)
    await write_output(str(path), pieces(*rows), manifest, what="The answers", hint="Try again.", is_guarded=is_guarded)


# --- Rows ---------------------------------------------------------------------------------------------------


def test_a_row_says_what_became_of_its_prompt() -> None:
    answer = Answer(text="ok", finish_reason="stop", usage={"input_tokens": 3}, reasoning="hm")
    outcome = Outcome(index=0, identity="a", answer=answer, attempts=1, cost_usd=0.5, reused="always")
    found = AnswerRow.of(1, "Why?", outcome, structured={"a": 1})
    assert (found.status, found.answer, found.structured, found.reasoning) == ("answered", "ok", {"a": 1}, "hm")
    assert (found.usage, found.cost_usd, found.reused) == ({"input_tokens": 3}, 0.5, True)
    assert AnswerRow.of(1, "Why?", outcome, misfit="no").status == "invalid_output"
    failure = CallFailure(index=0, kind="rate_limit", message="Slow down.", hint="Wait.")
    failed = AnswerRow.of(1, "Why?", Outcome(index=0, identity="a", failure=failure, attempts=1))
    assert (failed.status, failed.answer, failed.error, failed.hint) == ("rate_limit", None, "Slow down.", "Wait.")
    assert AnswerRow.of(1, "Why?", None).status == "no answer"


def test_texts_come_back_from_both_formats_as_they_were() -> None:
    rows = [row(1), row(2, None, error='a "quoted"\nerror'), row(3, "", prompt=ANSWER, structured={"ä": ["\r\n"]})]
    assert [AnswerRow.model_validate_json(line) for line in json_lines(rows).split("\n")[:-1]] == rows
    found = read_csv(csv_header() + csv_lines(rows))
    assert [each["answer"] for each in found] == [ANSWER, "", ""]
    assert (found[1]["error"], found[2]["prompt"]) == ('a "quoted"\nerror', ANSWER)
    assert json.loads(found[2]["structured"]) == {"ä": ["\r\n"]}
    assert list(found[0]) == list(CSV_COLUMNS)


@pytest.mark.parametrize(
    ("answer", "cell"),
    [
        ('=HYPERLINK("https://x.example";"y")', '\'=HYPERLINK("https://x.example";"y")'),
        ("+1-1", "'+1-1"),
        ("- a list", "'- a list"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("\n=1", "'\n=1"),
        ("\uff1d1", "'\uff1d1"),
        ("'=1", "''=1"),  # so that one ' too many is always ours
        ("'quoted'", "'quoted'"),
        ("1 = 1", "1 = 1"),
        ("-5", "-5"),
        ("+1.5e3", "+1.5e3"),
        ("-5+cmd|' /C calc'!A0", "'-5+cmd|' /C calc'!A0"),
    ],
)
def test_no_cell_is_a_formula(answer: str, cell: str) -> None:
    """A spreadsheet would run it, and an answer may come from a text by a stranger."""
    (found,) = read_csv(csv_header() + csv_lines([row(1, answer)]))
    assert found["answer"] == cell


def test_numbers_have_columns_of_their_own() -> None:
    (found,) = read_csv(csv_header() + csv_lines([row(usage={"input_tokens": 3, "output_tokens": 4}, cost_usd=0.25)]))
    assert (found["input_tokens"], found["output_tokens"], found["total_tokens"]) == ("3", "4", "")
    assert (found["cost_usd"], found["reused"]) == ("0.25", "false")


# --- Places -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "refusal"),
    [
        (" ", "is blank"),
        ("answers.txt", r"ends with none of \.jsonl, \.ndjson, \.csv"),
        ("answers", "ends with none of"),
        ("answers.json", "ends with none of"),
        ("answers.csv.gz", "ends with none of"),
        ("https://example.com/answers.jsonl", "https is read-only"),
        ("https://example.com/answers/", "https is read-only"),
        ("s3://a:b@c/d.csv", "password"),
        ("nowhere://x.csv", "cannot be used"),
    ],
)
def test_a_place_that_answers_cannot_go_to_is_refused(output: str, refusal: str) -> None:
    with pytest.raises(ConfigurationError, match=refusal):
        resolve_output(output)


def test_a_folder_says_so_with_a_slash(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        resolve_output(str(tmp_path))
    assert output_path(resolve_output(f"{tmp_path}/"), "run-1") == f"{tmp_path}/run-1.jsonl"


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.ndjson", "answers.csv", "ANSWERS.CSV"])
async def test_the_ending_chooses_the_format(name: str, tmp_path: Path) -> None:
    await write(resolve_output(str(tmp_path / name)), [row(1)], [row(2)])
    text = (tmp_path / name).read_bytes().decode()
    read = read_csv(text) if name.lower().endswith(".csv") else [json.loads(line) for line in text.split("\n")[:-1]]
    assert [str(each["number"]) for each in read] == ["1", "2"]
    assert {each["answer"] for each in read} == {ANSWER}


async def test_answers_go_to_an_address_as_well() -> None:
    output = resolve_output("memory://bucket/answers.csv")
    check_writable(output)
    await write(output, [row(1)])
    files = fsspec.filesystem("memory")
    assert read_csv(files.cat_file("/bucket/answers.csv").decode())[0]["answer"] == ANSWER
    assert sorted(files.ls("/bucket", detail=False)) == ["/bucket/answers.csv", "/bucket/answers.csv.manifest.json"]


# --- Complete, or not there ---------------------------------------------------------------------------------


class LostError(Exception):
    """Some failure while rows are made."""


async def failing(rows: Sequence[AnswerRow]) -> AsyncIterator[Sequence[AnswerRow]]:
    yield rows
    raise LostError


@pytest.mark.parametrize("earlier", [None, "the earlier answers\n"])
async def test_a_file_is_never_there_in_part(earlier: str | None, tmp_path: Path) -> None:
    """An earlier file stays, whatever happens on the way; nothing else is left behind."""
    path = tmp_path / "answers.jsonl"
    if earlier is not None:
        path.write_text(earlier)
    manifest = Manifest(submitted=1, collected_at=0.0)
    with pytest.raises(ConfigurationError, match=r"could not be written to .*answers\.jsonl.*LostError.*Try again"):
        await write_output(str(path), failing([row(1)] * 5000), manifest, what="The answers", hint="Try again.")
    assert [path.read_text() for path in files_in(tmp_path)] == ([] if earlier is None else [earlier])


async def test_a_reader_sees_one_file_or_the_other(tmp_path: Path) -> None:
    """While it is replaced, too."""
    path, seen = tmp_path / "answers.jsonl", set()

    async def watched() -> AsyncIterator[Sequence[AnswerRow]]:
        for number in range(20):
            yield [row(number + 1)] * 200
            seen.add(len(path.read_text().splitlines()))

    await write(path, [row(1, "short")])
    await write_output(
        str(path), watched(), Manifest(submitted=1, collected_at=0.0), what="The answers", hint="Try again."
    )
    assert seen == {1}
    assert path.read_text().count("\n") == 4000


async def test_two_writers_leave_the_file_of_one(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"

    async def other() -> AsyncIterator[Sequence[AnswerRow]]:
        yield [row(1, "a" * 1000)] * 100
        await write(path, [row(1, "b")] * 10)
        yield [row(1, "a" * 1000)] * 100

    await write_output(
        str(path), other(), Manifest(submitted=1, collected_at=0.0), what="The answers", hint="Try again."
    )
    assert [json.loads(line)["answer"] for line in path.read_text().splitlines()] == ["a" * 1000] * 200
    assert [path.name for path in files_in(tmp_path)] == ["answers.jsonl", "answers.manifest.json"]


# --- Places that take nothing -------------------------------------------------------------------------------


@pytest.fixture
def in_the_way(tmp_path: Path) -> Path:
    """A path that no file can be created at, not even by an administrator."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "answers.jsonl"


def test_a_place_that_takes_nothing_is_found_out_beforehand(in_the_way: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written to"):
        check_writable(str(in_the_way))
    check_writable(str(tmp_path / "new" / "answers.jsonl"))
    assert list((tmp_path / "new").iterdir()) == []
