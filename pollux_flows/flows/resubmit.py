"""resubmit: submit again the prompts that have no answer."""

from pollux_flows.flows.submitting import submit_again
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import JobField


@sync_form("resubmit")
async def resubmit(job: JobField) -> str:
    """Submit again the prompts of a collected job that have no answer, and return the name of the job that asks them.

    Once that job is collected, its answers are added to those of the first job. Of an ambiguous job, the batches that
    the provider does not have are submitted.

    Args:
        job: The PolluxDeferredJob, or its name.
    """
    return await submit_again(job)


aresubmit = async_form(resubmit)
