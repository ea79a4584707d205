"""JSON lines: one object per line, in UTF-8. Values keep their JSON types; a missing key is null."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic_core import from_json

from pollux_flows.errors import SourceError
from pollux_flows.tables.text_lines import TextLines


class JsonRows:
    """The rows of a file as dicts. Without `columns`, the rows name them: `columns` grows in order of first use."""

    def __init__(self, lines: TextLines, columns: Sequence[str] | None = None) -> None:
        self._lines = lines
        self._all = dict.fromkeys(columns) if columns is not None else None
        self._seen: dict[str, None] = {}

    @property
    def columns(self) -> list[str]:
        return list(self._seen if self._all is None else self._all)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._lines:
            if line.isspace():
                continue
            row = self._parse(line)
            if self._all is not None:
                yield {**self._all, **row}
                continue
            if not row.keys() <= self._seen.keys():
                self._seen |= dict.fromkeys(row)
            yield row

    def _parse(self, line: str) -> dict[str, Any]:
        try:
            row = from_json(line, allow_inf_nan=False, cache_strings="keys")
        except ValueError as error:
            raise self._refusal(f"is not JSON: {str(error).partition(' at line')[0]}") from None
        if not isinstance(row, dict):
            raise self._refusal("is not an object")
        return row

    def _refusal(self, what: str) -> SourceError:
        return SourceError(
            f"Line {self._lines.number:,} of {self._lines.name!r} {what}.",
            hint='Write one object per line, such as {"title": "…"}.',
        )
