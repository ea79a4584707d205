"""`cachedContents`: prompts that Gemini keeps for later requests, and forgets when they expire."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pollux_flows.simulator.timestamps import timestamp

_DURATION = re.compile(r"(\d+(?:\.\d+)?)s")
DEFAULT_TTL_S = 3600.0


@dataclass(frozen=True, slots=True)
class Cache:
    name: str
    model: str
    display_name: str | None
    tokens: int
    created: float
    updated: float
    expires: float
    #: The request as it was made, in its normal spelling.
    message: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "name": self.name,
            "model": self.model,
            "createTime": timestamp(self.created),
            "updateTime": timestamp(self.updated),
            "expireTime": timestamp(self.expires),
            "usageMetadata": {"totalTokenCount": self.tokens},
        }
        if self.display_name is not None:
            body["displayName"] = self.display_name
        return body


class CacheStore:
    """The caches of one world. One that has expired is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caches: dict[str, Cache] = {}

    def add(self, cache: Cache) -> None:
        with self._lock:
            self._caches[cache.name] = cache

    def get(self, name: str, now: float) -> Cache | None:
        with self._lock:
            cache = self._caches.get(name)
        return cache if cache is not None and cache.expires > now else None

    def alive(self, now: float) -> list[Cache]:
        with self._lock:
            return [cache for cache in self._caches.values() if cache.expires > now]

    def extend(self, cache: Cache, expires: float, now: float) -> Cache:
        extended = replace(cache, expires=expires, updated=now)
        self.add(extended)
        return extended

    def remove(self, name: str) -> None:
        with self._lock:
            self._caches.pop(name, None)

    def clear(self) -> None:
        with self._lock:
            self._caches.clear()


def expiry(message: dict[str, Any], now: float) -> float | None:
    """When the message wants a cache to expire; None when what it says is no time."""
    if "expireTime" in message:
        try:
            return datetime.fromisoformat(message["expireTime"]).timestamp()
        except ValueError:
            return None
    match = _DURATION.fullmatch(message.get("ttl", f"{DEFAULT_TTL_S}s"))
    return now + float(match.group(1)) if match else None
