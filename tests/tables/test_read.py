"""Tests of reading tables: what a scan finds and refuses, and what a chunk reads."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import sys
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows import ConfigurationError, PolluxError, SourceError
from pollux_flows.access import Restrictions, apply_restrictions
from pollux_flows.tables.table import Chunk, Table, read_chunk, scan_table
from tests.object_store import ObjectStore, object_store

__all__ = ["object_store"]

ROWS: list[dict[str, Any]] = [{"id": f"r{number}", "text": f"Text {number}"} for number in range(25)]


def read_all(table: Table) -> list[dict[str, Any]]:
    """Read each chunk from its JSON, as another machine would."""
    return [row for chunk in table.chunks for row in read_chunk(Chunk.model_validate_json(chunk.model_dump_json()))]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    match path.suffix:
        case ".csv":
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
            path.write_bytes(text.getvalue().encode())
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        case _:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_refusal(address: str, **more: Any) -> PolluxError:
    with pytest.raises((ConfigurationError, SourceError)) as caught:
        scan_table(address, **{"rows_per_chunk": 10} | more)
    assert caught.value.hint
    return caught.value


FORMATS = pytest.mark.parametrize("ending", ["csv", "jsonl", "ndjson", "parquet"])


# --- All formats --------------------------------------------------------------------------------------------


@FORMATS
def test_a_table_is_cut_into_chunks(ending: str, tmp_path: Path) -> None:
    address = write(tmp_path / f"t.{ending}", ROWS)
    table = scan_table(address, rows_per_chunk=10, need=["text"], id_column="id")
    assert (table.columns, table.rows) == (["id", "text"], 25)
    assert [(chunk.first_row, chunk.rows) for chunk in table.chunks] == [(0, 10), (10, 10), (20, 5)]
    assert read_all(table) == ROWS
    assert read_chunk(table.chunks[2], ["text"]) == [{"text": row["text"]} for row in ROWS[20:]]
    assert read_chunk(table.chunks[1]) == ROWS[10:20]


@FORMATS
def test_a_limit_ends_the_table(ending: str, tmp_path: Path) -> None:
    address = write(tmp_path / f"t.{ending}", [*ROWS, ROWS[0]])  # the duplicate is beyond it
    table = scan_table(address, rows_per_chunk=10, limit=12, id_column="id")
    assert (table.rows, read_all(table)) == (12, ROWS[:12])


@FORMATS
def test_a_missing_column_is_named(ending: str, tmp_path: Path) -> None:
    address = write(tmp_path / f"t.{ending}", ROWS)
    found = read_refusal(address, need=["id", "txt"])
    assert ("has no column 'txt'; it has id, text" in found.message, found.hint) == (True, "Did you mean 'text'?")
    assert "has no column 'key'" in read_refusal(address, id_column="key").message


@FORMATS
def test_duplicate_ids_are_refused_across_chunks(ending: str, tmp_path: Path) -> None:
    rows = [{"id": str(number % 4321), "text": "x"} for number in range(4322)]
    assert "Rows 1 and 4,322" in read_refusal(write(tmp_path / f"t.{ending}", rows), id_column="id").message


@FORMATS
def test_a_row_without_an_id_is_refused(ending: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "text": "x"}, {"id": None, "text": "x"}]
    assert "Row 2" in read_refusal(write(tmp_path / f"t.{ending}", rows), id_column="id").message


def test_ids_of_different_types_differ(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 1}, {"id": "1"}, {"id": True}, {"id": [1]}]
    assert scan_table(write(tmp_path / "t.jsonl", rows), rows_per_chunk=10, id_column="id").rows == 4


@FORMATS
def test_a_file_that_changed_after_its_scan_is_refused(ending: str, tmp_path: Path) -> None:
    address = write(tmp_path / f"t.{ending}", ROWS)
    table = scan_table(address, rows_per_chunk=10)
    write(tmp_path / f"t.{ending}", [*ROWS, ROWS[0]])
    with pytest.raises(SourceError, match="changed after it was scanned, so rows 11 to 20"):
        read_chunk(table.chunks[1])


@FORMATS
def test_tables_are_read_from_addresses(ending: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file(f"/tables/read.{ending}", Path(write(tmp_path / f"t.{ending}", ROWS)).read_bytes())
    assert read_all(scan_table(f"memory://tables/read.{ending}", rows_per_chunk=10)) == ROWS


def test_a_folder_at_an_address_is_listed_anew_by_each_scan(object_store: ObjectStore, tmp_path: Path) -> None:
    parts = [Path(write(tmp_path / f"{n}.parquet", ROWS[:n])).read_bytes() for n in (1, 2, 3)]
    object_store.objects["lake/t/1.parquet"] = parts[0]
    assert scan_table("s3://lake/t/", rows_per_chunk=10).rows == 1
    object_store.objects["lake/t/2.parquet"] = parts[1]
    assert scan_table("s3://lake/t/", rows_per_chunk=10).rows == 3
    object_store.objects["lake/t/1.parquet"] = parts[2]
    table = scan_table("s3://lake/t/", rows_per_chunk=10)
    assert read_all(table) == [*ROWS[:3], *ROWS[:2]]
    object_store.objects["lake/t/2.parquet"] = parts[0]
    with pytest.raises(SourceError, match=r"2\.parquet' changed after it was scanned"):
        read_all(table)


@FORMATS
def test_a_relative_path_is_read_from_any_directory(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / f"t.{ending}", ROWS)
    monkeypatch.chdir(tmp_path)
    table = scan_table(f"t.{ending}", rows_per_chunk=10)
    monkeypatch.chdir("/")
    assert read_all(table) == ROWS


@pytest.mark.parametrize("name", ["t.xlsx", "t.csv.gz", "t", "t.json"])
def test_other_file_types_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a\n1\n")
    assert ".csv, .jsonl, .ndjson, .parquet" in read_refusal(str(tmp_path / name)).message


@FORMATS
def test_missing_files_and_unusable_addresses_are_refused(ending: str, tmp_path: Path) -> None:
    assert "no file" in read_refusal(str(tmp_path / f"t.{ending}")).message
    assert "password" in read_refusal(f"https://user:password@example.com/t.{ending}").message
    assert "not allowed" in read_refusal(f"shell://x/t.{ending}").message


@pytest.mark.parametrize(("ending", "content"), [("csv", b""), ("csv", b"a,b\n"), ("jsonl", b"\n"), ("jsonl", b"")])
def test_an_empty_table_is_refused(ending: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"t.{ending}").write_bytes(content)
    assert "has no rows" in read_refusal(str(tmp_path / f"t.{ending}")).message


@FORMATS
def test_a_deployed_run_reads_only_allowed_tables(ending: str, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    inside, outside = (write(folder / f"t.{ending}", ROWS) for folder in (tmp_path / "open", tmp_path))
    table = scan_table(outside, rows_per_chunk=10)
    with apply_restrictions(Restrictions(folders=[str(tmp_path / "open")], environment={})):
        assert read_all(scan_table(inside, rows_per_chunk=10)) == ROWS
        assert "may not be read" in read_refusal(outside).message
        with pytest.raises(SourceError, match="may not be read"):
            read_chunk(table.chunks[0])
    with apply_restrictions(Restrictions(sources=frozenset({outside}), environment={})):
        assert read_all(scan_table(outside, rows_per_chunk=10)) == ROWS


class Site(BaseHTTPRequestHandler):
    """Serves a file with an ETag, and does not support ranges."""

    body = b""
    downloads = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("ETag", hashlib.sha256(self.body).hexdigest())
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()

    def do_GET(self) -> None:
        type(self).downloads += 1
        self.do_HEAD()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@FORMATS
def test_a_table_on_the_web_is_downloaded_once(ending: str, site: str, tmp_path: Path) -> None:
    Site.body = Path(write(tmp_path / f"t.{ending}", ROWS)).read_bytes()
    Site.downloads = 0
    table = scan_table(f"{site}/t.{ending}?key=secret", rows_per_chunk=5)
    assert (read_all(table), Site.downloads) == (ROWS, 1)
    Site.body = Path(write(tmp_path / f"t.{ending}", ROWS[1:])).read_bytes()
    with pytest.raises(SourceError, match="changed") as caught:
        read_chunk(table.chunks[0])
    assert "secret" not in str(caught.value)


# --- Text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "text"), [("csv", "a,b\nä,2\n"), ("jsonl", '{"a": "ä", "b": "2"}\n')])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_skipped(ending: str, text: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{ending}"
    path.write_bytes(text.encode(encoding))
    table = scan_table(str(path), rows_per_chunk=10)
    assert (table.columns, read_all(table)) == (["a", "b"], [{"a": "ä", "b": "2"}])


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-16", "encoded as UTF-16"), ("utf-32", "encoded as UTF-32"), ("latin-1", "not UTF-8, at byte 4 in line 2")],
)
def test_other_encodings_are_refused(encoding: str, shown: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("a,b\nä,2\n".encode(encoding))
    assert shown in read_refusal(str(path)).message


# --- CSV ----------------------------------------------------------------------------------------------------


def test_cells_of_csv_are_text_and_an_empty_cell_is_null(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'id,x,"the ""name"""\r\n007,1.50," a "\r\n\r\n1,,""\n')
    table = scan_table(str(path), rows_per_chunk=1)
    assert table.columns == ["id", "x", 'the "name"']
    assert [list(row.values()) for row in read_all(table)] == [["007", "1.50", " a "], ["1", None, None]]


CELLS = st.text(st.characters(codec="utf-8"), max_size=12)


@given(cells=st.lists(st.tuples(CELLS, CELLS | st.sampled_from(['"', "\n", "\r\n", "\r", ",", '",\n"'])), min_size=1))
def test_any_text_comes_back_from_csv_across_chunks(cells: list[tuple[str, str]], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": one, "b": other} for one, other in cells]
    table = scan_table(write(tmp_path / "t.csv", rows), rows_per_chunk=2)
    assert read_all(table) == [{"a": one or None, "b": other or None} for one, other in cells]


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"a;b\n1;2\n", "by semicolons"),
        (b"a\tb\n1\t2\n", "by tabs"),
        (b"a,b\n1,2\n1,2,3\n", "Row 2 of"),
        (b"a,b\n1,2\n\n1\n", "ends at line 4, has 1 cells; the header has 2"),
        (b'a,b\n1,2\n1,"2\n3,4\n', "begins at line 3"),
        (b'a,b\n1,"2"3\n', "begins at line 2"),
        (b"a,b\r1,2\r", "not CSV"),
        (b"a,b,a\n1,2,3\n", "more than one column 'a'"),
    ],
)
def test_malformed_csv_is_refused(content: bytes, shown: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    assert shown in read_refusal(str(tmp_path / "t.csv")).message


def test_a_cell_may_be_huge(tmp_path: Path) -> None:
    rows = [{"a": "x" * (1 << 20), "b": "1"}, {"a": 'y"\n' * 9, "b": "2"}]
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        assert read_all(scan_table(write(tmp_path / name, rows), rows_per_chunk=1)) == rows


# --- JSON lines ---------------------------------------------------------------------------------------------


def test_values_of_json_have_their_types_and_a_missing_key_is_null(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": "01"}, {"b": 1.5, "c": [{"x": None}]}, {"a": 10**30, "d": True}]
    table = scan_table(write(tmp_path / "t.jsonl", rows), rows_per_chunk=2)
    assert table.columns == ["a", "b", "c", "d"]
    empty = dict.fromkeys("abcd")
    assert read_all(table) == [empty | row for row in rows]
    assert [type(value) for value in read_all(table)[2].values()] == [int, type(None), type(None), bool]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"[1]", "Line 2 of"),
        (b'"a"', "is not an object"),
        (b'{"a": 1', "is not JSON"),
        (b'{"a": NaN}', "is not JSON"),
        (rb'{"a": "\ud800"}', "is not JSON"),
        (b'{"a":' * 5000, "is not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
    ],
)
def test_a_json_line_that_is_no_object_is_refused(line: bytes, shown: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"a": 1}\n' + line + b"\n")
    assert shown in read_refusal(str(tmp_path / "t.jsonl")).message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | CELLS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(CELLS, each, max_size=3),
    max_leaves=5,
)


@given(rows=st.lists(st.fixed_dictionaries({"a": JSON, "b": JSON}), min_size=1, max_size=8))
def test_any_json_comes_back_across_chunks(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert read_all(scan_table(write(tmp_path / "t.jsonl", rows), rows_per_chunk=3)) == rows


# --- Parquet ------------------------------------------------------------------------------------------------

TYPED = pa.table(
    {
        "i": pa.array([1, None, 3], pa.int32()),
        "day": pa.array([date(2026, 1, 1), None, date(2026, 1, 3)]),
        "at": pa.array([datetime(2026, 1, 1, tzinfo=UTC), None, datetime(2026, 1, 3, tzinfo=UTC)]),
        "price": pa.array([Decimal("1.10"), None, Decimal("3.30")]),
        "nested": pa.array([{"x": [1, 2]}, None, {"x": None}]),
        "kind": pa.array(["a", None, "a"]).dictionary_encode(),
        "fine": pa.array([1_000, None, 3_000], pa.int64()).cast(pa.timestamp("ns")),
        "finest": pa.array([1, None, 3], pa.int64()).cast(pa.timestamp("ns")),
    }
)


def test_parquet_values_are_read_as_values_of_python(tmp_path: Path) -> None:
    pq.write_table(TYPED, tmp_path / "t.parquet")
    table = scan_table(str(tmp_path / "t.parquet"), rows_per_chunk=2)
    assert table.schema == TYPED.schema
    first, second, third = read_all(table)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert list(first.values())[:6] == [1, at.date(), at, Decimal("1.10"), {"x": [1, 2]}, "a"]
    assert set(second.values()) == {None}
    assert third["fine"] == datetime(1970, 1, 1, 0, 0, 0, 3)  # noqa: DTZ001 (as the table has it)
    assert third["finest"] == "1970-01-01T00:00:00.000000003"


def test_a_chunk_lies_in_one_row_group(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet", row_group_size=12)
    table = scan_table(str(tmp_path / "t.parquet"), rows_per_chunk=5)
    assert [(chunk.row_group, chunk.offset, chunk.rows) for chunk in table.chunks] == [
        (0, 0, 5), (0, 5, 5), (0, 10, 2), (1, 0, 5), (1, 5, 5), (1, 10, 2), (2, 0, 1),
    ]  # fmt: skip
    assert read_all(table) == ROWS


def test_chunks_are_read_in_any_order(tmp_path: Path) -> None:
    rows = [{"n": number, "text": "x" * (number % 50)} for number in range(10_000)]
    table = scan_table(write(tmp_path / "t.parquet", rows), rows_per_chunk=700)
    for chunk in random.Random(1).sample(table.chunks, 15):  # noqa: S311 (any order)
        assert read_chunk(chunk) == rows[chunk.first_row : chunk.first_row + chunk.rows]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_of_parquet_files_is_one_table(slash: str, tmp_path: Path) -> None:
    for name, rows in (("b", ROWS[10:]), ("a", ROWS[:10])):
        write(tmp_path / f"{name}.parquet", rows)
    (tmp_path / "_SUCCESS").touch()
    table = scan_table(f"{tmp_path}{slash}", rows_per_chunk=7, id_column="id")
    assert (table.rows, read_all(table)) == (25, ROWS)
    write(tmp_path / "c.parquet", ROWS[:1])
    assert "Rows 1 and 26" in read_refusal(str(tmp_path), id_column="id").message


def test_a_folder_with_different_schemas_is_refused(tmp_path: Path) -> None:
    assert "has no .parquet files" in read_refusal(str(tmp_path)).message
    write(tmp_path / "a.parquet", ROWS)
    write(tmp_path / "b.parquet", [{"id": "x", "body": "y"}])
    assert "have different columns: body, text" in read_refusal(str(tmp_path)).message
    write(tmp_path / "b.parquet", [{"id": "x", "text": ["y"]}])
    assert "different types" in read_refusal(str(tmp_path)).message


def test_a_deployed_run_reads_a_folder_that_its_deployment_names(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ROWS)
    with apply_restrictions(Restrictions(environment={})):
        assert "may not be read" in read_refusal(str(tmp_path)).message
    with apply_restrictions(Restrictions(sources=frozenset({str(tmp_path)}), environment={})):
        assert read_all(scan_table(str(tmp_path), rows_per_chunk=10)) == ROWS


@pytest.mark.parametrize("content", [b"", b"PAR1", b"a,b\n1,2\n", b"PAR1" + b"x" * 99 + b"PAR1"])
def test_malformed_parquet_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    assert "cannot be read as parquet" in read_refusal(str(tmp_path / "t.parquet")).message


def test_only_reading_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {ending: write(tmp_path / f"t.{ending}", ROWS) for ending in ("csv", "jsonl", "parquet")}
    for name in ("pyarrow", "pyarrow.compute", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    assert read_refusal(addresses["parquet"]).hint == "Install it with: pip install 'pollux-flows[tables]'"
    assert read_all(scan_table(addresses["csv"], rows_per_chunk=9)) == ROWS
    assert read_all(scan_table(addresses["jsonl"], rows_per_chunk=9)) == ROWS


@FORMATS
def test_large_rows_make_small_chunks(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pollux_flows.tables.table._MOST_BYTES", 16 << 10)
    rows = [{"a": f"{number}{'x' * (1 << 10)}"} for number in range(40)]
    table = scan_table(write(tmp_path / f"t.{ending}", rows), rows_per_chunk=1000)
    assert [chunk.rows for chunk in table.chunks] in ([16, 16, 8], [15, 15, 10])
    assert read_chunk(table.chunks[1]) == rows[table.chunks[1].first_row :][: table.chunks[1].rows]


# --- Size ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_reading_a_large_table_needs_the_memory_of_one_block(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{ending}"
    line = f"{'x' * 2000},y\n" if ending == "csv" else f'{{"a": "{"x" * 2000}"}}\n'
    path.write_text(("a,b\n" if ending == "csv" else "") + line * 10_000)  # 20 MB
    tracemalloc.start()
    table = scan_table(str(path), rows_per_chunk=100)
    read_chunk(table.chunks[-1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (table.rows, peak < 3 << 20) == (10_000, True)
