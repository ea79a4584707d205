"""Rows: the input of a job's batches as files, split where a provider takes no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from pollux_flows.errors import ConfigurationError
from pollux_flows.pipeline.plan import PlannedCall
from pollux_flows.providers.batches import Limits, Rows

Row = Callable[[PlannedCall, int], bytes]
"""A call as a row of the part of that number."""

_BUFFER: Final = 1 << 20


def write_rows(calls: Iterable[PlannedCall], row: Row, limits: Limits, folder: Path, first_part: int = 0) -> list[Rows]:
    """One file for each batch that it takes, in the order of the calls."""
    written: list[Rows] = []
    with ExitStack() as stack:
        file: BinaryIO | None = None
        count = size = 0
        for call in calls:
            number = first_part + len(written)
            line = row(call, number) + b"\n"
            check_row(line, limits, call.index)
            if file is not None and (count == limits.rows or size + len(line) > limits.size_bytes):
                file.close()
                written.append(Rows(_path(folder, number), count))
                file, count, size = None, 0, 0
                number += 1
                line = row(call, number) + b"\n"
            if file is None:
                file = stack.enter_context(_path(folder, number).open("wb", _BUFFER))
            file.write(line)
            count, size = count + 1, size + len(line)
        if file is not None:
            written.append(Rows(_path(folder, first_part + len(written)), count))
    return written


def check_row(line: bytes, limits: Limits, index: int) -> None:
    """Refuse what fits into no batch."""
    if len(line) > limits.size_bytes:
        raise ConfigurationError(
            f"prompts[{index}] is a row of {len(line):,} bytes; a batch takes {limits.size_bytes:,}.",
            hint="Pass long texts as files (Source.from_file), or shorten the prompt.",
        )


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:04}.jsonl"
