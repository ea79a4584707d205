"""Named caches: find the cache that a run requests by its handle or by the name of its PolluxCache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pollux_flows.errors import ConfigurationError
from pollux_flows.handles import CacheHandle
from pollux_flows.options import Options
from pollux_flows.pipeline.caches import CacheRecord, CacheRegistry, CacheRequest

AUTO: Final = "auto"


@dataclass(frozen=True)
class RequestedCache:
    """The options of a run, with the handle of the cache that it requests."""

    options: Options | None
    record: CacheRecord | None = None
    """The record of a cache that was requested by name."""
    is_auto: bool = False
    """True for cache="auto": the run decides whether to create one."""

    @property
    def request(self) -> CacheRequest | None:
        """How to create the cache again; None if only its handle is known."""
        return None if self.record is None else self.record.request


async def find_requested_cache(
    cache: CacheHandle | str | None, options: Options | None, registry: CacheRegistry
) -> RequestedCache:
    """Return the options with the handle of the cache that `cache` or `options` request. Refuses both at once."""
    if cache is not None and not isinstance(cache, CacheHandle | str):
        raise ConfigurationError(
            f"cache is a {type(cache).__name__}.", hint="Pass 'auto', the name of a PolluxCache, or a cache handle."
        )
    if not isinstance(options, Options | None):
        return RequestedCache(options)  # refused later, with the other arguments
    own = None if options is None else options.cache
    if cache not in {None, AUTO} and own is not None:
        raise ConfigurationError(
            "Two caches are named: one as cache=… and one in Options(cache=…).", hint="Leave one of them out."
        )
    wanted, is_auto = (own, True) if cache == AUTO else (cache or own, False)
    if not isinstance(wanted, str):
        return RequestedCache(_with_handle(options, wanted), is_auto=is_auto)
    record = await registry.find_named(wanted)
    if record is None:
        raise ConfigurationError(
            f"There is no cache {wanted!r} in {registry.where}.",
            hint="Pass the name that warm_cache returned, such as pollux-cache-…, or cache='auto' with the sources.",
        )
    return RequestedCache(_with_handle(options, record.handle()), record, is_auto)


def _with_handle(options: Options | None, handle: CacheHandle | None) -> Options | None:
    if handle is None or (options is not None and options.cache == handle):
        return options
    return (options or Options()).model_copy(update={"cache": handle})
