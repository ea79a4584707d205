"""The capabilities of Claude models, derived from their names."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NEW = re.compile(r"claude-(?P<family>[a-z]+)-(?P<major>\d{1,2})(?:-(?P<minor>\d{1,2}))?(?:-|$)")
_OLD = re.compile(r"claude-(?P<major>\d)(?:-(?P<minor>\d))?-(?P<family>[a-z]+)")
_CACHED_FROM = {
    ("opus", 5, 0): 512,
    ("fable", 5, 0): 512,
    ("opus", 4, 7): 2_048,
    ("opus", 4, 6): 4_096,
    ("opus", 4, 5): 4_096,
    ("haiku", 4, 5): 4_096,
}
# A family without a number counts as the newest version.
_NEWEST = (99, 0)


@dataclass(frozen=True, slots=True)
class Model:
    family: str
    version: tuple[int, int]

    def since(self, **versions: tuple[int, int]) -> bool:
        """Return whether the model has at least the version passed for its family; other families count from 5 on."""
        return self.version >= versions.get(self.family, (5, 0))

    @property
    def thinks(self) -> bool:
        return self.version >= (3, 7)

    @property
    def thinks_adaptively(self) -> bool:
        return self.since(opus=(4, 6), sonnet=(4, 6))

    @property
    def takes_thinking_budget(self) -> bool:
        return self.thinks and (self.version == _NEWEST or not self.since(opus=(4, 7)))

    @property
    def shows_thinking(self) -> bool:
        """Return whether thinking is summarized by default; from Opus 4.7 on it is not."""
        return not self.since(opus=(4, 7))

    @property
    def efforts(self) -> tuple[str, ...]:
        if not self.since(opus=(4, 5), sonnet=(4, 6)):
            return ()
        efforts = ["low", "medium", "high"]
        if self.since(opus=(4, 7)):
            efforts.append("xhigh")
        if self.since(opus=(4, 6), sonnet=(4, 6)):
            efforts.append("max")
        return tuple(efforts)

    @property
    def has_structured_output(self) -> bool:
        return self.version >= (4, 0)

    @property
    def cached_from_tokens(self) -> int:
        """Return the fewest tokens of a cached prefix: 1,024 for models that are not listed."""
        return _CACHED_FROM.get((self.family, *self.version), 1_024)

    @property
    def takes_prefill(self) -> bool:
        """Return whether a request may end with a prefill, the beginning of the answer."""
        return not self.since(opus=(4, 6), sonnet=(4, 6))

    @property
    def context_window(self) -> int:
        return 1_000_000 if self.since(opus=(4, 6), sonnet=(4, 6)) else 200_000

    @property
    def max_output(self) -> int:
        if self.version < (3, 5):
            return 4_096
        if self.version == (3, 5):
            return 8_192
        if self.family == "opus" and self.version < (4, 5):
            return 32_000
        return 128_000 if self.since(opus=(4, 6), sonnet=(4, 6)) else 64_000


def is_known(name: str) -> bool:
    return name.startswith("claude-")


def parse_model(name: str) -> Model:
    match = _OLD.match(name) or _NEW.match(name)
    if match is None:
        return Model("", _NEWEST)
    return Model(match["family"], (int(match["major"]), int(match["minor"] or 0)))
