"""estimate: what a run will cost, before anything is spent."""

from collections.abc import Sequence

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.estimation.estimate import Estimate
from pollux_flows.flows.estimating import estimate_run
from pollux_flows.flows.sync_and_async import async_form, sync_form
from pollux_flows.flows.ui_forms import OptionsField, SourceField
from pollux_flows.pipeline.terms import Reuse, Terms


@sync_form("estimate")
async def estimate(
    prompts: Sequence[str],
    provider: PolluxProvider,
    sources: Sequence[SourceField] = (),
    options: OptionsField = None,
    *,
    prompts_from: str | None = None,
    each_source: bool = False,
    reuse: Reuse = "run",
    max_age: float | None = None,
) -> Estimate:
    """Estimate calls, tokens, cost and time of a fan-out, a broadcast or a batch. Nothing is generated or uploaded.

    Args:
        prompts: What would be asked.
        prompts_from: Where to read the prompts, instead: lines pasted here, or a .txt, .jsonl or .csv file or address.
            A column or field other than "prompt" is named behind a #, as in questions.csv#question.
        provider: The PolluxProvider that would answer. It counts the tokens of a sample, if it can; that is free.
        sources: What the prompts are about.
        options: How to answer.
        each_source: Whether the prompts are about each source by itself, as in a broadcast.
        reuse: Which answers would not be asked for again: "always", those of any earlier run; "run" and "never", none
            that are there before the run begins.
        max_age: With "always", how old another run's answer may be, in seconds.
    """
    return await estimate_run(
        prompts,
        provider,
        sources,
        options,
        terms=Terms(reuse=reuse, max_age=max_age),
        prompts_from=prompts_from,
        each_source=each_source,
    )


aestimate = async_form(estimate)
