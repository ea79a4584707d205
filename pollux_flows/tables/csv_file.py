"""CSV files by RFC 4180, in UTF-8 with commas. All columns are text, so "007" is not changed. An empty cell is null."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pollux_flows.errors import SourceError
from pollux_flows.tables.text_lines import LARGEST_ROW, TextLines

_OTHER_DELIMITERS: Final = {";": "semicolons", "\t": "tabs"}


class CsvRows:
    """The rows of a CSV file as dicts. Without `columns`, the file's first line names them."""

    def __init__(self, lines: TextLines, columns: Sequence[str] | None = None) -> None:
        if csv.field_size_limit() < LARGEST_ROW:
            csv.field_size_limit(LARGEST_ROW)  # for the whole process: the module has no other limit
        self._lines = lines
        self._reader = csv.reader(lines, strict=True)
        self.columns = list(columns) if columns is not None else self._read_header()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        columns, width, number = self.columns, len(self.columns), 0
        while (cells := self._read()) is not None:
            if not cells:  # a blank line
                continue
            number += 1
            if len(cells) != width:
                raise SourceError(
                    f"Row {number:,} of {self._lines.name!r}, which ends at line {self._lines.number:,}, has "
                    f"{len(cells)} cells; the header has {width}.",
                    hint='Put quotes around a cell with a comma or a line break, and write a quote in it as "".',
                )
            yield {column: cell or None for column, cell in zip(columns, cells, strict=True)}

    def _read_header(self) -> list[str]:
        header = self._read() or []
        if len(header) == 1:
            for sign, name in _OTHER_DELIMITERS.items():
                if sign in header[0]:
                    raise SourceError(
                        f"{self._lines.name!r} separates its columns by {name}, not by commas.",
                        hint="Save it with commas.",
                    )
        return header

    def _read(self) -> list[str] | None:
        start = self._lines.number + 1
        try:
            return next(self._reader, None)
        except csv.Error as error:
            raise SourceError(
                f"{self._lines.name!r} is not CSV in the row that begins at line {start:,}: {error}.",
                hint='Put quotes around a cell with a quote or a line break, and write a quote in it as "".',
            ) from None
