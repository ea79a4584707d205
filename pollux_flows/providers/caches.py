"""Caches: what a provider says of one, and what its module `caches` can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pollux_flows.options import Options
from pollux_flows.providers.material import Material


@dataclass(frozen=True)
class CacheToCreate:
    """All that the request for a cache is made from."""

    model: str
    materials: Sequence[Material]
    options: Options
    """Of these, the system instruction and the tools."""
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
    """`caches.py` of a provider that has cache handles."""

    async def create(self, client: Any, cache: CacheToCreate, /) -> ProviderCache: ...

    async def get(self, client: Any, name: str, /) -> ProviderCache: ...

    async def extend(self, client: Any, name: str, ttl_seconds: int, /) -> ProviderCache:
        """Let it live for so long from now on."""
        ...

    async def find_all(self, client: Any, display_names: Sequence[str], /) -> list[ProviderCache]:
        """Return the account's caches that have one of these display names."""
        ...

    async def delete(self, client: Any, name: str, /) -> None:
        """Delete it. One that is gone already is as good as deleted."""
        ...
