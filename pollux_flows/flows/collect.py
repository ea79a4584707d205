"""collect: collect the answers of finished batches from the providers. Made to run on a schedule."""

from collections.abc import Sequence

from pollux_flows.deferred.report import CollectReport
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.jobs.collector import collect_jobs


@sync_form("collect")
async def collect(jobs: Sequence[str] | None = None) -> CollectReport:
    """Check deferred jobs, and save the answers of those that are done. Jobs still in progress are no failure.

    Safe to run as often as you like, concurrently with other runs, and to kill at any moment.

    Args:
        jobs: The names of the jobs to check; empty for all that are not collected yet.
    """
    return await collect_jobs(jobs)


acollect = async_form(collect)
