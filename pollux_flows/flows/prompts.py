"""Prompts from `prompts_from`: pasted lines, or a file with one prompt per line or row.

A Prefect server accepts 512 KiB of parameters per run; a file has no such limit.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pollux_flows.address import redact_location
from pollux_flows.errors import ConfigurationError, SourceError
from pollux_flows.files import place
from pollux_flows.files.file_threads import Pulse, run_on_thread
from pollux_flows.frames import Column, column_to_list

_FILE: Final = re.compile(r"(?P<name>\S.*\.(?P<kind>txt|jsonl|csv))(#(?P<column>[^#/]+))?", re.IGNORECASE)
_COLUMN: Final = "prompt"
_MOST_BYTES: Final = 256 << 20


def is_table(name: str) -> bool:
    """Return whether this is the name of a file with prompts in a field or column: .jsonl or .csv."""
    file = _FILE.fullmatch(name)
    return file is not None and file["kind"].lower() in {"jsonl", "csv"}


async def read_prompts(prompts: Sequence[str | None] | Column, prompts_from: str | None) -> Sequence[str | None]:
    """Return the prompts of a run: the items themselves, or those that `prompts_from` names."""
    items: Sequence[str | None] = column_to_list(prompts, "prompts")
    if prompts_from is None or not prompts_from.strip():
        return items
    if items:
        raise ConfigurationError("prompts and prompts_from exclude each other.", hint="Pass one of them.")
    pasted = prompts_from.strip()
    file = _FILE.fullmatch(pasted) if pasted.isprintable() else None
    if file is None:
        return [line.strip() for line in pasted.splitlines() if line.strip()]
    name = file["name"]
    text = await run_on_thread(lambda pulse: _read_text(name, pulse), name)
    found = [each for each in _READERS[file["kind"].lower()](text, file["column"] or _COLUMN, name) if each.strip()]
    if not found:
        raise SourceError(f"{redact_location(name)!r} has no prompts.", hint="Write one prompt per line or row.")
    return found


def _read_text(name: str, pulse: Pulse) -> str:
    data = bytearray()
    for piece in place.pieces(name, pulse):
        data += piece
        if len(data) > _MOST_BYTES:
            raise SourceError(
                f"{redact_location(name)!r} is larger than {_MOST_BYTES >> 20} MiB.", hint="Split it into several runs."
            )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{redact_location(name)!r} is not UTF-8, at byte {error.start:,}.", hint="Save it as UTF-8."
        ) from None


def _lines(text: str, _column: str, _name: str) -> Iterator[str]:
    yield from (line.strip() for line in text.splitlines())


def _json_lines(text: str, column: str, name: str) -> Iterator[str]:
    """Yield the prompt of each line: a JSON string, or the field `column` of a JSON object."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found: Any = json.loads(line)
        except ValueError as error:
            raise SourceError(
                f"Line {number} of {redact_location(name)!r} is not JSON: {error}.",
                hint="Write a JSON string or object on each line.",
            ) from None
        prompt = found.get(column) if isinstance(found, dict) else found
        if not isinstance(prompt, str):
            raise SourceError(
                f"Line {number} of {redact_location(name)!r} has no text in {column!r}.",
                hint="Write a JSON string on each line, or objects with this field; name another field with "
                f"{redact_location(name)}#field.",
            )
        yield prompt


def _csv_rows(text: str, column: str, name: str) -> Iterator[str]:
    """Yield the cell of each row in `column`, or in the only column."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    columns = list(rows.fieldnames or ())
    if column not in columns and len(columns) == 1 and (separator := re.search("[;\t]", columns[0])):
        what = "tabs" if separator[0] == "\t" else "semicolons"
        raise SourceError(
            f"{redact_location(name)!r} has {what} between its columns.",
            hint="Save it with commas, in UTF-8, or as .jsonl.",
        )
    if column not in columns and len(columns) != 1:
        raise SourceError(
            f"{redact_location(name)!r} has no column {column!r}; it has {', '.join(columns) or 'none'}.",
            hint=f"Append the column, such as {redact_location(name)}#{columns[0] if columns else 'question'}.",
        )
    column = column if column in columns else columns[0]
    for row in rows:
        if any(row.pop(None, ())):
            raise SourceError(
                f"The row in line {rows.line_num} of {redact_location(name)!r} has more cells than there are columns.",
                hint="Write a text with commas in quotes.",
            )
        yield row[column] or ""


_READERS: Final = {"txt": _lines, "jsonl": _json_lines, "csv": _csv_rows}
