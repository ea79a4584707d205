"""Columns: the columns that a mapped table adds to those of its input, all named after the answer column."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pollux_flows.answer_rows import AnswerRow
from pollux_flows.errors import ConfigurationError
from pollux_flows.options import Options
from pollux_flows.tables.column_types import Kind
from pollux_flows.tables.writer import AddedColumn

_ABOUT: Final[dict[str, Kind]] = {
    "status": "text",
    "error": "text",
    "hint": "text",
    "input_tokens": "int",
    "output_tokens": "int",
    "cost_usd": "float",
    "reused": "bool",
}
_KINDS: Final[dict[object, Kind]] = {"string": "text", "integer": "int", "number": "float", "boolean": "bool"}
_LARGEST_INT: Final = (1 << 63) - 1


class AnswerColumns:
    """The columns of answers: text, a typed column for each field of the response schema, status, usage and cost."""

    def __init__(self, name: str, options: Options) -> None:
        self._name = name
        schema = options.response_json_schema()
        properties = {} if schema is None else _resolve(schema, schema).get("properties", {})
        self._are_objects = bool(properties)
        if schema is None:
            self._fields: dict[str, Kind] = {}
        elif properties:
            self._fields = {str(name): _kind_of(each, schema) for name, each in properties.items()}
        else:
            self._fields = {"value": _kind_of(schema, schema)}

    @property
    def added(self) -> list[AddedColumn]:
        """The columns, in order."""
        fields = [AddedColumn(f"{self._name}.{field}", kind) for field, kind in self._fields.items()]
        about = [AddedColumn(f"{self._name}_{name}", kind) for name, kind in _ABOUT.items()]
        return [AddedColumn(self._name, "text"), *fields, *about]

    def check_names(self, columns: Sequence[str]) -> None:
        """Refuse a table that has one of these columns already."""
        if taken := [each.name for each in self.added if each.name in columns]:
            raise ConfigurationError(
                f"The table has a column {taken[0]!r} already.",
                hint="Pass another answer_column, which is the prefix of all columns of the answers.",
            )

    def cells(self, row: AnswerRow, *, is_reused: bool) -> dict[str, Any]:
        """Return the cells of one row."""
        found = row.structured if self._are_objects else {"value": row.structured}
        values = found if isinstance(found, Mapping) else {}
        cells: dict[str, Any] = {self._name: row.answer}
        for field, kind in self._fields.items():
            cells[f"{self._name}.{field}"] = _fit(values.get(field), kind)
        about = {
            "status": row.status,
            "error": row.error,
            "hint": row.hint,
            "input_tokens": row.usage.get("input_tokens"),
            "output_tokens": row.usage.get("output_tokens"),
            "cost_usd": row.cost_usd,
            "reused": is_reused,
        }
        return cells | {f"{self._name}_{name}": value for name, value in about.items()}


def _kind_of(field: Any, schema: Mapping[str, Any]) -> Kind:
    """Return the kind of column for a field of a single type (besides null); "json" for other fields."""
    field = _resolve(field, schema)
    branches = [_resolve(each, schema) for each in field.get("anyOf", [field])]
    kinds = {kind for branch in branches for kind in _as_list(branch.get("type", "any"))} - {"null"}
    return _KINDS.get(next(iter(kinds)), "json") if len(kinds) == 1 else "json"


def _fit(value: Any, kind: Kind) -> Any:
    """Return a value of an answer for a column of this kind; None if the column cannot hold it.

    A schema does not limit numbers, and the caller's model may serialize a field differently from its schema.
    """
    match kind, value:
        case ("json", _) | ("text", str()) | ("bool", bool()):
            return value
        case ("float", int() | float()) if not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
        case ("int", int() | float()) if not isinstance(value, bool) and value % 1 == 0 and abs(value) <= _LARGEST_INT:
            return int(value)
    return None


def _resolve(field: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference within the schema."""
    for _ in range(len(schema.get("$defs", ())) + 1):
        if not isinstance(field, Mapping) or "$ref" not in field:
            break
        field = schema.get("$defs", {}).get(str(field["$ref"]).rpartition("/")[2], {})
    return field if isinstance(field, Mapping) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
