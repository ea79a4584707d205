"""Lines of JSON: writes the rows of a batch, and stores and reads its results."""

from __future__ import annotations

import json
from typing import IO, Any

from pollux_flows.errors import ConfigurationError
from pollux_flows.plain import replace_surrogates


def line(row: dict[str, Any]) -> bytes:
    """Return a row as one line of JSON, without its line break."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def read(text: bytes) -> dict[str, Any]:
    """Parse a line; raise a ValueError if it is no JSON object."""
    try:
        row = replace_surrogates(json.loads(text))
    except RecursionError:
        row = None
    if not isinstance(row, dict):
        raise ValueError("a line of the results is no JSON object")  # noqa: TRY004 (the error of no JSON at all, too)
    return row


class Lines:
    """A writer of downloaded results, which ends each file with a line break."""

    def __init__(self, into: IO[bytes]) -> None:
        self._into = into
        self._is_ended = True

    def write(self, block: bytes) -> int:
        try:
            self._into.write(block)
        except OSError as error:
            raise ConfigurationError(
                f"The results of a batch cannot be saved: {error.strerror or error}",
                hint="Free disk space where temporary files are, or set TMPDIR to another folder.",
            ) from None
        self._is_ended = block.endswith(b"\n") if block else self._is_ended
        return len(block)

    def end(self) -> None:
        """End a file; another may follow."""
        if not self._is_ended:
            self.write(b"\n")
