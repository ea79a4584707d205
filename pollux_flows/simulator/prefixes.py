"""Which beginnings of prompts were seen before: what the providers' prompt caches live on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

#: A provider looks this many blocks back from a breakpoint for something that it has already read.
LOOK_BACK = 20
SWEEP_FROM = 4_096


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a prompt: what it says, its tokens, and for how long to remember all up to here."""

    content: object
    tokens: int
    remember_s: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """How many tokens of a prompt came from the cache, and how many went into it."""

    read: int = 0
    written: int = 0
    written_for_s: float | None = None


class PrefixCache:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[bytes, float] = {}
        self._sweep_at = SWEEP_FROM

    def meet(self, owner: str, blocks: Sequence[Block], now: float) -> Seen:
        """Read the longest known beginning that a breakpoint can see, then remember what is marked."""
        marked = [place for place, block in enumerate(blocks) if block.remember_s is not None]
        if not marked:
            return Seen()
        digest = hashlib.sha256(owner.encode())
        keys: list[bytes] = []
        sums: list[int] = []
        total = 0
        for block in blocks[: marked[-1] + 1]:
            digest.update(orjson.dumps(block.content, option=orjson.OPT_SORT_KEYS))
            keys.append(digest.copy().digest())
            total += block.tokens
            sums.append(total)
        visible = {back for place in marked for back in range(max(0, place - LOOK_BACK), place + 1)}
        with self._lock:
            known = [place for place in visible if self._until.get(keys[place], 0) > now]
            read = sums[max(known)] if known else 0
            for place in marked:
                lasts = blocks[place].remember_s or 0
                self._until[keys[place]] = max(self._until.get(keys[place], 0), now + lasts)
            if len(self._until) > self._sweep_at:
                self._until = {key: until for key, until in self._until.items() if until > now}
                self._sweep_at = max(SWEEP_FROM, 2 * len(self._until))
        written = sums[marked[-1]] - read
        return Seen(read, written, blocks[marked[-1]].remember_s if written else None)

    def clear(self) -> None:
        with self._lock:
            self._until.clear()
