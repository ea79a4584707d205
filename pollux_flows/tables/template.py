"""Template: a prompt with column names in braces, such as `Summarize {title}: {body}`.

Only names are evaluated. The cells of a row are inserted as text and never parsed as a template, as the content of a
table may not be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from pollux_flows.errors import ConfigurationError
from pollux_flows.tables.cells import is_null, to_text

# The syntax that `str.format` would evaluate.
_EVALUATED: Final = {".": "an attribute", "[": "an item", "!": "a conversion", ":": "a format"}
_LONGEST_SHOWN: Final = 40


class RowError(Exception):
    """Raised for a row that cannot be asked about."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Template:
    """A parsed prompt template; `{{` and `}}` are escaped braces."""

    columns: tuple[str, ...]
    """The distinct column names, in order of first use."""
    _literals: tuple[str, ...]
    _names: tuple[str, ...]  # the name behind each literal but the last

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a template. Raises a ConfigurationError with the position of a mistake."""
        if not text.strip():
            raise ConfigurationError("The prompt is blank.", hint="Write one, such as 'Summarize {title}: {body}'.")
        literals, names, literal, at = [], [], "", 0
        while at < len(text):
            brace = min((place for sign in "{}" if (place := text.find(sign, at)) >= 0), default=len(text))
            literal += text[at:brace]
            if text[brace : brace + 2] in {"{{", "}}"}:
                literal, at = literal + text[brace], brace + 2
            elif text[brace : brace + 1] == "{":
                name, at = _name(text, brace)
                literals.append(literal)
                names.append(name)
                literal = ""
            elif brace < len(text):
                raise _refusal(text, brace, "has a } without a {", "Write }} for a brace.")
            else:
                at = brace
        return cls(tuple(dict.fromkeys(names)), (*literals, literal), tuple(names))

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the prompt for a row. Raises a RowError for a null cell or a blank prompt."""
        filled = {name: _cell(name, row.get(name)) for name in self.columns}
        parts = [
            part for literal, name in zip(self._literals, self._names, strict=False) for part in (literal, filled[name])
        ]
        prompt = "".join([*parts, self._literals[-1]])
        if not prompt.strip():
            raise RowError("The prompt of this row is blank.", hint="Fill its cells, or remove the row.")
        return prompt


def _cell(name: str, value: Any) -> str:
    if is_null(value):
        raise RowError(f"Column {name!r} is null in this row.", hint="Fill the cell, or remove the row.")
    if isinstance(value, bytes | bytearray | memoryview):
        raise RowError(
            f"Column {name!r} holds bytes, which a prompt cannot contain.", hint="Pass files by source_columns."
        )
    return to_text(value)


def _name(text: str, start: int) -> tuple[str, int]:
    """Return the column name in the braces that open at `start`, and the position after them."""
    end = start + 1
    while end < len(text) and text[end] not in "{}":
        end += 1
    if text[end : end + 1] != "}":
        raise _refusal(text, start, "has a { without a }", "Write {{ for a brace.")
    name = text[start + 1 : end]
    if not name.strip():
        raise _refusal(text, start, "has braces without a column name", "Name a column, or write {{ for a brace.")
    if found := next((_EVALUATED[sign] for sign in name if sign in _EVALUATED), None):
        raise _refusal(
            text,
            start,
            f"asks for {found} of a column",
            "Braces contain only column names, without . [ ! or : in them. Write {{ and }} for braces, and rename a "
            "column whose name contains such a character.",
        )
    return name, end + 1


def _refusal(text: str, at: int, what: str, hint: str) -> ConfigurationError:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    excerpt = text[at : at + _LONGEST_SHOWN]
    return ConfigurationError(f"The prompt {what}, at line {line}, column {column}: {excerpt!r}.", hint=hint)
