"""The store of Gemini's `cachedContents`: cached prompts with an expiry."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from typing_extensions import override

from pollux_flows.simulator.storage import Record, Store
from pollux_flows.simulator.timestamps import format_timestamp

_DURATION = re.compile(r"(\d+(?:\.\d+)?)s")
DEFAULT_TTL_S = 3600.0
_PROVIDER = "gemini"


@dataclass(frozen=True, slots=True)
class Cache:
    name: str
    model: str
    display_name: str | None
    tokens: int
    #: The account that owns it: a hash of the API key that created it.
    account: str
    created: float
    updated: float
    expires: float
    #: The original request, with field names in camelCase.
    message: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "name": self.name,
            "model": self.model,
            "createTime": format_timestamp(self.created),
            "updateTime": format_timestamp(self.updated),
            "expireTime": format_timestamp(self.expires),
            "usageMetadata": {"totalTokenCount": self.tokens},
        }
        if self.display_name is not None:
            body["displayName"] = self.display_name
        return body


class CacheStore(Store[Cache]):
    """The caches of one simulator; expired ones are gone."""

    kind = "cache"
    saved = ("name", "model", "display_name", "tokens", "account", "created", "updated", "expires", "message")

    def add(self, cache: Cache) -> None:
        key = _PROVIDER, cache.name
        with self._lock:
            self._storage.add(key, self._record(cache), {})
            self._items[key] = cache

    def get(self, name: str, account: str, now: float) -> Cache | None:
        """Return an account's cache, or None if it does not exist or has expired."""
        return next((cache for cache in self.list_owned(account, now) if cache.name == name), None)

    def list_owned(self, account: str, now: float) -> list[Cache]:
        """Return the unexpired caches of an account, oldest first."""
        return [cache for cache in self.all(now) if cache.account == account]

    def all(self, now: float) -> list[Cache]:
        """Return the unexpired caches of all accounts, oldest first."""
        with self._lock:
            self._load()
            return [cache for cache in self._items.values() if cache.expires > now]

    def extend(self, cache: Cache, expires: float, now: float) -> Cache:
        extended = replace(cache, expires=expires, updated=now)
        key = _PROVIDER, cache.name
        with self._lock:
            self._storage.replace(key, self._record(extended))
            self._items[key] = extended
        return extended

    def remove(self, name: str) -> None:
        with self._lock:
            self._storage.set((_PROVIDER, name), deleted_at=0.0)
            self._items.pop((_PROVIDER, name), None)

    @override
    def _apply(self, record: Record) -> None:
        key = _PROVIDER, record["name"]
        if record["deleted_at"] is not None:
            self._items.pop(key, None)
        else:
            self._items[key] = Cache(**self._saved_fields(record))

    @override
    def _record(self, item: Cache) -> Record:
        return {**super()._record(item), "deleted_at": None}


def expiry(message: dict[str, Any], now: float) -> float | None:
    """Return the expiry that a request asks for; None if it is invalid."""
    if "expireTime" in message:
        try:
            return datetime.fromisoformat(message["expireTime"]).timestamp()
        except ValueError:
            return None
    match = _DURATION.fullmatch(message.get("ttl", f"{DEFAULT_TTL_S}s"))
    return now + float(match.group(1)) if match else None
