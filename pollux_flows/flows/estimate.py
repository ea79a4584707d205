"""estimate: estimate the cost of a run before anything is spent."""

from collections.abc import Sequence

from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.estimation.estimate import Estimate
from pollux_flows.flows.estimating import estimate_rows, estimate_run
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
    table: str | None = None,
    prompt: str | None = None,
    source_columns: Sequence[str] = (),
    id_column: str | None = None,
    limit: int | None = None,
    reuse: Reuse | None = None,
    max_age: float | None = None,
) -> Estimate:
    """Estimate calls, tokens, cost and time of a run, a batch or a table. Nothing is generated or uploaded.

    Args:
        prompts: The prompts.
        prompts_from: Where to read the prompts from instead: pasted lines, or a .txt, .jsonl or .csv file or address.
            Name a column or field other than "prompt" after a #, as in questions.csv#question.
        provider: The PolluxProvider that would answer. If it can, it counts the tokens of a sample, which is free.
        sources: The files, addresses and texts that the prompts are about.
        options: How to answer.
        each_source: Whether the prompts are asked about each source separately, as in a broadcast.
        table: Estimate a prompt about each row of this table instead, as map_rows asks it.
        prompt: The prompt for each row, with columns in braces, as in "Summarize {title}: {body}".
        source_columns: Columns of the table with sources that the prompt is about.
        id_column: A column with a unique id for each row; a table in which an id occurs twice is refused.
        limit: How many rows to read; empty for all.
        reuse: Which saved answers would be reused: "always", those of any earlier run; "run" and "never", none that
            exist before the run begins. Empty: "always" for a table, otherwise "run".
        max_age: With "always", how old another run's answer may be, in seconds.
    """
    if table is not None or prompt is not None:
        return await estimate_rows(
            table,
            prompt,
            provider,
            options,
            terms=Terms(reuse=reuse or "always", max_age=max_age),
            source_columns=source_columns,
            id_column=id_column,
            limit=limit,
            others=[*prompts, *sources, *([] if prompts_from is None else [prompts_from])],
        )
    return await estimate_run(
        prompts,
        provider,
        sources,
        options,
        terms=Terms(reuse=reuse or "run", max_age=max_age),
        prompts_from=prompts_from,
        each_source=each_source,
    )


aestimate = async_form(estimate)
