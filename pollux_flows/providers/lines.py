"""Lines of JSON: write the rows of a batch, and store and read its results."""

from __future__ import annotations

import json
from typing import IO, Any

from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import replace_surrogates
from pollux_flows.providers.base import LARGEST_ANSWER, MOST_VALUES, SMALL_ANSWER, count_values


def line(row: dict[str, Any]) -> bytes:
    """Return a row as one line of JSON, without its line break."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def read(text: bytes) -> dict[str, Any]:
    """Parse a line. Raises a ValueError if it is not a JSON object."""
    if len(text) > SMALL_ANSWER and count_values(text) > MOST_VALUES:
        raise ValueError(f"a line of the results has more than {MOST_VALUES:,} values")
    try:
        row = replace_surrogates(json.loads(text))
    except RecursionError:
        row = None
    if not isinstance(row, dict):
        raise ValueError("a line of the results is not a JSON object")  # noqa: TRY004 (as for invalid JSON)
    return row


class Lines:
    """A writer of downloaded results, which ends each file with a line break.

    A line that is longer than any answer is cut, which makes it unreadable; other lines are not affected.
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
        """End a file; another may follow."""
        if self._length:
            self.write(b"\n")

    def _put(self, data: bytes) -> None:
        try:
            self._into.write(data)
        except OSError as error:
            raise ConfigurationError(
                f"The results of a batch cannot be saved: {error.strerror or error}",
                hint="Free disk space where temporary files are, or set TMPDIR to another folder.",
            ) from None
