"""Table writer: write the columns of a table followed by new ones, to a file or a folder of parquet files.

Rows are appended under a temporary name. The output appears under its own name once it is complete, and until then an
earlier output stays.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self
from uuid import uuid4

import fsspec

from pollux_flows import access
from pollux_flows.address import redact_address
from pollux_flows.answer_rows import csv_text, inert
from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.output import (
    NewFile,
    check_replaceable,
    check_writable,
    describe_error,
    is_local,
    lock_unfinished,
    remove_abandoned,
    resolve_output,
    write_manifest,
)
from pollux_flows.plain import replace_surrogates
from pollux_flows.tables.cells import is_null, to_json_text, to_text
from pollux_flows.tables.column_types import Kind
from pollux_flows.tables.parquet import ParquetRows, load_pyarrow, output_schema
from pollux_flows.tables.table import Table

if TYPE_CHECKING:
    import pyarrow as pa

_PARQUET: Final = ".parquet"
_ENDINGS: Final = (_PARQUET, ".jsonl", ".ndjson", ".csv")
_ADVICE: Final = ".parquet, with .jsonl for lines of JSON, with .csv, or with a slash for a folder of .parquet files"
_PART: Final = re.compile(r"part-\d{5}\.parquet")
_PART_ROWS: Final = 250_000


class AddedColumn(NamedTuple):
    """A column of the output that the table does not have."""

    name: str
    kind: Kind


class _Rows(Protocol):
    """A writer of rows in one of the formats."""

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def complete(self) -> None: ...

    def discard(self) -> None: ...


def resolve_table_output(output: str) -> str:
    """Return `output` as an absolute path or address. Raises a ConfigurationError if no table can be written there."""
    resolved = resolve_output(output, _ENDINGS, advice=_ADVICE)
    is_folder = resolved.endswith("/")
    if is_folder or resolved.lower().endswith(_PARQUET):
        load_pyarrow()
    if is_folder:
        _check_folder(resolved)
    check_writable(resolved.removesuffix("/"))
    return resolved


class TableWriter:
    """Writes the rows of a table, in order, with added columns; one thread at a time.

    `output` comes from `resolve_table_output`. Cells of the table are written as they were read. In CSV, a text in an
    added column that a spreadsheet would run as a formula is escaped.
    """

    def __init__(self, output: str, table: Table, added: Sequence[AddedColumn]) -> None:
        names = [*table.columns, *(column.name for column in added)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigurationError(
                f"The output would have two columns {twice!r}.", hint="Choose another name for the added column."
            )
        self._output, self._added = output, [column.name for column in added]
        self._is_guarded = access.guards_output(output)
        self._is_complete = False
        self._rows = self._explain(lambda: _open_rows(output, table, added))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows. A missing key is written as null."""
        # Text of a provider may have lone surrogates.
        clean = [{**row, **{name: replace_surrogates(row.get(name)) for name in self._added}} for row in rows]
        self._explain(lambda: self._rows.write(clean))

    def complete(self, manifest: Record | None = None) -> None:
        """Rename the output to its final name, replacing an earlier one.

        A manifest is written first, so that a retry of a killed attempt recognises the output as its own.
        """
        if self._is_guarded:
            check_replaceable(self._output.removesuffix("/"))
        if manifest is not None:
            self._explain(lambda: write_manifest(self._output, manifest))
        self._explain(self._rows.complete)
        self._is_complete = True

    def discard(self) -> None:
        """Remove the output, unless it is complete."""
        if not self._is_complete:
            self._rows.discard()

    def _explain(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except PolluxError:
            raise
        except Exception as error:  # noqa: BLE001 (each file system, and pyarrow, has errors of its own)
            raise ConfigurationError(
                f"The table could not be written to {redact_address(self._output)!r}: {describe_error(error)}.",
                hint="Free space there or name another place, and run again: answers are reused.",
            ) from None


def _open_rows(output: str, table: Table, added: Sequence[AddedColumn]) -> _Rows:
    name = output.lower()
    if name.endswith(("/", _PARQUET)):
        schema = output_schema(table.columns, table.schema, table.types, [(each.name, each.kind) for each in added])
        as_json = frozenset(each.name for each in added if each.kind == "json")
        as_json |= {column for column, each in table.types.items() if each.kind == "json"}
        return _Folder(output, schema, as_json) if name.endswith("/") else _ParquetFile(output, schema, as_json)
    if name.endswith(".csv"):
        return _CsvFile(output, table.columns, added)
    return _JsonLines(output, table.columns, added)


class _TextFile:
    def __init__(self, output: str, columns: Sequence[str], added: Sequence[AddedColumn]) -> None:
        self._columns, self._added = list(columns), list(added)
        self._file = NewFile(output)

    def complete(self) -> None:
        self._file.complete()

    def discard(self) -> None:
        self._file.discard()


class _CsvFile(_TextFile):
    def __init__(self, output: str, columns: Sequence[str], added: Sequence[AddedColumn]) -> None:
        header = csv_text([[*columns, *(column.name for column in added)]]).encode()
        super().__init__(output, columns, added)
        self._file.write(header)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._file.write(csv_text(map(self._cells, rows)).encode())

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        cells = [_cell(row.get(column)) for column in self._columns]
        for column, kind in self._added:
            value = row.get(column)
            cells.append(inert(to_json_text(value) if kind == "json" and value is not None else _cell(value)))
        return cells


def _cell(value: Any) -> str:
    return "" if is_null(value) else to_text(value)


class _JsonLines(_TextFile):
    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        names = [*self._columns, *(column.name for column in self._added)]
        lines = [to_json_text({name: row.get(name) for name in names}) for row in rows]
        self._file.write("".join(f"{line}\n" for line in lines).encode())


class _ParquetFile:
    def __init__(self, output: str, schema: pa.Schema, as_json: frozenset[str]) -> None:
        self._file = NewFile(output)
        try:
            self._rows = ParquetRows(self._file.file, schema, as_json)
        except BaseException:
            self._file.discard()
            raise

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows.write(rows)

    def complete(self) -> None:
        self._rows.close()
        self._file.complete()

    def discard(self) -> None:
        self._rows.discard()
        self._file.discard()


class _Folder:
    """Parquet files in a folder, which is renamed to its final name once all are written."""

    def __init__(self, output: str, schema: pa.Schema, as_json: frozenset[str]) -> None:
        self._folder = Path(output)
        self._written_as = self._folder.with_name(f"{self._folder.name}.{uuid4().hex[:8]}.unfinished")
        remove_abandoned(str(self._folder))
        self._written_as.mkdir(parents=True)
        self._lock = os.open(self._written_as, os.O_RDONLY)
        lock_unfinished(self._lock)
        self._schema, self._as_json = schema, as_json
        self._part_count = self._rows_in_part = 0
        self._part = self._next_part()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._rows_in_part and self._rows_in_part + len(rows) > _PART_ROWS:
            self._part.complete()
            self._part = self._next_part()
        self._part.write(rows)
        self._rows_in_part += len(rows)

    def complete(self) -> None:
        self._part.complete()
        _check_folder(str(self._folder))
        while not self._replace_earlier():
            pass
        os.close(self._lock)

    def _replace_earlier(self) -> bool:
        """Give the folder its name; return False if another writer has just given it to its own folder."""
        earlier = self._folder.with_name(f"{self._written_as.name}.earlier")
        with suppress(FileNotFoundError):
            self._folder.replace(earlier)
        try:
            self._written_as.replace(self._folder)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                with suppress(OSError):
                    earlier.replace(self._folder)
                raise
            return False
        finally:
            shutil.rmtree(earlier, ignore_errors=True)  # unless it has its name again
        return True

    def discard(self) -> None:
        self._part.discard()
        with suppress(OSError):
            os.close(self._lock)
        shutil.rmtree(self._written_as, ignore_errors=True)

    def _next_part(self) -> _ParquetFile:
        name = f"part-{self._part_count:05}.parquet"
        self._part_count, self._rows_in_part = self._part_count + 1, 0
        return _ParquetFile(str(self._written_as / name), self._schema, self._as_json)


def _check_folder(output: str) -> None:
    """Refuse a folder that cannot be replaced: a remote one, and one with files of another origin."""
    fs, path = fsspec.core.url_to_fs(output)
    if not is_local(fs):
        raise ConfigurationError(
            f"output {redact_address(output)!r} is a remote folder, which cannot be replaced atomically.",
            hint="Name a file, such as s3://bucket/answers.parquet.",
        )
    if access.guards_output(output):
        check_replaceable(output.removesuffix("/"))
    folder, others = Path(path), []
    with suppress(FileNotFoundError, NotADirectoryError):  # none yet, or another writer is just replacing it
        others = sorted(each.name for each in folder.iterdir() if not _PART.fullmatch(each.name))
    if others:
        raise ConfigurationError(
            f"output {redact_address(output)!r} is a folder with other files, such as {others[0]!r}.",
            hint="Name a folder for this output only, as the output replaces it.",
        )
