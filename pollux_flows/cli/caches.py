"""pollux-flows caches: list the registered caches, or delete one."""

from __future__ import annotations

import asyncio
import json as json_text
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from cyclopts import App, Parameter
from prefect.settings import PREFECT_API_URL

from pollux_flows.address import redact_address
from pollux_flows.blocks.cache import format_time
from pollux_flows.blocks.registration import load_saved_configs
from pollux_flows.caching.registry import StoreRegistry
from pollux_flows.caching.sweep import delete_cache
from pollux_flows.cli.printing import Flag, Json, refusals_in_words, say
from pollux_flows.config import KEY_VARIABLES, Config, Target
from pollux_flows.errors import ConfigurationError
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.pipeline.caches import CacheRecord, CacheRegistry, cache_name
from pollux_flows.state.account import derive_shared_account
from pollux_flows.state.store import local_folder, open_existing_store

caches = App(name="caches", help="List the providers' caches that were created here, or delete one.")

_FIELDS: Final = {"state", "contents", "tokens", "created_at", "created_by", "last_used_at", "expires_at"}
State = Annotated[
    Flag,
    Parameter(
        "--state",
        help="Use the caches of create_cache, which are in the stored state, even if a Prefect server is set.",
    ),
]


@caches.default
@caches.command(name="list")
def list_(*, state: State = False, json: Json = False) -> None:
    """List the caches on the Prefect server; without a server, those in the stored state."""
    with refusals_in_words():
        where, registry = _open_registry(state=state)
        records = asyncio.run(_list_records(registry))
    if json:
        rows = [_describe(record) for record in records]
        say(json_text.dumps({"registry": where, "caches": rows}, indent=2, ensure_ascii=False))
    elif not records:
        say(f"Registered {where}: none yet.")
    else:
        now = time.time()
        say("\n\n".join([*(_paragraph(record, now) for record in records), f"{len(records):,} registered {where}."]))


@caches.command
def delete(
    name: Annotated[
        str, Parameter(help="The name of the cache, as `pollux-flows caches` lists it, or its name at the provider.")
    ],
    /,
    *,
    state: State = False,
) -> None:
    """Delete a cache: the provider's copy, its block or record, and the files that were uploaded for it."""
    with refusals_in_words():
        where, registry = _open_registry(state=state)
        record = asyncio.run(_delete(name, where, registry))
    say(f"Deleted {cache_name(record.identity)}{f' ({record.name})' if record.name else ''}.")


def _open_registry(*, state: bool) -> tuple[str, CacheRegistry | None]:
    """Return where caches are registered, for people, and the registry; None for a state store that does not exist."""
    if (url := PREFECT_API_URL.value()) and not state:
        return f"on the Prefect server at {redact_address(url)}", BlockRegistry()
    store = open_existing_store()
    where = local_folder() if store is None else store.where
    return f"in the state store at {where}", None if store is None else StoreRegistry(store)


async def _list_records(registry: CacheRegistry | None) -> list[CacheRecord]:
    """Return all records, the most recently used first."""
    records = [] if registry is None else await registry.list()
    return sorted(records, key=lambda record: -record.last_used_at)


async def _delete(name: str, where: str, registry: CacheRegistry | None) -> CacheRecord:
    records = await _list_records(registry)
    found = next((each for each in records if name in {cache_name(each.identity), each.name}), None)
    if registry is None or found is None:
        raise ConfigurationError(
            f"No cache named {name!r} is registered {where}.", hint="List the caches with pollux-flows caches."
        )
    config = await _find_config(found, on_server=isinstance(registry, BlockRegistry))
    await delete_cache(registry, config, found.identity)
    return found


async def _find_config(record: CacheRecord, *, on_server: bool) -> Config:
    """Return a Config with the key of the cache: that of a saved provider or of the environment."""
    async for config in _configs(record.target, on_server=on_server):
        if await derive_shared_account(config.key()) == record.account:
            return config
    where = (
        "No PolluxProvider, and nothing in this environment, has" if on_server else "Nothing in this environment has"
    )
    address = "" if record.target.base_url is None else f" at {record.target.base_url}"
    raise ConfigurationError(
        f"{where} the API key that this cache was created with ({record.target.provider}{address}).",
        hint=f"Set {KEY_VARIABLES.get(record.target.provider, 'the key')} to that key, or let the cache expire.",
    )


async def _configs(target: Target, *, on_server: bool) -> AsyncIterator[Config]:
    """Yield the usable configs for a provider and address, for any model."""
    if on_server:
        async for _, config in load_saved_configs():
            # A provider without a key here may have one elsewhere.
            if isinstance(config, Config) and config.target == target.model_copy(update={"model": config.model}):
                yield config
    try:
        yield Config(**dict(target))
    except ConfigurationError:  # there is no key for this address
        return


# --- In words -------------------------------------------------------------------------------------------------------


def _describe(record: CacheRecord) -> dict[str, Any]:
    """Return a cache as JSON; times are in seconds since 1970."""
    return {
        "name": cache_name(record.identity),
        "provider": record.target.provider,
        "model": record.target.model,
        "provider_name": record.name,
        **record.model_dump(mode="json", include=_FIELDS),
    }


def _paragraph(record: CacheRecord, now: float) -> str:
    """Return the lines about a cache. A table of all this would be too wide for a terminal."""
    tokens = "tokens unknown" if record.tokens is None else f"{record.tokens:,} tokens"
    by = f", created by {record.created_by}" if record.created_by else ""
    return "\n".join(
        [
            cache_name(record.identity),
            f"  {record.target.provider} {record.target.model}, {tokens}: {', '.join(record.contents)}",
            f"  {_expiry(record, now)}; last used {format_time(record.last_used_at)}{by}",
        ]
    )


def _expiry(record: CacheRecord, now: float) -> str:
    match record.state:
        case "creating":
            return "being created"
        case "failed":
            return f"failed: {record.failure.message}" if record.failure else "failed"
        case "living":
            at = "at an unknown time" if record.expires_at is None else format_time(record.expires_at)
            return f"expires {at}" if record.remaining_s(now) > 0 else f"expired {at}"
