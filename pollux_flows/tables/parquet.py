"""Parquet: read row groups in parts, and write them. Only this module uses pyarrow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import IO, TYPE_CHECKING, Any, Final

from pollux_flows.address import redact_location
from pollux_flows.errors import ConfigurationError, SourceError
from pollux_flows.tables.cells import to_json_text, to_text
from pollux_flows.tables.column_types import ColumnType, Kind
from pollux_flows.tables.copies import Copies

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_BYTES: Final = 4 << 20
_BATCH_ROWS: Final = 4096
# Copies of the most recently read row groups in batches, each with the number of the row after each batch.
_groups: Final[Copies[list[int]]] = Copies(most=4)


def load_pyarrow() -> Any:
    """Import and return pyarrow. Raises a ConfigurationError that says how to install it."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise ConfigurationError(
            "Parquet needs the package pyarrow.", hint="Install it with: pip install 'pollux-flows[tables]'"
        ) from None
    return pyarrow


@contextmanager
def parquet_file(file: IO[bytes], address: str) -> Iterator[pq.ParquetFile]:
    """Read a parquet file. Errors in its content are SourceErrors."""
    pa = load_pyarrow()
    try:
        yield pa.parquet.ParquetFile(pa.PythonFile(file, mode="r"), buffer_size=1 << 16, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # Python's range of dates is smaller
        reason = str(error).partition("\n")[0].rstrip(".")
    else:
        return
    raise SourceError(
        f"{redact_location(address)!r} cannot be read as parquet: {reason}.", hint="Check the file, or write it again."
    )


def column_values(parquet: pq.ParquetFile, column: str) -> Iterator[Any]:
    """Iterate over the values of a column."""
    for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=[column], use_threads=False):
        yield from _for_python(batch).column(0).to_pylist()


def read_rows(
    parquet: pq.ParquetFile, row_group: int, offset: int, count: int, columns: Sequence[str], *, key: str
) -> list[dict[str, Any]]:
    """Return rows of a row group. The first read of a part of a group copies the group, under `key`.

    Parquet can only be read from the beginning of a row group, and many files have a single large one.
    """
    pa = load_pyarrow()
    if parquet.metadata.row_group(row_group).num_rows == count:
        table = pa.Table.from_batches(_batches(parquet, row_group, columns))
    else:
        # The group's metadata is part of the key, as some file systems report only the size of a file.
        key = f"{key} {parquet.metadata.row_group(row_group).to_dict()}"
        copy = _groups.load(key, lambda file: _copy_group(file, parquet, row_group, columns))
        ends = copy.index
        first, last = bisect_right(ends, offset), bisect_right(ends, offset + count - 1)
        with pa.ipc.open_file(pa.PythonFile(copy.open_reader(), mode="r")) as batches:
            table = pa.Table.from_batches([batches.get_batch(number) for number in range(first, last + 1)])
        table = table.slice(offset - (ends[first - 1] if first else 0), count)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def unify_schemas(schemas: Sequence[pa.Schema], addresses: Sequence[str]) -> pa.Schema:
    """Return one schema for the files of a folder. Raises a SourceError that names two incompatible files."""
    pa, first = load_pyarrow(), schemas[0]
    for schema, address in zip(schemas, addresses, strict=True):
        both = f"{redact_location(addresses[0])!r} and {redact_location(address)!r}"
        if set(schema.names) != set(first.names):
            differing = ", ".join(sorted(set(schema.names) ^ set(first.names)))
            raise SourceError(
                f"{both} have different columns: {differing}.",
                hint="Write them with equal columns, or name one of them.",
            )
        try:
            pa.unify_schemas([first, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise SourceError(
                f"{both} have columns of different types: {error}.",
                hint="Write them with equal types, or name one of them.",
            ) from None
    return pa.unify_schemas(list(schemas), promote_options="permissive") if len(schemas) > 1 else first


def _copy_group(file: IO[bytes], parquet: pq.ParquetFile, row_group: int, columns: Sequence[str]) -> list[int]:
    pa = load_pyarrow()
    sizes: list[int] = []
    writer = None
    for batch in _batches(parquet, row_group, columns):
        writer = writer or pa.ipc.new_file(file, batch.schema)
        writer.write_batch(batch)
        sizes.append(batch.num_rows)
    if writer:
        writer.close()
    return list(accumulate(sizes))


def _batches(parquet: pq.ParquetFile, row_group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    group = parquet.metadata.row_group(row_group)
    fitting = max(1, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size))
    for batch in parquet.iter_batches(
        batch_size=min(_BATCH_ROWS, fitting), row_groups=[row_group], columns=list(columns), use_threads=False
    ):
        yield _for_python(batch.select(list(columns)))


def _for_python(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with types that Python has: plain values for dictionary codes, and no nanoseconds."""
    pa = load_pyarrow()
    for number, field in enumerate(batch.schema):
        values = batch.column(number)
        if pa.types.is_dictionary(field.type):
            values = values.cast(field.type.value_type)
        if pa.types.is_temporal(values.type) and getattr(values.type, "unit", None) == "ns":
            values = _without_nanoseconds(values)
        if values.type != field.type:
            batch = batch.set_column(number, pa.field(field.name, values.type), values)
    return batch


def _without_nanoseconds(values: pa.Array) -> pa.Array:
    """Return values in microseconds; where that would lose digits, timestamps as ISO text, others as integers."""
    pa, kind = load_pyarrow(), values.type
    is_timestamp = pa.types.is_timestamp(kind)
    coarser = (
        pa.timestamp("us", kind.tz)
        if is_timestamp
        else pa.time64("us")
        if pa.types.is_time(kind)
        else pa.duration("us")
    )
    try:
        return values.cast(coarser)
    except pa.ArrowInvalid:
        return (
            pa.compute.replace_substring(values.cast(pa.string()), " ", "T")
            if is_timestamp
            else values.cast(pa.int64())
        )


# --- Writing ------------------------------------------------------------------------------------------------

_GROUP_ROWS: Final = 50_000
_GROUP_BYTES: Final = 32 << 20


class ParquetRows:
    """Writes rows to a parquet file in row groups; the columns of `as_json` are written as JSON text."""

    def __init__(self, file: IO[bytes], schema: pa.Schema, as_json: Collection[str]) -> None:
        self._pa, self._schema, self._as_json = load_pyarrow(), schema, as_json
        self._writer = self._pa.parquet.ParquetWriter(self._pa.PythonFile(file, mode="w"), schema)
        self._waiting: list[pa.Table] = []

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        arrays = [self._array(field, [row.get(field.name) for row in rows]) for field in self._schema]
        self._waiting.append(self._pa.Table.from_arrays(arrays, schema=self._schema))
        if (
            sum(each.num_rows for each in self._waiting) >= _GROUP_ROWS
            or sum(each.nbytes for each in self._waiting) >= _GROUP_BYTES
        ):
            self._write_group()

    def close(self) -> None:
        """Write the remaining rows and the footer. The file itself stays open."""
        self._write_group()
        self._writer.close()

    def discard(self) -> None:
        """Close the writer while the file is still open, as it would otherwise close itself when garbage collected."""
        self._waiting = []
        with suppress(Exception):
            self._writer.close()

    def _write_group(self) -> None:
        if self._waiting:
            self._writer.write_table(self._pa.concat_tables(self._waiting), row_group_size=1 << 30)
            self._waiting = []

    def _array(self, field: pa.Field, values: list[Any]) -> pa.Array:
        if field.name in self._as_json:
            values = [None if value is None else to_json_text(value) for value in values]
        try:
            if self._pa.types.is_timestamp(field.type) and any(isinstance(value, str) for value in values):
                texts = [value if value is None else to_text(value) for value in values]
                return self._pa.array(texts, self._pa.string()).cast(field.type)
            return self._pa.array(values, field.type)
        except (self._pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ConfigurationError(
                f"Column {field.name!r} has a value that parquet cannot hold as {field.type}: {error}.",
                hint="Write the output as .jsonl.",
            ) from None


def output_schema(
    columns: Sequence[str],
    schema: pa.Schema | None,
    types: Mapping[str, ColumnType],
    added: Sequence[tuple[str, Kind]],
) -> pa.Schema:
    """Return the schema of a table with added columns. Refuses a column of mixed types."""
    pa = load_pyarrow()
    kinds = {"text": pa.string(), "json": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    if schema is None:
        for column, (_, mixed) in types.items():
            if mixed:
                raise ConfigurationError(
                    f"Column {column!r} {mixed}, so it cannot be a parquet column.", hint="Write the output as .jsonl."
                )
        texts = ColumnType("text")
        schema = pa.schema([pa.field(column, kinds[types.get(column, texts).kind]) for column in columns])
    for name, kind in added:
        schema = schema.append(pa.field(name, kinds[kind]))
    return schema
