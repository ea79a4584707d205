"""Prompt caches: the prefixes of prompts that a provider has cached, by account and model."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

#: A provider looks this many blocks back from a breakpoint for a cached prefix.
LOOK_BACK = 20
SWEEP_FROM = 4_096


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a prompt: its content, its tokens, and how long to cache the prefix that ends with it."""

    content: object
    tokens: int
    lifetime_s: float | None = None


@dataclass(frozen=True, slots=True)
class CacheUse:
    """The tokens of a prompt that were read from the cache, and those written to it."""

    read: int = 0
    written: int = 0
    #: The tokens written, by their lifetime in seconds.
    written_by_lifetime: Mapping[float, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arrival:
    """The start of a request, which finds only the prefixes written before it."""

    writes: int
    #: For the rows of a batch, also the time of its submission: they read from then on, and each read extends the
    #: lifetime of the prefix for the next one.
    at: float | None = None


@dataclass(slots=True)
class _Entry:
    number: int
    written_at: float
    until: float
    lifetime_s: float

    def is_found(self, arrival: Arrival, now: float) -> bool:
        if self.number > arrival.writes:
            return False
        return self.until > now if arrival.at is None else self.written_at <= arrival.at < self.until


class PrefixCache:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[bytes, _Entry] = {}
        self._writes = 0
        self._sweep_at = SWEEP_FROM

    def arrive(self, at: float | None = None) -> Arrival:
        """Return the arrival of a request that begins now."""
        with self._lock:
            return Arrival(self._writes, at)

    def use(self, owner: str, blocks: Sequence[Block], now: float, *, arrival: Arrival, least_tokens: int) -> CacheUse:
        """Read the longest cached prefix within reach of a breakpoint, then write the marked prefixes.

        A prefix is written when its request is answered; requests that arrived before do not find it. Prefixes
        shorter than `least_tokens` are silently not cached.
        """
        digest = hashlib.sha256(owner.encode())
        keys: list[bytes] = []
        sums: list[int] = []
        total = 0
        for block in blocks:
            digest.update(orjson.dumps(block.content, option=orjson.OPT_SORT_KEYS))
            keys.append(digest.copy().digest())
            total += block.tokens
            sums.append(total)
        marked = [
            place for place, block in enumerate(blocks) if block.lifetime_s is not None and sums[place] >= least_tokens
        ]
        if not marked:
            return CacheUse()
        visible = {back for place in marked for back in range(max(0, place - LOOK_BACK), place + 1)}
        with self._lock:
            known = [
                place
                for place in visible
                if (entry := self._entries.get(keys[place])) is not None and entry.is_found(arrival, now)
            ]
            read_to = max(known) if known else None
            if read_to is not None:  # a read extends the lifetime
                entry = self._entries[keys[read_to]]
                entry.until = max(entry.until, now + entry.lifetime_s)
            self._writes += 1
            for place in marked:
                self._remember(keys[place], now, blocks[place].lifetime_s or 0.0)
            self._sweep(now)
        read = 0 if read_to is None else sums[read_to]
        written_by_lifetime: Counter[float] = Counter()
        done = read
        for place in marked:
            if sums[place] > done:
                written_by_lifetime[blocks[place].lifetime_s or 0.0] += sums[place] - done
                done = sums[place]
        return CacheUse(read, written_by_lifetime.total(), dict(written_by_lifetime))

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def _remember(self, key: bytes, now: float, lifetime_s: float) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.until > now:
            entry.until, entry.lifetime_s = max(entry.until, now + lifetime_s), max(entry.lifetime_s, lifetime_s)
        else:
            self._entries[key] = _Entry(self._writes, now, now + lifetime_s, lifetime_s)

    def _sweep(self, now: float) -> None:
        if len(self._entries) > self._sweep_at:
            self._entries = {key: entry for key, entry in self._entries.items() if entry.until > now}
            self._sweep_at = max(SWEEP_FROM, 2 * len(self._entries))
