"""Checks of one answer against its schema."""

from __future__ import annotations

from typing import Any

from pollux_flows.schemas.conformance import Conformance
from pollux_flows.schemas.validation import Schema


def problems(value: Any, schema: Schema) -> list[str]:
    return Conformance(schema).problems(value)


def without_invented_nulls(value: Any, schema: Schema) -> Any:
    return Conformance(schema).without_invented_nulls(value)
