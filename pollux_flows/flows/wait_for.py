"""wait_for: wait for a job that was submitted earlier, and return its answers."""

from pollux_flows.flows.answering import OnPartial
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import JobField
from pollux_flows.flows.waiting import wait_for_answers
from pollux_flows.result import ResultEnvelope


@sync_form("wait-for")
async def wait_for(job: JobField, *, on_partial: OnPartial = "fail") -> ResultEnvelope:
    """Wait for a deferred job, and return its answers.

    As a deployment, its run is suspended, and nothing runs, until `collect` resumes it; `collect` must be deployed on a
    schedule. Anywhere else, such as in a flow of your own, it polls with increasing intervals.

    Args:
        job: The PolluxDeferredJob, or its name.
        on_partial: When some prompts have no answer, "fail" the run or "complete" it.
    """
    return await wait_for_answers(job, on_partial=on_partial)


await_for = async_form(wait_for)
