"""Generates a short string that matches a regular expression.

It knows literals, classes, groups, alternatives and quantifiers. Other syntax (look-around, back references) is
ignored, so the result is tested against the pattern itself.
"""

from __future__ import annotations

import re
import string

_CLASSES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
_SAMPLES = string.ascii_lowercase + string.digits + string.ascii_uppercase + "-_. " + string.punctuation
_COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")


def matching(pattern: str, min_length: int = 0, max_length: int | None = None) -> str | None:
    """Return a match within the lengths; None if the pattern is too complex."""
    for more in (0, 1, min_length):
        try:
            text = _Reader(pattern, more).read()
            found = re.search(pattern, text)
        except (re.error, ValueError):
            # JSON Schema's dialect of regular expressions has syntax that Python does not know.
            return None
        if found and len(text) >= min_length and (max_length is None or len(text) <= max_length):
            return text
    return None


class _Reader:
    """Reads a pattern once and writes a match; `more` is the number of repetitions beyond the minimum."""

    def __init__(self, pattern: str, more: int) -> None:
        self.pattern = pattern
        self.more = more
        self.at = 0

    def read(self) -> str:
        return self._alternatives()

    def _alternatives(self) -> str:
        first = self._sequence()
        while self._next_is("|"):
            self._sequence()
        return first

    def _sequence(self) -> str:
        parts: list[str] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            atom = self._atom()
            parts.append(atom * self._repeats())
        return "".join(parts)

    def _atom(self) -> str:
        char = self._take()
        if char in "^$":
            return ""
        if char == ".":
            return "a"
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        return self._escape() if char == "\\" else char

    def _group(self) -> str:
        skip = False
        if self._next_is("?"):
            # (?:…), (?P<name>…), and look-arounds, which match nothing themselves.
            kind = self._take()
            if kind in "P<" and self.pattern[self.at : self.at + 1] not in ("=", "!"):
                self.at = self.pattern.index(">", self.at) + 1
            elif kind != ":":
                skip = True
                self.at += kind == "<"
        inner = self._alternatives()
        self._next_is(")")
        return "" if skip else inner

    def _class(self) -> str:
        end = self.at + 1
        while end < len(self.pattern) and self.pattern[end] != "]":
            end += 2 if self.pattern[end] == "\\" else 1
        found = re.compile(self.pattern[self.at - 1 : end + 1])
        self.at = end + 1
        return next((char for char in _SAMPLES if found.fullmatch(char)), "")

    def _escape(self) -> str:
        char = self._take()
        if char in "bBAZz":
            return ""
        return _CLASSES.get(char) or _ESCAPES.get(char, char)

    def _repeats(self) -> int:
        least, most = self._quantifier()
        # A lazy or possessive mark does not change the set of matches.
        self.at += self.pattern[self.at : self.at + 1] in ("?", "+") and least != most
        wanted = least if least == most else least + self.more
        return wanted if most is None else min(wanted, most)

    def _quantifier(self) -> tuple[int, int | None]:
        if self._next_is("*"):
            return 0, None
        if self._next_is("+"):
            return 1, None
        if self._next_is("?"):
            return 0, 1
        count = _COUNT.match(self.pattern, self.at)
        if count is None or not (count[1] or count[3]):
            return 1, 1
        self.at = count.end()
        least = int(count[1] or 0)
        if not count[2]:
            return least, least
        return least, int(count[3]) if count[3] else None

    def _take(self) -> str:
        char = self.pattern[self.at : self.at + 1]
        self.at += 1
        return char

    def _next_is(self, char: str) -> bool:
        if self.pattern[self.at : self.at + 1] == char:
            self.at += 1
            return True
        return False
