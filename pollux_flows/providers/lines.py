"""Lines of JSON: how a row is written, and how results are kept and read."""

from __future__ import annotations

import json
from typing import IO, Any

import orjson

from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import mended
from pollux_flows.providers.base import LARGEST_ANSWER, MOST_VALUES, SMALL_ANSWER, count_values


def line(row: dict[str, Any]) -> bytes:
    """A row as one line, without its end."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def read(text: bytes) -> dict[str, Any]:
    """What a line says; a ValueError if that is no object."""
    if len(text) > SMALL_ANSWER and count_values(text) > MOST_VALUES:
        raise ValueError(f"a line of the results has more than {MOST_VALUES:,} values")
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError:  # it is strict, and quick; what it refuses may still be mended
        said = _mended(text)
    if not isinstance(said, dict):
        raise ValueError("a line of the results is no JSON object")  # noqa: TRY004 (so is what is no JSON at all)
    return said


def _mended(text: bytes) -> Any:
    try:
        return mended(json.loads(text))
    except RecursionError:
        return None


class Lines:
    """Writes what comes, block by block, and sees to it that each file ends with the end of a line.

    A line that is longer than any answer is cut, and then is none that can be read: the others are kept.
    """

    def __init__(self, into: IO[bytes]) -> None:
        self._into = into
        self._length = 0  # of the line so far

    def write(self, block: bytes) -> int:
        first, newline, rest = block.partition(b"\n")
        room = max(0, LARGEST_ANSWER - self._length)
        self._put(block if len(first) <= room else first[:room] + newline + rest)
        self._length = len(rest) - rest.rfind(b"\n") - 1 if newline else self._length + len(first)
        return len(block)

    def end(self) -> None:
        """One file is over; another may follow."""
        if self._length:
            self.write(b"\n")

    def _put(self, data: bytes) -> None:
        try:
            self._into.write(data)
        except OSError as error:
            raise ConfigurationError(
                f"The results of a batch cannot be written down: {error.strerror or error}",
                hint="Make room where temporary files are, or set TMPDIR to a place that has some.",
            ) from None
