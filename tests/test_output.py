"""Answers in files: rows in JSON Lines and CSV, and files that appear only when they are complete."""

from __future__ import annotations

import csv
import gc
import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import fsspec
import pytest

from pollux_flows import ConfigurationError
from pollux_flows.answer_rows import CSV_COLUMNS, AnswerRow, csv_header, csv_lines, json_lines
from pollux_flows.output import (
    Manifest,
    NewFile,
    check_replaceable,
    check_writable,
    output_path,
    resolve_output,
    write_output,
)
from pollux_flows.result import Answer, CallFailure, Outcome
from tests.object_store import ObjectStore, object_store

__all__ = ["object_store"]

ANSWER = 'He said "hi",\r\nand\rleft;\n\nmehr: äöü 漢字 🦜\ttab'


def make_row(number: int = 1, answer: str | None = ANSWER, **more: object) -> AnswerRow:
    return AnswerRow.model_validate({"number": number, "prompt": "Why?", "status": "answered", "answer": answer} | more)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def yield_pieces(*each: Sequence[AnswerRow]) -> AsyncIterator[Sequence[AnswerRow]]:
    for rows in each:
        yield rows


async def write(path: Path | str, *rows: Sequence[AnswerRow], is_guarded: bool = False) -> None:
    manifest = Manifest(submitted=sum(map(len, rows)), output=str(path), collected_at=0.0)
    await write_output(
        str(path), yield_pieces(*rows), manifest, what="The answers", hint="Try again.", is_guarded=is_guarded
    )


# --- Rows ---------------------------------------------------------------------------------------------------


def test_a_row_has_the_status_and_outcome_of_its_prompt() -> None:
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


def test_texts_come_back_unchanged_from_both_formats() -> None:
    rows = [
        make_row(1),
        make_row(2, None, error='a "quoted"\nerror'),
        make_row(3, "", prompt=ANSWER, structured={"ä": ["\r\n"]}),
    ]
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
        ("'=1", "''=1"),  # so that removing the first ' always restores the text
        ("'quoted'", "'quoted'"),
        ("1 = 1", "1 = 1"),
        ("-5", "-5"),
        ("+1.5e3", "+1.5e3"),
        ("-5+cmd|' /C calc'!A0", "'-5+cmd|' /C calc'!A0"),
    ],
)
def test_no_cell_of_a_csv_file_is_a_formula(answer: str, cell: str) -> None:
    """A spreadsheet would evaluate a formula, and an answer may repeat foreign text."""
    (found,) = read_csv(csv_header() + csv_lines([make_row(1, answer)]))
    assert found["answer"] == cell


def test_tokens_and_costs_have_separate_columns() -> None:
    (found,) = read_csv(
        csv_header() + csv_lines([make_row(usage={"input_tokens": 3, "output_tokens": 4}, cost_usd=0.25)])
    )
    assert (found["input_tokens"], found["output_tokens"], found["total_tokens"]) == ("3", "4", "")
    assert (found["cost_usd"], found["reused"]) == ("0.25", "false")


# --- Output paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words"),
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
def test_an_invalid_output_path_is_refused(output: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        resolve_output(output)


def test_an_output_folder_must_end_with_a_slash(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        resolve_output(str(tmp_path))
    assert output_path(resolve_output(f"{tmp_path}/"), "run-1") == f"{tmp_path}/run-1.jsonl"


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.ndjson", "answers.csv", "ANSWERS.CSV"])
async def test_the_suffix_of_the_output_selects_the_format(name: str, tmp_path: Path) -> None:
    await write(resolve_output(str(tmp_path / name)), [make_row(1)], [make_row(2)])
    text = (tmp_path / name).read_bytes().decode()
    read = read_csv(text) if name.lower().endswith(".csv") else [json.loads(line) for line in text.split("\n")[:-1]]
    assert [str(each["number"]) for each in read] == ["1", "2"]
    assert {each["answer"] for each in read} == {ANSWER}


async def test_an_output_may_be_an_address() -> None:
    output = resolve_output("memory://bucket/answers.csv")
    check_writable(output)
    await write(output, [make_row(1)])
    files = fsspec.filesystem("memory")
    assert read_csv(files.cat_file("/bucket/answers.csv").decode())[0]["answer"] == ANSWER
    assert sorted(files.ls("/bucket", detail=False)) == ["/bucket/answers.csv", "/bucket/answers.csv.manifest.json"]


# --- Complete files -----------------------------------------------------------------------------------------


class LostError(Exception):
    """A failure while rows are made."""


async def yield_and_fail(rows: Sequence[AnswerRow]) -> AsyncIterator[Sequence[AnswerRow]]:
    yield rows
    raise LostError


@pytest.mark.parametrize("earlier", [None, "the earlier answers\n"])
async def test_a_failed_write_leaves_no_partial_file(earlier: str | None, tmp_path: Path) -> None:
    """An earlier file stays unchanged, and no other file is left behind."""
    path = tmp_path / "answers.jsonl"
    if earlier is not None:
        path.write_text(earlier)
    manifest = Manifest(submitted=1, collected_at=0.0)
    with pytest.raises(ConfigurationError, match=r"could not be written to .*answers\.jsonl.*LostError.*Try again"):
        await write_output(
            str(path), yield_and_fail([make_row(1)] * 5000), manifest, what="The answers", hint="Try again."
        )
    assert [path.read_text() for path in list_files(tmp_path)] == ([] if earlier is None else [earlier])


async def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path, seen = tmp_path / "answers.jsonl", set()

    async def yield_and_read() -> AsyncIterator[Sequence[AnswerRow]]:
        for number in range(20):
            yield [make_row(number + 1)] * 200
            seen.add(len(path.read_text().splitlines()))

    await write(path, [make_row(1, "short")])
    await write_output(
        str(path), yield_and_read(), Manifest(submitted=1, collected_at=0.0), what="The answers", hint="Try again."
    )
    assert seen == {1}
    assert path.read_text().count("\n") == 4000


async def test_two_concurrent_writers_leave_the_file_of_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"

    async def yield_and_write() -> AsyncIterator[Sequence[AnswerRow]]:
        yield [make_row(1, "a" * 1000)] * 100
        await write(path, [make_row(1, "b")] * 10)
        yield [make_row(1, "a" * 1000)] * 100

    await write_output(
        str(path), yield_and_write(), Manifest(submitted=1, collected_at=0.0), what="The answers", hint="Try again."
    )
    assert [json.loads(line)["answer"] for line in path.read_text().splitlines()] == ["a" * 1000] * 200
    assert [path.name for path in list_files(tmp_path)] == ["answers.jsonl", "answers.manifest.json"]


def test_a_discarded_object_is_not_saved_when_its_file_is_collected_as_garbage(object_store: ObjectStore) -> None:
    object_store.objects["lake/answers.csv"] = b"earlier"
    file = NewFile("s3://lake/answers.csv")
    file.write(b"half")
    file.discard()
    del file
    gc.collect()
    assert object_store.objects == {"lake/answers.csv": b"earlier"}


# --- Paths that cannot be written ---------------------------------------------------------------------------


@pytest.fixture
def unwritable_path(tmp_path: Path) -> Path:
    """A path at which not even root can create a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "answers.jsonl"


def test_an_unwritable_path_is_refused_before_any_row_is_written(unwritable_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written to"):
        check_writable(str(unwritable_path))
    check_writable(str(tmp_path / "new" / "answers.jsonl"))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_missing_bucket_is_refused_before_any_row_is_written(object_store: ObjectStore) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be written to: FileNotFoundError: .* exist\. Free"):
        check_writable("s3://pond/answers.csv")
    check_writable("s3://lake/answers.csv")
    assert object_store.objects == {}


def test_an_output_that_cannot_be_looked_up_is_refused_in_words(object_store: ObjectStore) -> None:
    object_store.is_readable = False
    with pytest.raises(ConfigurationError, match="may exist already, and cannot be read: PermissionError"):
        check_replaceable("s3://lake/answers.csv")
