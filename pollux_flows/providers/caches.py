"""Caches: the interface of a provider's `caches.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pollux_flows.options import Options
from pollux_flows.providers.material import Material


@dataclass(frozen=True)
class CacheToCreate:
    """The data of a request to create a cache."""

    model: str
    materials: Sequence[Material]
    options: Options
    """Only the system instruction and the tools are used."""
    ttl_seconds: int
    display_name: str


@dataclass(frozen=True)
class ProviderCache:
    """A cache as its provider describes it."""

    name: str
    display_name: str | None
    expires_at: float
    tokens: int | None


class CacheModule(Protocol):
    """The interface of `caches.py`, for a provider that has cache handles."""

    async def create(self, client: Any, cache: CacheToCreate, /) -> ProviderCache: ...

    async def get(self, client: Any, name: str, /) -> ProviderCache: ...

    async def extend(self, client: Any, name: str, ttl_seconds: int, /) -> ProviderCache:
        """Set the cache's lifetime, counted from now."""
        ...

    async def find_all(self, client: Any, display_names: Sequence[str], /) -> list[ProviderCache]:
        """Return the account's caches that have one of these display names."""
        ...

    async def delete(self, client: Any, name: str, /) -> None: ...
