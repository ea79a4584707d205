"""deferred: submit a batch, wait for it, and return its answers, in one call."""

from collections.abc import Sequence

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.deferred.job import OnLost
from pollux_flows.flows.answering import OnPartial
from pollux_flows.flows.submitting import submit_job
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import OptionsField, PromptsField, SourceField
from pollux_flows.flows.waiting import wait_or_resubmit
from pollux_flows.result import ResultEnvelope


@sync_form("deferred")
async def deferred(
    prompts: PromptsField,
    provider: PolluxProvider,
    sources: Sequence[SourceField] = (),
    options: OptionsField = None,
    *,
    prompts_from: str | None = None,
    output: str | None = None,
    resubmit: int = 0,
    on_lost: OnLost = "submit",
    max_cost_usd: float | None = None,
    require_approval: bool = False,
    on_partial: OnPartial = "fail",
) -> ResultEnvelope:
    """Ask at batch prices, and wait for the answers.

    As a deployment, its run is suspended, and nothing runs, until `collect` resumes it; `collect` must be deployed on a
    schedule. Anywhere else, such as in a flow of your own, it polls with increasing intervals.

    Args:
        prompts: The prompts.
        prompts_from: Where to read the prompts from instead: pasted lines, or a .txt, .jsonl or .csv file or address.
            Name a column or field other than "prompt" after a #, as in questions.csv#question.
        provider: The PolluxProvider that answers: gemini, openai or anthropic.
        sources: The files, addresses and texts that the prompts are about.
        options: How to answer.
        output: A file that all answers are also written to: .jsonl or .csv or, ending in a slash, a folder; on this
            machine, or an address such as s3://bucket/answers.csv.
        resubmit: How often failed prompts that may succeed the next time are submitted again automatically.
        on_lost: What to do when the provider seems to have no batch of this job, for instance after a crash: "submit"
            it again, or "report" it and leave that to a person.
        max_cost_usd: Submit nothing if the answers may cost more than this, at batch prices.
        require_approval: Before anything is sent, wait until a person has seen the estimate and resumes the run.
        on_partial: When some prompts have no answer, "fail" the run, so that a retry asks those, or "complete" it.
    """
    job = await submit_job(
        prompts,
        provider,
        sources,
        options,
        prompts_from=prompts_from,
        output=output,
        resubmit=resubmit,
        on_lost=on_lost,
        max_cost_usd=max_cost_usd,
        needs_approval=require_approval,
    )
    return await wait_or_resubmit(job, on_partial=on_partial, options=options)


adeferred = async_form(deferred)
