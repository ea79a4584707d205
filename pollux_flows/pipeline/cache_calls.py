"""Cache calls: requests about a provider's caches that are free, with retries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pollux_flows.errors import CacheError, PolluxError
from pollux_flows.pipeline.retry import retry_call
from pollux_flows.providers.caches import ProviderCache
from pollux_flows.providers.session import Session
from pollux_flows.state.leases import Clock

T = TypeVar("T")

_LOOK_S: Final = 2.0
_log: Final = logging.getLogger("pollux_flows")


def is_lost(error: PolluxError | None) -> bool:
    """Return whether the error means that the provider does not have the cache."""
    return (
        isinstance(error, CacheError)
        and error.status_code in {403, 404}
        and error.error_category != "auth"
        and not error.outcome_unknown
    )


class CacheCalls:
    """Makes requests about a provider's caches that are free, with retries."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._module = session.caches

    async def get(self, name: str) -> ProviderCache | None:
        """Return the cache, or None if the provider does not have it."""
        return await self._unless_lost(lambda: self._module.get(self._session.client, name))

    async def extend(self, name: str, ttl_seconds: int) -> ProviderCache | None:
        """Extend the cache to live for so long from now on; None if the provider does not have it."""
        return await self._unless_lost(lambda: self._module.extend(self._session.client, name, ttl_seconds))

    async def find(self, display_name: str) -> ProviderCache | None:
        """Return the cache of this display name. If there are several, all but the longest-lived are deleted."""
        found = await self.find_all([display_name])
        found.sort(key=lambda cache: cache.expires_at)
        for extra in found[:-1]:
            await self.delete_quietly(extra.name)
        return found[-1] if found else None

    async def find_all(self, display_names: list[str]) -> list[ProviderCache]:
        """Return the caches that have one of these display names."""
        return await self._ask(lambda: self._module.find_all(self._session.client, display_names))

    async def delete(self, name: str) -> None:
        """Delete the cache, unless the provider has lost it already."""
        await self._unless_lost(lambda: self._module.delete(self._session.client, name))

    async def delete_quietly(self, name: str) -> None:
        """Delete the cache, best effort."""
        try:
            await self.delete(name)
        except PolluxError as error:
            _log.warning("The cache %s could not be deleted: %s", name, error)

    async def _unless_lost(self, operation: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await self._ask(operation)
        except CacheError as error:
            if is_lost(error):
                return None
            raise

    async def _ask(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await retry_call(lambda: self._session.ask("cache", operation()), self._session.config)


async def look_for_cache(
    calls: CacheCalls, display_name: str, until: float, clock: Clock, pauses: tuple[float, ...] = ()
) -> ProviderCache | None:
    """Look for the cache of this display name, at least once and until that time; None if it is not found."""
    remaining_pauses = iter(pauses)
    while True:
        if (found := await calls.find(display_name)) is not None:
            return found
        if (left := until - clock()) <= 0:
            return None
        await asyncio.sleep(min(next(remaining_pauses, _LOOK_S), left))
