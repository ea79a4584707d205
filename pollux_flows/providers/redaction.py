"""Redaction: removes the API key from a provider's responses before anything stores, shows or logs them.

A provider, or a gateway before it, may echo the key that it was called with: in an error, in a row of a batch, in an
answer. All responses arrive through a `Session`, which removes the key here. So the journal, jobs, the result storage,
artifacts, events, output files and logs hold no key, and need no redaction of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import IO, Any, Final, TypeVar, cast

from pollux_flows.config import Config
from pollux_flows.document import Document
from pollux_flows.errors import PolluxError
from pollux_flows.providers import lines
from pollux_flows.providers.batches import Batch, Result

T = TypeVar("T")

_REDACTED: Final = "[REDACTED]"
# A placeholder for a key, such as `not-needed` or `ollama`, may be a word of an answer.
_SHORTEST_IN_ANSWERS: Final = 12
# JSON may escape a character of the key in these ways.
_ESCAPED: Final = re.compile(rb"\\u00[2-7]|\\/")


class Redactor:
    """Removes one key from the responses of its provider."""

    def __init__(self, config: Config) -> None:
        self._key = config.api_key.get_secret_value() if config.api_key else ""
        self._in_json = json.dumps(self._key)[1:-1].encode()
        self._in_answers = len(self._key) >= _SHORTEST_IN_ANSWERS

    def message(self, text: str) -> str:
        """Return the text of an error without the key."""
        return text.replace(self._key, _REDACTED) if self._key else text

    def error(self, error: PolluxError) -> None:
        """Remove the key from an error of ours that quotes the provider."""
        error.message = self.message(error.message)
        error.hint = self.message(error.hint) if error.hint else error.hint
        error.args = (error.message,)

    def answer(self, value: T) -> T:
        """Return a provider's response without the key; the same object if the key is not in it."""
        if isinstance(value, Batch) and value.problem:
            value = cast(T, replace(value, problem=self.message(value.problem)))
        return cast(T, self._redact(value)) if self._in_answers else value

    def results(self, into: IO[bytes], result: Callable[[bytes], Result]) -> RedactedResults:
        """Return a file that writes the results of a batch to `into`, without the key. `result` reads one line."""
        return RedactedResults(into, self, result)

    def line(self, line: bytes, result: Callable[[bytes], Result]) -> bytes:
        """Return one line of a batch's results without the key; answers are not searched for a very short key."""
        if not self._key or not (self._in_json in line or _ESCAPED.search(line)):
            return line
        try:
            if not self._in_answers and result(line).status == "succeeded":
                return line
            row = lines.read(line)
            redacted = self._redact(row)
            return line if redacted is row else lines.line(redacted)
        except ValueError:  # not JSON, so without escapes
            return line.replace(self._key.encode(), _REDACTED.encode())

    def _redact(self, value: Any) -> Any:
        """Return a copy with each occurrence of the key replaced, or the same object if there is none."""
        if isinstance(value, str):
            return value.replace(self._key, _REDACTED) if self._key in value else value
        if isinstance(value, dict):
            redacted = {self._redact(name): self._redact(item) for name, item in value.items()}
            same = redacted.keys() == value.keys() and all(redacted[name] is item for name, item in value.items())
            return value if same else redacted
        if isinstance(value, list | tuple):
            items = [self._redact(item) for item in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return tuple(items) if isinstance(value, tuple) else items
        if isinstance(value, Document):
            return self._redact_fields(value, dict(value), lambda changes: value.model_copy(update=changes))
        if is_dataclass(value) and not isinstance(value, type):
            held = {field.name: getattr(value, field.name) for field in fields(value)}
            return self._redact_fields(value, held, lambda changes: replace(value, **changes))
        return value

    def _redact_fields(self, value: Any, held: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> Any:
        changes = {name: new for name, old in held.items() if (new := self._redact(old)) is not old}
        return change(changes) if changes else value


class RedactedResults:
    """A writer that redacts the results of a batch as they arrive, line by line."""

    def __init__(self, into: IO[bytes], redactor: Redactor, result: Callable[[bytes], Result]) -> None:
        self._into, self._redactor, self._result = into, redactor, result
        self._unfinished: list[bytes] = []

    def write(self, block: bytes) -> int:
        ended, newline, rest = block.rpartition(b"\n")
        if newline:
            self._write(b"".join([*self._unfinished, ended]).split(b"\n"))
            self._unfinished = []
        if rest:
            self._unfinished.append(rest)
        return len(block)

    def _write(self, ended: list[bytes]) -> None:
        self._into.write(b"".join(self._redactor.line(line, self._result) + b"\n" for line in ended))
