"""Table: scan a table for its columns and chunks, and read chunks where they are used.

A scan reads a table once, in blocks, and refuses an invalid one before anything is paid for. A chunk is a document that
identifies its rows by their place in the file, so that any process can read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

from pollux_flows.address import file_name, redact_location
from pollux_flows.document import Document
from pollux_flows.errors import ConfigurationError, SourceError
from pollux_flows.tables import opening, parquet
from pollux_flows.tables.cells import is_null, to_json_text
from pollux_flows.tables.column_types import ColumnType, TypeFinder
from pollux_flows.tables.csv_file import CsvRows
from pollux_flows.tables.json_lines import JsonRows
from pollux_flows.tables.text_lines import TextLines

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Format = Literal["csv", "jsonl", "parquet"]

_FORMATS: Final[dict[str, Format]] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
# The size limit of a chunk, as rows may be large.
_MOST_BYTES: Final = 16 << 20


class Chunk(Document):
    """Consecutive rows of a table, by their place in one of its files."""

    table: str
    address: str
    format: Format
    columns: tuple[str, ...]
    first_row: int
    rows: int
    version: str
    """The version of the file when it was scanned."""
    start: int = 0
    """The first byte of the rows in a text file."""
    end: int = 0
    row_group: int = 0
    offset: int = 0
    """The position of the first row in the row group."""


@dataclass(frozen=True)
class Table:
    """A scanned table: its columns, the number of its rows, and its chunks."""

    address: str
    columns: list[str]
    rows: int
    chunks: list[Chunk]
    format: Format
    schema: pa.Schema | None = None
    """The schema, if the format has one."""
    types: dict[str, ColumnType] = field(default_factory=dict)
    """The inferred types of the columns, if the format has types but no schema."""


def scan_table(
    address: str,
    *,
    rows_per_chunk: int,
    limit: int | None = None,
    need: Sequence[str] = (),
    id_column: str | None = None,
) -> Table:
    """Read a table once and divide it into chunks. Raises an error for an invalid table.

    `need` are required columns. The values of `id_column` must be unique and not null. A chunk has fewer rows than
    `rows_per_chunk` at the end of a file or row group, and where rows are large.
    """
    kind, place = table_format(address), opening.resolve_address(address)
    ids = None if id_column is None else _Ids(id_column, redact_location(address))
    scan = _Scan(address, rows_per_chunk, limit, [*need, *([] if id_column is None else [id_column])], ids)
    table = scan.scan_parquet(place) if kind == "parquet" else scan.scan_text(place, kind)
    if not table.rows:
        raise SourceError(f"{redact_location(address)!r} has no rows.", hint="Name a table with at least one.")
    return table


def read_chunk(chunk: Chunk, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a chunk as dicts with these columns (all by default). Refuses a file that has changed."""
    columns = list(chunk.columns if columns is None else dict.fromkeys(columns))
    if opening.stamp(chunk.address, table=chunk.table) != chunk.version:
        raise _changed_error(chunk)
    with opening.open_table_file(chunk.address, table=chunk.table) as file:
        if chunk.format == "parquet":
            with parquet.parquet_file(file, chunk.address) as source:
                key = f"{chunk.address} {chunk.version} {chunk.row_group} {columns}"
                rows = parquet.read_rows(source, chunk.row_group, chunk.offset, chunk.rows, columns, key=key)
        else:
            lines = TextLines(file, chunk.address, start=chunk.start, end=chunk.end)
            found = CsvRows(lines, chunk.columns) if chunk.format == "csv" else JsonRows(lines, chunk.columns)
            rows = list(found)
            if tuple(columns) != chunk.columns:
                rows = [{column: row[column] for column in columns} for row in rows]
    if len(rows) != chunk.rows:
        raise _changed_error(chunk)
    return rows


def table_format(address: str) -> Format:
    """Return the format by the file extension; a folder contains parquet files."""
    if opening.resolve_address(address).endswith("/"):
        return "parquet"
    name = file_name(address).lower()
    for ending, kind in _FORMATS.items():
        if name.endswith(ending):
            return kind
    raise ConfigurationError(
        f"{redact_location(address)!r} ends with none of {', '.join(_FORMATS)}.",
        hint="Convert the table to one of these, or name a folder of .parquet files with a slash at its end.",
    )


def _changed_error(chunk: Chunk) -> SourceError:
    return SourceError(
        f"{redact_location(chunk.address)!r} changed after it was scanned, so rows "
        f"{chunk.first_row + 1:,} to {chunk.first_row + chunk.rows:,} may be different ones.",
        hint="Run again: the answers of unchanged rows are reused.",
    )


@dataclass
class _Ids:
    """The ids of a table, as digests, since ids may be long."""

    column: str
    name: str
    _rows: dict[bytes, int] = field(default_factory=dict)

    def add(self, value: Any, number: int) -> None:
        """Add the id of row `number`, from 1. Refuses a null, and the id of an earlier row."""
        if is_null(value):
            raise ConfigurationError(
                f"Row {number:,} of {self.name!r} has no id in column {self.column!r}.",
                hint="Fill it, or name another id_column.",
            )
        text = value if type(value) is str else f"\0{to_json_text(value)}"
        first = self._rows.setdefault(blake2b(text.encode(), digest_size=16).digest(), number)
        if first != number:
            raise ConfigurationError(
                f"Rows {first:,} and {number:,} of {self.name!r} have the same id in column {self.column!r}.",
                hint="Make the ids unique, or leave id_column out.",
            )


@dataclass(frozen=True)
class _Scan:
    """The arguments of a scan; `columns_needed` includes the id column."""

    table: str
    rows_per_chunk: int
    limit: int | None
    columns_needed: Sequence[str]
    ids: _Ids | None

    def scan_text(self, address: str, kind: Format) -> Table:
        version = opening.stamp(address, table=self.table)
        with opening.open_table_file(address, table=self.table) as file:
            lines = TextLines(file, address)
            found = CsvRows(lines) if kind == "csv" else JsonRows(lines)
            if kind == "csv":
                self._check_columns(found.columns)
            types = TypeFinder() if kind == "jsonl" else None
            cuts = list(self._cuts(found, lines, types))
        columns = found.columns
        if cuts:
            self._check_columns(columns)
        shape = Chunk(
            table=self.table, address=address, format=kind, columns=tuple(columns), first_row=0, rows=0, version=version
        )
        chunks = [
            shape.model_copy(update={"first_row": first, "rows": rows, "start": start, "end": end})
            for first, rows, start, end in cuts
        ]
        rows = sum(chunk.rows for chunk in chunks)
        return Table(self.table, columns, rows, chunks, kind, types=types.types(columns) if types else {})

    def _cuts(
        self, found: CsvRows | JsonRows, lines: TextLines, types: TypeFinder | None
    ) -> Iterator[tuple[int, int, int, int]]:
        """Yield the first row of each chunk, the number of its rows, and its first and last position in the file."""
        number, first, start = 0, 0, lines.position
        for number, row in enumerate(islice(found, self.limit), start=1):
            if self.ids:
                if number == 1 and self.ids.column not in found.columns:
                    self._check_columns(found.columns)
                self.ids.add(row.get(self.ids.column), number)
            if types:
                types.add(row, number)
            if number - first == self.rows_per_chunk or lines.position - start > _MOST_BYTES:
                yield first, number - first, start, lines.position
                first, start = number, lines.position
        if number > first:
            yield first, number - first, start, lines.position

    def scan_parquet(self, address: str) -> Table:
        is_folder = address.endswith("/")
        files = opening.parquet_files(address, table=self.table) if is_folder else [address]
        versions = [opening.stamp(file, table=self.table) for file in files]
        schemas: list[pa.Schema] = []
        groups: list[list[tuple[int, int]]] = []  # for each file, the rows of each row group and the bytes of a row
        for file in files:
            with self._open_parquet(file) as source:
                schemas.append(source.schema_arrow)
                found = [source.metadata.row_group(each) for each in range(source.num_row_groups)]
                groups.append([(each.num_rows, each.total_byte_size // max(1, each.num_rows)) for each in found])
        schema = parquet.unify_schemas(schemas, files)
        self._check_columns(schema.names)
        chunks: list[Chunk] = []
        number = 0
        for file, version, sizes in zip(files, versions, groups, strict=True):
            for group, (group_rows, row_bytes) in enumerate(sizes):
                size = group_rows if self.limit is None else min(group_rows, self.limit - number)
                step = max(1, min(self.rows_per_chunk, _MOST_BYTES // max(1, row_bytes)))
                for offset in range(0, size, step):
                    rows = min(step, size - offset)
                    chunks.append(
                        Chunk(
                            table=self.table,
                            address=file,
                            format="parquet",
                            columns=tuple(schema.names),
                            first_row=number + offset,
                            rows=rows,
                            version=version,
                            row_group=group,
                            offset=offset,
                        )
                    )
                number += size
        if self.ids:
            for row, value in enumerate(islice(self._ids_in(files, self.ids.column), number), start=1):
                self.ids.add(value, row)
        return Table(self.table, schema.names, number, chunks, "parquet", schema=schema)

    def _ids_in(self, files: Sequence[str], column: str) -> Iterator[Any]:
        for file in files:
            with self._open_parquet(file) as source:
                yield from parquet.column_values(source, column)

    @contextmanager
    def _open_parquet(self, address: str) -> Iterator[pq.ParquetFile]:
        parquet.load_pyarrow()
        with opening.open_table_file(address, table=self.table) as file, parquet.parquet_file(file, address) as source:
            yield source

    def _check_columns(self, columns: Sequence[str]) -> None:
        """Refuse duplicate column names, and a table without a needed column."""
        name = redact_location(self.table)
        if len(set(columns)) < len(columns):
            twice = next(column for column in columns if columns.count(column) > 1)
            raise SourceError(f"{name!r} has more than one column {twice!r}.", hint="Rename one of them.")
        for column in self.columns_needed:
            if column not in columns:
                close = get_close_matches(column, columns, n=1)
                raise ConfigurationError(
                    f"{name!r} has no column {column!r}; it has {', '.join(columns) or 'none'}.",
                    hint=f"Did you mean {close[0]!r}?" if close else "Name one of these.",
                )
