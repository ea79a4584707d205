"""resubmit: hand in again what did not succeed, and nothing else."""

from pollux_flows.flows.forms import async_form, sync_form
from pollux_flows.flows.submitting import submit_again


@sync_form("resubmit")
async def resubmit(job: str) -> str:
    """Hand in again the prompts of a collected job that have no answer, and give the name of the job that asks them.

    When that is collected, its answers take their places in the first job's. What the provider did not have, of a job
    that is ambiguous, is handed in as well.

    Args:
        job: The name of the PolluxDeferredJob.
    """
    return await submit_again(job)


aresubmit = async_form(resubmit)
