"""Tests of writing tables: input columns are unchanged, new ones follow, and an output appears once complete."""

from __future__ import annotations

import csv
import gc
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux_flows import ConfigurationError
from pollux_flows.access import Restrictions, apply_restrictions
from pollux_flows.output import Manifest, manifest_path, write_manifest
from pollux_flows.tables import writer
from pollux_flows.tables.table import Table, read_chunk, scan_table
from pollux_flows.tables.writer import AddedColumn, TableWriter, resolve_table_output
from tests.object_store import ObjectStore, object_store

__all__ = ["object_store"]

ADDED = [
    AddedColumn("answer", "text"),
    AddedColumn("tokens", "int"),
    AddedColumn("cost", "float"),
    AddedColumn("reused", "bool"),
    AddedColumn("found", "json"),
]
ANSWER: dict[str, Any] = {"answer": "=1+1", "tokens": 3, "cost": 0.5, "reused": False, "found": {"ä": [1]}}
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


def read_all(table: Table) -> list[dict[str, Any]]:
    return [row for chunk in table.chunks for row in read_chunk(chunk)]


def copy(address: str, output: str, answers: Sequence[dict[str, Any]] = ()) -> Table:
    """Write a table with answers (or with no new columns), and scan the copy."""
    table = scan_table(address, rows_per_chunk=2)
    with TableWriter(resolve_table_output(output), table, ADDED if answers else []) as file:
        for chunk in table.chunks:
            rows = read_chunk(chunk)
            file.write([row | (answers[chunk.first_row + at] if answers else {}) for at, row in enumerate(rows)])
        file.complete()
    return scan_table(output, rows_per_chunk=2)


def write_csv(
    path: Path, rows: Sequence[Sequence[str]] = (("a", "b"), ("007", "x"), ("", "=1"), ("1.0", 'y,"\r\n'))
) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


OUTPUTS = pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.ndjson", "out.parquet", "out/"])


# --- Values -------------------------------------------------------------------------------------------------


@OUTPUTS
def test_new_columns_follow_those_of_the_table(name: str, tmp_path: Path) -> None:
    nothing = dict.fromkeys(ANSWER)
    table = copy(write_csv(tmp_path / "t.csv"), f"{tmp_path}/{name}", [ANSWER, nothing, ANSWER])
    assert table.columns == ["a", "b", *ANSWER]
    rows = read_all(table)
    assert [(row["a"], row["b"]) for row in rows] == [("007", "x"), (None, "=1"), ("1.0", 'y,"\r\n')]
    answer = {
        ".csv": {"answer": "'=1+1", "tokens": "3", "cost": "0.5", "reused": "false", "found": '{"ä": [1]}'},
        ".jsonl": ANSWER,
        ".ndjson": ANSWER,
    }.get(Path(name).suffix, ANSWER | {"found": '{"ä": [1]}'})
    assert [{column: row[column] for column in ANSWER} for row in rows] == [answer, nothing, answer]


def test_csv_comes_back_byte_for_byte(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv")
    copy(path, f"{tmp_path}/out.csv")
    assert (tmp_path / "out.csv").read_bytes() == Path(path).read_bytes()


@settings(max_examples=15)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_any_text_goes_through_all_formats(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    table = copy(write_csv(tmp_path / "t.csv", [("a", "b"), *rows]), f"{tmp_path}/1.jsonl")
    for number, name in enumerate(("2.parquet", "3.csv", "4/", "5.jsonl", "6.csv")):
        table = copy(table.address, f"{tmp_path}/{name}")
        assert table.columns == ["a", "b"], number
    assert read_all(table) == [{"a": one or None, "b": other or None} for one, other in rows]


@given(values=st.lists(TEXT, min_size=1, max_size=6))
def test_a_single_column_has_no_blank_lines(values: list[str], tmp_path: Path) -> None:
    table = copy(write_csv(tmp_path / "t.csv", [("a",), *((value,) for value in values)]), f"{tmp_path}/o.csv")
    assert read_all(table) == [{"a": value or None} for value in values]


def test_a_lone_surrogate_in_an_answer_is_replaced(tmp_path: Path) -> None:
    for name in ("o.csv", "o.jsonl", "o.parquet"):
        table = copy(write_csv(tmp_path / "t.csv"), f"{tmp_path}/{name}", [ANSWER | {"answer": "\ud800"}] * 3)
        assert read_all(table)[0]["answer"] == "\ufffd"


# --- JSON lines ---------------------------------------------------------------------------------------------


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_types_of_json_become_types_of_parquet(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"i": 1, "f": 1, "b": True, "t": "x", "n": None, "o": {"x": 1}},
        {"i": 2**60, "f": 0.5, "b": None, "t": "ä", "n": None, "o": [1]},
    ]
    table = copy(write_jsonl(tmp_path / "t.jsonl", rows), f"{tmp_path}/o.parquet")
    assert table.schema is not None
    assert [str(field.type) for field in table.schema] == ["int64", "double", "bool", "string", "string", "string"]
    assert read_all(table)[0] == rows[0] | {"f": 1.0, "o": '{"x": 1}'}
    assert read_all(copy(str(tmp_path / "t.jsonl"), f"{tmp_path}/o.jsonl")) == rows


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1, 2, "x"], "'a' holds an integer in row 1 and a text in row 3"),
        ([True, 1], "'a' holds true or false in row 1 and an integer in row 2"),
        ([{}, "x"], "'a' holds an object or a list in row 1 and a text in row 2"),
        ([2**53 + 1, 0.5], "'a' holds a large integer in row 1 and a number in row 2"),
        ([1, 2**64], "'a' holds an integer of more than 64 bits in row 2"),
    ],
)
def test_mixed_types_are_refused_only_for_parquet(values: list[Any], shown: str, tmp_path: Path) -> None:
    address = write_jsonl(tmp_path / "t.jsonl", [{"a": value} for value in values])
    with pytest.raises(ConfigurationError, match=shown):
        copy(address, f"{tmp_path}/o.parquet")
    assert not (tmp_path / "o.parquet").exists()
    assert [row["a"] for row in read_all(copy(address, f"{tmp_path}/o.jsonl"))] == values


# --- Parquet ------------------------------------------------------------------------------------------------

TYPED = pa.table(
    {
        "i": pa.array([1, None], pa.uint8()),
        "f": pa.array([0.5, float("nan")], pa.float32()),
        "day": pa.array([date(2026, 1, 1), None]),
        "time": pa.array([time(1, 2, 3), None]),
        "at": pa.array([datetime(2026, 1, 1, 12, tzinfo=UTC), None], pa.timestamp("ms", "Europe/Paris")),
        "fine": pa.array([1, 10**18 + 1], pa.int64()).cast(pa.timestamp("ns")),
        "coarse": pa.array([1000, None], pa.int64()).cast(pa.timestamp("ns", "UTC")),
        "ticks": pa.array([1, None], pa.int64()).cast(pa.time64("ns")),
        "took": pa.array([timedelta(seconds=1.5), None], pa.duration("ns")),
        "price": pa.array([Decimal("1.10"), None], pa.decimal128(9, 2)),
        "data": pa.array([b"\0\xff", None]),
        "nested": pa.array([{"x": [1, None], "y": date(2026, 1, 1)}, None]),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int16())),
        "kind": pa.array(["a", None], pa.dictionary(pa.int8(), pa.string())),
        "large": pa.array(["x", None], pa.large_string()),
        "nothing": pa.nulls(2),
    }
).replace_schema_metadata({"made": "by hand"})


@pytest.mark.parametrize("name", ["o.parquet", "o/"])
def test_parquet_is_written_with_its_schema_and_values(name: str, tmp_path: Path) -> None:
    pq.write_table(TYPED, tmp_path / "t.parquet")
    stored = pq.read_table(tmp_path / "t.parquet")
    table = copy(str(tmp_path / "t.parquet"), f"{tmp_path}/{name}", [ANSWER, ANSWER])
    found = pq.read_table(f"{tmp_path}/{name}")
    assert found.schema.names == [*stored.schema.names, *ANSWER]
    assert found.select(stored.schema.names).schema.equals(stored.schema, check_metadata=True)
    for column in stored.schema.names:
        assert found[column].combine_chunks().to_string() == stored[column].combine_chunks().to_string()
    assert table.rows == 2


@pytest.mark.parametrize("name", ["o.csv", "o.jsonl"])
def test_parquet_values_are_written_as_text(name: str, tmp_path: Path) -> None:
    pq.write_table(TYPED, tmp_path / "t.parquet")
    first, second = read_all(copy(str(tmp_path / "t.parquet"), f"{tmp_path}/{name}"))
    is_csv = name.endswith("csv")
    assert {column: value for column, value in first.items() if isinstance(value, str)} == {
        "day": "2026-01-01",
        "time": "01:02:03",
        "at": "2026-01-01T13:00:00+01:00",
        "fine": "1970-01-01T00:00:00.000000001",
        "coarse": "1970-01-01T00:00:00.000001+00:00",
        "took": "PT1.5S",
        "price": "1.10",
        "data": "AP8=",
        "kind": "a",
        "large": "x",
    } | (
        {"i": "1", "f": "0.5", "ticks": "1", "nested": '{"x": [1, null], "y": "2026-01-01"}', "map": '[["k", 1]]'}
        if is_csv
        else {}
    )
    assert {column for column, value in second.items() if value is not None} == {"fine"}


def test_large_tables_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_PART_ROWS", 3)
    rows = [(str(number), "x") for number in range(8)]
    table = copy(write_csv(tmp_path / "t.csv", [("a", "b"), *rows]), f"{tmp_path}/o/")
    assert [each.name for each in sorted((tmp_path / "o").iterdir())] == [
        f"part-0000{part}.parquet" for part in range(4)
    ]
    assert [row["a"] for row in read_all(table)] == [a for a, _ in rows]


# --- Complete outputs ---------------------------------------------------------------------------------------


@OUTPUTS
def test_an_output_appears_once_it_is_complete(name: str, tmp_path: Path) -> None:
    table = scan_table(write_csv(tmp_path / "t.csv"), rows_per_chunk=10)
    place = tmp_path / name
    for answer in ("first", "second"):
        before = place.stat().st_ino if place.exists() else None
        with TableWriter(resolve_table_output(f"{tmp_path}/{name}"), table, ADDED[:1]) as file:
            file.write([row | {"answer": answer} for row in read_chunk(table.chunks[0])])
            assert (place.stat().st_ino if place.exists() else None) == before
            file.complete()
        assert {row["answer"] for row in read_all(scan_table(f"{tmp_path}/{name}", rows_per_chunk=9))} == {answer}
    with TableWriter(resolve_table_output(f"{tmp_path}/{name}"), table, ADDED[:1]) as file:
        file.write(read_chunk(table.chunks[0]))
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["t.csv", name.rstrip("/")])
    assert {row["answer"] for row in read_all(scan_table(f"{tmp_path}/{name}", rows_per_chunk=9))} == {"second"}


@OUTPUTS
def test_writers_that_are_complete_at_once_leave_the_output_of_one(name: str, tmp_path: Path) -> None:
    table = scan_table(write_csv(tmp_path / "t.csv"), rows_per_chunk=10)
    rows = read_chunk(table.chunks[0])
    for _ in range(20):
        files = [TableWriter(resolve_table_output(f"{tmp_path}/{name}"), table, ADDED[:1]) for _ in range(4)]
        for number, file in enumerate(files):
            file.write([row | {"answer": str(number)} for row in rows])
        with ThreadPoolExecutor(len(files)) as threads:
            for done in [threads.submit(file.complete) for file in files]:
                done.result()
        assert len({row["answer"] for row in read_all(scan_table(f"{tmp_path}/{name}", rows_per_chunk=9))}) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["t.csv", name.rstrip("/")])


KILLED = """
import os, signal, sys
from pollux_flows.tables.table import read_chunk, scan_table
from pollux_flows.tables.writer import TableWriter, resolve_table_output
table = scan_table(sys.argv[1], rows_per_chunk=10)
files = [TableWriter(resolve_table_output(output), table, []) for output in sys.argv[2:]]
for file in files:
    file.write(read_chunk(table.chunks[0]) * 20000)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later run that writes to the same place removes the unfinished files."""
    names = ["o.csv", "o.jsonl", "o.parquet", "f/"]
    (tmp_path / "o.csv").write_text("earlier")
    path = write_csv(tmp_path / "t.csv")
    arguments = [path, *(f"{tmp_path}/{name}" for name in names)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "o.csv").read_text() == "earlier"
    assert not [name for name in names[1:] if (tmp_path / name).exists()]
    assert len(list(tmp_path.glob("*.unfinished"))) == 4
    monkeypatch.setattr("pollux_flows.output._ABANDONED_S", -1.0)
    table = scan_table(path, rows_per_chunk=10)
    alive = [TableWriter(resolve_table_output(f"{tmp_path}/{name}"), table, []) for name in names]
    for name in names:
        copy(path, f"{tmp_path}/{name}")
    for file in alive:  # the files of running writers are not removed
        file.write(read_chunk(table.chunks[0]))
        file.complete()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["f", "o.csv", "o.jsonl", "o.parquet", "t.csv"]


def test_a_folder_that_a_killed_writer_has_moved_away_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pollux_flows.output._ABANDONED_S", -1.0)
    (tmp_path / "f.0123abcd.unfinished.earlier").mkdir()
    copy(write_csv(tmp_path / "t.csv"), f"{tmp_path}/f/")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["f", "t.csv"]


def test_a_table_is_written_to_an_address(tmp_path: Path) -> None:
    for name in ("o.csv", "o.jsonl", "o.parquet"):
        table = copy(write_csv(tmp_path / "t.csv"), f"memory://tables-out/{name}", [ANSWER] * 3)
        assert (table.rows, len(table.columns)) == (3, 7)
    assert [each["name"] for each in fsspec.filesystem("memory").ls("/tables-out")] == [
        f"/tables-out/{name}" for name in ("o.csv", "o.jsonl", "o.parquet")
    ]


def test_a_file_that_cannot_be_begun_leaves_the_earlier_object(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = scan_table(write_csv(tmp_path / "t.csv"), rows_per_chunk=10)
    for name, begin in (("o.parquet", "ParquetRows"), ("o.csv", "csv_text")):
        object_store.objects[f"lake/{name}"] = b"earlier"
        monkeypatch.setattr(writer, begin, lambda *_: 1 / 0)
        with pytest.raises(ConfigurationError, match="ZeroDivisionError"):
            TableWriter(f"s3://lake/{name}", table, ADDED)
    gc.collect()
    assert object_store.objects == {"lake/o.parquet": b"earlier", "lake/o.csv": b"earlier"}


def test_a_failed_write_raises_a_configuration_error(tmp_path: Path) -> None:
    table = scan_table(write_csv(tmp_path / "t.csv"), rows_per_chunk=10)
    for name in ("o.csv", "o.parquet"):
        file = TableWriter(str(tmp_path / "there" / name), table, [])
        for each in (tmp_path / "there").iterdir():
            each.unlink()
        file.write(read_chunk(table.chunks[0]))
        with pytest.raises(ConfigurationError, match="could not be written") as caught:
            file.complete()
        assert "answers are reused" in str(caught.value.hint)
        file.discard()


def test_a_manifest_that_cannot_be_written_leaves_the_earlier_output(tmp_path: Path) -> None:
    table, output = scan_table(write_csv(tmp_path / "t.csv"), rows_per_chunk=9), tmp_path / "out.csv"
    output.write_text("earlier")
    (tmp_path / "out.csv.manifest.json").mkdir()
    with (
        TableWriter(str(output), table, []) as writing,
        pytest.raises(ConfigurationError, match="could not be written"),
    ):
        writing.complete(Manifest(submitted=0, collected_at=0.0))
    assert output.read_text() == "earlier"


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = scan_table(write_csv(tmp_path / "t.csv", [("a", "answer"), ("1", "2")]), rows_per_chunk=10)
    with pytest.raises(ConfigurationError, match="two columns 'answer'"):
        TableWriter(str(tmp_path / "o.csv"), table, ADDED)


# --- Output addresses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "refusal"),
    [
        (" ", "blank"),
        ("out.xlsx", "ends with none of .parquet, .jsonl, .ndjson, .csv"),
        ("https://example.com/out.parquet", "read-only"),
        ("s3://user:password@bucket/out.parquet", "password"),
        ("memory://bucket/out/", "a remote folder"),
        ("/proc/out.parquet", "cannot be written to"),
        ("/proc/out/", "cannot be written to"),
    ],
)
def test_an_unusable_output_is_refused(output: str, refusal: str) -> None:
    with pytest.raises(ConfigurationError, match=refusal) as caught:
        resolve_table_output(output)
    assert caught.value.hint


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").touch()
    with pytest.raises(ConfigurationError, match=r"other files, such as 'data\.parquet'"):
        resolve_table_output(f"{tmp_path}/")
    with pytest.raises(ConfigurationError, match="is a folder"):
        resolve_table_output(str(tmp_path))


def test_writing_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.compute", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match="pyarrow"):
        resolve_table_output(str(tmp_path / "o.parquet"))
    copy(write_csv(tmp_path / "t.csv"), f"{tmp_path}/o.jsonl")


@OUTPUTS
def test_a_deployed_run_replaces_only_what_a_run_wrote(name: str, tmp_path: Path) -> None:
    table = scan_table(write_csv(tmp_path / "t.csv"), rows_per_chunk=10)
    output, place = f"{tmp_path}/{name}", tmp_path / name
    with (
        apply_restrictions(Restrictions(environment={})),
        pytest.raises(ConfigurationError, match="may not be written"),
    ):
        resolve_table_output(output)
    with apply_restrictions(Restrictions(folders=[str(tmp_path)], environment={})):
        for _ in range(2):  # the second replaces the first
            with TableWriter(resolve_table_output(output), table, []) as file:
                file.write(read_chunk(table.chunks[0]))
                write_manifest(output, Manifest(submitted=3, output=output, collected_at=0.0))
                file.complete()
        Path(manifest_path(output)).unlink()
        with pytest.raises(ConfigurationError, match="no run of this package wrote it"):
            resolve_table_output(output)
    assert place.exists()
