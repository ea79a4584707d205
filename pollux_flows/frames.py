"""Frames: turn a column of a pandas, polars or Arrow table into a list, without importing any of them."""

from __future__ import annotations

from math import isnan
from typing import Any, Final, Protocol

from pollux_flows.errors import ConfigurationError

# polars has the first, NumPy the second, Arrow the last; pandas has the first two.
_METHODS: Final = ("to_list", "tolist", "to_pylist")


class _Series(Protocol):
    def to_list(self) -> list[Any]: ...


class _Array(Protocol):
    def to_pylist(self) -> list[Any]: ...


Column = _Series | _Array
"""A column of a table: a pandas or polars Series, or an Arrow array."""


def column_to_list(value: Any, name: str) -> Any:
    """Return the values of a column as a list, and any other value unchanged.

    A table, and a column with nulls, are refused; `name` is the name of the argument, for the error.
    """
    kind = type(value)
    if hasattr(kind, "columns"):
        raise ConfigurationError(
            f"{name} is a table ({kind.__name__}), not a column.", hint="Pass one column, such as df['question']."
        )
    method = next((method for method in _METHODS if hasattr(kind, method)), None)
    if method is None or isinstance(value, str | list):
        return value
    values = getattr(value, method)()
    if not isinstance(values, list):  # an array without dimensions
        return value
    if nulls := [number for number, each in enumerate(values, start=1) if not isinstance(each, str) and _is_null(each)]:
        raise ConfigurationError(
            f"{name} has no value in {len(nulls)} of its {len(values)} rows; the first is row {nulls[0]}.",
            hint="Fill them, or drop them: dropna() in pandas, drop_nulls() in polars, drop_null() in Arrow.",
        )
    return values


def _is_null(value: Any) -> bool:
    if isinstance(value, float):
        return isnan(value)
    # pandas has null types of its own, which cannot be compared.
    return value is None or type(value).__name__ in {"NAType", "NaTType"}
