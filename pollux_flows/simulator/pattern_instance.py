"""Generates a short string that matches a regular expression.

Literals, classes, groups, alternatives and quantifiers are supported. Other syntax (look-around, back references) is
ignored, so the result is tested against the pattern itself.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from re import _constants as op  # type: ignore[attr-defined]  # the standard library offers its parser under no other name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_SAMPLES = "0" + string.ascii_lowercase + string.digits + string.ascii_uppercase + " -_." + string.punctuation + "\n\t"
_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)


def generate_match(pattern: str, min_length: int = 0, max_length: int | None = None) -> str | None:
    """Return a match within the lengths; None if the pattern is too complex."""
    for more in (0, 1, min_length):
        try:
            text = _write(parser.parse(pattern), more)
            found = re.search(pattern, text)
        except (re.error, ValueError, OverflowError):
            # JSON Schema's dialect of regular expressions has syntax that Python does not know.
            return None
        if found and len(text) >= min_length and (max_length is None or len(text) <= max_length):
            return text
    return None


def _write(parsed: Iterable[tuple[Any, Any]], more: int) -> str:
    """Write a match of a parsed pattern; `more` is the number of repetitions beyond the minimum."""
    text = ""
    for kind, content in parsed:
        if kind is op.LITERAL:
            text += chr(content)
        elif kind is op.NOT_LITERAL:
            text += "b" if chr(content) == "a" else "a"
        elif kind is op.ANY:
            text += "a"
        elif kind is op.IN:
            text += next((char for char in _SAMPLES if _is_in(content, char)), "")
        elif kind is op.BRANCH:
            text += _write(content[1][0], more)
        elif kind in (op.SUBPATTERN, op.ATOMIC_GROUP):
            text += _write(content[-1] if kind is op.SUBPATTERN else content, more)
        elif kind in _REPEATS:
            least, most, repeated = content
            text += _write(repeated, more) * (least if least == most else min(least + more, most))
    return text


def _is_in(parts: Iterable[tuple[Any, Any]], char: str) -> bool:
    """Return whether a class of characters contains the character."""
    is_negated = found = False
    for kind, content in parts:
        if kind is op.NEGATE:
            is_negated = True
        elif kind is op.LITERAL:
            found |= ord(char) == content
        elif kind is op.RANGE:
            found |= content[0] <= ord(char) <= content[1]
        else:
            found |= re.match(_CATEGORIES[content], char) is not None
    return found is not is_negated
