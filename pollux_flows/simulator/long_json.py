"""A streaming JSON reader: one array of a document is read item by item, in bounded memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Any, NoReturn

_SPACE = " \t\n\r"
_IN_NUMBERS = "0123456789+-.eE"
#: Text that has been parsed is dropped when it is longer than this.
_DROP_CHARS = 1024 * 1024
#: An incomplete literal or escape is no longer than this.
_LONGEST_WORD = 16


def _refuse(constant: str) -> NoReturn:
    raise BadJsonError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


class BadJsonError(ValueError):
    """The document is not valid JSON."""


class LongJson:
    """A document in `pieces` with an array at `path`: field names, which are compared after `normalize`."""

    def __init__(
        self, pieces: Iterator[bytes], path: tuple[str, ...], normalize: Callable[[str], str] = lambda name: name
    ) -> None:
        self._pieces = pieces
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._path = path
        self._normalize = normalize
        self._text = ""
        self._at = 0
        #: The document, with only the first item in that array; set once all items have been read.
        self.rest: Any = None

    def items(self) -> Iterator[Any]:
        """Iterate over the items of the array."""
        try:
            self.rest = yield from self._value(())
            if self._peek():
                raise BadJsonError("something follows the end of the document")
        except UnicodeDecodeError as problem:
            raise BadJsonError(str(problem)) from None

    def _value(self, path: tuple[str, ...]) -> Generator[Any, None, Any]:
        first = self._peek()
        if first == "[" and path == self._path:
            return (yield from self._items())
        if first == "{" and path != self._path and path == self._path[: len(path)]:
            return (yield from self._members(path))
        return self._plain()

    def _items(self) -> Generator[Any, None, list[Any]]:
        self._take("[")
        if self._peek() == "]":
            self._take("]")
            return []
        first = self._plain()
        yield first
        while self._take(",]") == ",":
            yield self._plain()
        return [first]

    def _members(self, path: tuple[str, ...]) -> Generator[Any, None, dict[str, Any]]:
        self._take("{")
        members: dict[str, Any] = {}
        if self._peek() == "}":
            self._take("}")
            return members
        while True:
            name = self._plain()
            if not isinstance(name, str):
                raise BadJsonError(f"{name!r} is no name of a field")
            self._take(":")
            members[name] = yield from self._value((*path, self._normalize(name)))
            if self._take(",}") == "}":
                return members

    def _plain(self) -> Any:
        """Parse and return the next value."""
        self._peek()
        count = 1
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise BadJsonError("it is nested too deeply") from None
            except json.JSONDecodeError as problem:
                # The value may be incomplete: read twice as many pieces each time.
                is_cut = problem.msg.startswith("Unterminated") or problem.pos > len(self._text) - _LONGEST_WORD
                if not (is_cut and self._read(count)):
                    raise BadJsonError(str(problem)) from None
                count *= 2
                continue
            # A number may continue in the next piece. (At the end of the text the slice is empty, which is contained.)
            if isinstance(value, int | float) and self._text[end : end + 1] in _IN_NUMBERS and self._read(1):
                continue
            self._at = end
            return value

    def _peek(self) -> str:
        """Return the next character that is not a space, without consuming it; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(1):
                return ""

    def _take(self, expected: str) -> str:
        found = self._peek()
        if not found or found not in expected:
            raise BadJsonError(f"expected {' or '.join(expected)}, but found {found or 'its end'}")
        self._at += 1
        return found

    def _read(self, pieces: int) -> bool:
        """Read this many more pieces; return whether there were any."""
        more = [self._decode(piece) for piece in islice(self._pieces, pieces)]
        if not more:
            self._decode(b"", final=True)
            return False
        if self._at > _DROP_CHARS:
            self._text, self._at = self._text[self._at :], 0
        self._text += "".join(more)
        return True
