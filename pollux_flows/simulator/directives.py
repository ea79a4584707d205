"""Faults requested by directives in a prompt: `[[simulate: status=429 retry_after=2 times=2]]`.

This is the third way to request a fault, for people who have nothing but a prompt field in a form.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pollux_flows.simulator.faults import KINDS, Fault

_DIRECTIVE = re.compile(r"\[\[\s*simulate\s*:(.*?)\]\]", re.DOTALL)
_TOOL_CALLS = re.compile(r"\btool_calls=(\d+)")
_NUMBERS: Mapping[str, Callable[[str], Any]] = {
    "status": int,
    "count": int,
    "times": int,
    "delay_s": float,
    "retry_after": float,
}


class BadDirectiveError(ValueError):
    """A `[[simulate: …]]` directive that the simulator does not know."""


@dataclass(frozen=True)
class Directive:
    """A fault, and the number of requests with this exact prompt that it applies to (None: all of them)."""

    fault: Fault
    times: int | None

    def __post_init__(self) -> None:
        if self.times is not None and self.times < 1:
            raise ValueError("times is at least 1")


def parse_directives(prompt: str) -> list[Directive]:
    """Parse the directives in a prompt, in order."""
    return [_parse(match[1]) for match in _DIRECTIVE.finditer(prompt)]


def remove_directives(prompt: str) -> str:
    return _DIRECTIVE.sub("", prompt) if "[[" in prompt else prompt


def _parse(text: str) -> Directive:
    try:
        words = dict(_word(word) for word in shlex.split(_TOOL_CALLS.sub(r"tool_call count=\1", text)))
        if words.keys() == {"delay_s"}:
            words["kind"] = "slow"
        times = words.pop("times", None)
        return Directive(Fault(**words), times)
    except (ValueError, TypeError) as problem:
        raise BadDirectiveError(
            f"[[simulate:{text}]] is not a valid directive: {problem}. "
            f"Write a kind ({', '.join(KINDS)}) or status=…, then words such as times=2"
        ) from problem


def _word(word: str) -> tuple[str, Any]:
    """Parse one word of a directive: `status=429` sets a field of the fault, a word without a value its kind."""
    name, equals, value = word.partition("=")
    if not equals:
        return "kind", name
    if name == "retry_after" and not re.fullmatch(r"\d+(\.\d+)?", value):
        # An HTTP date.
        return name, value
    return name, _NUMBERS.get(name, str)(value)


class DirectiveCounts:
    """Counts the requests to which the directives of a prompt have been applied."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[bytes, list[int]] = {}

    def take(self, prompt: str) -> Fault | None:
        """Return the fault that this request's prompt asks for, and count it as used once."""
        if "[[" not in prompt:
            return None
        found = parse_directives(prompt)
        if not found:
            return None
        # A digest, so that a long-lived simulator does not hold every prompt.
        key = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            uses = self._uses.setdefault(key, [0] * len(found))
            for place, directive in enumerate(found):
                if directive.times is None:
                    return directive.fault
                if uses[place] < directive.times:
                    uses[place] += 1
                    return directive.fault
        return None

    def clear(self) -> None:
        with self._lock:
            self._uses.clear()
