"""wait_for: the answers of a job that was submitted earlier."""

from pollux_flows.flows.answering import OnPartial
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import JobField
from pollux_flows.flows.waiting import answers_of
from pollux_flows.result import ResultEnvelope


@sync_form("wait-for")
async def wait_for(job: JobField, *, on_partial: OnPartial = "fail") -> ResultEnvelope:
    """Wait for a deferred job, and give its answers.

    Deployed by itself, nothing runs meanwhile: its run is suspended, and resumed by `collect`, which must be deployed
    on a schedule. Anywhere else, in a flow of yours for one, it looks itself, ever more seldom.

    Args:
        job: The PolluxDeferredJob, or its name.
        on_partial: When some prompts have no answer, "fail" the run or "complete" it.
    """
    return await answers_of(job, on_partial=on_partial)


await_for = async_form(wait_for)
