"""submit: submit prompts to the provider's batch system, for answers that cost less and may come later."""

from collections.abc import Sequence

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.deferred.job import OnLost
from pollux_flows.flows.submitting import submit_job
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import OptionsField, PromptsField, SourceField


@sync_form("submit")
async def submit(
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
) -> str:
    """Submit prompts about the same sources, and return the name of the PolluxDeferredJob that `collect` collects.

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
    return job.name


asubmit = async_form(submit)
