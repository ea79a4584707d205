"""cancel: want no more of a deferred job."""

import asyncio

from pollux_flows.deferred.advance import cancel as stop
from pollux_flows.deferred.book import BusyError
from pollux_flows.deferred.inspect import snapshot
from pollux_flows.deferred.job import Job
from pollux_flows.errors import ConfigurationError
from pollux_flows.flows.forms import async_form, sync_form
from pollux_flows.jobs.book import BlockBook
from pollux_flows.jobs.configs import Configs
from pollux_flows.jobs.shelf import ResultShelf
from pollux_flows.providers.session import open_session

_TRIES = 20


@sync_form("cancel")
async def cancel(job: str) -> str:
    """Ask the provider to stop, and give the job's status. What is answered by then is paid for, and collected.

    Args:
        job: The name of the PolluxDeferredJob.
    """
    book = BlockBook(await ResultShelf.open())
    stopped = await _cancelled(book, job)
    while stopped.child is not None:  # the job that completes it
        stopped = await _cancelled(book, stopped.child)
    return snapshot(stopped).status


acancel = async_form(cancel)


async def _cancelled(book: BlockBook, name: str) -> Job:
    for _ in range(_TRIES):
        try:
            async with book.alone(name) as hold:
                async with open_session(await Configs().of(hold.job)) as session:
                    await stop(hold, session)
                return hold.job
        except BusyError:
            await asyncio.sleep(0.5)
    raise ConfigurationError(f"Somebody is at work on {name} just now.", hint="Cancel it again in a moment.")
