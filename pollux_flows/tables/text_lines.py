"""Text lines: read the UTF-8 lines of a file with their positions, in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Final

from pollux_flows.address import redact_location
from pollux_flows.errors import SourceError

LARGEST_ROW: Final = 64 << 20
_UTF8_MARK: Final = b"\xef\xbb\xbf"
# Longer marks first, as the mark of UTF-32 begins with that of UTF-16.
_OTHER_MARKS: Final = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class TextLines:
    """An iterator over the lines of a file from `start` to `end`, each with its line break."""

    def __init__(self, file: IO[bytes], address: str, *, start: int = 0, end: int | None = None) -> None:
        self._file, self._end = file, end
        self.name = redact_location(address)
        self.position = start
        """The position after the last line."""
        self.number = 0
        """The number of the last line, from 1 at `start`."""
        if start:
            file.seek(start)
            return
        mark = file.read(4)
        for known, encoding in _OTHER_MARKS.items():
            if mark.startswith(known):
                raise SourceError(f"{self.name!r} is encoded as {encoding}.", hint="Save it as UTF-8.")
        self.position = len(_UTF8_MARK) if mark.startswith(_UTF8_MARK) else 0
        file.seek(self.position)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._end is not None and self.position >= self._end:
            raise StopIteration
        line = self._file.readline(LARGEST_ROW)
        if not line:
            raise StopIteration
        start, self.position, self.number = self.position, self.position + len(line), self.number + 1
        if len(line) == LARGEST_ROW:
            raise SourceError(
                f"Line {self.number:,} of {self.name!r} is larger than {LARGEST_ROW >> 20} MiB.",
                hint="Pass large texts as files, with source_columns.",
            )
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self.name!r} is not UTF-8, at byte {start + error.start:,} in line {self.number:,}.",
                hint="Save it as UTF-8.",
            ) from None
