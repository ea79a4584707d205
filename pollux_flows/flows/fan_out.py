"""fan_out: many prompts about the same sources."""

from collections.abc import Sequence

from pollux_flows.blocks.budget import PolluxBudget, limits_of
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.flows.answering import Cache, OnPartial, answer
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import OptionsField, PromptsField, SourceField
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.result import ResultEnvelope


@sync_form("fan-out")
async def fan_out(
    prompts: PromptsField,
    provider: PolluxProvider,
    sources: Sequence[SourceField] = (),
    options: OptionsField = None,
    *,
    prompts_from: str | None = None,
    output: str | None = None,
    cache: Cache = None,
    reuse: Reuse = "run",
    max_age: float | None = None,
    max_cost_usd: float | None = None,
    budget: PolluxBudget | None = None,
    on_partial: OnPartial = "fail",
    require_approval: bool = False,
    calls_per_task: int | None = None,
) -> ResultEnvelope:
    """Ask many things about the same sources.

    Args:
        prompts: What is asked.
        prompts_from: Where to read the prompts, instead: lines pasted here, or a .txt, .jsonl or .csv file or address.
            A column or field other than "prompt" is named behind a #, as in questions.csv#question.
        provider: The PolluxProvider that answers.
        sources: What the prompts are about.
        options: How to answer.
        output: Where the answers are to be written as well, all of them: a .jsonl or .csv file or, with a slash at its
            end, a folder; on this machine, or an address such as s3://bucket/answers.csv.
        cache: The PolluxCache that the prompts are about, by name, or "auto": hold the sources in a cache of the
            provider while the run lasts, where that is cheaper. It changes no answer.
        reuse: Which answers are not asked for again: "run", those of this run, when it is retried; "always", any
            earlier run's as well; "never", none.
        max_age: With "always", how old another run's answer may be, in seconds.
        max_cost_usd: The most that answers, and caches that the run creates, cost. A call is made if it surely fits.
        budget: A PolluxBudget that the run shares with others. A call must fit into both.
        on_partial: When some prompts have no answer, "fail" the run, so that it can be retried, or "complete" it.
        require_approval: Before anything is asked, wait until a person has seen the estimate and resumes the run.
        calls_per_task: How many calls a task run makes; empty for one each, up to 32 task runs.
    """
    return await answer(
        "fan-out",
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


afan_out = async_form(fan_out)
