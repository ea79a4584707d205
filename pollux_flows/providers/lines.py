"""Lines of JSON: how a row is written, and how results are kept and read."""

from __future__ import annotations

import json
from typing import IO, Any

import orjson

from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import mended


def line(row: dict[str, Any]) -> bytes:
    """A row as one line, without its end."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def read(text: bytes) -> dict[str, Any]:
    """What a line says; a ValueError if that is no object."""
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
    """Takes down what comes, block by block, and sees to it that each file ends with the end of a line."""

    def __init__(self, into: IO[bytes]) -> None:
        self._into = into
        self._last = b"\n"

    def write(self, block: bytes) -> int:
        if block:
            try:
                self._into.write(block)
            except OSError as error:
                raise ConfigurationError(
                    f"The results of a batch cannot be written down: {error.strerror or error}",
                    hint="Make room where temporary files are, or set TMPDIR to a place that has some.",
                ) from None
            self._last = block[-1:]
        return len(block)

    def end(self) -> None:
        """One file is over; another may follow."""
        if self._last != b"\n":
            self.write(b"\n")
