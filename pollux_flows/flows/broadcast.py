"""broadcast: the same prompts about each of many sources."""

from collections.abc import Sequence

from pollux_flows.blocks.budget import PolluxBudget, limits_of
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.answering import AutoCache, OnPartial, answer_each
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import OptionsField, PromptsField, SourceField
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.result import ResultEnvelope


@sync_form("broadcast")
async def broadcast(
    prompts: PromptsField,
    sources: Sequence[SourceField],
    provider: PolluxProvider,
    options: OptionsField = None,
    *,
    prompts_from: str | None = None,
    output: str | None = None,
    cache: AutoCache | None = None,
    reuse: Reuse = "run",
    max_age: float | None = None,
    max_cost_usd: float | None = None,
    budget: PolluxBudget | None = None,
    on_partial: OnPartial = "fail",
    require_approval: bool = False,
    calls_per_task: int | None = None,
) -> list[ResultEnvelope]:
    """Ask the same prompts about each source separately, and return one envelope per source, in order.

    Args:
        prompts: The prompts, asked about each source.
        prompts_from: Where to read the prompts from instead: pasted lines, or a .txt, .jsonl or .csv file or address.
            Name a column or field other than "prompt" after a #, as in questions.csv#question.
        provider: The PolluxProvider that answers.
        sources: The files, addresses and texts that the prompts are about.
        options: How to answer.
        output: A file that all answers are also written to: .jsonl or .csv or, ending in a slash, a folder; on this
            machine, or an address such as s3://bucket/answers.csv.
        cache: "auto": hold each source in a cache of the provider while the run lasts, where that is cheaper. The
            answers do not change.
        reuse: Which saved answers are reused: "run", those of this run when it is retried; "always", those of any
            earlier run too; "never", none.
        max_age: With "always", how old another run's answer may be, in seconds.
        max_cost_usd: The most that the answers, and caches that the run creates, may cost. A call is made only if it is
            sure to fit.
        budget: A PolluxBudget that this run shares with others. A call must fit into both budgets.
        on_partial: When some prompts have no answer, "fail" the run, so that it can be retried, or "complete" it.
        require_approval: Before the first call, wait until a person has seen the estimate and resumes the run.
        calls_per_task: How many calls each task run makes; empty for one call per task run, up to 32 task runs.
    """
    return await answer_each(
        prompts,
        provider,
        sources,
        options,
        terms=Terms(reuse=reuse, max_age=max_age, max_cost_usd=max_cost_usd, budget=limits_of(budget)),
        prompts_from=prompts_from,
        output=output,
        cache=cache,
        on_partial=on_partial,
        needs_approval=require_approval,
        calls_per_task=calls_per_task,
    )


abroadcast = async_form(broadcast)
