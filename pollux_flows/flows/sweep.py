"""sweep: delete files and caches at the providers that no run needs any more."""

import time
from collections.abc import AsyncIterator

from pollux_flows import artifacts
from pollux_flows.blocks.registration import load_saved_configs
from pollux_flows.caching.registry import open_registry
from pollux_flows.caching.sweep import sweep_caches
from pollux_flows.capabilities import support
from pollux_flows.config import KEY_VARIABLES, Config, from_environment
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.jobs.connection import read_server_time
from pollux_flows.jobs.events import emit_cache_event
from pollux_flows.pipeline.cleanup import delete_due
from pollux_flows.providers.session import open_session
from pollux_flows.result import SweepReport, SweptFile
from pollux_flows.state.clock_check import LARGEST_JUMP_S
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.store import open_store


@sync_form("sweep")
async def sweep() -> SweepReport:
    """Delete idle files and caches, find those that a killed run left behind, and retry failed deletions.

    Uses every key that this worker can find: those of saved providers, and those of its environment.
    """
    await _check_clock()
    ledger = Ledger(open_store())
    removed: list[SweptFile] = []
    caches: list[str] = []
    unusable: list[str] = []
    unreadable: list[str] = []
    seen: set[tuple[str, str | None, str | None]] = set()
    async for name, config in _configs(unusable):
        account = (config.provider, config.base_url, config.key())
        if config.use_mock or account in seen:  # the files of a simulator end with its process
            continue
        seen.add(account)
        try:
            async with open_session(config) as session:
                deleted = await delete_due(session, ledger)
            caches += await _sweep_caches(config)
        except PolluxError as error:
            unusable.append(f"{name}: {error}")
            continue
        removed += [SweptFile(provider=config.provider, file_id=file_id) for file_id in deleted]
    left = [
        SweptFile(
            provider=due.key.provider,
            file_id=due.uploaded.file_id if due.uploaded else f"named {due.marker}",
            why=due.why or "no key of its account was found here",
        )
        for due in await ledger.list_due(unreadable=unreadable)
    ]
    report = SweepReport(removed=removed, left=left, unusable=unusable, unreadable=unreadable, caches=caches)
    await artifacts.publish_sweep(report)
    return report


asweep = async_form(sweep)


async def _sweep_caches(config: Config) -> list[str]:
    """Delete the caches of this account that no run needs any more, and return the name and reason of each."""
    if support(config.provider, "persistent_cache") == "no":
        return []
    blocks, store = BlockRegistry(), open_registry(config)
    records = {record.identity: record for record in await blocks.list()}
    swept = await sweep_caches(blocks, config)
    for cache in swept:
        if cache.reason == "expired" and cache.identity in records:
            await emit_cache_event(records[cache.identity], "expired")
    swept += await sweep_caches(store, config)
    return [f"{cache.name or cache.identity}: {cache.reason}" for cache in swept]


async def _check_clock() -> None:
    """Refuse to delete if the clock is wrong, as files that other runs still use would seem expired."""
    server_time = await read_server_time()
    ahead_s = 0.0 if server_time is None else time.time() - server_time
    if abs(ahead_s) > LARGEST_JUMP_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        raise ConfigurationError(
            f"The clock of this worker is {abs(ahead_s) / 86_400:.0f} days {way} that of the Prefect server, so "
            "nothing was deleted.",
            hint="Set the clock that is wrong, then run sweep again.",
        )


async def _configs(unusable: list[str]) -> AsyncIterator[tuple[str, Config]]:
    async for name, config in load_saved_configs():
        if isinstance(config, PolluxError):
            unusable.append(f"{name}: {config}")
        else:
            yield name, config
    for provider, variable in KEY_VARIABLES.items():
        if from_environment(variable):
            yield variable, Config(provider=provider, model="any")
