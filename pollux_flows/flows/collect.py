"""collect: bring home what the providers' batch systems have finished. Made to be run on a schedule."""

from collections.abc import Sequence

from pollux_flows.deferred.report import CollectReport
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.jobs.collector import collect_jobs


@sync_form("collect")
async def collect(jobs: Sequence[str] | None = None) -> CollectReport:
    """Look at deferred jobs, and keep the answers of those that are done. That others are not done is no failure.

    It may be run as often as one likes, at the same time as others, and be killed at any moment.

    Args:
        jobs: The names of the jobs to look at; empty for all that are not collected yet.
    """
    return await collect_jobs(jobs)


acollect = async_form(collect)
