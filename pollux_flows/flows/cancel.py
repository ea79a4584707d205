"""cancel: ask the provider to stop a deferred job."""

import asyncio

from pollux_flows.deferred.advance import cancel as stop
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.report import snapshot
from pollux_flows.deferred.store import BusyError
from pollux_flows.errors import ConfigurationError
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import JobField
from pollux_flows.jobs.store import BlockJobStore, JobConfigs
from pollux_flows.providers.session import open_session

_TRIES = 20


@sync_form("cancel")
async def cancel(job: JobField) -> str:
    """Ask the provider to stop a deferred job, and return its status. Finished answers are billed, and collected.

    Args:
        job: The PolluxDeferredJob, or its name.
    """
    store = await BlockJobStore.open()
    stopped = await _cancel(store, job)
    while stopped.child is not None:  # the job that completes it
        stopped = await _cancel(store, stopped.child)
    return snapshot(stopped).status


acancel = async_form(cancel)


async def _cancel(store: BlockJobStore, name: str) -> Job:
    for _ in range(_TRIES):
        try:
            async with store.lock(name) as lock:
                async with open_session(await JobConfigs().load(lock.job)) as session:
                    await stop(lock, session)
                return lock.job
        except BusyError:
            await asyncio.sleep(0.5)
    raise ConfigurationError(f"Another run is working on {name} just now.", hint="Cancel it again in a moment.")
