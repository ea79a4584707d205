"""Column types: infer the types of columns without a schema while the rows are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["text", "int", "float", "bool", "json"]

_KINDS: Final[dict[type, Kind]] = {str: "text", float: "float", bool: "bool", dict: "json", list: "json"}
# A float represents integers exactly up to the first limit; a parquet column holds them up to the second.
_LARGEST_IN_FLOAT: Final = 1 << 53
_LARGEST: Final = (1 << 63) - 1


class ColumnType(NamedTuple):
    kind: Kind
    mixed: str | None = None
    """Why the column has no single type, for an error."""


class TypeFinder:
    """Infers the type of each column from its values."""

    def __init__(self) -> None:
        self._first_rows: dict[str, dict[str, int]] = {}  # of each kind in each column

    def add(self, row: Mapping[str, Any], number: int) -> None:
        first_rows = self._first_rows
        for column, value in row.items():
            if value is None:
                continue
            kind = _KINDS.get(type(value)) or _int_kind(value)
            if (found := first_rows.get(column)) is None:
                first_rows[column] = {kind: number}
            elif kind not in found:
                found[kind] = number

    def types(self, columns: list[str]) -> dict[str, ColumnType]:
        """Return the type of each column; "text" for a column of nulls."""
        return {column: _column_type(self._first_rows.get(column, {"text": 0})) for column in columns}


def _int_kind(value: int) -> str:
    size = abs(value)
    return "int" if size <= _LARGEST_IN_FLOAT else "large int" if size <= _LARGEST else "huge int"


def _column_type(first_rows: Mapping[str, int]) -> ColumnType:
    kinds = set(first_rows)
    if "huge int" in kinds:
        return ColumnType("text", f"holds an integer of more than 64 bits in row {first_rows['huge int']:,}")
    if kinds <= {"int", "large int"}:
        return ColumnType("int")
    if kinds == {"int", "float"}:
        return ColumnType("float")
    (first, *_), (second, row) = list(first_rows), list(first_rows.items())[min(1, len(first_rows) - 1)]
    if len(kinds) == 1:
        return ColumnType(first)  # type: ignore[arg-type]  # an int is dealt with above
    return ColumnType("text", f"holds {_SHOWN[first]} in row {first_rows[first]:,} and {_SHOWN[second]} in row {row:,}")


_SHOWN: Final = {
    "text": "a text",
    "int": "an integer",
    "large int": "a large integer",
    "float": "a number",
    "bool": "true or false",
    "json": "an object or a list",
}
